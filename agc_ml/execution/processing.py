"""What runs on a worker: process a chunk. Failures come back as data."""

from __future__ import annotations

import atexit
import os
import pickle
import re
import resource
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import cloudpickle
import lz4.frame

from agc_ml.columnar.basket_records import entries_at
from agc_ml.columnar.baskets import Directory, Dropped, EntriesPlace, in_both
from agc_ml.columnar.columns import Columns
from agc_ml.columnar.stream import Stream
from agc_ml.delivery import opening
from agc_ml.errors import (
    AgcError,
    DeliveryError,
    InputFileError,
    ModelError,
    ProcessorError,
    chain,
    in_one_line,
)
from agc_ml.execution.processor import attachments, instances, opened_files
from agc_ml.execution.processor.code_identity import (
    differing,
    ensure,
    forget,
    is_of_library,
    place_in_code,
)
from agc_ml.execution.processor.instances import Original
from agc_ml.execution.processor.loading import load_source
from agc_ml.execution.processor.outputs import check, is_sum, kind_of_sum, ready, sum_of_weights
from agc_ml.execution.state.checkpoints import Chunk, Receipt
from agc_ml.inputs.datasets import ExpectedFile, File
from agc_ml.models import model
from agc_ml.results import packing
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

Kind = Literal["input", "other", "definite", "model", "processor"]

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
    """A processed chunk: its receipt and its packed output.

    ``notes`` are what a reader should know of how its models were scored and its file was read.
    """

    receipt: Receipt
    blob: bytes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """All that a worker needs for a chunk; ``known`` is what its file was when it was looked into.

    ``place`` is where the file says how many entries it has. ``doubtful`` are the values of
    ``sumw`` of which it has to be told what they are sums of, None: all.
    ``key`` tells one processor from another: equal ones have the same.
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


def packed_job(job: Job) -> bytes:
    """A job as it travels: Dask takes bytes as they are, and objects apart."""
    packed: bytes = lz4.frame.compress(pickle.dumps(job, protocol=5))
    return packed


def process_packed(packed: bytes, topic: str | None = None) -> Finished | Failure:
    """`process_chunk` of a `packed_job`, which comes from this run's driver."""
    job: Job = pickle.loads(lz4.frame.decompress(packed))  # noqa: S301 - see above
    return process_chunk(job, topic)


def process_chunk(job: Job, topic: str | None = None) -> Finished | Failure:
    """Process one chunk. Never raises: an outcome is data, and Dask has nothing to retry."""
    if topic is not None:
        from distributed import get_worker  # noqa: PLC0415 - heavy, and not needed inline

        get_worker().log_event(topic, str(job.chunk))
    started, cpu = time.perf_counter(), time.process_time()
    try:
        original = _original(job)
        processor = original.copy()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code; it is told
        text = f"can't be loaded on a worker: {one_line(error)}{place_in_code(error)}"
        return Failure("processor", text, trace(error))
    clock = _ReadClock()
    _kept.failures.clear()  # those of a chunk that failed were told with it
    for others in reversed(range(len(job.file.replicas))):
        try:
            with opened_files.watched(partial(_is_no_input, job), _homes(original, job)) as seen:
                output, opened, n_bytes = _process(processor, original.schema, job, clock)
            sumw = sum_of_weights(output, job.chunk.dataset)
            with _of_input():
                sums = _kind_of_sum(job, sumw)
                source = _opened(job).file.source
                source.check_same()
            output = ready(output)
            check(output, job.chunk.dataset)
            original.check(output, job.chunk.dataset, partial(_again, original, job, clock))
            files = seen()
            blob = packing.pack(output)
            break
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - the user's or the file's; told
            change = _change() if _kind(raised) in {"processor", "model"} else None
            cause = change or raised
            failure = Failure(_kind(cause), _reason(cause, original), trace(cause))
            is_damaged = failure.kind == "input" and not isinstance(cause, DeliveryError)
            if is_damaged and job.known.is_remembered:  # what is known may be wrong, not the file
                failure = replace(failure, kind="other")
                is_damaged = False
            where = _close_kept(failure.reason if is_damaged else None)
            if not (is_damaged and others):  # else the same chunk, of another replica
                names_it = failure.kind not in {"input", "other"} or where in failure.reason
                return (
                    failure if names_it else replace(failure, reason=f"{failure.reason} ({where})")
                )
            processor = original.copy()
    receipt = Receipt(
        events=job.chunk.events,
        worker=f"{socket.gethostname()}:{os.getpid()}",
        seconds=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu,
        open_s=opened - started,
        read_s=clock.seconds,
        bytes=n_bytes,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MB,
        files={redacted(path): seen for path, seen in opened_files.to_plain(files).items()},
        sumw=sumw,
        sums=sums,
        url=redacted(source.url),
        stamp=source.stamp,
    )
    notes = (*original.notes, *model.notes(job.models), *opening.failure_notes(_kept.failures))
    return Finished(receipt, blob, notes)


