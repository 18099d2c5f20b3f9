"""Executor on a Dask cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

from agc_ml._version import __version__
from agc_ml.delivery import worker_environment
from agc_ml.errors import ClusterError, chain
from agc_ml.execution.cluster import clusters
from agc_ml.execution.cluster.executors import Result, WorkerDied
from agc_ml.execution.cluster.monitor import ClusterMonitor
from agc_ml.execution.worker.job import Failure
from agc_ml.models import content
from agc_ml.models.content import Content

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 3
_RETRY_S: Final = 1.0
"""Wait before workers are given a plugin again that one of them did not receive."""

_REGISTER_S: Final = 30.0
"""Time for all workers to take a plugin; a frozen one never does."""

_CLOSE_S: Final = 5.0
_REPORT_S: Final = 60.0

FETCH_EVERY_S: Final = 0.1
"""Results are fetched together: each request costs the scheduler as much as a chunk."""


class DaskExecutor:
    """Futures on a Dask cluster.

    ``patience`` is the time in seconds after which it gives up if no responding worker has a job;
    None for the default of `agc_ml.execution.cluster.monitor`.

    Raises
    ------
    ClusterError
        The workers lack agc-ml, or have another version.
    """

    def __init__(self, client: Client, patience: float | None = None) -> None:
        self._client = client
        self._patience = patience
        self._topic = f"agc-ml-{uuid4().hex}"
        self.started: Counter[str] = Counter()
        self._plugins: list[str] = []
        self._given_up: set[str] = set()
        self._any_worker = False
        environment = worker_environment.collect(is_private=clusters.is_private(client))
        self._register(_plugin(partial(worker_environment.apply, environment)))
        client.subscribe_topic(self._topic, lambda event: self.started.update([event[1]]))

    def close(self) -> None:
        """Stop listening, and remove the plugins from the cluster."""
        if self._client.status != "running":
            return
        # whatever is wrong with the cluster now, the work is done
        with warn_on_error("plugins can't be removed from the cluster"):
            self._client.unsubscribe_topic(self._topic)
            for name in self._plugins:
                forget = partial(self._client.scheduler.unregister_worker_plugin, name=name)
                self._client.sync(forget, callback_timeout=_CLOSE_S)

    def provide(
        self, contents: Mapping[str, Content], forget: Callable[[], None] | None = None
    ) -> None:
        """Give every worker the contents, also those that join later."""
        if contents:
            self._register(_plugin(partial(content.provide, contents), forget))

    def _register(self, plugin: Any) -> None:
        self._plugins.append(plugin.name)
        for left in reversed(range(_ATTEMPTS)):
            try:
                self._client.sync(
                    partial(self._client.register_plugin, plugin), callback_timeout=_REGISTER_S
                )
            except TimeoutError:
                # the others have it by now, and need not wait for this one
                logger.warning(
                    "a worker does not answer, and gets its models and settings later (%s)",
                    self._client.scheduler.address,
                )
                return
            except OSError:  # a worker died just then; once more for the others
                if not left or self._client.status != "running":
                    raise
                time.sleep(_RETRY_S)
            except Exception as error:
                if problem := _import_problem(error):
                    raise ClusterError(problem) from error
                raise
            else:
                return

    @contextlib.contextmanager
    def report(self, path: Path) -> Iterator[None]:
        """Write Dask's performance report, unless the block raises.

        If it can't be written, a line says so; the run goes on.
        """
        from distributed import performance_report  # noqa: PLC0415 - heavy

        report = performance_report(filename=str(path), mode="inline")
        call = partial(self._client.sync, callback_timeout=_REPORT_S)
        with self._client.as_current():
            with warn_on_error(f"{path} can't be written"):
                call(report.__aenter__)
            yield
            with warn_on_error(f"{path} can't be written"):
                if self._client.status != "running":  # the call would wait
                    raise ClusterError("the connection to the Dask scheduler is lost")
                call(report.__aexit__, None, None, None, code="")

    def outcomes(
        self,
        function: Callable[..., Result],
        jobs: Mapping[str, tuple[Any, ...]],
        *,
        alone: bool = False,
    ) -> Iterator[tuple[str, Result | Failure | WorkerDied]]:
        """Submit all jobs, yield them as they finish, and cancel the rest when the caller stops.

        Raises
        ------
        ClusterError
            The scheduler is gone, or a worker lacks agc-ml or has another version.
        WaitError
            Nothing on the cluster progresses, for longer than ``patience``.
        """
        from dask.utils import funcname  # noqa: PLC0415 - heavy
        from distributed import as_completed  # noqa: PLC0415 - heavy
        from distributed.client import FutureCancelledError  # noqa: PLC0415 - heavy

        if not jobs:
            return
        round_id = uuid4().hex[:8]
        futures = self._client.map(
            _call,
            [(__version__, self._topic, key) for key in jobs],
            [function] * len(jobs),
            *zip(*jobs.values(), strict=True),
            key=[f"{funcname(function)}-{round_id}-{index}" for index in range(len(jobs))],
            retries=0,
            pure=False,
            batch_size=500,
        )
        keys = {future.key: key for future, key in zip(futures, jobs, strict=True)}
        pending = {future.key: future for future in futures}
        monitor = ClusterMonitor(
            self._client, keys, self._patience, alone=alone, any_worker=self._any_worker
        )
        completed = as_completed(futures)
        del futures  # a future that is held is computed again when its worker dies
        try:
            while pending:
                batch = completed.next_batch(block=False)
                fetched = time.monotonic()
                finished = {future.key: future for future in batch if future.status == "finished"}
                results = self._gather(finished, monitor, pending)
                for future in batch:
                    if pending.pop(future.key, None) is not None:  # else it was given up
                        monitor.note_progress()
                        yield keys[future.key], _outcome(future, results)
                        future.release()
                self._any_worker = monitor.any_worker
                given_up, self._given_up = self._given_up | monitor.check(pending), set()
                for key in given_up & pending.keys():
                    self._client.cancel([pending.pop(key)], force=True)
                    yield keys[key], WorkerDied()
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

    def _gather(
        self, finished: Mapping[str, Future], monitor: ClusterMonitor, pending: Mapping[str, Future]
    ) -> Mapping[str, Any]:
        """Fetch the results of futures; those of a worker that stops answering are computed again.

        Slow results are no reason to stop, as long as their workers answer.
        """
        if not finished:
            return {}

        async def gather() -> dict[str, Any]:
            results: dict[str, Any] = await self._client.gather(finished, errors="skip")
            return results

        loop = self._client.loop.asyncio_loop
        gathering = asyncio.run_coroutine_threadsafe(gather(), loop)
        try:
            while True:
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    return gathering.result(timeout=1.0)
                if gathering.done():
                    return gathering.result()
                monitor.fetching = len(finished)
                given_up = monitor.check(pending) - finished.keys()
                if given_up:
                    # at once: lost results would otherwise wait for these again
                    self._client.cancel([pending[key] for key in given_up], force=True)
                    self._given_up |= given_up
        finally:
            monitor.fetching = 0
            gathering.cancel()


def _call(
    job: tuple[str, str, str], function: Callable[..., Result], *arguments: Any
) -> Result | VersionMismatch:
    """Call a function on a worker that has the driver's version of agc-ml, and report the start."""
    from distributed import get_worker  # noqa: PLC0415 - heavy

    version, topic, key = job
    worker = get_worker()
    if version != __version__:
        return VersionMismatch(str(worker.address), __version__)
    worker.log_event(topic, key)
    return function(*arguments)


