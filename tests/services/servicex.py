"""A ServiceX endpoint as people start it: the command in a process, on a free loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import PROGRAM

STOP_S = 20
WAIT_S = 60
ALL = "uproot-raw,func_adl,python"


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint; ``config`` is for ``deliver(..., config_path=...)``."""

    url: str
    config: Path
    folder: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def token(self) -> str:
        """The refresh token."""
        return str(yaml.safe_load(self.config.read_text())["api_endpoints"][0]["token"])

    def adapter(self, token: str | None = None) -> Any:
        """The client's own adapter to the REST interface; its calls are coroutines."""
        from servicex.servicex_adapter import ServiceXAdapter  # noqa: PLC0415 - heavy

        return ServiceXAdapter(self.url, self.token if token is None else token)

    def results(self, request_id: str) -> list[dict[str, Any]]:
        """All of ``/results``, of which the client keeps what went well only."""
        return list(self.get(f"/servicex/transformation/{request_id}/results")["results"])

    def headers(self) -> dict[str, str]:
        """Headers of a request that may be made."""
        return dict(asyncio.run(self.adapter()._get_authorization()))

    def get(self, path: str) -> Any:
        """What is at a path of the REST interface."""
        import httpx  # noqa: PLC0415 - heavy

        headers = self.headers()
        answer = httpx.get(self.url + path, headers=headers)
        answer.raise_for_status()
        return answer.json()

    def kill(self) -> None:
        """End it as a power cut does, but for the files' system."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop it as Ctrl-C does; its exit code comes back."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_S)
        finally:
            self.kill()


@contextlib.contextmanager
def endpoint(
    folder: Path, *options: object, port: int = 0, codegens: str = ALL, **variables: str
) -> Iterator[Endpoint]:
    """Start an endpoint on a folder, wait until it is ready, and stop it at the end.

    It has all code generators unless others are named, or none for the default.
    """
    command = [PROGRAM, "service", "servicex", "-v", "-o", folder, "--port", port, *options]
    command += ["--codegens", codegens] if codegens else []
    log = folder.with_name(f"{folder.name}.log")
    with log.open("a") as errors:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
            text=True,
        )
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.readline()  # at its end, if it does not start
        ready = re.fullmatch(r'ServiceX at (\S+): deliver\(spec, config_path="(.+)"\)\n', said)
        if ready is None:
            process.kill()
            process.wait()
            pytest.fail(f"the endpoint does not start: {said} {log.read_text()[-2000:]}")
        running = Endpoint(ready[1], Path(ready[2]), folder, process)
        try:
            yield running
        finally:
            running.stop()


def submitted(endpoint: Endpoint, files: list[Path], query: Any) -> str:
    """Send a request as the client does; its id comes back."""
    from servicex.models import TransformRequest  # noqa: PLC0415 - heavy

    request = TransformRequest(
        title="a request",
        file_list=[str(path) for path in files],
        selection=query.generate_selection_string(),
        codegen=query.default_codegen,
        result_destination="object-store",
        result_format="root-file",
    )
    return str(asyncio.run(endpoint.adapter().submit_transform(request)))


def awaited(endpoint: Endpoint, request_id: str, condition: Callable[[Any], bool]) -> Any:
    """The client's view of a request as soon as it is so."""
    adapter, deadline = endpoint.adapter(), time.monotonic() + WAIT_S
    while True:
        status = asyncio.run(adapter.get_transform_status(request_id))
        if condition(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def finished(endpoint: Endpoint, request_id: str) -> Any:
    """The client's view of a request when nothing is left to do."""
    return awaited(endpoint, request_id, lambda status: status.status.value == "Complete")


@contextlib.contextmanager
def tidied() -> Iterator[None]:
    """Room for the client, which leaves its databases open."""
    from tinydb import TinyDB  # noqa: PLC0415 - heavy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            for left in gc.get_objects():  # what a traceback holds on to would outlive this
                if type(left) is TinyDB:
                    left.close()


@pytest.fixture(scope="session")
def servicex_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint with two workers."""
    from conftest import absent  # noqa: PLC0415 - the tests' own, importable when they run

    if find_spec("servicex") is None or find_spec("func_adl_uproot") is None:
        absent("no ServiceX: install it with pip install 'agc-ml[endpoint]'")
    folder = tmp_path_factory.mktemp("servicex") / "endpoint"
    with endpoint(folder, "--workers", 2, "--timeout", 60) as running:
        yield running
