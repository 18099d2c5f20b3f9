"""Calling functions for many jobs: in this process, or on a Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar
from uuid import uuid4

from agc_ml._version import __version__
from agc_ml.delivery import worker_environment
from agc_ml.errors import ClusterError, UsageError, chain
from agc_ml.execution.cluster import clusters
from agc_ml.execution.cluster.waiting import Watch
from agc_ml.execution.processing import Failure
from agc_ml.models import content
from agc_ml.models.content import Content
from agc_ml.results.run_record import ClusterSummary

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

_TELLINGS: Final = 3
_TELL_AGAIN_S: Final = 1.0
"""Before workers are told again of what one of them did not hear."""

_HEARD_S: Final = 30.0
"""So long all workers may take to hear something; a frozen one never does."""

_CLOSE_S: Final = 5.0
_REPORT_S: Final = 60.0

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
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Yield each key of ``jobs`` with what ``function(*jobs[key])`` returned.

        ``alone``: it stays on its worker, also if that does not answer while it is at work.
        """


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
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,  # noqa: ARG002 - it is, always
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Call at once, in order."""
        for key, arguments in jobs.items():
            yield key, function(*arguments)


class DaskExecutor:
    """Futures on a Dask cluster.

    ``patience``: seconds for which it is waited for, if no worker that answers is at work; None for
    the default of `agc_ml.execution.cluster.waiting`.

    Raises
    ------
    ClusterError
        Its workers lack agc-ml, or have another version.
    """

    def __init__(self, client: Client, patience: float | None = None) -> None:
        self._client = client
        self._patience = patience
        self.topic: str | None = f"agc-ml-{uuid4().hex}"
        self.started: Counter[str] = Counter()
        self._plugins: list[str] = []
        self._given_up: set[str] = set()
        self._had_workers = False
        environment = worker_environment.collect(is_private=clusters.is_private(client))
        self._register(_at_start(partial(worker_environment.apply, environment)))
        client.subscribe_topic(self.topic, lambda event: self.started.update([event[1]]))

    def close(self) -> None:
        """Stop listening, and give models to new workers no more."""
        if self._client.status != "running":
            return
        # Whatever is wrong with the cluster now, the work is done.
        with _told("the cluster can't be told that it is over"):
            self._client.unsubscribe_topic(self.topic)
            for name in self._plugins:
                forget = partial(self._client.scheduler.unregister_worker_plugin, name=name)
                self._client.sync(forget, callback_timeout=_CLOSE_S)

    def provide(
        self, contents: Mapping[str, Content], forget: Callable[[], None] | None = None
    ) -> None:
        """Give every worker the contents, also those that join later."""
        if contents:
            self._register(_at_start(partial(content.provide, contents), forget))

    def _register(self, plugin: Any) -> None:
        self._plugins.append(plugin.name)
        for left in reversed(range(_TELLINGS)):
            try:
                self._client.sync(
                    partial(self._client.register_plugin, plugin), callback_timeout=_HEARD_S
                )
            except TimeoutError:
                # Those that answer have heard it by now; one that does not holds nobody up.
                logger.warning(
                    "a worker does not answer: what it is told has to wait (%s)",
                    self._client.scheduler.address,
                )
                return
            except OSError:  # a worker died just then; the others are told once more
                if not left or self._client.status != "running":
                    raise
                time.sleep(_TELL_AGAIN_S)
            except Exception as error:
                if lacks := _lacks_ours(error):
                    raise ClusterError(lacks) from error
                raise
            else:
                return

    @contextlib.contextmanager
    def report(self, path: Path) -> Iterator[None]:
        """Write Dask's performance report, unless the block is left by an error.

        That it can't be written is told, and no reason to fail.
        """
        from distributed import performance_report  # noqa: PLC0415 - heavy

        report = performance_report(filename=str(path), mode="inline")
        call = partial(self._client.sync, callback_timeout=_REPORT_S)
        with self._client.as_current():
            with _told(f"{path} can't be written"):
                call(report.__aenter__)
            yield
            with _told(f"{path} can't be written"):
                if self._client.status != "running":  # it would be waited for
                    raise ClusterError("the connection to the Dask scheduler is lost")
                call(report.__aexit__, None, None, None, code="")

    def outcomes(
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,
    ) -> Iterator[tuple[str, Result | Failure | Lost]]:
        """Submit all, yield as they finish; what is left when the caller stops is cancelled.

        Raises
        ------
        ClusterError
            The scheduler is gone, or a worker lacks agc-ml or has another version.
        WaitError
            Nothing on the cluster goes on, for longer than there is patience.
        """
        from dask.utils import funcname  # noqa: PLC0415 - heavy
        from distributed import as_completed  # noqa: PLC0415 - heavy
        from distributed.client import FutureCancelledError  # noqa: PLC0415 - heavy

        if not jobs:
            return
        round_id = uuid4().hex[:8]
        futures = self._client.map(
            _called,
            *([one] * len(jobs) for one in (__version__, function)),
            *zip(*jobs.values(), strict=True),
            key=[f"{funcname(function)}-{round_id}-{index}" for index in range(len(jobs))],
            retries=0,
            pure=False,
            batch_size=500,
        )
        keys = {future.key: key for future, key in zip(futures, jobs, strict=True)}
        pending = {future.key: future for future in futures}
        watch = Watch(self._client, keys, self._patience, alone=alone, any_worker=self._had_workers)
        completed = as_completed(futures)
        del futures  # a future that is held is computed again when its worker dies
        try:
            while pending:
                batch = completed.next_batch(block=False)
                fetched = time.monotonic()
                finished = {future.key: future for future in batch if future.status == "finished"}
                results = self._gathered(finished, watch, pending)
                for future in batch:
                    if pending.pop(future.key, None) is not None:  # else it was given up
                        watch.moved()
                        yield keys[future.key], _outcome(future, results)
                        future.release()
                self._had_workers = watch.any_worker
                given_up, self._given_up = self._given_up | watch.look(pending), set()
                for key in given_up & pending.keys():
                    self._client.cancel([pending.pop(key)], force=True)
                    yield keys[key], Lost()
                if batch:
                    time.sleep(max(0.0, fetched + FETCH_EVERY_S - time.monotonic()))
                elif pending:
                    with completed.thread_condition:
                        completed.thread_condition.wait(timeout=FETCH_EVERY_S)
        except (FutureCancelledError, OSError) as error:
            raise ClusterError(f"the connection to the Dask scheduler is lost ({error})") from error
        finally:
            if pending and self._client.status == "running":
                self._client.cancel(list(pending.values()), force=True)

    def _gathered(
        self, finished: Mapping[str, Future], watch: Watch, pending: Mapping[str, Future]
    ) -> Mapping[str, Any]:
        """Results of futures; those of a worker that stops answering meanwhile are made anew.

        That results take long is no reason to stop: what they are on answers.
        """
        if not finished:
            return {}

        async def gather() -> dict[str, Any]:
            found: dict[str, Any] = await self._client.gather(finished, errors="skip")
            return found

        loop = self._client.loop.asyncio_loop
        gathering = asyncio.run_coroutine_threadsafe(gather(), loop)
        try:
            while True:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    return gathering.result(timeout=1.0)
                if gathering.done():
                    return gathering.result()
                watch.fetching = len(finished)
                given_up = watch.look(pending) - finished.keys()
                if given_up:
                    # at once: results that went with a worker would wait for these once more
                    self._client.cancel([pending[key] for key in given_up], force=True)
                    self._given_up |= given_up
        finally:
            watch.fetching = 0
            gathering.cancel()


def _called(version: str, function: Callable[..., Result], *arguments: Any) -> Result | Mismatch:
    """Call a function on a worker, if that has the driver's version of agc-ml."""
    if version != __version__:
        from distributed import get_worker  # noqa: PLC0415 - heavy

        return Mismatch(str(get_worker().address), __version__)
    return function(*arguments)