class VersionMismatch(NamedTuple):
    """A worker has another version of agc-ml than the driver."""

    worker: str
    version: str

    def __str__(self) -> str:
        return (
            f"worker {self.worker} has agc-ml {self.version}, and the driver agc-ml {__version__}: "
            "install that version in the environment of the workers, and restart them"
        )


@contextlib.contextmanager
def warn_on_error(problem: str) -> Iterator[None]:
    """Warn of errors in work that is not part of the result."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of any layer of Dask; it is logged
        logger.warning("%s (%s)", problem, _one_line(error))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _import_problem(error: BaseException) -> str:
    """Return a line if a worker or the scheduler can't import agc_ml, else ""."""
    reasons = [_one_line(cause) for cause in chain(error)]
    is_import = "agc_ml" in reasons[0] and (
        isinstance(error, ImportError | AttributeError) or _FORWARDED.match(reasons[0])
    )
    if not is_import and _NOT_READ not in reasons[0]:
        return ""
    return (
        f"a worker or the scheduler can't import what agc-ml {__version__} sends it "
        f"({reasons[-1]}): install that version in the environment of both, and restart them"
    )


_FORWARDED: Final = re.compile(r"Exception: (ModuleNotFound|Import|Attribute)Error\(")
"""Begin of a worker's exception, as the scheduler forwards it."""

_NOT_READ: Final = "Error during deserialization of the task graph"
"""Dask's message where the scheduler can't import the function of a job."""


def _plugin(action: Callable[[], None], at_end: Callable[[], None] | None = None) -> Any:
    """Make a plugin that calls ``action`` on each worker, also on later ones.

    ``at_end`` is called when the plugin is removed.
    """
    from distributed import WorkerPlugin  # noqa: PLC0415 - heavy

    class ActionPlugin(WorkerPlugin):  # type: ignore[misc]
        name = f"agc-ml-{uuid4().hex}"

        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask calls it so
            action()

        def teardown(self, worker: Any) -> None:  # noqa: ARG002 - likewise
            if at_end is not None:
                at_end()

    return ActionPlugin()


def _outcome(future: Future, results: Mapping[str, Any]) -> Any:
    """Return the outcome of a job: its result, if that could be fetched.

    Raises
    ------
    ClusterError
        The scheduler is gone, or the worker's agc-ml is missing or another version.
    """
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 - heavy

    if future.key in results:  # whatever it is: 0 and None are results
        result = results[future.key]
        if isinstance(result, VersionMismatch):
            raise ClusterError(str(result))
        return result
    if future.status == "cancelled":
        raise ClusterError("the connection to the Dask scheduler is lost")
    if future.status != "error":
        return WorkerDied()
    error = future.exception()
    if isinstance(error, KilledWorker):
        return WorkerDied()
    # the submitted functions never raise, so Dask could not start them
    if problem := _import_problem(error):
        raise ClusterError(problem) from error
    return Failure("processor", f"can't be started on a worker: {_one_line(error)}")
