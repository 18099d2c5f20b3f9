"""The endpoint as a whole: started on a folder, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from tornado.web import Application, RequestHandler

from agc_ml import files
from agc_ml.errors import StoreError, UsageError
from agc_ml.servicex_endpoint import logs, rest, storage
from agc_ml.servicex_endpoint.credentials import FILE as SECRETS
from agc_ml.servicex_endpoint.credentials import Credentials, read_token
from agc_ml.servicex_endpoint.objects import Objects
from agc_ml.servicex_endpoint.requests import MOST_BYTES, escaped
from agc_ml.servicex_endpoint.server import Server
from agc_ml.servicex_endpoint.state import State
from agc_ml.servicex_endpoint.transformation.transforms import Transforms
from agc_ml.servicex_endpoint.transformation.workers import Allowance, Workers
from agc_ml.servicex_endpoint.translation.generators import DEFAULT
from agc_ml.servicex_endpoint.translation.translation import Translators

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
STATE: Final = "state.sqlite"
CLIENT: Final = "servicex.yaml"
NAME: Final = "agc-ml"

_OURS_ALONE: Final = 0o700
_LONGEST_LOGGED: Final = 200  # characters of a path


class Settings(NamedTuple):
    """How an endpoint is to be: port 0 is any free one, ``allowed`` is for each input."""

    folder: Path
    port: int
    workers: int
    allowed: Allowance
    token_file: Path | None = None
    codegens: tuple[str, ...] = DEFAULT


def serve(settings: Settings, announce: Callable[[str, Path], None]) -> None:
    """Be an endpoint until SIGINT or SIGTERM.

    ``announce`` is called when it is ready, with its URL and a configuration for clients.

    Raises
    ------
    UsageError
        The folder holds something else or is in use, or the port is.
    StoreError
        The folder can't be written.
    """
    folder = settings.folder
    token = None if settings.token_file is None else read_token(settings.token_file)
    with files.store_errors(folder):
        is_ours = files.is_unused(folder) or (folder / SECRETS).exists()
    if not is_ours:
        raise UsageError(f"{folder}: holds other files; name a new folder with -o")
    with files.owned(folder), _errors(folder), logs.limited():
        folder.chmod(_OURS_ALONE)
        credentials = Credentials.of(folder, token)
        with closing(State(folder / STATE)) as state:
            asyncio.run(_serve(settings, state, credentials, announce))


async def _serve(
    settings: Settings,
    state: State,
    credentials: Credentials,
    announce: Callable[[str, Path], None],
) -> None:
    listener = _bind(settings.port)
    address = f"{HOST}:{listener.getsockname()[1]}"
    folder = settings.folder.absolute()
    kept = Objects(folder / "objects")
    with closing(Workers(folder / "work", kept, settings.allowed, settings.codegens)) as workers:
        translators = Translators(folder / "translation")
        transforms = Transforms(state, kept, workers)
        endpoint = rest.Endpoint(
            address, credentials, state, transforms, translators, settings.codegens
        )
        application = _application(endpoint, kept)
        server = Server(application, longest_body=2 * MOST_BYTES)  # ours, with a reason, is less
        application.settings["log_function"] = partial(_log, server)
        server.listen_on(listener)
        client = folder / CLIENT
        files.write_private(client, _client(address, credentials.token, folder / "cache"))
        announce(f"http://{address}", client)
        warming = asyncio.create_task(translators.warm())
        await _until_stopped(transforms.run(settings.workers))
        warming.cancel()
        await asyncio.wait({warming})
        server.stop_listening(listener)
        await server.close_all_connections()
        await translators.close()


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Do the work until a signal comes; if it ends before, that is an error."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    if isinstance(results[0], ExceptionGroup):
        raise results[0].exceptions[0]


def _application(endpoint: rest.Endpoint, kept: Objects) -> Application:
    return Application(
        [*rest.routes(endpoint), *storage.routes(endpoint, str(kept.root))],
        default_handler_class=rest.Missing,
        default_handler_args={"endpoint": endpoint},
    )


def _log(server: Server, handler: RequestHandler) -> None:
    request = handler.request
    server.answered(request)
    path = escaped(request.path[:_LONGEST_LOGGED])
    logger.debug("%s %s %s", handler.get_status(), request.method, path)


def _bind(port: int) -> socket.socket:
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise UsageError(f"port {port}: {why}; name another with --port, 0 for any") from error
    listener.setblocking(False)
    return listener


def _client(address: str, token: str, cache: Path) -> str:
    """A configuration for clients; their cache is kept apart from that of other endpoints."""
    endpoint = {"endpoint": f"http://{address}", "name": NAME, "token": token}
    settings = {
        "api_endpoints": [endpoint],
        "default_endpoint": NAME,
        "cache_path": str(cache),
    }
    return yaml.safe_dump(settings, sort_keys=False)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        with files.store_errors(folder):
            yield
    except sqlite3.Error as error:
        raise StoreError(f"{folder / STATE}: {error}; what is there is kept") from error
