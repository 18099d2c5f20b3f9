"""What runs on a worker: process a chunk. Failures come back as data."""

from __future__ import annotations

import atexit
import os
import pickle
import resource
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import cloudpickle
import lz4.frame

from agc_ml.baskets import Directory, Dropped, in_both
from agc_ml.checkpoints import Chunk, Receipt
from agc_ml.datasets import File
from agc_ml.delivery import opening
from agc_ml.delivery.credentials import redacted
from agc_ml.errors import (
    AgcError,
    DeliveryError,
    InputFileError,
    ModelError,
    ProcessorError,
    chain,
    in_one_line,
)
from agc_ml.identity import ensure
from agc_ml.ml import hook
from agc_ml.outputs import check
from agc_ml.reading import Columns
from agc_ml.shipping import load_source

Kind = Literal["input", "other", "definite", "model", "processor"]

_READERS: Final = ("uproot", "fsspec", "aiohttp", "fsspec_xrootd", "XRootD")  # and processors
_PER_MB: Final = 1024 if sys.platform != "darwin" else 1024**2


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file or chunk failed.

    ``input``: it can't be read now, and may be later; ``other``: it is another file than was
    opened first; ``definite``: it is not what is needed, and
    won't be; ``model``: a model can't score; ``processor``: the processor raised.
    """

    kind: Kind
    reason: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A processed chunk: its receipt, its packed output, and whether it asks for normalisation.

    ``notes`` are what a reader should know of how its models were scored and its file was read.
    """

    receipt: Receipt
    blob: bytes
    has_sumw: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs for a chunk; ``file`` is as it was found when it was opened."""

    chunk: Chunk
    file: File
    metadata: Mapping[str, Any]
    columns: tuple[str, ...]
    processor: bytes
    code: str
    modules: Mapping[str, str]
    module: str | None
    source: bytes
    models: tuple[str, ...] = ()
    directory: Directory | None = None
    dropped: Dropped | None = None


def pack(output: Any) -> bytes:
    """Pickle and compress a job, or what a processor returned."""
    packed: bytes = lz4.frame.compress(pickle.dumps(output, protocol=5))
    return packed


def unpack(blob: bytes) -> Any:
    """Undo `pack`; only for what this run, its driver or its own interrupted predecessor packed."""
    return pickle.loads(lz4.frame.decompress(blob))  # noqa: S301 - our own, checked by sha256


def process_packed(packed: bytes, topic: str | None = None) -> Finished | Failure:
    """`process_chunk` of a packed job: Dask takes bytes as they are, and objects apart."""
    return process_chunk(unpack(packed), topic)


def process_chunk(job: Job, topic: str | None = None) -> Finished | Failure:
    """Process one chunk. Never raises: an outcome is data, and Dask has nothing to retry."""
    if topic is not None:
        from distributed import get_worker  # noqa: PLC0415 - heavy, and not needed inline

        get_worker().log_event(topic, str(job.chunk))
    started, cpu = time.perf_counter(), time.process_time()
    try:
        processor = _processor(job)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code; it is told
        return Failure("processor", f"can't be loaded on a worker: {one_line(error)}", trace(error))
    clock = _ReadClock()
    for others in reversed(range(len(job.file.replicas))):
        try:
            output, opened, n_bytes = _process(processor, job, clock)
            blob = pack(output)
            break
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's or the file's; told
            failure = Failure(_kind(error), one_line(error), trace(error))
            is_damaged = failure.kind == "input" and not isinstance(error, DeliveryError)
            where = _close_kept(failure.reason if is_damaged else None)
            if not (is_damaged and others):  # else the same chunk, of another replica
                names_it = failure.kind not in {"input", "other"} or where in failure.reason
                return (
                    failure if names_it else replace(failure, reason=f"{failure.reason} ({where})")
                )
    receipt = Receipt(
        events=job.chunk.events,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        seconds=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu,
        open_s=opened - started,
        read_s=clock.seconds,
        bytes=n_bytes,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MB,
    )
    notes = (*hook.notes(job.models), *opening.told(_kept.failures))
    _kept.failures.clear()  # the next run on this worker has its own
    return Finished(receipt, blob, "sumw" in output, notes)


def _process(processor: Any, job: Job, clock: _ReadClock) -> tuple[Any, float, int]:
    """Output, the time at which the events were ready, and the bytes that were read."""
    from agc_ml import records  # noqa: PLC0415 - it needs coffea

    chunk = job.chunk
    file = _opened(job.file)
    bytes_before = int(file.file.source.num_requested_bytes)
    metadata = _metadata(job)
    if job.directory is not None:
        return _process_flat(processor, file, job, metadata, clock)
    entries = chunk.start, chunk.stop
    events = records.events(
        file, chunk.tree, entries, columns=job.columns, metadata=metadata, clock=clock
    )
    opened = time.perf_counter()
    n_events = len(events)
    output = processor.process(events)
    records.see_whole(events)
    n_bytes = int(file.file.source.num_requested_bytes) - bytes_before
    if n_events != chunk.events:
        raise InputFileError(f"{n_events} events were read, {chunk.events} planned")
    check(output)
    return output, opened, n_bytes


def _process_flat(
    processor: Any, file: Any, job: Job, metadata: dict[str, Any], clock: _ReadClock
) -> tuple[Any, float, int]:
    chunk = job.chunk
    no_more = Dropped(chunk.tree, {}, 0) if job.dropped is None else job.dropped
    of_kept, of_dropped = in_both(chunk.start, chunk.stop, chunk.entries - no_more.entries)
    columns = Columns(file, chunk.tree, job.directory or {})
    others = Columns(file, no_more.tree, no_more.directory)
    events = columns.stream(*of_kept, metadata, others.stream(*of_dropped, metadata))
    opened = time.perf_counter()
    output = processor.process(events)
    clock.seconds += columns.seconds + others.seconds
    check(output)
    return output, opened, columns.bytes + others.bytes


def _metadata(job: Job) -> dict[str, Any]:
    chunk = job.chunk
    return {
        **job.metadata,
        "filename": chunk.lfn,
        "treename": chunk.tree,
        "fileuuid": chunk.uuid,
        "entrystart": chunk.start,
        "entrystop": chunk.stop,
    }


class _Kept(threading.local):
    """The file of a thread's last chunk stays open: opening it costs more than 100,000 events."""

    def __init__(self) -> None:
        self.of: File | None = None
        self.file: Any = None
        self.failures: dict[str, str] = {}
        self.open = ExitStack()


