"""Dask clusters, where chunks are processed: local workers, or a scheduler elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agc_ml.errors import ClusterError, UsageError
from agc_ml.execution.cluster.local_cluster import silence_logs, start_workers
from agc_ml.transports.base import has_host

if TYPE_CHECKING:
    from distributed import Client

INLINE: Final = "inline"
LOCAL: Final = "local"
_SCHEMES: Final = frozenset({"tcp", "tls", "ws", "wss", "ucx"})
_CONNECT_TIMEOUT: Final = "20s"
_TLS_SETTINGS: Final = ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")  # paths of PEM files


def check_site(site: str, workers: int | None = None, dashboard: int | None = None) -> None:
    """Reject sites that do not exist, without connecting.

    Raises
    ------
    UsageError
        There is no such site, or ``workers`` or ``dashboard`` do not apply to it.
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
            f"no site {site!r}; use {LOCAL}, {INLINE} or a scheduler address (tcp://host:port)"
        )
    if not has_host(site):
        raise UsageError(f"{site}: an address is needed, such as {scheme}://host:8786")
    if workers is not None:
        raise UsageError(f"--workers is for local workers; {site} has its own")


def connect(
    site: str = LOCAL, *, workers: int | None = None, dashboard: int | None = None
) -> Client:
    """Start worker processes on this machine, or connect to a scheduler.

    Local processes encrypt their traffic, and only they have the key: other users of the machine
    can't connect.

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
        No such site, ``workers`` or ``dashboard`` do not apply to it, or the port is in use.
    ClusterError
        The scheduler does not answer.
    """
    check_site(site, workers, dashboard)
    if site == LOCAL:
        return start_workers(workers, dashboard)
    if site == INLINE:
        raise UsageError(f"{INLINE} is this process, not a cluster to connect to")
    return _connect_to(site)


def _connect_to(address: str) -> Client:
    from distributed import Client  # noqa: PLC0415 - heavy

    silence_logs()
    try:
        return Client(address, timeout=_CONNECT_TIMEOUT)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        if isinstance(error, TypeError) and urlsplit(address).scheme == "tls":
            names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{name}" for name in _TLS_SETTINGS)
            raise ClusterError(
                f"{address}: certificates are needed: set {names}, here or in Dask's configuration"
            ) from error
        raise ClusterError(
            f"{address}: no scheduler answers ({error}); check that it runs, its port is open, and "
            "whether it speaks tcp:// or tls://"
        ) from error


def is_private(client: Client) -> bool:
    """Return whether others can't read the traffic to workers: encrypted, or on this machine."""
    parts = urlsplit(str(client.scheduler.address))
    return parts.scheme in {"tls", "wss", "inproc"} or parts.hostname in {"127.0.0.1", "::1"}


def describe(client: Client) -> tuple[str, int]:
    """Return the kind of a cluster (``local`` or its address), and its number of workers."""
    info = client.scheduler_info(n_workers=-1)
    kind = LOCAL if client.cluster is not None else str(info["address"])
    return kind, len(info["workers"])


def dashboard_of(client: Client) -> str | None:
    """Return the link to the dashboard of a client's cluster, None if it has none."""
    info = client.scheduler_info(n_workers=0)
    return str(client.dashboard_link) if "dashboard" in info["services"] else None
