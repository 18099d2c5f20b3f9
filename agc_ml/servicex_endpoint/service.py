"""The endpoint as a whole: it serves a folder until it is stopped."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from tornado.web import Application, RequestHandler

from agc_ml import files
from agc_ml.errors import StoreError, UsageError
from agc_ml.servicex_endpoint import credentials, logs, rest, s3
from agc_ml.servicex_endpoint.credentials import EndpointCredentials
from agc_ml.servicex_endpoint.requests import MAX_BYTES, escaped
from agc_ml.servicex_endpoint.server import EndpointServer
from agc_ml.servicex_endpoint.store import RequestStore
from agc_ml.servicex_endpoint.transformation.scheduler import TransformScheduler
from agc_ml.servicex_endpoint.transformation.transformer_pool import (
    TransformerLimits,
    TransformerPool,
)
from agc_ml.servicex_endpoint.translation.generators import DEFAULT
from agc_ml.servicex_endpoint.translation.translator_pool import TranslatorPool

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
DATABASE: Final = "state.sqlite"
CLIENT_CONFIG: Final = "servicex.yaml"
NAME: Final = "agc-ml"

_MAX_LOGGED: Final = 200  # characters of a path


class EndpointSettings(NamedTuple):
    """Settings of an endpoint: port 0 is any free one, ``limits`` are for each input file."""

    folder: Path
    port: int
    workers: int
    limits: TransformerLimits
    token_file: Path | None = None
    codegens: tuple[str, ...] = DEFAULT


def serve(settings: EndpointSettings, announce: Callable[[str, Path], None]) -> None:
    """Run an endpoint until SIGINT or SIGTERM.

    ``announce`` is called when it is ready, with its URL and the path of a client configuration.

    Raises
    ------
    UsageError
        The folder has other content or is in use, or the port is.
    StoreError
        The folder can't be written.
    """
    folder = settings.folder
    token = None if settings.token_file is None else credentials.read_token(settings.token_file)
    with files.store_errors(folder):
        is_usable = files.is_unused(folder) or (folder / credentials.FILE).exists()
    if not is_usable:
        raise UsageError(f"{folder}: holds other files; name a new folder with -o")
    with files.owned(folder), _store_errors(folder), logs.rate_limited():
        folder.chmod(0o700)
        loaded = credentials.load_credentials(folder, token)
        with closing(RequestStore(folder / DATABASE, folder.absolute() / "objects")) as store:
            asyncio.run(_serve(settings, store, loaded, announce))


async def _serve(
    settings: EndpointSettings,
    store: RequestStore,
    loaded: EndpointCredentials,
    announce: Callable[[str, Path], None],
) -> None:
    listener = _bind(settings.port)
    address = f"{HOST}:{listener.getsockname()[1]}"
    folder = settings.folder.absolute()
    pool = TransformerPool(folder / "work", store, settings.limits, settings.codegens)
    with closing(pool):
        # Build the scheduler and the server on top of the store and the pools.
        translators = TranslatorPool(folder / "translation")
        scheduler = TransformScheduler(store, pool)
        context = rest.EndpointContext(
            address, loaded, store, scheduler, translators, settings.codegens
        )
        application = Application(
            [*rest.ROUTES, *s3.routes(store.folder)],
            default_handler_class=rest.NotFoundHandler,
            context=context,
        )
        # the server's limit is above ours, which is refused with a reason
        server = EndpointServer(application, max_body=2 * MAX_BYTES)

        def log(handler: RequestHandler) -> None:
            server.request_answered(handler.request)
            path = escaped(handler.request.path[:_MAX_LOGGED])
            logger.debug("%s %s %s", handler.get_status(), handler.request.method, path)

        application.settings["log_function"] = log
        server.listen_on(listener)
        # Tell clients how to connect, then work until a signal comes.
        config = folder / CLIENT_CONFIG
        files.write_private(config, _client_config(address, loaded.token, folder / "cache"))
        announce(f"http://{address}", config)
        warming = asyncio.create_task(translators.warm())
        await _until_stopped(scheduler.run(settings.workers))
        warming.cancel()
        await asyncio.wait({warming})
        server.stop_listening(listener)
        await server.close_all_connections()
        await translators.close()


async def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine until a signal comes; if it ends before, that is an error."""
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


def _bind(port: int) -> socket.socket:
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise UsageError(f"port {port}: {reason}; name another with --port, 0 for any") from error
    listener.setblocking(False)
    return listener


def _client_config(address: str, token: str, cache: Path) -> str:
    """Return a configuration for clients, with a cache for this endpoint alone."""
    endpoint = {"endpoint": f"http://{address}", "name": NAME, "token": token}
    config = {
        "api_endpoints": [endpoint],
        "default_endpoint": NAME,
        "cache_path": str(cache),
    }
    return yaml.safe_dump(config, sort_keys=False)


@contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    try:
        with files.store_errors(folder):
            yield
    except sqlite3.Error as error:
        raise StoreError(f"{folder / DATABASE}: {error}; its content is kept") from error
