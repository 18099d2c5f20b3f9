"""The training service as a whole: started on a folder, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from agc_ml import files
from agc_ml.errors import AgcError, ModelError, StoreError, UsageError
from agc_ml.models.registry import check_path
from agc_ml.models.registry_access import CLIENT
from agc_ml.training.http import guard, logs
from agc_ml.training.http.guard import Names
from agc_ml.training.registry.mlflow_server import MlflowServer
from agc_ml.training.service import job_manager, tokens
from agc_ml.training.service.api_jobs import UPLOAD
from agc_ml.training.service.app import application
from agc_ml.training.service.context import House
from agc_ml.training.service.database import Job
from agc_ml.training.service.job_manager import Outcome, Settings, Training

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
OWNER: Final = "owner"
"""Name of the token that is made with the folder."""

BACKLOG: Final = 4096
"""Connections that may wait to be accepted; more than a system allows are as many as it allows."""

TICK_S: Final = 0.2
WATCH_S: Final = 3.0
AGAIN_S: Final = 3.0
"""Between two attempts to reach the registry for a job."""


@dataclass(frozen=True)
class Address:
    """Where the service listens, and how it is protected.

    ``certificate`` and ``key`` are files for TLS. ``open_to_all``: nobody needs a token, which is
    possible on this machine only. ``host_names`` are those of proxies before it.
    """

    host: str = HOST
    port: int = 8500
    mlflow_port: int = 8501
    certificate: Path | None = None
    key: Path | None = None
    open_to_all: bool = False
    max_upload: int = 2 << 30
    host_names: tuple[str, ...] = ()

    @property
    def names(self) -> Names:
        """Names under which it is reached."""
        return guard.names_of(self.host, self.host_names)


def serve(
    settings: Settings, address: Address, announce: Callable[[str, Path, MlflowServer], None]
) -> None:
    """Be a training service until SIGINT or SIGTERM.

    ``announce`` is called when it listens, with its URL, a configuration for clients, and MLflow.

    Raises
    ------
    UsageError
        The folder holds something else or is in use, a port is, or strangers would need no token.
    StoreError
        The folder can't be written.
    """
    _check(address)
    folder = settings.folder
    check_path(folder)
    with files.store_errors(folder):
        is_ours = files.is_unused(folder) or (folder / job_manager.TABLE).exists()
    if not is_ours:
        raise UsageError(f"{folder}: holds other files; name a new folder with -o")
    with files.owned(folder), _bound(address) as listener:
        folder.chmod(0o700)
        for abandoned in folder.glob(f"{UPLOAD}*"):  # by a service that was killed
            abandoned.unlink()
        mlflow = MlflowServer(folder, address.mlflow_port)
        mlflow.claim()
        training = Training(settings)
        try:
            asyncio.run(_serve(training, address, listener, mlflow, announce))
        finally:
            training.close()
            mlflow.stop()


def _check(address: Address) -> None:
    guard.names_of(address.host, address.host_names)
    is_here = guard.is_loopback(address.host)
    if not is_here and address.open_to_all:
        raise UsageError(
            f"--no-auth with --host {address.host}: anyone who reaches it could replace models; "
            "leave one of the two out"
        )
    if (address.certificate is None) != (address.key is None):
        raise UsageError("--certificate and --key belong together")
    if address.certificate is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                address.certificate, address.key
            )
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{address.certificate}, {address.key}: no certificate with its key ({error})"
            ) from error
    if not is_here and address.certificate is None:
        logger.warning(
            "tokens travel unencrypted to %s: give --certificate and --key, or put a proxy with "
            "TLS before it",
            address.host,
        )


@contextlib.contextmanager
def _bound(address: Address) -> Any:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server(
            (address.host, address.port), family=family, backlog=BACKLOG
        )
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
        raise UsageError(
            f"{address.host}, port {address.port}: {why}; name another with --host and --port"
        ) from error
    # asyncio does this only to sockets that say they are of TCP, which this one doesn't. Without
    # it the body of an answer waits until its headers are acknowledged, up to 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


async def _serve(
    training: Training,
    address: Address,
    listener: socket.socket,
    mlflow: MlflowServer,
    announce: Callable[[str, Path, MlflowServer], None],
) -> None:
    from agc_ml.training.http.http_server import server_of  # noqa: PLC0415 - uvicorn, only here

    with ThreadPoolExecutor(1, "talker") as talker, ThreadPoolExecutor(2, "reader") as readers:
        house = House(
            training=training,
            talker=talker,
            readers=readers,
            mlflow_url=mlflow.url,
            max_upload=address.max_upload,
            names=address.names,
            open_to_all=address.open_to_all,
        )
        server = server_of(application(house), address.certificate, address.key)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _stop, server)
        scheme = "http" if address.certificate is None else "https"
        host = f"[{address.host}]" if ":" in address.host else address.host
        url = f"{scheme}://{host}:{listener.getsockname()[1]}"
        client = _write_client(training, url, mlflow)
        watching = asyncio.create_task(_watch(house, mlflow))
        working = asyncio.create_task(_work(house))
        announcing = asyncio.create_task(_announce(server, url, client, mlflow, announce))
        serving = asyncio.create_task(server.serve([listener]))
        done, _ = await asyncio.wait(
            {serving, working, watching}, return_when=asyncio.FIRST_COMPLETED
        )
        server.should_exit = True
        for task in (watching, working, announcing):
            task.cancel()
        await asyncio.gather(serving, watching, working, announcing, return_exceptions=True)
        for task in done:
            task.result()


def _stop(server: Any) -> None:
    server.should_exit = True


async def _announce(
    server: Any, url: str, client: Path, mlflow: MlflowServer, announce: Callable[..., None]
) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.02)
    announce(url, client, mlflow)


async def _watch(house: House, mlflow: MlflowServer) -> None:
    """Open the registry, settle what was begun in it, and keep MLflow's pages up."""
    while not house.is_open:
        try:
            await house.talk(house.training.registry.open)
            await house.talk(house.training.promoting.settle)
            house.is_open = True
        except (AgcError, OSError) as error:
            logger.error("%s", error)  # noqa: TRY400 - one line says it
            await asyncio.sleep(AGAIN_S)
        except Exception:  # what it is made of can't be loaded, for now
            logger.exception("the registry can't be opened")
            await asyncio.sleep(AGAIN_S)
    while True:
        try:
            house.is_mlflow_up = await house.read(mlflow.watch)
        except (AgcError, OSError) as error:
            house.is_mlflow_up = False
            logger.error("MLflow can't be started: %s", error)  # noqa: TRY400 - one line says it
        except Exception:
            house.is_mlflow_up = False
            logger.exception("MLflow can't be looked after")
        await asyncio.sleep(WATCH_S)


