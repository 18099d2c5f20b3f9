"""Connect to a cluster, or none, and get an executor for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agc_ml.errors import UsageError
from agc_ml.execution.cluster import clusters
from agc_ml.execution.cluster.dask_executor import DaskExecutor, warn_on_error
from agc_ml.execution.cluster.executors import Executor, InlineExecutor
from agc_ml.execution.cluster.local_cluster import CLOSE_TIMEOUT_S
from agc_ml.results.run_record import ClusterSummary

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterOptions:
    """Where jobs run: on ``client``, or else on ``site``.

    ``workers`` and ``dashboard`` are as of `agc_ml.execution.cluster.clusters.connect`, and
    ``patience`` as of `DaskExecutor`.
    """

    client: Client | None = None
    site: str = clusters.LOCAL
    workers: int | None = None
    dashboard: int | None = None
    patience: float | None = None


@contextlib.contextmanager
def connect_executor(options: ClusterOptions) -> Iterator[tuple[Executor, ClusterSummary]]:
    """Yield an executor; stop workers that were started.

    Raises
    ------
    UsageError
        No such site.
    ClusterError
        No scheduler answers.
    """
    client, site = options.client, options.site
    workers, dashboard = options.workers, options.dashboard
    if client is None and site == clusters.INLINE:
        clusters.check_site(site, workers, dashboard)
        yield InlineExecutor(), ClusterSummary(kind=clusters.INLINE, workers=1)
        return
    if client is not None and client.asynchronous:
        raise UsageError("the client is asynchronous; pass one that is not: Client(address)")
    with contextlib.ExitStack() as stack:
        is_local = client is None and site == clusters.LOCAL
        if client is None:
            client = clusters.connect(site, workers=workers, dashboard=dashboard)
            stack.callback(_close, client)
        kind, n_workers = clusters.describe(client)
        logger.info("cluster: %s, %d workers", kind, n_workers)
        if not is_local or dashboard is not None:
            readers = " (no login: other users of this machine can read it)" if is_local else ""
            logger.info("dashboard: %s%s", clusters.dashboard_of(client) or "none", readers)
        executor = DaskExecutor(client, options.patience)
        stack.callback(executor.close)
        yield executor, ClusterSummary(kind=kind, workers=n_workers)


def _close(client: Client) -> None:
    with warn_on_error("the cluster can't be closed"):
        client.close(timeout=CLOSE_TIMEOUT_S)
