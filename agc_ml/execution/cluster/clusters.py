"""Dask clusters: where the chunks are processed."""

from __future__ import annotations

import ast
import contextlib
import copy
import logging
import multiprocessing
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from multiprocessing import resource_tracker, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agc_ml.errors import ClusterError, UsageError
from agc_ml.transports.base import has_host

if TYPE_CHECKING:
    from types import FrameType

    from distributed import Client, LocalCluster
    from distributed.security import Security

INLINE: Final = "inline"
LOCAL: Final = "local"
_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss", "ucx"})
_CONNECT_TIMEOUT: Final = "20s"
CLOSE_TIMEOUT_S: Final = 5
_CLOSE_S: Final = 60  # of a client that is closed without a limit, as Dask does it
_HOST: Final = "127.0.0.1"
_ROLES: Final = ("client", "scheduler", "worker")
_DASHBOARD_PORT: Final = 8787  # the one that people know

# A chunk that kills its worker is known after two deaths and then tried alone. A nanny whose
# workers die again and again must never give up, or chunks stay queued for ever.
_LOCAL_SETTINGS: Final = {
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.worker.profile.interval": "50ms",  # the default slows short chunks by a half
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.80,
    "distributed.worker.memory.terminate": 0.95,
    # Dask's 64 kB gives memory back after each basket, and takes it again for the next one.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 24,
}

_OF_SCHEDULER: Final = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.1,
    "distributed.scheduler.worker-ttl": None,  # `waiting` looks after silent workers
}

# Pages of Dask's web servers show the code, the data and the logs of a run, to whoever asks.
_NO_PAGES: Final[dict[str, list[str]]] = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


def check_site(site: str, workers: int | None = None, dashboard: int | None = None) -> None:
    """Make sure that there is such a site, without asking it.

    Raises
    ------
    UsageError
        There is none, or ``workers`` or ``dashboard`` make no sense for it.
    """
    if dashboard is not None and site != LOCAL:
        own = "has none" if site == INLINE else "has its own, or none"
        raise UsageError(f"--dashboard is for local workers; {site} {own}")
    if site == INLINE and workers is not None:
        raise UsageError(f"--workers is for local workers; {INLINE} has none")
    if site in {LOCAL, INLINE}:
        return
    scheme, separator, _ = site.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise UsageError(
            f"no site {site!r}; there are {LOCAL}, {INLINE} and scheduler addresses "
            "(tcp://host:port)"
        )
    if not has_host(site):
        raise UsageError(f"{site}: an address is needed, such as {scheme}://host:8786")
    if workers is not None:
        raise UsageError(f"--workers is for local workers; {site} has its own")


def connect(
    site: str = LOCAL, *, workers: int | None = None, dashboard: int | None = None
) -> Client:
    """Start worker processes on this machine, or connect to a scheduler.

    What local processes send each other is encrypted, and only they have the key: other users of
    the machine can't connect.

    Parameters
    ----------
    site
        ``local``, or the address of a scheduler such as ``tcp://host:8786``.
    workers
        Number of worker processes, of one thread each; only with ``local``. Default: all cores.
    dashboard
        Port of 127.0.0.1 for Dask's dashboard, 0 for 8787 or a free one; only with ``local``. By
        default there is none: it has no login, so that other users of the machine can read it.

    Returns
    -------
    A `distributed.Client`; closing it (or leaving its ``with`` block) stops local workers too.

    Raises
    ------
    UsageError
        No such site, ``workers`` or ``dashboard`` make no sense for it, or the port is in use.
    ClusterError
        The scheduler does not answer.
    """
    check_site(site, workers, dashboard)
    if site == LOCAL:
        return _local(workers, dashboard)
    if site == INLINE:
        raise UsageError(f"{INLINE} is this process, and no cluster to connect to")
    return _address(site)


