"""Worker processes on this machine, which only their own driver can reach."""

from __future__ import annotations

import contextlib
import copy
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, Final

from agc_ml.errors import ClusterError, UsageError
from agc_ml.execution.cluster.child_processes import (
    import_nothing_from_here,
    start_problem,
    stop_if_imported,
)

if TYPE_CHECKING:
    from types import FrameType

    from distributed import Client, LocalCluster
    from distributed.security import Security

CLOSE_TIMEOUT_S: Final = 5
_CLOSE_S: Final = 60  # of a client that is closed without a limit, as in Dask
_HOST: Final = "127.0.0.1"
_ROLES: Final = ("client", "scheduler", "worker")
_DASHBOARD_PORT: Final = 8787  # Dask's usual one

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


def start_workers(workers: int | None, dashboard: int | None) -> Client:
    """Start worker processes of one thread each, and return a client that stops them when closed.

    Raises
    ------
    UsageError
        The number of workers is not positive, or the dashboard's port is in use.
    ClusterError
        Processes can't be started on this machine.
    """
    import dask  # noqa: PLC0415 - heavy
    from dask.system import CPU_COUNT  # noqa: PLC0415 - heavy
    from distributed import LocalCluster  # noqa: PLC0415 - heavy
    from distributed.gc import disable_gc_diagnosis  # noqa: PLC0415 - heavy

    if workers is not None and workers < 1:
        raise UsageError(f"at least one worker is needed, not {workers}")
    silence_logs()
    # not as a context: nannies read some of it later
    dask.config.set(_LOCAL_SETTINGS)
    stop_if_imported()
    import_nothing_from_here()
    stops: list[int] = []
    port = 0 if dashboard is None else _dashboard_port(dashboard)

    def start() -> Client:
        return _closing(
            LocalCluster(
                config=copy.deepcopy(dask.config.config),  # also of workers that are started later
                n_workers=workers or CPU_COUNT,
                threads_per_worker=1,
                processes=True,
                security=_own_security(),
                dashboard_address=f"{_HOST}:{port}",
                scheduler_kwargs={"dashboard": dashboard is not None},
                silence_logs=logging.CRITICAL,
            )
        )

    settings = {**_OF_SCHEDULER, **(_NO_PAGES if dashboard is None else {})}
    try:
        with dask.config.set(settings), _holding_signals(stops):
            client = _without_interrupts(start)
    except (RuntimeError, OSError) as error:
        if stops:  # a SIGTERM may have been for the workers, too
            raise KeyboardInterrupt from error
        raise ClusterError(start_problem(error)) from error
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


def _own_security() -> Security:
    """Make a new key and certificate, known to this cluster alone.

    Dask's own (`Security.temporary`) takes a tenth of a second for RSA, and is invalid on a machine
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
def _holding_signals(stops: list[int]) -> Iterator[None]:
    """Hold back one Ctrl-C or SIGTERM, but not a second one; add it to ``stops``.

    Dask leaves tracebacks and processes behind when it is stopped while it starts.
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


def _without_interrupts(start: Callable[[], Client]) -> Client:
    """Start processes from a thread that blocks Ctrl-C, which they inherit.

    Ctrl-C reaches the terminal's whole process group, and workers that still import would end with
    a traceback. The main thread receives it, which it does not while Dask waits.
    """
    resource_tracker.ensure_running()  # its start would unblock it again
    started: Future[Client] = Future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started.set_result(start())
        except BaseException as error:  # noqa: BLE001 - raised by the waiting thread
            started.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return started.result()
    except KeyboardInterrupt:
        started.add_done_callback(_close_again)
        raise


def _close_again(started: Future[Client]) -> None:
    """Close a cluster that nobody waits for any more."""
    if started.exception() is None:
        started.result().close(timeout=CLOSE_TIMEOUT_S)


def _dashboard_port(dashboard: int) -> int:
    """Return the port of the dashboard, 0 for any free one.

    Raises
    ------
    UsageError
        The given port is in use.
    """
    port = dashboard or _DASHBOARD_PORT
    try:
        socket.create_server((_HOST, port)).close()
    except OSError as error:
        if dashboard:
            raise UsageError(
                f"--dashboard {dashboard}: the port can't be used ({error.strerror}); give another "
                "one, or none for any free port"
            ) from error
        return 0
    return port


def silence_logs() -> None:
    """Hide tracebacks of a dying scheduler's connections, which is reported as an error.

    Call this after importing distributed, which sets the levels of its loggers.
    """
    for name in ("distributed", "distributed.client", "asyncio", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _ignore_interrupts() -> Any:
    """Make a plugin by which local workers leave Ctrl-C, which reaches them too, to the driver."""
    from distributed import WorkerPlugin  # noqa: PLC0415 - heavy

    class IgnoreInterrupts(WorkerPlugin):  # type: ignore[misc]
        name = "agc-ml-ignore-interrupts"

        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask calls it so
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    return IgnoreInterrupts()