def _kind_of_sum(job: Job, sumw: float | None) -> str:
    """Kind of the processor's ``sumw``, "" where it decides nothing."""
    if sumw is None:
        return ""
    if job.doubtful is not None and not any(is_sum(sumw, one) for one in job.doubtful):
        return ""
    chunk, file = job.chunk, _opened(job)
    if "genWeight" in (job.directory or {}):
        columns = Columns(file, chunk.tree, job.directory or {})
        return kind_of_sum(sumw, chunk.events, columns.read("genWeight", chunk.start, chunk.stop))
    tree, weights = file[chunk.tree], None
    if "genWeight" in tree.keys():  # noqa: SIM118 - RNTuples only have these
        weights = tree["genWeight"].array(entry_start=chunk.start, entry_stop=chunk.stop)
    return kind_of_sum(sumw, chunk.events, weights)


def _is_no_input(job: Job, path: str) -> bool:
    """Whether a file that is opened counts already: an input, one that is attached, a library's."""
    folder = attachments.placed(job.files)
    if folder is not None and path.startswith(str(folder)):
        return True
    return path in {str(local_path(url)) for url in job.file.replicas} or is_of_library(path)


def _homes(original: Original, job: Job) -> frozenset[str]:
    """The user's code, by which a process remembers what files it opened."""
    module = set() if job.module is None else {job.module}
    return original.homes | module


def _again(original: Original, job: Job, clock: _ReadClock, processor: Any) -> Any:
    """Output of another copy of the processor for the same chunk."""
    return ready(_process(processor, original.schema, job, clock)[0])


def _process(
    processor: Any, schema: type | None, job: Job, clock: _ReadClock
) -> tuple[Any, float, int]:
    """Output, the time at which the events were ready, and the bytes that were read."""
    chunk = job.chunk
    with _of_input():
        file = _opened(job)
    bytes_before = int(file.file.source.num_requested_bytes)
    metadata = _metadata(job, _openable(str(file.file.source.url)))
    if job.directory is not None:
        return _process_flat(processor, file, job, metadata, clock)
    from coffea.nanoevents import NanoAODSchema  # noqa: PLC0415 - heavy

    from agc_ml.columnar import records  # noqa: PLC0415 - it needs coffea

    entries = chunk.start, chunk.stop
    with _of_input():
        events = records.events(
            *(file, chunk.tree, entries),
            names=job.columns,
            metadata=metadata,
            clock=clock,
            schema=schema or NanoAODSchema,
        )
    opened = time.perf_counter()
    n_events = len(events)
    try:
        output = processor.process(events)
    finally:  # of damage that it caught, or made an error of its own of, nobody else tells
        records.see_whole(events)
    n_bytes = int(file.file.source.num_requested_bytes) - bytes_before
    if n_events != chunk.events:
        raise InputFileError(f"{n_events} events were read, {chunk.events} planned")
    return output, opened, n_bytes


def _process_flat(
    processor: Any, file: Any, job: Job, metadata: dict[str, Any], clock: _ReadClock
) -> tuple[Any, float, int]:
    chunk = job.chunk
    no_more = Dropped(chunk.tree, {}, 0) if job.dropped is None else job.dropped
    of_kept, of_dropped = in_both(chunk.start, chunk.stop, chunk.entries - no_more.entries)
    columns = Columns(file, chunk.tree, job.directory or {})
    others = Columns(file, no_more.tree, no_more.directory)
    events = Stream(columns, *of_kept, metadata, Stream(others, *of_dropped, metadata))
    opened = time.perf_counter()
    try:
        output = processor.process(events)
    finally:  # as above
        columns.see_whole()
        others.see_whole()
    clock.seconds += columns.seconds + others.seconds
    return output, opened, columns.bytes + others.bytes


def _openable(url: str) -> str:
    """What Python and uproot can open: a path of this machine, else the URL."""
    path = local_path(url)
    return url if path is None else str(path)


def _metadata(job: Job, filename: str) -> dict[str, Any]:
    """What a processor finds in ``events.metadata``; ``filename`` is what can be opened."""
    chunk = job.chunk
    folder = attachments.placed(job.files)
    files = {name: str(folder / name) for name in job.files} if folder is not None else {}
    return {
        **job.metadata,
        **({"files": files} if files else {}),
        "filename": filename,
        "lfn": chunk.lfn,
        "treename": chunk.tree,
        "fileuuid": chunk.uuid,
        "entrystart": chunk.start,
        "entrystop": chunk.stop,
    }


class _Kept(threading.local):
    """The file of a thread's last chunk stays open: opening it costs more than 100,000 events."""

    def __init__(self) -> None:
        self.of: tuple[File, ExpectedFile] | None = None
        self.file: Any = None
        self.failures: dict[str, str] = {}
        self.open = ExitStack()


_kept: Final = _Kept()