_kept: Final = _Kept()


def _opened(file: File) -> Any:
    if _kept.of != file:
        _close_kept()
        _kept.of, _kept.failures = file, {}
    if _kept.file is None:
        _kept.file = _kept.open.enter_context(opening.opened(file, _kept.failures))
    return _kept.file


def _close_kept(damage: str | None = None) -> str:
    """Let go of the kept file, and blame its replica for a damage. Returns which one it was."""
    where = ""
    if _kept.file is not None:
        source = _kept.file.file.source
        if damage is not None:
            source.distrust(damage)
        where = "" if source.is_local else redacted(source.url)
    _kept.file = None
    _kept.open.close()
    return where


atexit.register(_close_kept)  # before the libraries are gone that close it


class _ReadClock:
    """Runs uproot's decompression and decoding tasks at once, and adds up their time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        from uproot.source.futures import TrivialFuture  # noqa: PLC0415 - heavy

        start = time.perf_counter()
        result = task(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return TrivialFuture(result)


# Unpickled once a process, not once a chunk: a processor may hold tables or models.
_processors: dict[str, Any] = {}
_lock: Final = threading.Lock()


def _processor(job: Job) -> Any:
    key = f"{job.code}:{zlib.crc32(job.processor)}"
    with _lock:
        if key not in _processors:
            ensure(job.modules)
            if job.module is not None:
                load_source(job.module, job.source)
            _processors[key] = cloudpickle.loads(job.processor)
        return _processors[key]


def _kind(error: BaseException) -> Kind:
    """Whether the file or the processor is to blame.

    Columns are read while the processor runs, so an input error comes out of ``process()``, wrapped
    by awkward: the whole chain of causes is looked at, for frames of the libraries that read. An
    OSError of the processor's own, say of a table that it can't find, is not one.
    """
    folders = _reader_folders()
    for cause in chain(error):
        if isinstance(cause, MemoryError | ProcessorError):
            return "processor"
        if isinstance(cause, ModelError):
            return "model"
        if isinstance(cause, InputFileError):
            return "other" if getattr(cause, "may_be_replaced", False) else "input"
        files = (frame.filename for frame in traceback.extract_tb(cause.__traceback__))
        if any(file.startswith(folders) for file in files):
            return "input"
    return "processor"


def _reader_folders() -> tuple[str, ...]:
    loaded = (sys.modules.get(name) for name in _READERS)
    files = (getattr(module, "__file__", None) for module in loaded)
    return tuple(os.path.join(os.path.dirname(file), "") for file in files if file)  # noqa: PTH118, PTH120 - as text


def one_line(error: BaseException) -> str:
    """Type and first line of the error that others were raised from, or of one that is ours."""
    root = error
    while root.__cause__ is not None and not isinstance(root, AgcError):
        root = root.__cause__
    text = in_one_line(root)
    return text if isinstance(root, DeliveryError) else text[:300]  # of each replica


def trace(error: BaseException) -> str:
    """The end of an error's traceback."""
    return "".join(traceback.format_exception(error))[-6000:]