async def _work(house: House) -> None:
    """Look after jobs, one of them at the registry at a time."""
    training = house.training
    at_registry: asyncio.Task[None] | None = None
    later: dict[str, float] = {}
    while True:
        try:
            waiting = training.step()
        except StoreError as error:
            logger.error("%s", error)  # noqa: TRY400 - one line says it
            waiting = []
        except Exception:  # of one job; the service is for all
            logger.exception("jobs can't be looked after")
            await asyncio.sleep(AGAIN_S)
            continue
        if at_registry is None or at_registry.done():
            now = time.monotonic()
            due = [job for job in waiting if later.get(job.id, 0) <= now]
            if due and house.is_open:
                later[due[0].id] = now + AGAIN_S
                at_registry = asyncio.create_task(_advance(house, due[0]))
        logs.tell_what_was_left_out()
        await asyncio.sleep(TICK_S)


async def _advance(house: House, job: Job) -> None:
    training = house.training
    outcome: Outcome
    try:
        if job.state == "queued":
            outcome = await house.talk(training.prepare, job)
        else:
            outcome = await house.talk(training.publish, job)
    except (ModelError, StoreError, OSError) as error:
        outcome = error
    except Exception as error:
        logger.exception("job %s", job.id)
        outcome = error
    try:
        job_manager.settle(training, job, outcome)
    except StoreError as error:  # the job stays what it is, and is tried again
        logger.error("job %s: %s", job.id, error)  # noqa: TRY400 - one line says it


def _write_client(training: Training, url: str, mlflow: MlflowServer) -> Path:
    """Write what clients need: the URL and a token, which is made if there is none yet."""
    path = training.folder / CLIENT
    token = None
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        token = str(yaml.safe_load(path.read_text())["token"])
    if token is None or tokens.known(training.table, token) is None:
        with contextlib.suppress(AgcError):
            training.table.revoke_token(OWNER)
        token = tokens.issue(training.table, OWNER, "promote", None)
    user, password = mlflow.viewer
    content = {
        "url": url,
        "token": token,
        "mlflow": {"url": mlflow.url, "user": user, "password": password},
    }
    files.write_private(path, yaml.safe_dump(content, sort_keys=False))
    return path
