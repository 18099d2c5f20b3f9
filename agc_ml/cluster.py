"""Dask clusters: where the chunks are processed."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from agc_ml.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from distributed import Client

INLINE: Final = "inline"
LOCAL: Final = "local"
_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss", "ucx"})
_CONNECT_TIMEOUT: Final = "20s"
CLOSE_TIMEOUT_S: Final = 5

# A chunk that kills its worker is known after two deaths and then tried alone. A nanny whose
# workers die again and again must never give up, or chunks stay queued for ever.
_LOCAL_SETTINGS: Final = {
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.worker-saturation": 1.1,
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


def check_site(site: str, workers: int | None = None) -> None:
    """Make sure that there is such a site, without asking it.

    Raises
    ------
    UsageError
        There is none, or ``workers`` makes no sense for it.
    """
    if site in {LOCAL, INLINE}:
        return
    if urlsplit(site).scheme not in _SCHEMES:
        raise UsageError(
            f"no site {site!r}; there are {LOCAL}, {INLINE} and scheduler addresses "
            "(tcp://host:port)"
        )
    if workers is not None:
        raise UsageError(f"--workers is for local workers; {site} has its own")


def connect(site: str = LOCAL, *, workers: int | None = None) -> Client:
    """Start worker processes on this machine, or connect to a scheduler.

    Parameters
    ----------
    site
        ``local``, or the address of a scheduler such as ``tcp://host:8786``.
    workers
        Number of worker processes, of one thread each; only with ``local``. Default: all cores.

    Returns
    -------
    A `distributed.Client`; closing it (or leaving its ``with`` block) stops local workers too.

    Raises
    ------
    UsageError
        No such site, or ``workers`` makes no sense for it.
    ClusterError
        The scheduler does not answer.
    """
    if site == LOCAL:
        return _local(workers)
    if site == INLINE:
        raise UsageError(f"{INLINE} is this process, and no cluster to connect to")
    check_site(site, workers)
    return _address(site)


def _local(workers: int | None) -> Client:
    import dask  # noqa: PLC0415 - heavy
    from dask.system import CPU_COUNT  # noqa: PLC0415 - heavy
    from distributed import Client  # noqa: PLC0415 - heavy
    from distributed.gc import disable_gc_diagnosis  # noqa: PLC0415 - heavy

    if workers is not None and workers < 1:
        raise UsageError(f"at least one worker is needed, not {workers}")
    _silence()
    # Not as a context: the scheduler and the nannies read some of it later.
    dask.config.set(_LOCAL_SETTINGS)
    client = Client(
        n_workers=workers or CPU_COUNT,
        threads_per_worker=1,
        processes=True,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
    # The scheduler, here in the driver, times garbage collections. Python drops a Ctrl-C that comes
    # while such a callback runs.
    disable_gc_diagnosis(force=True)
    client.register_plugin(_ignore_interrupts())
    return client


def _address(address: str) -> Client:
    from distributed import Client  # noqa: PLC0415 - heavy

    _silence()
    try:
        return Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ClusterError(
            f"{address}: no scheduler answers within {_CONNECT_TIMEOUT} ({error}); is it running, "
            "and its port open?"
        ) from error


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


def describe(client: Client) -> tuple[str, int, str | None]:
    """Kind of cluster (``local`` or its address), number of workers, and link to the dashboard."""
    info = client.scheduler_info(n_workers=-1)
    kind = LOCAL if client.cluster is not None else str(info["address"])
    link = str(client.dashboard_link) if "dashboard" in info["services"] else None
    return kind, len(info["workers"]), link
