"""State of a run while it works: planned, finished and failed chunks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from agc_ml.errors import IncompleteError, ProcessorError
from agc_ml.execution.inspection import FileInfo
from agc_ml.execution.processor.declarations import wanted_of
from agc_ml.execution.processor.loading import LoadedProcessor
from agc_ml.execution.processor.opened_files import FileState, from_plain
from agc_ml.execution.progress import Progress
from agc_ml.execution.state.checkpoints import CheckpointStore, Chunk, Receipt
from agc_ml.execution.state.inspection_cache import InspectionCache
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.ledger import Entry, Ledger
from agc_ml.transports.base import is_same_version
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

FileKey = tuple[str, str]
"""Names of a dataset and of a file in it."""


class DoubtedFile(NamedTuple):
    """A file that may have been replaced: its inspection, its finished chunks, and the reason."""

    info: FileInfo
    done: dict[Chunk, Receipt]
    reason: str


@dataclass
class RunState:
    """Files and chunks of a run.

    Attributes
    ----------
    files
        Inspections of the files that could be opened.
    done
        Receipts of the finished chunks; ``recalled`` are the ones of an interrupted run.
    started
        Number of times that workers began with a chunk.
    errors
        Reasons of failed attempts, by chunk or file.
    poison
        Chunks that kill their worker.
    notes
        Lines of workers about models and files.
    opened
        Files that the processor opened.
    cache
        Inspections of earlier runs, if they may be used; ``remembered`` are the files taken from
        it, ``forgotten`` the ones that turned out to differ.
    verifies
        Whether files with a checksum are read whole and compared with it, before any of their
        events are.
    """

    fileset: Fileset
    processor: LoadedProcessor
    store: CheckpointStore
    chunk_size: int
    on_progress: Callable[[Progress], None]
    files: dict[FileKey, FileInfo] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    done: dict[Chunk, Receipt] = field(default_factory=dict)
    recalled: set[Chunk] = field(default_factory=set)
    started: Counter[str] = field(default_factory=Counter)
    errors: dict[str, list[str]] = field(default_factory=dict)
    poison: set[Chunk] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)
    opened: dict[str, FileState] = field(default_factory=dict)
    cache: InspectionCache | None = None
    verifies: bool = False
    remembered: set[FileKey] = field(default_factory=set)
    forgotten: set[FileKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.metadata = {d.name: self.fileset.metadata(d) for d in self.fileset.datasets}
        self._listed = {(d.name, f.lfn): f for d, f in self.all_files()}
        self._events_done = 0
        self._states_sumw: dict[str, bool] = {}
        self._doubted: dict[FileKey, DoubtedFile] = {}
        self.with_empty_files: set[str] = set()

    @property
    def is_scaled(self) -> bool:
        """Whether histograms are scaled to cross-section and luminosity, if there is a ``sumw``."""
        return not self.why_unscaled

    @cached_property
    def why_unscaled(self) -> str:
        """Reason why histograms stay as they were filled, "" if they are scaled."""
        if self.processor.normalises_itself:
            return (
                "the processor's own postprocess uses 'sumw': nothing is scaled to cross-section "
                "and luminosity"
            )
        if self.fileset.luminosity is not None:
            return ""
        is_bare = all(dataset.xsec is None for dataset in self.fileset.datasets)
        return (
            f"the fileset states no {'cross-section' if is_bare else 'luminosity'}, so 'sumw' "
            "scales nothing: histograms are as they were filled"
        )

    @property
    def rules_nevts(self) -> bool:
        """Whether the processor normalises to the number of events that the fileset states."""
        return getattr(self.processor.instance, "normalised_to", "") == "nevts"

    def wanted(self, dataset: Dataset) -> ColumnRequest:
        """Columns that the processor needs of the files of a dataset."""
        processor = self.processor
        return wanted_of(processor.instance, processor.schema, is_data=dataset.is_data)

    def all_files(self) -> Iterator[tuple[Dataset, File]]:
        """Every file of every dataset, in the order of the fileset."""
        return ((d, f) for d in self.fileset.datasets for f in d.files)

    def inspected_files(self) -> Iterator[tuple[Dataset, File, FileInfo]]:
        """Files that could be opened, with their inspections, in the order of the fileset."""
        for dataset, file in self.all_files():
            if (info := self.files.get((dataset.name, file.lfn))) is not None:
                yield dataset, file, info

    def plan_chunks(self) -> None:
        """Cut all files that could be opened into chunks, in canonical order."""
        self.chunks = [
            chunk
            for dataset, file, info in self.inspected_files()
            for chunk in chunks_of(dataset.name, file, info, self.chunk_size)
        ]
        self.with_empty_files = {
            dataset.name
            for dataset, _, info in self.inspected_files()
            if not info.entries and info.generated
        }

    def take_from_cache(self, dataset: Dataset, file: File) -> bool:
        """Use an earlier run's inspection of a file instead of opening it; return success."""
        key = (dataset.name, file.lfn)
        if self.cache is None or key in self.forgotten or self.is_verified(file):
            return False
        info = self.cache.recall(file, self.wanted(dataset))
        if info is not None:
            self.files[key] = info
            self.remembered.add(key)
        return info is not None

    def doubt(self, chunk: Chunk, reason: str) -> None:
        """Have the file of a chunk inspected again, as it may have been replaced.

        Until then it counts as a file that could not be opened, and none of its chunks as done.
        """
        key = (chunk.dataset, chunk.lfn)
        self.forgotten.add(key)
        self.remembered.discard(key)
        if key not in self.files:  # another chunk of it failed before
            return
        self.chunks = [c for c in self.chunks if (c.dataset, c.lfn) != key]
        own = [c for c in self.done if (c.dataset, c.lfn) == key]
        done = {c: self.done.pop(c) for c in own}
        self._events_done -= sum(c.events for c in done)
        self._doubted[key] = DoubtedFile(self.files.pop(key), done, reason)

    def add_file(self, dataset: Dataset, file: File, info: FileInfo) -> None:
        """Add the inspection of a file; if the file was replaced, none of its chunks is done."""
        key = (dataset.name, file.lfn)
        self.files[key] = info
        self.notes |= dict.fromkeys(info.failures)
        before = self._doubted.pop(key, None)
        if before is None:
            return
        is_same = before.info.is_of_same_file(info)
        for chunk, receipt in before.done.items():
            if is_same and not is_replaced(receipt, info):
                self.done[chunk] = receipt
                self._events_done += chunk.events
            else:
                self.recalled.discard(chunk)

    def proven(self) -> Iterator[tuple[File, ColumnRequest, FileInfo]]:
        """Files that were inspected in this run, and whose chunks have all been read since then."""
        unfinished = {(c.dataset, c.lfn) for c in self.chunks if self._is_missing(c)}
        for dataset, file, info in self.inspected_files():
            key = (dataset.name, file.lfn)
            if info.entries and key not in self.remembered | unfinished:
                yield file, self.wanted(dataset), info

    def mixes_versions(self, chunk: Chunk, receipt: Receipt) -> bool:
        """Return whether a replica had another version of the file for the chunks before.

        Workers compare the replica that was inspected with its inspection.
        """
        key = (chunk.dataset, chunk.lfn)
        info = self.files[key]
        if receipt.url == info.url or key in self.forgotten:
            return False
        chunks = chunks_of(chunk.dataset, self._listed[key], info, self.chunk_size)
        before = [self.done[c] for c in chunks if c in self.done]
        return any(
            other.url == receipt.url and not is_same_version(other.stamp, receipt.stamp)
            for other in before
        )

    def add_finished(self, chunk: Chunk, receipt: Receipt) -> None:
        """Note that the result of a chunk is on disk.

        Raises
        ------
        IncompleteError
            Its processor opened a file that differs from the one of another chunk.
        ProcessorError
            Only some chunks of its dataset state a sum of weights.
        """
        states_sumw = receipt.sumw is not None
        is_mixed = self._states_sumw.setdefault(chunk.dataset, states_sumw) != states_sumw
        if is_mixed and self.is_scaled and not self.dataset(chunk.dataset).is_data:
            raise ProcessorError(
                f"{chunk}: processor {self.processor.name}: only some chunks of the dataset have a "
                "'sumw', by which histograms would be scaled; return it for each, 0 where there is "
                "nothing to add"
            )
        for path, file in from_plain(receipt.files).items():
            if self.opened.setdefault(path, file).differs(file):
                raise IncompleteError(
                    f"{path}: the processor opens it, and it changed during the run or differs "
                    "between workers; run again with --overwrite"
                )
        self.done[chunk] = receipt
        self._events_done += chunk.events

    def pending(self) -> list[Chunk]:
        """Chunks with events that are neither done nor known to kill their worker."""
        return [c for c in self.chunks if self._is_missing(c) and c not in self.poison]

    def unopened(self) -> list[tuple[Dataset, File]]:
        """Files that could not be opened yet."""
        return [(d, f) for d, f in self.all_files() if (d.name, f.lfn) not in self.files]

    def path(self, chunk: Chunk) -> Path:
        """Path of the result of a chunk."""
        return self.store.path(chunk, self.metadata[chunk.dataset])

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name."""
        return next(d for d in self.fileset.datasets if d.name == name)

    def add_error(self, name: str, reason: str) -> None:
        """Note a failed attempt at a chunk or file."""
        reasons = self.errors.setdefault(name, [])
        if reason not in reasons:  # there are three attempts
            logger.info("%s: %s", name, reason)
        reasons.append(reason)

    def report_progress(self) -> None:
        """Tell the caller how many chunks and events are done."""
        failures = sum(map(len, self.errors.values()))
        events = sum(info.entries for info in self.files.values())
        self.on_progress(
            Progress(len(self.done), len(self.chunks), self._events_done, events, failures)
        )

    def file(self, chunk: Chunk) -> File:
        """The file of a chunk as it is listed; of a verified file only the verified replica."""
        file = self._listed[chunk.dataset, chunk.lfn]
        info = self.files.get((chunk.dataset, chunk.lfn))
        if info is None or not self.is_verified(file):
            return file
        verified = tuple(url for url in file.replicas if redacted(url) == info.url)
        return replace(file, replicas=verified or file.replicas)

    def is_verified(self, file: File) -> bool:
        """Return whether a file is read whole before it is used, and compared with its checksum."""
        return self.verifies and file.adler32 is not None

    def is_empty(self, dataset: Dataset) -> bool:
        """Return whether all files of a dataset could be opened, and have no events."""
        infos = [self.files.get((dataset.name, file.lfn)) for file in dataset.files]
        return all(info is not None and info.entries == 0 for info in infos)

    def reasons(self) -> list[str]:
        """Missing files and chunks with the reason, a line each."""
        errors = {file_label(d, f): self._errors_of(d, f) for d, f in self.unopened()}
        errors |= {str(c): self.errors.get(str(c), []) for c in self.chunks if self._is_missing(c)}
        return [f"{name}: {([*lines] or ['not processed'])[-1]}" for name, lines in errors.items()]

    def _is_missing(self, chunk: Chunk) -> bool:
        return bool(chunk.events) and chunk not in self.done

    def _errors_of(self, dataset: Dataset, file: File) -> list[str]:
        """Reasons why a file is not open: the doubt about it, and errors of opening it."""
        doubted = self._doubted.get((dataset.name, file.lfn))
        errors = self.errors.get(file_label(dataset, file), [])
        return errors if doubted is None else [doubted.reason, *errors]

    def missing_fractions(self) -> dict[str, float]:
        """Fraction of the events that is missing, by dataset.

        A file of unknown number of events counts as much as the average of the others.
        """
        fractions = {}
        for dataset in self.fileset.datasets:
            keys = [(dataset.name, file.lfn) for file in dataset.files]
            known = [self.files[key].entries for key in keys if key in self.files]
            average = max(1.0, sum(known) / max(1, len(known)))
            unopened = sum(
                file.entries or self._entries_before(key) or average
                for key, file in zip(keys, dataset.files, strict=True)
                if key not in self.files
            )
            unprocessed = sum(
                chunk.events
                for chunk in self.chunks
                if chunk.dataset == dataset.name and self._is_missing(chunk)
            )
            fractions[dataset.name] = (unopened + unprocessed) / max(sum(known) + unopened, 1)
        return fractions

    def _entries_before(self, key: FileKey) -> int:
        """Entries that a file had before it was doubted, 0 if it was not."""
        return self._doubted[key].info.entries if key in self._doubted else 0

    def ledger(self) -> Ledger:
        """Ledger of all events of the fileset so far."""
        entries = []
        for dataset, file in self.all_files():
            info = self.files.get((dataset.name, file.lfn))
            if info is None:
                entries.append(self._unopened_entry(dataset, file))
                continue
            chunks = chunks_of(dataset.name, file, info, self.chunk_size)
            entries += [self._entry(chunk, info) for chunk in chunks]
        return Ledger(tuple(entries))

    def _unopened_entry(self, dataset: Dataset, file: File) -> Entry:
        errors = self._errors_of(dataset, file)
        return Entry(
            dataset=dataset.name,
            lfn=file.lfn,
            uuid=None,
            entries=file.entries,
            start=0,
            stop=file.entries,
            status="missing",
            attempts=len(errors),
            errors=tuple(errors),
        )

    def _entry(self, chunk: Chunk, info: FileInfo) -> Entry:
        receipt = self.done.get(chunk)
        errors = list(self.errors.get(str(chunk), ()))
        is_new = receipt is not None and chunk not in self.recalled
        unreported = self.started[str(chunk)] - len(errors) - is_new
        errors += ["its worker died, and Dask ran it again"] * max(0, unreported)
        return Entry(
            dataset=chunk.dataset,
            lfn=chunk.lfn,
            uuid=chunk.uuid,
            entries=chunk.entries,
            start=chunk.start,
            stop=chunk.stop,
            status="done" if receipt is not None or not chunk.events else "missing",
            attempts=len(errors) + is_new,
            worker=receipt.worker if receipt else "",
            seconds=receipt.seconds if receipt else 0.0,
            bytes=receipt.bytes if receipt else 0,
            errors=tuple(errors),
            size=info.size,
            url=receipt.url if receipt else info.url,
            stamp=receipt.stamp if receipt else info.stamp,
            tree=chunk.tree,
        )


def is_replaced(receipt: Receipt, info: FileInfo) -> bool:
    """Return whether the replica that was read has changed since it was inspected."""
    return receipt.url == info.url and not is_same_version(receipt.stamp, info.stamp)


def file_label(dataset: Dataset, file: File) -> str:
    """Name of a file in messages and in the ledger."""
    return f"{dataset.name}: {redacted(file.url)}"


def chunks_of(dataset: str, file: File, info: FileInfo, size: int) -> list[Chunk]:
    """Cut a file into the fewest even chunks of at most ``size`` events; an empty file into one."""
    n, k = info.entries, max(1, -(-info.entries // size))
    return [
        Chunk(dataset, file.lfn, file.tree, info.uuid, n, n * i // k, n * (i + 1) // k)
        for i in range(k)
    ]
