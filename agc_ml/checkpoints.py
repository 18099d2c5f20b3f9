"""Finished chunks on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agc_ml.datasets import as_text
from agc_ml.results import write


@dataclass(frozen=True, slots=True)
class Chunk:
    """The entries [start, stop) of a file of ``entries`` entries, in a dataset."""

    dataset: str
    lfn: str
    tree: str
    uuid: str
    entries: int
    start: int
    stop: int

    @property
    def events(self) -> int:
        """Number of events."""
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.dataset}: {self.lfn} [{self.start}, {self.stop})"


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a chunk was processed; times in seconds, memory in MB.

    ``files`` are those that the processor opened, by path, as `agc_ml.opened_files` writes them.
    ``sumw`` is the sum of weights that its output states, and ``sums`` what that is of a file that
    a filter made (`agc_ml.normalisation`). ``url`` and ``stamp`` tell the replica that was read.
    """

    events: int
    worker: str
    seconds: float
    cpu_s: float
    open_s: float
    read_s: float
    bytes: int
    memory_mb: float
    files: Mapping[str, Any] = field(default_factory=dict)
    sumw: float | None = None
    sums: str = ""
    url: str = ""
    stamp: str = ""


class Store:
    """A folder of finished chunks: one file each, a line of JSON and the packed output.

    The name of a file is a digest of all that decides its content, so nothing stale is ever read.
    """

    def __init__(self, folder: Path, decided_by: Mapping[str, Any]) -> None:
        """``decided_by``: code, parameters, models and versions, the same for all chunks."""
        self.folder = folder
        self._decided_by = json.dumps(decided_by, default=repr)  # their order counts

    def path(self, chunk: Chunk, metadata: Mapping[str, Any]) -> Path:
        """Where the result of a chunk is or will be; ``metadata`` is what its processor sees."""
        content = json.dumps([asdict(chunk), dict(metadata), self._decided_by], default=as_text)
        return self.folder / hashlib.sha256(content.encode()).hexdigest()[:40]

    def save(self, path: Path, receipt: Receipt, blob: bytes) -> None:
        """Write a finished chunk, whole or not at all.

        Raises
        ------
        StoreError
            The folder can't be written, or the disk is full.
        """
        seal(path, asdict(receipt), blob)

    def receipt(self, path: Path, chunk: Chunk) -> Receipt | None:
        """Receipt of a finished chunk; None if it is not there, not whole, or of other events."""
        found = self.load(path, chunk)
        return None if found is None else found[0]

    def load(self, path: Path, chunk: Chunk) -> tuple[Receipt, bytes] | None:
        """Receipt and packed output of a finished chunk; None as in `receipt`."""
        found = unseal(path)
        try:
            receipt = None if found is None else Receipt(**found[0])
        except TypeError:
            return None
        if found is None or receipt is None or receipt.events != chunk.events:
            return None
        return receipt, found[1]


def seal(path: Path, header: Mapping[str, Any], blob: bytes) -> None:
    """Write a line of JSON and a blob, whole or not at all.

    Raises
    ------
    StoreError
        The folder can't be written, or the disk is full.
    """
    line = json.dumps({**header, "sha256": hashlib.sha256(blob).hexdigest()})
    content = line.encode() + b"\n" + blob
    # fsync would cost more than all the rest, and `unseal` finds out whether a file is whole.
    write(path, lambda temporary: temporary.write_bytes(content), durable=False)


def unseal(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """Header and blob that `seal` wrote; None if they are not there, or not whole."""
    try:
        line, _, blob = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        digest = header.pop("sha256")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return (header, blob) if hashlib.sha256(blob).hexdigest() == digest else None