def _local(workers: int | None, dashboard: int | None) -> Client:
    import dask  # noqa: PLC0415 - heavy
    from dask.system import CPU_COUNT  # noqa: PLC0415 - heavy
    from distributed import LocalCluster  # noqa: PLC0415 - heavy
    from distributed.gc import disable_gc_diagnosis  # noqa: PLC0415 - heavy

    if workers is not None and workers < 1:
        raise UsageError(f"at least one worker is needed, not {workers}")
    _silence()
    # Not as a context: nannies read some of it later.
    dask.config.set(_LOCAL_SETTINGS)
    stop_if_imported()
    import_nothing_from_here()
    stops: list[int] = []
    port = 0 if dashboard is None else _free_port(dashboard)

    def start() -> Client:
        return _closing(
            LocalCluster(
                config=copy.deepcopy(dask.config.config),  # also of workers that are started later
                n_workers=workers or CPU_COUNT,
                threads_per_worker=1,
                processes=True,
                security=_only_these_processes(),
                dashboard_address=f"{_HOST}:{port}",
                scheduler_kwargs={"dashboard": dashboard is not None},
                silence_logs=logging.CRITICAL,
            )
        )

    settings = {**_OF_SCHEDULER, **(_NO_PAGES if dashboard is None else {})}
    try:
        with dask.config.set(settings), _stops_held(stops):
            client = _deaf(start)
    except (RuntimeError, OSError) as error:
        if stops:  # a SIGTERM may have been for the workers, too
            raise KeyboardInterrupt from error
        raise ClusterError(not_started(error)) from error
    # The scheduler, here in the driver, times garbage collections. Python drops a Ctrl-C that comes
    # while such a callback runs.
    disable_gc_diagnosis(force=True)
    if stops:
        client.close(timeout=CLOSE_TIMEOUT_S)
        raise KeyboardInterrupt
    client.register_plugin(_ignore_interrupts())
    return client


def _closing(cluster: LocalCluster) -> Client:
    """Connect to a cluster, and stop it when its client is closed.

    Dask does so for clusters that a client starts itself, but they can't be given a key.
    """
    from distributed import Client  # noqa: PLC0415 - heavy

    class OwnClient(Client):  # type: ignore[misc]
        def close(self, timeout: Any = _CLOSE_S) -> None:
            try:
                super().close(timeout)
            finally:
                self.cluster.close(timeout)

    with contextlib.ExitStack() as unless_connected:
        unless_connected.callback(cluster.close, timeout=CLOSE_TIMEOUT_S)
        client = OwnClient(cluster)
        unless_connected.pop_all()
    return client


def _only_these_processes() -> Security:
    """Return a key and a certificate that are made now, and known to this cluster alone.

    Dask's own (`Security.temporary`) takes a tenth of a second for RSA, and is void on a machine
    whose clock is set back. This one ends with its processes, so it has no dates: RFC 5280 gives
    the year 9999 that meaning (section 4.1.2.5).
    """
    from cryptography import x509  # noqa: PLC0415 - heavy
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - heavy
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - heavy
    from distributed.security import Security  # noqa: PLC0415 - heavy

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agc-ml")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(1970, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        .sign(secret, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode()
    )
    key = secret.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    return Security(
        require_encryption=True,
        tls_ciphers=None,  # a list in the user's configuration may be for another kind of key
        tls_ca_file=certificate,
        **{f"tls_{role}_cert": certificate for role in _ROLES},
        **{f"tls_{role}_key": key for role in _ROLES},
    )


@contextlib.contextmanager
def _stops_held(stops: list[int]) -> Iterator[None]:
    """Let a Ctrl-C wait, but not a second one; notes in ``stops`` the signals that came.

    Dask leaves tracebacks and processes behind where it is stopped while it starts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def hold(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        handler = before[signal.Signals(number)]
        if len(stops) > 1 and callable(handler):
            handler(number, frame)

    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])


def _deaf(start: Callable[[], Client]) -> Client:
    """Call what starts processes in a thread that hears no Ctrl-C, and nor do they.

    It reaches all of the terminal's group, and workers that still import end with a traceback. This
    thread hears it, which it does not while Dask waits.
    """
    resource_tracker.ensure_running()  # its start would let the thread hear it again
    started: Future[Client] = Future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started.set_result(start())
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits
            started.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return started.result()
    except KeyboardInterrupt:
        started.add_done_callback(_close_again)
        raise


def _close_again(started: Future[Client]) -> None:
    """Close what nobody waits for any more."""
    if started.exception() is None:
        started.result().close(timeout=CLOSE_TIMEOUT_S)


def import_nothing_from_here() -> None:
    """Have processes that multiprocessing starts begin without the working directory.

    It would be where they look first, also for Python's own modules, until they are told where this
    process looks; and whose it is nobody knows.
    """
    starting: Any = util
    flags = starting._args_from_interpreter_flags  # noqa: SLF001 - there is no other way to it
    if "-P" not in flags():
        starting._args_from_interpreter_flags = lambda: [*flags(), "-P"]  # noqa: SLF001


def stop_if_imported() -> None:
    """End this process, without a word, if it is a worker that only imports the user's script.

    It would start workers of its own; what is wrong is told by the process that started it.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # as multiprocessing itself finds out
        raise SystemExit(1)