class Mismatch(NamedTuple):
    """A worker has another version of agc-ml than the driver."""

    worker: str
    version: str

    def __str__(self) -> str:
        return (
            f"worker {self.worker} has agc-ml {self.version}, and here is agc-ml {__version__}: "
            "install that version in the environment of the workers, and start them anew"
        )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what went wrong in something that is no part of the result."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of Dask, in any of its layers; it is told
        logger.warning("%s (%s)", what, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def _lacks_ours(error: BaseException) -> str:
    """Say that worker or scheduler can't import what they are sent of ours; "" if they can."""
    reasons = [" ".join(f"{type(one).__name__}: {one}".split())[:200] for one in chain(error)]
    is_import = "agc_ml" in reasons[0] and (
        isinstance(error, ImportError | AttributeError) or _FORWARDED.match(reasons[0])
    )
    if not is_import and _NOT_READ not in reasons[0]:
        return ""
    return (
        f"a worker or the scheduler can't import what agc-ml {__version__} sends it "
        f"({reasons[-1]}): install that version in the environment of both, and start them anew"
    )


_FORWARDED: Final = re.compile(r"Exception: (ModuleNotFound|Import|Attribute)Error\(")
"""Text of a worker's exception, as the scheduler passes it on."""

_NOT_READ: Final = "Error during deserialization of the task graph"
"""What Dask says where the scheduler can't import what a job calls."""


@contextlib.contextmanager
def connected(
    client: Client | None,
    site: str,
    workers: int | None,
    *,
    dashboard: int | None = None,
    patience: float | None = None,
) -> Iterator[tuple[Executor, ClusterSummary]]:
    """Give an executor on ``client``, or else on ``site``, and stop in the end what was started.

    ``dashboard`` as of `agc_ml.execution.cluster.clusters.connect`, ``patience`` as of
    `DaskExecutor`.

    Raises
    ------
    UsageError
        No such site.
    ClusterError
        No scheduler answers.
    """
    if client is None and site == clusters.INLINE:
        clusters.check_site(site, workers, dashboard)
        yield InlineExecutor(), ClusterSummary(kind=clusters.INLINE, workers=1)
        return
    own = None
    if client is not None and client.asynchronous:
        raise UsageError("the client is asynchronous; give one that is not: Client(address)")
    if client is None:
        own = clusters.connect(site, workers=workers, dashboard=dashboard)
    used: Client = client if own is None else own
    try:
        kind, n_workers = clusters.describe(used)
        logger.info("cluster: %s, %d workers", kind, n_workers)
        _tell_dashboard(used, is_own=own is not None and site == clusters.LOCAL, asked=dashboard)
        executor = DaskExecutor(used, patience)
        try:
            yield executor, ClusterSummary(kind=kind, workers=n_workers)
        finally:
            executor.close()
    finally:
        if own is not None:
            with _told("the cluster can't be closed"):
                own.close(timeout=clusters.CLOSE_TIMEOUT_S)


def _tell_dashboard(client: Client, *, is_own: bool, asked: int | None) -> None:
    """Say where the dashboard is, and who can read it."""
    if is_own and asked is None:
        return
    link = clusters.dashboard_of(client)
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


def _outcome(future: Future, results: Mapping[str, Any]) -> Any:
    """Outcome of a job: its result, if that could be fetched.

    Raises
    ------
    ClusterError
        The scheduler is gone, or the worker's agc-ml is missing or another version.
    """
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 - heavy

    if future.key in results:  # whatever it is: 0 and None are results
        found = results[future.key]
        if isinstance(found, Mismatch):
            raise ClusterError(str(found))
        return found
    if future.status == "cancelled":
        raise ClusterError("the connection to the Dask scheduler is lost")
    if future.status != "error":
        return Lost()
    error = future.exception()
    if isinstance(error, KilledWorker):
        return Lost()
    # What is submitted here never raises, so Dask could not even start it.
    if lacks := _lacks_ours(error):
        raise ClusterError(lacks) from error
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Failure("processor", f"can't be started on a worker: {reason}")
