"""Running chunks: the only place where processors meet Dask.

Chunks are Dask futures. Workers return outcomes as data; the driver writes each finished chunk to
disk, and what is on disk decides what is done. Rounds over what is missing take the place of
retries, and partial results are added up in the order of the fileset, so that neither timing nor
faults change a bit of the result.
"""

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
from agc_ml.account import Account, file_label
from agc_ml.checkpoints import Chunk
from agc_ml.errors import (
    ClusterError,
    FilesetError,
    InputFileError,
    ModelError,
    ProcessorError,
    StoreError,
    UsageError,
)
from agc_ml.ml import hook
from agc_ml.ml.hook import Content
from agc_ml.reading import part_of
from agc_ml.results import ClusterSummary
from agc_ml.shipping import is_flat
from agc_ml.worker import Failure, FileInfo, Finished, Job, inspect_file, pack, process_packed

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

ROUNDS: Final = 3
FIRST_WAIT_S: Final = 0.5
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

    def provide(self, models: Mapping[str, Content]) -> None:
        """Give every process that works, now or later, the content of models."""

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

    def provide(self, models: Mapping[str, Content]) -> None:
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
        client.subscribe_topic(self.topic, lambda event: self.started.update([event[1]]))

    def close(self) -> None:
        """Stop listening, and give models to new workers no more."""
        if self._client.status == "running":
            self._client.unsubscribe_topic(self.topic)
            for name in self._plugins:
                self._client.unregister_worker_plugin(name)

    def provide(self, models: Mapping[str, Content]) -> None:
        """Give every worker the content of models, also those that join later."""
        if models:
            plugin = _models_plugin(models)
            self._client.register_plugin(plugin)
            self._plugins.append(plugin.name)

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
                    yield keys[future.key], results.get(future.key) or _outcome(future)
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
    client: Client | None, site: str, workers: int | None
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
        if workers is not None:
            raise UsageError("--workers is for local workers; inline has none")
        yield InlineExecutor(), ClusterSummary(kind=cluster.INLINE, workers=1)
        return
    own = cluster.connect(site, workers=workers) if client is None else None
    used: Client = client if own is None else own
    try:
        kind, n_workers, dashboard = cluster.describe(used)
        logger.info("cluster: %s, %d workers", kind, n_workers)
        logger.info("dashboard: %s", dashboard or "none")
        executor = DaskExecutor(used)
        try:
            yield executor, ClusterSummary(kind=kind, workers=n_workers)
        finally:
            executor.close()
    finally:
        if own is not None:
            own.close(timeout=cluster.CLOSE_TIMEOUT_S)


def _models_plugin(models: Mapping[str, Content]) -> Any:
    from distributed import WorkerPlugin  # noqa: PLC0415 - heavy

    class ProvideModels(WorkerPlugin):  # type: ignore[misc]
        name = f"agc-ml-models-{uuid4().hex}"

        def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask calls it so
            hook.provide(models)

    return ProvideModels()


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


def open_files(account: Account, executor: Executor) -> None:
    """Open every file that was not opened yet, and check what it is.

    Raises
    ------
    InputFileError
        A file is not what is needed: no tree, a missing branch, other than the fileset says; or
        all files of a dataset are empty.
    FilesetError
        A file is there twice in a dataset, under different names.
    """
    files = {
        file_label(d, f): (d, f)
        for d, f in account.all_files()
        if (d.name, f.lfn) not in account.files
    }
    jobs = {key: (file, account.columns(dataset)) for key, (dataset, file) in files.items()}
    inspect = partial(inspect_file, flat=is_flat(account.shipment.processor))
    for key, outcome in executor.outcomes(inspect, jobs):
        dataset, file = files[key]
        if isinstance(outcome, FileInfo):
            account.files[dataset.name, file.lfn] = outcome
        elif isinstance(outcome, Failure):
            if outcome.kind != "input":
                raise InputFileError(f"{key}: {outcome.reason}")
            account.failed(key, outcome.reason)
        else:
            account.failed(key, "the worker died while it opened the file")
    _refuse_duplicates(account)
    _refuse_empty(account)
    account.plan()


def open_some(account: Account, executor: Executor) -> None:
    """Open the files, and if none can be opened try again, in rounds.

    Raises
    ------
    InputFileError
        No file could be opened; or as `open_files`.
    FilesetError
        As `open_files`.
    """
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        open_files(account, executor)
        if account.files:
            return
    dataset, file = account.unopened()[0]
    label, others = file_label(dataset, file), len(account.unopened()) - 1
    more = f" (and {others} more)" if others else ""
    raise InputFileError(
        f"no file can be opened: {label}: {account.errors[label][-1]}{more}; check path and access"
    )


