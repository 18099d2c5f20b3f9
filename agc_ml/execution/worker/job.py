"""Jobs for workers and their outcomes: a failure comes back as data."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import lz4.frame

from agc_ml.columnar.baskets import Directory, Dropped, EntriesPlace
from agc_ml.errors import (
    AgcError,
    DeliveryError,
    InputFileError,
    ModelError,
    ProcessorError,
    chain,
    in_one_line,
)
from agc_ml.execution.state.checkpoints import Chunk, Receipt
from agc_ml.inputs.datasets import ExpectedFile, File

FailureKind = Literal["input", "other", "definite", "model", "processor"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a file or chunk failed.

    Attributes
    ----------
    kind
        ``input``: the file can't be read now, and may be later; ``other``: it is not the file that
        was opened first; ``definite``: it lacks something, now and later; ``model``: a model can't
        score; ``processor``: the processor raised.
    """

    kind: FailureKind
    reason: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A processed chunk: its receipt and its packed output.

    ``notes`` are lines for the user about models and replicas.
    """

    receipt: Receipt
    blob: bytes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a worker needs for a chunk.

    Attributes
    ----------
    known
        The file as it was when it was inspected.
    key
        Digest of the processor.
    processor
        The processor and its schema, pickled.
    modules, module, source, where, values, files
        As of `agc_ml.execution.processor.loading.LoadedProcessor`.
    models
        The sha256 of the models in the processor.
    directory, dropped
        Places of the columns, and of those of entries that a preselection dropped.
    place
        Place of the number of entries in the file.
    doubtful
        Values of ``sumw`` for which the worker finds out what they are sums of; None for all.
    """

    chunk: Chunk
    file: File
    known: ExpectedFile
    metadata: Mapping[str, Any]
    columns: tuple[str, ...]
    key: str
    processor: bytes
    modules: Mapping[str, str]
    module: str | None
    source: bytes
    where: str = ""
    values: bytes = b"{}"
    files: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    directory: Directory | None = None
    dropped: Dropped | None = None
    place: EntriesPlace | None = None
    doubtful: tuple[float, ...] | None = ()


def pack_job(job: Job) -> bytes:
    """Return a job as bytes, which Dask takes as they are; it takes objects apart."""
    packed: bytes = lz4.frame.compress(pickle.dumps(job, protocol=5))
    return packed


def unpack_job(packed: bytes) -> Job:
    """Undo `pack_job`, on a worker of this run."""
    job: Job = pickle.loads(lz4.frame.decompress(packed))  # noqa: S301 - from this run's driver
    return job


def failure_kind(error: BaseException) -> FailureKind:
    """Return whether the file, a model or the processor is to blame for an error.

    Columns are read while the processor runs, so an input error comes out of ``process()``, wrapped
    by awkward: the whole chain of causes is searched. Errors of files that the processor reads
    itself, with uproot or otherwise, are its own.
    """
    for cause in chain(error):
        if isinstance(cause, MemoryError | ProcessorError):
            return "processor"
        if isinstance(cause, ModelError):
            return "model"
        if isinstance(cause, InputFileError):
            return "other" if getattr(cause, "may_be_replaced", False) else "input"
    return "processor"


def one_line(error: BaseException) -> str:
    """Type and first line of the first error of a chain, or of the first one of agc_ml."""
    root = error
    while root.__cause__ is not None and not isinstance(root, AgcError):
        root = root.__cause__
    text = in_one_line(root)
    return text if isinstance(root, DeliveryError) else text[:300]  # a line of each replica


def trace(error: BaseException) -> str:
    """The end of an error's traceback."""
    return "".join(traceback.format_exception(error))[-6000:]
