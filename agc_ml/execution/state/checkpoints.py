"""Finished chunks on disk, so that an interrupted run goes on where it stopped.

A file is two lines of JSON and the packed output: digest and signature, then what it is. The first
covers all that follows, with the name of the file: under the name of another one it is nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter

from agc_ml import documents
from agc_ml.errors import UsageError
from agc_ml.execution.processor.opened_files import from_plain
from agc_ml.execution.state.signing import is_own, signature
from agc_ml.files import write
from agc_ml.inputs.datasets import as_text
from agc_ml.results import packing


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

    ``files`` are those that the processor opened, by path, as
    `agc_ml.execution.processor.opened_files` writes them. ``sumw`` is the sum of weights that its
    output states, and ``sums`` what that is of a file that a filter made
    (`agc_ml.execution.normalisation`). ``url`` and ``stamp`` tell the replica that was read.
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
    """A folder of finished chunks, a file each.

    The name of a file is a digest of all that decides its content, so nothing stale is ever read.
    Nor is a pickle that somebody else wrote, unless that is trusted: it could run anything.
    """

    def __init__(
        self, folder: Path, decided_by: Mapping[str, Any], *, trusts_all: bool = False
    ) -> None:
        """``decided_by``: code, parameters, models and versions, the same for all chunks."""
        self.folder = folder
        self._decided_by = json.dumps(decided_by, default=repr)  # their order counts
        self._trusts_all = trusts_all
        self._saved: dict[str, str] = {}

    def path(self, chunk: Chunk, metadata: Mapping[str, Any]) -> Path:
        """Where the result of a chunk is or will be; ``metadata`` is what its processor sees."""
        content = json.dumps([asdict(chunk), dict(metadata), self._decided_by], default=as_text)
        return self.folder / hashlib.sha256(content.encode()).hexdigest()[:40]

    def names(self) -> set[str]:
        """Names of the files that are there."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name for path in found if not path.name.startswith(".")}

    def save(self, path: Path, chunk: Chunk, receipt: Receipt, blob: bytes) -> None:
        """Write a finished chunk, whole or not at all.

        Raises
        ------
        StoreError
            The folder can't be written, or the disk is full.
        UsageError
            It has to be signed, and others can read the user's key.
        """
        header = {"chunk": str(chunk), **asdict(receipt)}
        self._saved[path.name] = seal(path, header, blob, signed=packing.is_code(blob))

    def receipt(self, path: Path, chunk: Chunk) -> Receipt | None:
        """Receipt of a finished chunk; None, and raises, as `load`."""
        found = self.load(path, chunk)
        return None if found is None else found[0]

    def load(self, path: Path, chunk: Chunk) -> tuple[Receipt, bytes] | None:
        """Receipt and packed output of a finished chunk.

        None if it is not there, not whole, or of another chunk.

        Raises
        ------
        UsageError
            It is a pickle of somebody else's.
        """
        found = unseal(path)
        if found is None or found.header.pop("chunk", None) != str(chunk):
            return None
        try:
            receipt = _RECEIPT.validate_python(found.header)
            from_plain(receipt.files)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if receipt.events != chunk.events:
            return None
        if packing.is_too_large(found.blob) and self._saved.get(path.name) != found.digest:
            return None  # done again, it is known not to be somebody else's
        if packing.is_code(found.blob) and not self._is_trusted(path, found):
            raise UsageError(
                f"{self.folder}: what the processor returns was kept as pickles there, which run "
                "code when they are read, and no key of yours shows that you wrote them here; if "
                "you trust whoever wrote them, add --trust; else begin anew with --overwrite"
            )
        return receipt, found.blob

    def _is_trusted(self, path: Path, found: Sealed) -> bool:
        is_of_now = self._saved.get(path.name) == found.digest
        return self._trusts_all or is_of_now or found.is_own


_RECEIPT: Final = TypeAdapter(Receipt)
_MOST: Final = 1 << 34
"""Bytes of a file: more are not what a chunk gives."""


class Sealed(NamedTuple):
    """What `seal` wrote; ``is_own``: the user's key signed it."""

    header: dict[str, Any]
    blob: bytes
    digest: str
    is_own: bool


def seal(path: Path, header: Mapping[str, Any], blob: bytes, *, signed: bool = False) -> str:
    """Write two lines of JSON and a blob, whole or not at all; returns the digest.

    Raises
    ------
    StoreError
        The folder can't be written, or the disk is full.
    UsageError
        It is to be signed, and others can read the user's key.
    """
    content = json.dumps({"name": path.name, **header}).encode() + b"\n" + blob
    digest = hashlib.sha256(content).hexdigest()
    checks = {"sha256": digest, **({"signature": signature(digest.encode())} if signed else {})}
    whole = json.dumps(checks).encode() + b"\n" + content
    # fsync would cost more than all the rest, and `unseal` finds out whether a file is whole.
    write(path, lambda temporary: temporary.write_bytes(whole), durable=False)
    return digest


def unseal(path: Path) -> Sealed | None:
    """Read what `seal` wrote; None if it is not there, not whole, or was under another name.

    Raises
    ------
    UsageError
        It is signed, and others can read the user's key.
    """
    try:
        first, _, content = documents.content(path, _MOST).partition(b"\n")
        checks = json.loads(first)
        digest, signed = checks["sha256"], str(checks.get("signature", ""))
        second, _, blob = content.partition(b"\n")
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        header = json.loads(second)
        name = header.pop("name")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if name != path.name:
        return None
    return Sealed(header, blob, digest, bool(signed) and is_own(digest.encode(), signed))
