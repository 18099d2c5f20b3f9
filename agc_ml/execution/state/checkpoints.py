"""Finished chunks on disk, from which an interrupted run resumes.

A file is two lines of JSON and the packed output: digest and signature, then the chunk and its
receipt. The digest covers all that follows, with the name of the file, so that a renamed file is
not read.
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
from agc_ml.execution.state import packing
from agc_ml.execution.state.signing import is_own, signature
from agc_ml.files import write
from agc_ml.inputs.datasets import as_text


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

    Attributes
    ----------
    files
        Files that the processor opened, as `agc_ml.execution.processor.opened_files` writes them.
    sumw, sums
        Sum of weights in the output, and its kind (`agc_ml.execution.normalisation`).
    url, stamp
        The replica that was read, and its version.
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


class CheckpointStore:
    """A folder of finished chunks, a file each.

    The name of a file is a digest of all that decides its content, so that stale files are never
    read. Pickles of other users are refused unless they are trusted: they could run any code.
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
        """Path of the result of a chunk; ``metadata`` is the processor's."""
        content = json.dumps([asdict(chunk), dict(metadata), self._decided_by], default=as_text)
        return self.folder / hashlib.sha256(content.encode()).hexdigest()[:40]

    def names(self) -> set[str]:
        """Names of the files in the folder."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return {path.name for path in paths if not path.name.startswith(".")}

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
        checkpoint = self.load(path, chunk)
        return None if checkpoint is None else checkpoint[0]

    def load(self, path: Path, chunk: Chunk) -> tuple[Receipt, bytes] | None:
        """Receipt and packed output of a finished chunk.

        None if the file does not exist, is damaged, or is of another chunk.

        Raises
        ------
        UsageError
            It is a pickle of another user.
        """
        sealed = unseal(path)
        if sealed is None or sealed.header.pop("chunk", None) != str(chunk):
            return None
        try:
            receipt = _RECEIPT.validate_python(sealed.header)
            from_plain(receipt.files)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None
        if receipt.events != chunk.events:
            return None
        if packing.is_too_large(sealed.blob) and self._saved.get(path.name) != sealed.digest:
            return None  # processed again, it is certainly this run's
        if packing.is_code(sealed.blob) and not self._is_trusted(path, sealed):
            raise UsageError(
                f"{self.folder}: its checkpoints are pickles, which run code when they are read, "
                "and your key did not sign them; add --trust if you trust their author, or start "
                "over with --overwrite"
            )
        return receipt, sealed.blob

    def _is_trusted(self, path: Path, sealed: Sealed) -> bool:
        is_of_this_run = self._saved.get(path.name) == sealed.digest
        return self._trusts_all or is_of_this_run or sealed.is_own


_RECEIPT: Final = TypeAdapter(Receipt)
_MOST: Final = 1 << 34
"""Bytes of the largest file: no chunk gives more."""


class Sealed(NamedTuple):
    """Content of a sealed file; ``is_own``: the user's key signed it."""

    header: dict[str, Any]
    blob: bytes
    digest: str
    is_own: bool


def seal(path: Path, header: Mapping[str, Any], blob: bytes, *, signed: bool = False) -> str:
    """Write two lines of JSON and a blob, whole or not at all; return the digest.

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
    # fsync would cost more than all the rest, and `unseal` detects truncated files
    write(path, lambda temporary: temporary.write_bytes(whole), durable=False)
    return digest


def unseal(path: Path) -> Sealed | None:
    """Read a sealed file; None if it does not exist, is damaged, or was renamed.

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