def _refuse_duplicates(account: Account) -> None:
    seen: dict[tuple[str, str, str], str] = {}
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is None:
            continue
        other = seen.setdefault((dataset.name, info.uuid, file.tree), file.lfn)
        if other != file.lfn:
            raise FilesetError(
                f"dataset {dataset.name}: {file.lfn} and {other} are the same file (UUID "
                f"{info.uuid}), its events would count twice; remove one"
            )


def _refuse_empty(account: Account) -> None:
    for dataset in account.fileset.datasets:
        infos = [account.files.get((dataset.name, file.lfn)) for file in dataset.files]
        if all(info is not None and info.entries == 0 for info in infos):
            raise InputFileError(
                f"dataset {dataset.name}: no events in it ({dataset.files[0].url} has 0 entries); "
                "remove it, or leave it out with --datasets"
            )


def process(account: Account, executor: Executor) -> None:
    """Process all chunks, in rounds over what is missing, until all are done or rounds are up.

    Afterwards ``account.done`` says what there is. Input errors, poison chunks and files that can't
    be opened are noted in the account; the caller decides what they mean.

    Raises
    ------
    ProcessorError
        The processor raised: it would again.
    ModelError
        A model can't score: its server is gone, or it is not given what it takes.
    StoreError
        A finished chunk can't be written.
    ClusterError
        The scheduler is gone.
    """
    _recall(account)
    executor.provide(hook.contents(account.shipment.models))
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            open_files(account, executor)
        account.tick()
        lost = _round(account, executor, account.to_do())
        for chunk in lost:  # Dask blames all chunks of a dead worker, so each is tried alone
            if _round(account, executor, [chunk]):
                account.poison.add(chunk)
                logger.warning("%s: the worker dies each time, also when it runs alone", chunk)
        if not account.to_do() and not account.unopened():
            return


def _recall(account: Account) -> None:
    """Take over what an interrupted run has finished."""
    for chunk in account.chunks:
        if chunk.events:
            receipt = account.store.receipt(account.path(chunk), chunk)
            if receipt is not None:
                account.finish(chunk, receipt)
                account.recalled.add(chunk)


def _round(account: Account, executor: Executor, chunks: list[Chunk]) -> list[Chunk]:
    """Process chunks once each; return those whose worker died."""
    jobs = {str(chunk): (pack(_job(account, chunk)), executor.topic) for chunk in chunks}
    by_key = {str(chunk): chunk for chunk in chunks}
    lost = []
    for key, outcome in executor.outcomes(process_packed, jobs):
        chunk = by_key[key]
        if isinstance(outcome, Finished):
            _accept(account, chunk, outcome)
        elif isinstance(outcome, Failure):
            if outcome.kind in {"model", "processor"}:
                account.errors.setdefault(key, []).append(outcome.reason)
                logger.debug("%s\n%s", chunk, outcome.details)
                if outcome.kind == "model":
                    raise ModelError(f"{chunk}: {outcome.reason}")
                raise ProcessorError(
                    f"{chunk}: processor {account.shipment.name}: {outcome.reason} (traceback: -v)"
                )
            account.failed(key, outcome.reason)
        else:
            account.failed(key, "its worker died")
            lost.append(chunk)
        account.tick()
    return lost


def _accept(account: Account, chunk: Chunk, finished: Finished) -> None:
    dataset = account.dataset(chunk.dataset)
    if finished.has_sumw and not dataset.is_data:
        for what, value, unit in (
            ("xsec", dataset.xsec, "pb"),
            ("luminosity", account.fileset.luminosity, "1/pb"),
        ):
            if value is None:
                raise FilesetError(
                    f"dataset {dataset.name}: no {what} in the fileset, and processor "
                    f"{account.shipment.name} needs it to normalise; state it, in {unit}"
                )
    try:
        account.store.save(account.path(chunk), finished.receipt, finished.blob)
    except StoreError as error:
        raise StoreError(f"{error}; {len(account.done)} finished chunks are kept") from error
    account.notes |= dict.fromkeys(finished.notes)
    account.finish(chunk, finished.receipt)


def _job(account: Account, chunk: Chunk) -> Job:
    dataset = account.dataset(chunk.dataset)
    shipment = account.shipment
    whole = account.files[chunk.dataset, chunk.lfn].directory
    return Job(
        chunk=chunk,
        url=account.urls[dataset.name, chunk.lfn],
        metadata=account.metadata[dataset.name],
        columns=account.columns(dataset),
        processor=shipment.blob,
        code=shipment.code,
        modules=shipment.modules,
        module=shipment.module,
        source=shipment.source,
        models=tuple(model.sha256 for model in shipment.models),
        directory=None if whole is None else part_of(whole, chunk.start, chunk.stop),
    )
