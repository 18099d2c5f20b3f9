"""Training service on a folder: application, server, jobs and MLflow, until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from agc_ml import files
from agc_ml.errors import AgcError, UsageError
from agc_ml.models.registry_access import CLIENT
from agc_ml.training.http import guard
from agc_ml.training.http.guard import HostNames
from agc_ml.training.registry.mlflow_server import MlflowServer
from agc_ml.training.service import tokens
from agc_ml.training.service.app import served_application
from agc_ml.training.service.context import ServiceContext
from agc_ml.training.service.job_loop import RETRY_S, run_jobs
from agc_ml.training.service.job_manager import JobManager, Settings, owned_folder

logger = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
# Name of the first token of a folder
OWNER: Final = "owner"

# Name of users where no token is needed
ANYONE: Final = "anyone"

# Connections that may wait to be accepted, if the system allows so many
BACKLOG: Final = 4096

# Between two checks of MLflow
WATCH_S: Final = 3.0


@dataclass(frozen=True)
class Address:
    """Address and protection of the service.

    ``certificate`` and ``key`` are files for TLS. ``open_to_all``: no token is needed, which is
    possible on this machine only. ``host_names`` are those of proxies in front of it.
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
    def hosts(self) -> HostNames:
        """Host names of the service."""
        return guard.host_names(self.host, self.host_names)


def serve(
    settings: Settings, address: Address, announce: Callable[[str, Path, MlflowServer], None]
) -> None:
    """Run a training service until SIGINT or SIGTERM.

    ``announce`` is called when it listens, with its URL, the clients' configuration, and MLflow.

    Raises
    ------
    UsageError
        The folder or a port is in use, or other machines would need no token.
    StoreError
        The folder can't be written.
    """
    _check(address)
    folder = settings.folder
    with owned_folder(folder, option="-o"), _bound(address) as listener:
        folder.chmod(0o700)
        mlflow = MlflowServer(folder, address.mlflow_port)
        mlflow.claim_port()
        try:
            with contextlib.closing(JobManager(settings)) as manager:
                asyncio.run(_serve(manager, address, listener, mlflow, announce))
        finally:
            mlflow.stop()


def _check(address: Address) -> None:
    guard.host_names(address.host, address.host_names)
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
                f"{address.certificate}, {address.key}: not a certificate with its key ({error})"
            ) from error
    if not is_here and address.certificate is None:
        logger.warning(
            "tokens travel unencrypted to %s: give --certificate and --key, or put a proxy with "
            "TLS in front of it",
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
    # asyncio sets this only for sockets with proto TCP, unlike this one. Without it the body of an
    # answer waits until its headers are acknowledged, up to 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


async def _serve(
    manager: JobManager,
    address: Address,
    listener: socket.socket,
    mlflow: MlflowServer,
    announce: Callable[[str, Path, MlflowServer], None],
) -> None:
    from agc_ml.training.http.http_server import make_server  # noqa: PLC0415 - uvicorn, only here

    with (
        ThreadPoolExecutor(1, "registry-writer") as registry_writer,
        ThreadPoolExecutor(2, "reader") as readers,
    ):
        context = ServiceContext(
            manager=manager,
            registry_writer=registry_writer,
            readers=readers,
            mlflow_url=mlflow.url,
            max_upload=address.max_upload,
            user=ANYONE if address.open_to_all else None,
        )
        app = served_application(context, address.hosts)
        server = make_server(app, address.certificate, address.key)
        # signals end the server, and with it the service
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, _stop, server)
        scheme = "http" if address.certificate is None else "https"
        host = f"[{address.host}]" if ":" in address.host else address.host
        url = f"{scheme}://{host}:{listener.getsockname()[1]}"
        client = _write_client(manager, url, mlflow)
        # run all parts until one of them ends
        watching = asyncio.create_task(_watch(context, mlflow))
        working = asyncio.create_task(run_jobs(context))
        announcing = asyncio.create_task(_announce(server, url, client, mlflow, announce))
        serving = asyncio.create_task(server.serve([listener]))
        done, _ = await asyncio.wait(
            {serving, working, watching}, return_when=asyncio.FIRST_COMPLETED
        )
        # stop the others, and raise the error of the one that failed
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


async def _watch(context: ServiceContext, mlflow: MlflowServer) -> None:
    """Open the registry, finish promotions of a crash, and keep MLflow running."""
    while not context.is_registry_open:
        try:
            await context.write_registry(context.manager.registry.open)
            await context.write_registry(context.manager.champions.settle)
            context.is_registry_open = True
        except (AgcError, OSError) as error:
            logger.error("%s", error)  # noqa: TRY400 - one line says it
            await asyncio.sleep(RETRY_S)
        except Exception:  # a library can't be loaded, for now
            logger.exception("the registry can't be opened")
            await asyncio.sleep(RETRY_S)
    # restart MLflow when it does not answer
    while True:
        try:
            context.is_mlflow_up = await context.run_in_reader(mlflow.watch)
        except (AgcError, OSError) as error:
            context.is_mlflow_up = False
            logger.error("MLflow can't be started: %s", error)  # noqa: TRY400 - one line says it
        except Exception:
            context.is_mlflow_up = False
            logger.exception("MLflow can't be supervised")
        await asyncio.sleep(WATCH_S)


def _write_client(manager: JobManager, url: str, mlflow: MlflowServer) -> Path:
    """Write the URL and a token for clients; make the token if there is none."""
    path, database = manager.folder / CLIENT, manager.database
    token = None
    with contextlib.suppress(OSError, yaml.YAMLError, KeyError, TypeError):
        token = str(yaml.safe_load(path.read_text())["token"])
    if token is None or tokens.valid_token(database, token) is None:
        with contextlib.suppress(AgcError):
            database.revoke_token(OWNER)
        token = tokens.issue(database, OWNER, "promote", None)
    user, password = mlflow.viewer
    content = {
        "url": url,
        "token": token,
        "mlflow": {"url": mlflow.url, "user": user, "password": password},
    }
    files.write_private(path, yaml.safe_dump(content, sort_keys=False))
    return path
