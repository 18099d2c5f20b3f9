"""The account of a run while it works: what is planned, done, and failed."""

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
from agc_ml.execution.processor.loading import Shipment, normalises_itself
from agc_ml.execution.processor.opened_files import Seen, from_plain
from agc_ml.execution.state.checkpoints import Chunk, Receipt, Store
from agc_ml.execution.state.inspection_cache import FileCache
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.ledger import Entry, Ledger
from agc_ml.transports.base import is_same_version
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)


class Tick(NamedTuple):
    """How far a run is; ``events`` is 0 where they are not counted."""

    chunks_done: int
    chunks: int
    events_done: int
    events: int
    failures: int


class Doubted(NamedTuple):
    """What was known of a file that may be another one, and why; its chunks that were done."""

    info: FileInfo
    done: dict[Chunk, Receipt]
    reason: str


@dataclass
class Account:
    """All that is known of the files and chunks of a run.

    ``started`` counts how often workers began with a chunk, ``errors`` holds the reasons of failed
    attempts by chunk or file, ``poison`` the chunks that kill their worker, ``notes`` what workers
    say of their models and files, ``opened`` the files that processors opened. ``cache`` is what
    earlier runs know of files, if that may be used; ``remembered`` are the files that were taken
    from it, ``forgotten`` those that turned out to be others. ``verifies``: files that state a
    checksum are read whole and compared with it, before any of their events are.
    """

    fileset: Fileset
    shipment: Shipment
    store: Store
    chunk_size: int
    on_tick: Callable[[Tick], None]
    files: dict[tuple[str, str], FileInfo] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    done: dict[Chunk, Receipt] = field(default_factory=dict)
    recalled: set[Chunk] = field(default_factory=set)
    started: Counter[str] = field(default_factory=Counter)
    errors: dict[str, list[str]] = field(default_factory=dict)
    poison: set[Chunk] = field(default_factory=set)
    notes: dict[str, None] = field(default_factory=dict)
    opened: dict[str, Seen] = field(default_factory=dict)
    cache: FileCache | None = None
    verifies: bool = False
    remembered: set[tuple[str, str]] = field(default_factory=set)
    forgotten: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.metadata = {d.name: self.fileset.metadata(d) for d in self.fileset.datasets}
        self._listed = {(d.name, f.lfn): f for d, f in self.all_files()}
        self._events_done = 0
        self._states_sumw: dict[str, bool] = {}
        self._doubted: dict[tuple[str, str], Doubted] = {}
        self.with_empty_files: set[str] = set()

    @property
    def is_scaled(self) -> bool:
        """Whether histograms are scaled to cross-section and luminosity, if there is a ``sumw``."""
        return not self.why_unscaled

    @cached_property
    def why_unscaled(self) -> str:
        """Why histograms stay as they were filled, "" if they are scaled."""
        if normalises_itself(self.shipment.processor):
            return (
                "'sumw' is left to the processor's own postprocess, which uses it: nothing is "
                "scaled to cross-section and luminosity"
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
        return getattr(self.shipment.processor, "normalised_to", "") == "nevts"

    def wanted(self, dataset: Dataset) -> ColumnRequest:
        """What the processor wants of the files of a dataset."""
        shipment = self.shipment
        return wanted_of(shipment.processor, shipment.schema, is_data=dataset.is_data)

    def all_files(self) -> Iterator[tuple[Dataset, File]]:
        """Every file of every dataset, in the order of the fileset."""
        return ((d, f) for d in self.fileset.datasets for f in d.files)

    def plan(self) -> None:
        """Cut all files that could be opened into chunks, in canonical order."""
        self.chunks = [
            chunk
            for dataset, file in self.all_files()
            if (info := self.files.get((dataset.name, file.lfn))) is not None
            for chunk in chunks_of(dataset.name, file, info, self.chunk_size)
        ]
        self.with_empty_files = {
            dataset.name
            for dataset, file in self.all_files()
            if (info := self.files.get((dataset.name, file.lfn))) is not None
            and not info.entries
            and info.generated
        }

    def remember(self, dataset: Dataset, file: File) -> bool:
        """Take what an earlier run knows of a file, instead of opening it; whether it knows it."""
        key = (dataset.name, file.lfn)
        if self.cache is None or key in self.forgotten or self.is_verified(file):
            return False
        info = self.cache.recall(file, self.wanted(dataset))
        if info is not None:
            self.files[key] = info
            self.remembered.add(key)
        return info is not None

    def forget(self, chunk: Chunk, reason: str) -> None:
        """Have the file of a chunk looked into again: it may be another one than was known.

        Until then it counts as one that could not be opened, and nothing of it as done.
        """
        key = (chunk.dataset, chunk.lfn)
        self.forgotten.add(key)
        self.remembered.discard(key)
        if key not in self.files:  # another chunk of it was here before
            return
        self.chunks = [one for one in self.chunks if (one.dataset, one.lfn) != key]
        mine = [one for one in self.done if (one.dataset, one.lfn) == key]
        done = {one: self.done.pop(one) for one in mine}
        self._events_done -= sum(one.events for one in done)
        self._doubted[key] = Doubted(self.files.pop(key), done, reason)

    def learn(self, dataset: Dataset, file: File, info: FileInfo) -> None:
        """Take what looking into a file told; of one that is another file now, nothing is done."""
        key = (dataset.name, file.lfn)
        self.files[key] = info
        self.notes |= dict.fromkeys(info.failures)
        before = self._doubted.pop(key, None)
        if before is None:
            return
        is_same = before.info.is_of_same_file(info)
        for chunk, receipt in before.done.items():
            if is_same and not is_of_another(receipt, info):
                self.done[chunk] = receipt
                self._events_done += chunk.events
            else:
                self.recalled.discard(chunk)

    def proven(self) -> Iterator[tuple[File, ColumnRequest, FileInfo]]:
        """Files that were looked into in this run, and of which all chunks are done since then."""
        open_files = {(c.dataset, c.lfn) for c in self.chunks if self._is_missing(c)}
        for dataset, file in self.all_files():
            key = (dataset.name, file.lfn)
            info = self.files.get(key)
            is_new = info is not None and key not in self.remembered
            if info is not None and is_new and info.entries and key not in open_files:
                yield file, self.wanted(dataset), info

    def mixes(self, chunk: Chunk, receipt: Receipt) -> bool:
        """Return whether a replica was another version of the file when it gave the chunks before.

        Who reads the replica that was looked into compares it with that.
        """
        key = (chunk.dataset, chunk.lfn)
        info = self.files[key]
        if receipt.url == info.url or key in self.forgotten:
            return False
        mine = chunks_of(chunk.dataset, self._listed[key], info, self.chunk_size)
        before = [self.done[one] for one in mine if one in self.done]
        return any(
            one.url == receipt.url and not is_same_version(one.stamp, receipt.stamp)
            for one in before
        )

    def finish(self, chunk: Chunk, receipt: Receipt) -> None:
        """Note that the result of a chunk is on disk.

        Raises
        ------
        IncompleteError
            Its processor opened a file that is another one than another chunk's.
        ProcessorError
            It states a sum of weights, and another chunk of its dataset does not, or the other way.
        """
        states_sumw = receipt.sumw is not None
        if self._states_sumw.setdefault(chunk.dataset, states_sumw) != states_sumw:
            self._refuse_mixed(chunk)
        opened = from_plain(receipt.files)
        for path, one in opened.items():
            if self.opened.setdefault(path, one).differs(one):
                raise IncompleteError(
                    f"{path}: the processor opens it, and it changed while the run was on, or is "
                    "another one on another worker; run again with --overwrite"
                )
        self.done[chunk] = receipt
        self._events_done += chunk.events

    def _refuse_mixed(self, chunk: Chunk) -> None:
        if self.is_scaled and not self.dataset(chunk.dataset).is_data:
            raise ProcessorError(
                f"{chunk}: processor {self.shipment.name}: only some chunks of the dataset have a "
                "'sumw', by which histograms would be scaled; return it for each, 0 where there is "
                "nothing to add"
            )

    def to_do(self) -> list[Chunk]:
        """Chunks with events that are neither done nor known to kill their worker."""
        return [c for c in self.chunks if self._is_missing(c) and c not in self.poison]

    def unopened(self) -> list[tuple[Dataset, File]]:
        """Files that could not be opened yet."""
        return [(d, f) for d, f in self.all_files() if (d.name, f.lfn) not in self.files]

    def path(self, chunk: Chunk) -> Path:
        """Where the result of a chunk is stored."""
        return self.store.path(chunk, self.metadata[chunk.dataset])

    def dataset(self, name: str) -> Dataset:
        """The dataset of that name."""
        return next(d for d in self.fileset.datasets if d.name == name)

    def failed(self, what: str, reason: str) -> None:
        """Note a failed attempt."""
        reasons = self.errors.setdefault(what, [])
        if reason not in reasons:  # it is tried three times
            logger.info("%s: %s", what, reason)
        reasons.append(reason)

    def tick(self) -> None:
        """Tell the caller how far it is."""
        failures = sum(len(reasons) for reasons in self.errors.values())
        events = sum(info.entries for info in self.files.values())
        tick = Tick(len(self.done), len(self.chunks), self._events_done, events, failures)
        self.on_tick(tick)

    def file(self, chunk: Chunk) -> File:
        """The file of a chunk, as it is listed; of one that is verified the verified replica."""
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
        """What is missing and why, a line each."""
        found = {file_label(d, f): self._why_unopened(d, f) for d, f in self.unopened()}
        found |= {str(c): self.errors.get(str(c), []) for c in self.chunks if self._is_missing(c)}
        return [f"{name}: {([*errors] or ['not processed'])[-1]}" for name, errors in found.items()]

    def _is_missing(self, chunk: Chunk) -> bool:
        return bool(chunk.events) and chunk not in self.done

    def _why_unopened(self, dataset: Dataset, file: File) -> list[str]:
        """Why a file is not open: what opening it told, and before that what made it doubtful."""
        doubted = self._doubted.get((dataset.name, file.lfn))
        return [
            *([] if doubted is None else [doubted.reason]),
            *self.errors.get(file_label(dataset, file), []),
        ]

    def missing_fractions(self) -> dict[str, float]:
        """Fraction of each dataset's events that is missing.

        A file that never told its number of events counts as much as the average of the others.
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
            lost = unopened + sum(
                chunk.events
                for chunk in self.chunks
                if chunk.dataset == dataset.name and self._is_missing(chunk)
            )
            fractions[dataset.name] = lost / max(sum(known) + unopened, 1)
        return fractions

    def _entries_before(self, key: tuple[str, str]) -> int:
        """Entries that a file had before it was in doubt, 0 if it was not."""
        return self._doubted[key].info.entries if key in self._doubted else 0

    def ledger(self) -> Ledger:
        """The account so far."""
        entries = []
        for dataset, file in self.all_files():
            info = self.files.get((dataset.name, file.lfn))
            if info is None:
                entries.append(self._unopened(dataset, file))
                continue
            chunks = chunks_of(dataset.name, file, info, self.chunk_size)
            entries += [self._entry(chunk, info) for chunk in chunks]
        return Ledger(tuple(entries))

    def _unopened(self, dataset: Dataset, file: File) -> Entry:
        reasons = self._why_unopened(dataset, file)
        return Entry(
            dataset=dataset.name,
            lfn=file.lfn,
            uuid=None,
            entries=file.entries,
            start=0,
            stop=file.entries,
            status="missing",
            attempts=len(reasons),
            errors=tuple(reasons),
        )

    def _entry(self, chunk: Chunk, info: FileInfo) -> Entry:
        receipt = self.done.get(chunk)
        errors = list(self.errors.get(str(chunk), ()))
        worked = receipt is not None and chunk not in self.recalled
        unseen = self.started[str(chunk)] - len(errors) - worked
        errors += ["its worker died, and Dask ran it again"] * max(0, unseen)
        return Entry(
            dataset=chunk.dataset,
            lfn=chunk.lfn,
            uuid=chunk.uuid,
            entries=chunk.entries,
            start=chunk.start,
            stop=chunk.stop,
            status="done" if receipt is not None or not chunk.events else "missing",
            attempts=len(errors) + worked,
            worker=receipt.worker if receipt else "",
            seconds=receipt.seconds if receipt else 0.0,
            bytes=receipt.bytes if receipt else 0,
            errors=tuple(errors),
            size=info.size,
            url=receipt.url if receipt else info.url,
            stamp=receipt.stamp if receipt else info.stamp,
            tree=chunk.tree,
        )


def is_of_another(receipt: Receipt, info: FileInfo) -> bool:
    """Whether the replica that was read has changed since; what another one says tells nothing."""
    return receipt.url == info.url and not is_same_version(receipt.stamp, info.stamp)


def file_label(dataset: Dataset, file: File) -> str:
    """How messages and the account name a file."""
    return f"{dataset.name}: {redacted(file.url)}"


def chunks_of(dataset: str, file: File, info: FileInfo, size: int) -> list[Chunk]:
    """Cut a file into the fewest even chunks of at most ``size`` events; an empty file into one."""
    n, k = info.entries, max(1, -(-info.entries // size))
    return [
        Chunk(dataset, file.lfn, file.tree, info.uuid, n, n * i // k, n * (i + 1) // k)
        for i in range(k)
    ]
