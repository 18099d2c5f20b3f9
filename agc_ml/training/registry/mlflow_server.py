"""MLflow's server beside the service: started, supervised, and found again after a crash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import urllib3

from agc_ml.errors import UsageError
from agc_ml.files import write_private
from agc_ml.models.registry import ARTIFACTS, DATABASE
from agc_ml.training.http.logs import rotate

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
LOG: Final = "mlflow.log"
_STATE: Final = "mlflow.json"
_PROTOCOL: Final = "agc_ml.training.http.connections:Reading"
# Host names of MLflow; patterns of its default list, such as 10.*, match foreign names
_HOSTS: Final = "127.0.0.1,127.0.0.1:*,localhost,localhost:*"

_USERS: Final = "mlflow-users.db"
_CONFIG: Final = "mlflow-auth.ini"
ADMIN: Final = "agc-ml"
VIEWER: Final = "viewer"
# Deadline for the first answer
START_S: Final = 120.0

# Least time between two starts
AGAIN_S: Final = 15.0

_OK: Final = 200
# Status if a user exists already
_EXISTS: Final = 400


class MlflowServer:
    """MLflow server on a folder, with two users: the service, and a read-only viewer."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder.absolute()
        state = self._read()
        self._passwords = state.get("passwords") or {
            ADMIN: secrets.token_urlsafe(24),
            VIEWER: secrets.token_urlsafe(12),
        }
        self._earlier_port = int(state.get("port", 0))
        self.port = port or self._earlier_port or _free_port()
        self._pid = int(state.get("pid", 0))
        self._process: subprocess.Popen[bytes] | None = None
        self._has_viewer = False
        self._next = self._patience = 0.0

    @property
    def url(self) -> str:
        """Address of its pages."""
        return f"http://{HOST}:{self.port}"

    @property
    def viewer(self) -> tuple[str, str]:
        """Name and password of the read-only user."""
        return VIEWER, self._passwords[VIEWER]

    def claim_port(self) -> None:
        """Check that its port is free, or that it still runs there.

        Raises
        ------
        UsageError
            Another process uses the port.
        """
        # a server of an earlier start is used again
        if self.port == self._earlier_port and self.is_up():
            logger.info("MLflow runs already at %s", self.url)
            return
        self._stop_earlier()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise UsageError(
                    f"port {self.port}: {error.strerror}; name another one with --mlflow-port"
                ) from error

    def _start(self) -> None:
        self._stop_earlier()
        # The file may be incomplete, or have other passwords: MLflow makes it again.
        for stale in self._folder.glob(f"{_USERS}*"):
            stale.unlink()
        self._has_viewer = False
        config = self._folder / _CONFIG
        write_private(config, self._config())
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / DATABASE}"]
        command += ["--artifacts-destination", str(self._folder / ARTIFACTS)]
        command += ["--host", HOST, "--port", str(self.port), "--workers", "1"]
        # the service checks it every few seconds, for years
        command += ["--uvicorn-opts", f"--no-access-log --http {_PROTOCOL}"]
        with (self._folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - MLflow, of our own environment
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONSAFEPATH": "1",  # nothing is imported from the working directory
                    "MLFLOW_AUTH_CONFIG_PATH": str(config),
                    "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ALLOWED_HOSTS": _HOSTS,
                },
            )
        self._pid = self._process.pid
        self._write()

    def watch(self) -> bool:
        """Start it if it does not run, and rotate its log; return whether it answers."""
        rotate(self._folder / LOG)
        if self.is_up():
            if not self._has_viewer:
                user = {"username": VIEWER, "password": self._passwords[VIEWER]}
                status = self._ask("POST", "/api/2.0/mlflow/users/create", user)
                self._has_viewer = status in {_OK, _EXISTS}
            return True
        # restart it, unless it is still starting
        now, process = time.monotonic(), self._process
        is_starting = process is not None and process.poll() is None and now < self._patience
        if not is_starting and now >= self._next:
            if process is not None:
                logger.warning("MLflow does not answer: restarted; see %s", self._folder / LOG)
            self._next, self._patience = now + AGAIN_S, now + START_S
            self._start()
        return False

    def is_up(self) -> bool:
        """Return whether our process answers."""
        # The password is for our process only, not for another one on its port.
        if "mlflow" not in _command(self._pid):
            return False
        return self._ask("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 1}) == _OK

    def stop(self) -> None:
        """Stop it and its children."""
        self._stop_earlier()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        self._process = None

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> int:
        try:
            answer = urllib3.request(
                method,
                self.url + path,
                json=body,
                headers=urllib3.make_headers(basic_auth=f"{ADMIN}:{self._passwords[ADMIN]}"),
                timeout=5,
                retries=False,
            )
        except urllib3.exceptions.HTTPError:
            return 0
        return answer.status

    def _stop_earlier(self) -> None:
        """Stop the process of the state file, if it is still MLflow."""
        if "mlflow" not in _command(self._pid):
            return
        # the process group, as MLflow starts workers
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, number)
            deadline = time.monotonic() + 5
            while _command(self._pid) and time.monotonic() < deadline:
                if self._process is not None:
                    self._process.poll()  # reaps it
                time.sleep(0.05)

    def _config(self) -> str:
        return "\n".join(
            [
                "[mlflow]",
                "default_permission = READ",
                f"database_uri = sqlite:///{self._folder / _USERS}",
                f"admin_username = {ADMIN}",
                f"admin_password = {self._passwords[ADMIN]}",
                "authorization_function = agc_ml.training.registry.mlflow_access:authenticate",
                "",
            ]
        )

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._folder / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state

    def _write(self) -> None:
        state = {"port": self.port, "pid": self._pid, "passwords": self._passwords}
        write_private(self._folder / _STATE, json.dumps(state))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _command(pid: int) -> str:
    """Return the command line of a process, '' if there is none."""
    if not pid:
        return ""
    import psutil  # noqa: PLC0415 - only here

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""
