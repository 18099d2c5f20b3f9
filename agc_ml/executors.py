"""Calling functions for many jobs: in this process, or on a Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from agc_ml import cluster
from agc_ml.delivery import equipment
from agc_ml.errors import ClusterError
from agc_ml.ml import hook
from agc_ml.ml.hook import Content
from agc_ml.results import ClusterSummary
from agc_ml.worker import Failure

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

_TELLINGS: Final = 3
_TELL_AGAIN_S: Final = 1.0
"""Before workers are told again of what one of them did not hear."""

FETCH_EVERY_S: Final = 0.1
"""Results are fetched together: each time costs the scheduler as much as a chunk."""


class Lost(NamedTuple):
    """The worker died under a job, or took its result along."""


Result = TypeVar("Result")


class Executor(Protocol):
    """Calls a function for each of many jobs, in any order, anywhere.

    ``topic`` is where workers tell that they start with a chunk, None where nobody listens;
    ``started`` counts it.
    """

    topic: str | None
    started: Counter[str]

    def report(self, path: Path) -> AbstractContextManager[None]:
        """Write a report of what happens inside the block to ``path``, if there is any."""

    def provide(
        self, contents: Mapping[str, Content], forget: Callable[[], None] | None = None
    ) -> None:
        """Give every process that works, now or later, contents by sha256, such as models.

        They stay there for others, unless ``forget`` is given: what they do in the end.
        """

    def outcomes(
        self, function: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Yield each key of ``jobs`` with what ``function(*jobs[key])`` returned."""


