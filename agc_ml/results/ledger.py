"""Ledger of a run: every range of every file, exactly once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

from agc_ml import documents
from agc_ml.errors import RunDirectoryError
from agc_ml.inputs.datasets import plain_tree

Status = Literal["done", "missing"]

_MAX_SIZE: Final = 1 << 32
"""Largest size of a ledger file, in bytes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Chunk: the half-open range [start, stop) of the ``entries`` entries of a file's tree.

    A file that could not be opened is one entry without ``uuid``; its ``entries`` and ``stop`` are
    as stated in the fileset, or None. ``errors`` are those of failed attempts, ``worker`` the
    address of the worker that succeeded, ``bytes`` the amount read from the file. ``size``, ``url``
    and ``stamp`` (time of modification, or tag) describe the replica.
    """

    dataset: str
    lfn: str
    uuid: str | None
    entries: int | None
    start: int
    stop: int | None
    status: Status
    attempts: int = 0
    worker: str = ""
    seconds: float = 0.0
    bytes: int = 0
    errors: tuple[str, ...] = ()
    size: int | None = None
    url: str = ""
    stamp: str = ""
    tree: str = ""

    @property
    def events(self) -> int:
        """Events of the range; 0 if the file's number of entries is unknown."""
        return 0 if self.stop is None else self.stop - self.start

    def __str__(self) -> str:
        stop = "end" if self.stop is None else self.stop
        return f"{self.dataset}: {self.lfn} [{self.start}, {stop})"


@dataclass(frozen=True, slots=True)
class Ledger:
    """All entries of a run, in the order of the fileset."""

    entries: tuple[Entry, ...]

    @property
    def done(self) -> tuple[Entry, ...]:
        """Entries whose result is in the histograms."""
        return tuple(entry for entry in self.entries if entry.status == "done")

    @property
    def missing(self) -> tuple[Entry, ...]:
        """Entries whose result is not in the histograms."""
        return tuple(entry for entry in self.entries if entry.status == "missing")

    @property
    def events(self) -> int:
        """Events in the histograms."""
        return sum(entry.events for entry in self.done)

    @property
    def retries(self) -> int:
        """Attempts beyond the first of each chunk."""
        return sum(max(0, entry.attempts - 1) for entry in self.entries)

    def faults(self) -> list[str]:
        """Return the faults of the ledger: gaps, overlaps, ranges beyond the end.

        The ranges of a tree must add up to [0, entries), each entry in one range only.
        """
        faults = []
        opened = [entry for entry in self.entries if entry.uuid is not None]

        def tree(entry: Entry) -> tuple[str, str, str]:
            return entry.dataset, entry.uuid or "", plain_tree(entry.tree)

        by_tree = sorted(opened, key=lambda e: (tree(e), e.start, e.stop or 0))
        for (dataset, *_), group in groupby(by_tree, key=tree):
            ranges = list(group)
            position = 0
            for entry in ranges:
                if entry.start != position:
                    kind = "counted twice" if entry.start < position else "in no chunk"
                    low, high = sorted((entry.start, position))
                    faults.append(f"{dataset}: {entry.lfn}: entries [{low}, {high}) are {kind}")
                position = max(position, entry.stop or 0)
            if position != ranges[-1].entries:
                faults.append(
                    f"{dataset}: {ranges[-1].lfn}: chunks end at {position}, "
                    f"the file at {ranges[-1].entries}"
                )
        return faults

    def to_jsonl(self) -> str:
        """Return one line of JSON per entry."""
        return "".join(json.dumps(asdict(entry)) + "\n" for entry in self.entries)

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read a ledger file.

        Raises
        ------
        RunDirectoryError
            The file is missing, cut off, or has a line that is not an entry.
        """
        try:
            lines = documents.content(path, _MAX_SIZE).decode().splitlines()
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path}: can't be read ({error})") from error
        return cls(tuple(_entry(path, number, line) for number, line in enumerate(lines, 1)))


def _entry(path: Path, number: int, line: str) -> Entry:
    try:
        raw = json.loads(line)
        return Entry(**{**raw, "errors": tuple(raw["errors"])})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunDirectoryError(
            f"{path}: line {number} is cut off or not a ledger entry ({error}); run again with "
            "--overwrite"
        ) from error


def merge_attempts(entries: Iterable[Entry], earlier: Ledger) -> tuple[Entry, ...]:
    """Add attempts and errors of an interrupted run to the entries of the run that resumed it."""
    before = {(e.dataset, e.lfn, e.start, e.stop): e for e in earlier.entries}
    return tuple(
        _with_attempts(e, before.get((e.dataset, e.lfn, e.start, e.stop))) for e in entries
    )


def _with_attempts(entry: Entry, before: Entry | None) -> Entry:
    if before is None:
        return entry
    merged = replace(
        entry, attempts=entry.attempts + before.attempts, errors=before.errors + entry.errors
    )
    if entry.worker or entry.status != "done":
        return merged
    # read from a checkpoint: the earlier run processed the chunk
    return replace(
        merged,
        worker=before.worker,
        seconds=before.seconds,
        bytes=before.bytes,
        url=before.url,
        stamp=before.stamp,
    )