def not_started(error: BaseException) -> str:
    """Say why processes can't be started here, in a line."""
    if _lacks_guard():
        return (
            f"{sys.modules['__main__'].__file__}: processes that help import this script, and "
            "would run it once more; put what it does under: if __name__ == '__main__':"
        )
    if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>":
        return (
            "code from standard input can't start processes, which have to import it; put it in a "
            "file, under: if __name__ == '__main__':"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"processes can't be started on this machine ({reason}); see its memory, and that a script "
        "which starts them does so under: if __name__ == '__main__':"
    )


def _lacks_guard() -> bool:
    """Return whether the main program is a script that does its work also where it is imported."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or Path(file).name == "__main__.py":  # of a tool, which has one
        return False
    try:
        body = ast.parse(Path(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    return not any(
        isinstance(node, ast.If) and "'__main__'" in ast.dump(node.test) for node in body
    )


def _free_port(dashboard: int) -> int:
    """Return the port to show the dashboard at; 0 means any.

    Raises
    ------
    UsageError
        The port that was asked for is in use.
    """
    wanted = dashboard or _DASHBOARD_PORT
    try:
        socket.create_server((_HOST, wanted)).close()
    except OSError as error:
        if dashboard:
            raise UsageError(
                f"--dashboard {dashboard}: the port can't be used ({error.strerror}); name another "
                "one, or none for any that is free"
            ) from error
        return 0
    return wanted


def _address(address: str) -> Client:
    from distributed import Client  # noqa: PLC0415 - heavy

    _silence()
    try:
        return Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        if isinstance(error, TypeError) and urlsplit(address).scheme == "tls":
            names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in _OF_TLS)
            raise ClusterError(
                f"{address}: certificates are needed: set {names}, or them in Dask's configuration"
            ) from error
        raise ClusterError(
            f"{address}: no scheduler answers ({error}); is it running, its port open, and does it "
            "take tcp:// or tls://?"
        ) from error


_OF_TLS: Final = ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")  # paths of PEM files


def _silence() -> None:
    """Keep tracebacks of a dying scheduler's connections off the screen: an error tells of it.

    Importing distributed sets the levels of its loggers one by one, so it is done after that.
    """
    for name in ("distributed", "distributed.client", "asyncio", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _ignore_interrupts() -> Any:
    """Make a plugin for workers on this machine, which share the terminal's process group.

    Ctrl-C reaches them all; only the driver may act on it.
    """
    from distributed import WorkerPlugin  # noqa: PLC0415 - heavy

    class IgnoreInterrupts(WorkerPlugin):  # type: ignore[misc]
        name = "agc-ml-ignore-interrupts"

        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask calls it so
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    return IgnoreInterrupts()


def is_private(client: Client) -> bool:
    """Whether others can't listen to what workers are sent: it is encrypted, or stays here."""
    parts = urlsplit(str(client.scheduler.address))
    return parts.scheme in {"tls", "wss", "inproc"} or parts.hostname in {"127.0.0.1", "::1"}


def describe(client: Client) -> tuple[str, int]:
    """Kind of cluster (``local`` or its address), and number of workers."""
    info = client.scheduler_info(n_workers=-1)
    kind = LOCAL if client.cluster is not None else str(info["address"])
    return kind, len(info["workers"])


def dashboard_of(client: Client) -> str | None:
    """Link to the dashboard of a client's cluster, None if it has none."""
    info = client.scheduler_info(n_workers=0)
    return str(client.dashboard_link) if "dashboard" in info["services"] else None