class InlineExecutor:
    """Everything in this process, one after the other: for debuggers and small inputs."""

    def __init__(self) -> None:
        self.topic: str | None = None
        self.started: Counter[str] = Counter()

    def report(self, path: Path) -> AbstractContextManager[None]:  # noqa: ARG002 - nothing to tell
        """Do nothing: there is no cluster to report on."""
        return contextlib.nullcontext()

    def provide(
        self,
        contents: Mapping[str, Content],
        forget: Callable[[], None] | None = None,
    ) -> None:
        """Do nothing: the process that made the processor has them."""

    def outcomes(
        self, function: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Call at once, in order."""
        for key, arguments in jobs.items():
            yield key, function(*arguments)


class DaskExecutor:
    """Futures on a Dask cluster."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.topic: str | None = f"agc-ml-{uuid4().hex}"
        self.started: Counter[str] = Counter()
        self._plugins: list[str] = []
        environment = equipment.collect(is_private=cluster.is_private(client))
        self._register(_at_start(partial(equipment.equip, environment)))
        client.subscribe_topic(self.topic, lambda event: self.started.update([event[1]]))

    def close(self) -> None:
        """Stop listening, and give models to new workers no more."""
        if self._client.status == "running":
            self._client.unsubscribe_topic(self.topic)
            for name in self._plugins:
                # A worker that dies just now has let go of everything, and is no reason to fail.
                with contextlib.suppress(OSError):
                    self._client.unregister_worker_plugin(name)

    def provide(
        self, contents: Mapping[str, Content], forget: Callable[[], None] | None = None
    ) -> None:
        """Give every worker the contents, also those that join later."""
        if contents:
            self._register(_at_start(partial(hook.provide, contents), forget))

    def _register(self, plugin: Any) -> None:
        self._plugins.append(plugin.name)
        for left in reversed(range(_TELLINGS)):
            try:
                self._client.register_plugin(plugin)
            except OSError:  # a worker died just then; the others are told once more
                if not left or self._client.status != "running":
                    raise
                time.sleep(_TELL_AGAIN_S)
            else:
                return

    @contextlib.contextmanager
    def report(self, path: Path) -> Iterator[None]:
        """Write Dask's performance report, unless the block is left by an error."""
        from distributed import performance_report  # noqa: PLC0415 - heavy

        report = performance_report(filename=str(path), mode="inline")
        with self._client.as_current():
            report.__enter__()
            yield
            report.__exit__(None, None, None)

    def outcomes(
        self, function: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Submit all, yield as they finish; what is left when the caller stops is cancelled.

        Raises
        ------
        ClusterError
            The scheduler is gone.
        """
        from dask.utils import funcname  # noqa: PLC0415 - heavy
        from distributed import as_completed  # noqa: PLC0415 - heavy
        from distributed.client import FutureCancelledError  # noqa: PLC0415 - heavy

        if not jobs:
            return
        round_id = uuid4().hex[:8]
        futures = self._client.map(
            function,
            *zip(*jobs.values(), strict=True),
            key=[f"{funcname(function)}-{round_id}-{index}" for index in range(len(jobs))],
            retries=0,
            pure=False,
            batch_size=500,
        )
        keys = {future.key: key for future, key in zip(futures, jobs, strict=True)}
        pending = set(futures)
        completed = as_completed(futures)
        del futures  # a future that is held is computed again when its worker dies
        try:
            for batch in completed.batches():
                fetched = time.monotonic()
                finished = {future.key: future for future in batch if future.status == "finished"}
                results = self._client.gather(finished, errors="skip")
                for future in batch:
                    pending.discard(future)
                    is_there = future.key in results  # whatever it is: 0 and None are results
                    found = results[future.key] if is_there else _outcome(future)
                    yield keys[future.key], found
                    future.release()
                if pending:
                    time.sleep(max(0.0, fetched + FETCH_EVERY_S - time.monotonic()))
        except (FutureCancelledError, OSError) as error:
            raise ClusterError(f"the connection to the Dask scheduler is lost ({error})") from error
        finally:
            if pending and self._client.status == "running":
                self._client.cancel(list(pending), force=True)


@contextlib.contextmanager
def connected(
    client: Client | None, site: str, workers: int | None, dashboard: int | None = None
) -> Iterator[tuple[Executor, ClusterSummary]]:
    """Give an executor on ``client``, or else on ``site``, and stop in the end what was started.

    Raises
    ------
    UsageError
        No such site.
    ClusterError
        No scheduler answers.
    """
    if client is None and site == cluster.INLINE:
        cluster.check_site(site, workers, dashboard)
        yield InlineExecutor(), ClusterSummary(kind=cluster.INLINE, workers=1)
        return
    own = None
    if client is None:
        own = cluster.connect(site, workers=workers, dashboard=dashboard)
    used: Client = client if own is None else own
    try:
        kind, n_workers = cluster.describe(used)
        logger.info("cluster: %s, %d workers", kind, n_workers)
        _tell_dashboard(used, is_own=own is not None and site == cluster.LOCAL, asked=dashboard)
        executor = DaskExecutor(used)
        try:
            yield executor, ClusterSummary(kind=kind, workers=n_workers)
        finally:
            executor.close()
    finally:
        if own is not None:
            own.close(timeout=cluster.CLOSE_TIMEOUT_S)


def _tell_dashboard(client: Client, *, is_own: bool, asked: int | None) -> None:
    """Say where the dashboard is, and who can read it."""
    if is_own and asked is None:
        return
    link = cluster.dashboard_of(client)
    readers = " (no login: other users of this machine can read it)" if is_own else ""
    logger.info("dashboard: %s%s", link or "none", readers)


def _at_start(action: Callable[[], None], at_end: Callable[[], None] | None = None) -> Any:
    """A plugin that does something on each worker, also on those that join later.

    ``at_end`` is done when it is taken away again.
    """
    from distributed import WorkerPlugin  # noqa: PLC0415 - heavy

    class AtStart(WorkerPlugin):  # type: ignore[misc]
        name = f"agc-ml-{uuid4().hex}"

        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask calls it so
            action()

        def teardown(self, worker: Any) -> None:  # noqa: ARG002 - likewise
            if at_end is not None:
                at_end()

    return AtStart()


def _outcome(future: Future) -> Failure | Lost:
    """What became of a job whose result could not be fetched."""
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 - heavy

    if future.status == "cancelled":
        raise ClusterError("the connection to the Dask scheduler is lost")
    if future.status != "error":
        return Lost()
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Lost()
    # What is submitted here never raises, so Dask could not even start it.
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Failure("processor", f"can't be started on a worker: {reason}")