def _opened(job: Job) -> Any:
    """The file of a job, open; its tree has the entries that it had when it was looked into."""
    if _kept.of != (job.file, job.known):
        _close_kept()
        _kept.of, _kept.failures = (job.file, job.known), {}
    if _kept.file is None:
        file = _kept.open.enter_context(opening.open_file(job.file, _kept.failures, job.known))
        _kept.file = file
        found = _entries(file, job)
        if found != job.known.entries:
            raise DeliveryError(
                f"its tree has {found} entries, and had {job.known.entries}; is it another file?",
                may_be_replaced=True,
            )
    return _kept.file


def _entries(file: Any, job: Job) -> int:
    """Entries that the file says it has, read anew; those that a preselection dropped, too."""
    if job.place is not None:
        return entries_at(file.file.source, job.place)
    from agc_ml.columnar.rntuple_pages import compare_pages  # noqa: PLC0415 - it needs uproot

    trees = [file[name] for name in (job.file.tree, job.file.dropped) if name is not None]
    for tree in trees:
        compare_pages(tree)
    return sum(int(tree.num_entries) for tree in trees)


def _reason(error: BaseException, original: Original) -> str:
    """What a chunk failed with, in a line."""
    text = one_line(error)
    if _kind(error) != "processor":
        return text
    is_refused = original.has_shared_arrays and re.search("read-?only", text) is not None
    return f"{text}{place_in_code(error)}{f'; {instances.SHARED}' if is_refused else ''}"


def _change() -> DeliveryError | None:
    """What became of the open file while it was read: what is made of its nonsense is no fault."""
    if _kept.file is not None:
        try:
            _kept.file.file.source.check_same()
        except DeliveryError as error:
            return error
    return None


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
_originals: Final[dict[str, Original]] = {}
_lock: Final = threading.Lock()
_MOST_ORIGINALS: Final = 8  # of a worker that lives on, for one run after the other


@contextmanager
def offered(key: str, processor: Any, schema: type | None) -> Iterator[None]:
    """Give this process, for a while, the processor that jobs of that key are about.

    Where it was made it must not be unpickled: that would write over classes of a notebook.
    """
    with _lock:
        _originals[key] = Original(processor, schema)
    try:
        yield
    finally:
        with _lock:
            _originals.pop(key, None)


def _original(job: Job) -> Original:
    with _lock:
        if job.key not in _originals:
            ensure(job.modules)
            processor, schema = _loaded(job)
            if differing(processor, job.values, is_moved=bool(job.files))[0]:
                # a module was made here when a file that it reads was another one, or an earlier
                # run left something in it, such as a cache or a counter
                forget(job.modules)
                for name in job.modules:
                    opened_files.forget(name)
                processor, schema = _loaded(job, anew=True)
            problem, notes = differing(processor, job.values, is_moved=bool(job.files))
            if problem is not None:
                raise ProcessorError(f"{problem}; make it a parameter, or see that it is the same")
            while len(_originals) >= _MOST_ORIGINALS:
                del _originals[next(iter(_originals))]
            _originals[job.key] = Original(processor, schema, notes)
        return _originals[job.key]


def _loaded(job: Job, *, anew: bool = False) -> tuple[Any, type | None]:
    """Unpickle a processor and its schema, once the module is there that a loose file becomes."""
    if job.module is not None:
        folder = attachments.placed(job.files)
        where = job.where if folder is None else str(folder / Path(job.where).name)
        load_source(where, job.source, anew=anew)
    with _own_classes():
        processor, schema = cloudpickle.loads(job.processor)
    return processor, schema


@contextmanager
def _own_classes() -> Iterator[None]:
    """Have classes of a notebook made anew by a pickle.

    cloudpickle would take one that it made of an earlier pickle for the same, and write over it,
    while another run works with it.
    """
    made = cloudpickle.cloudpickle
    known = made._DYNAMIC_CLASS_TRACKER_BY_ID  # noqa: SLF001 - no other way
    made._DYNAMIC_CLASS_TRACKER_BY_ID = weakref.WeakValueDictionary()  # noqa: SLF001 - as above
    try:
        yield
    finally:
        made._DYNAMIC_CLASS_TRACKER_BY_ID = known  # noqa: SLF001 - as above


def _kind(error: BaseException) -> Kind:
    """Return whether the file or the processor is to blame.

    Columns are read while the processor runs, so an input error comes out of ``process()``, wrapped
    by awkward: the whole chain of causes is looked at. What the processor reads itself, with uproot
    or otherwise, is its own.
    """
    for cause in chain(error):
        if isinstance(cause, MemoryError | ProcessorError):
            return "processor"
        if isinstance(cause, ModelError):
            return "model"
        if isinstance(cause, InputFileError):
            return "other" if getattr(cause, "may_be_replaced", False) else "input"
    return "processor"


@contextmanager
def _of_input() -> Iterator[None]:
    """Take any error in here for one of the input: uproot raises anything on a damaged one."""
    try:
        yield
    except (AgcError, MemoryError):
        raise
    except Exception as error:
        raise InputFileError(in_one_line(error)) from error


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
