"""Process a chunk, on a worker or in the driver's process. Failures come back as data."""

from __future__ import annotations

import os
import re
import resource
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Final

from agc_ml.columnar.baskets import Dropped, in_both
from agc_ml.columnar.columns import Columns
from agc_ml.columnar.stream import Stream
from agc_ml.delivery import opening
from agc_ml.errors import DeliveryError, InputFileError
from agc_ml.execution.code.source_files import is_of_library, place_in_code
from agc_ml.execution.processor import copies, opened_files
from agc_ml.execution.processor.attachments import attachment_folder
from agc_ml.execution.processor.copies import ProcessorTemplate
from agc_ml.execution.processor.opened_files import FileState
from agc_ml.execution.processor.outputs import check, is_sum, kind_of_sum, ready, sum_of_weights
from agc_ml.execution.state import packing
from agc_ml.execution.state.checkpoints import Receipt
from agc_ml.execution.worker.job import (
    Failure,
    Finished,
    Job,
    failure_kind,
    one_line,
    trace,
    unpack_job,
)
from agc_ml.execution.worker.open_file import (
    change_of_open_file,
    close_file,
    input_errors,
    open_file,
    replica_failures,
)
from agc_ml.execution.worker.processors import template_of
from agc_ml.models import model
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

_PER_MB: Final = 1024 if sys.platform != "darwin" else 1024**2


def process_packed(packed: bytes) -> Finished | Failure:
    """Process the chunk of a packed job, which comes from this run's driver."""
    return process_chunk(unpack_job(packed))


def process_chunk(job: Job) -> Finished | Failure:
    """Process one chunk. Never raises: an outcome is data, so that Dask has nothing to retry."""
    started, cpu = time.perf_counter(), time.process_time()
    try:
        template = template_of(job)
        processor = template.copy()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's code; it is reported
        reason = f"can't be loaded on a worker: {one_line(error)}{place_in_code(error)}"
        return Failure("processor", reason, trace(error))
    attempt = _Attempt(template, job)
    replica_failures().clear()  # the chunk that saw them has reported them
    for replicas_left in reversed(range(len(job.file.replicas))):
        try:
            receipt, blob = attempt.process(processor, started, cpu)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - of the processor or the file
            failure = attempt.failure_of(error, is_last=not replicas_left)
            if failure is not None:
                return failure
            processor = template.copy()  # for the same chunk of another replica
        else:
            failures = opening.failure_notes(replica_failures())
            notes = (*template.notes, *model.notes(job.models), *failures)
            return Finished(receipt, blob, notes)
    return Failure("input", "it has no replica")


class _Attempt:
    """One chunk, read from one replica after the other."""

    def __init__(self, template: ProcessorTemplate, job: Job) -> None:
        self.template = template
        self.job = job
        self.clock = _ReadClock()

    def process(self, processor: Any, started: float, cpu: float) -> tuple[Receipt, bytes]:
        """Return the receipt and the packed output of the chunk."""
        template, job = self.template, self.job
        dataset = job.chunk.dataset
        with self._watch_files() as states:
            output, opened, n_bytes = self._output(processor)
        # find out what sumw is a sum of, before the output is changed
        sumw = sum_of_weights(output, dataset)
        with input_errors():
            sums = _kind_of_sum(job, sumw)
            source = open_file(job).file.source
            source.check_same()
        output = ready(output)
        check(output, dataset)
        template.check(output, dataset, lambda again: ready(self._output(again)[0]))
        files = opened_files.to_plain(states())
        blob = packing.pack(output)
        receipt = Receipt(
            events=job.chunk.events,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            seconds=time.perf_counter() - started,
            cpu_s=time.process_time() - cpu,
            open_s=opened - started,
            read_s=self.clock.seconds,
            bytes=n_bytes,
            memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MB,
            files={redacted(path): state for path, state in files.items()},
            sumw=sumw,
            sums=sums,
            url=redacted(source.url),
            stamp=source.stamp,
        )
        return receipt, blob

    def _watch_files(self) -> AbstractContextManager[Callable[[], dict[str, FileState]]]:
        job = self.job
        module = set() if job.module is None else {job.module}
        return opened_files.watch_opened(partial(_is_left_out, job), self.template.homes | module)

    def failure_of(self, error: BaseException, *, is_last: bool) -> Failure | None:
        """Return the failure to report; None to read the chunk from another replica."""
        is_users = failure_kind(error) in {"processor", "model"}
        # nonsense of a file that changed while it was read is not the processor's fault
        cause = (change_of_open_file() if is_users else None) or error
        failure = Failure(failure_kind(cause), self._reason(cause), trace(cause))
        is_damaged = failure.kind == "input" and not isinstance(cause, DeliveryError)
        if is_damaged and self.job.known.is_remembered:  # the cache may be wrong, not the file
            failure = replace(failure, kind="other")
            is_damaged = False
        where = close_file(failure.reason if is_damaged else None)
        if is_damaged and not is_last:
            return None
        if failure.kind not in {"input", "other"} or where in failure.reason:
            return failure
        return replace(failure, reason=f"{failure.reason} ({where})")

    def _reason(self, error: BaseException) -> str:
        text = one_line(error)
        if failure_kind(error) != "processor":
            return text
        is_read_only = self.template.has_shared_arrays and re.search("read-?only", text)
        return f"{text}{place_in_code(error)}{f'; {copies.SHARED}' if is_read_only else ''}"

    def _output(self, processor: Any) -> tuple[Any, float, int]:
        """Output, the time at which the events were ready, and the number of bytes read."""
        job, chunk = self.job, self.job.chunk
        with input_errors():
            file = open_file(job)
        bytes_before = int(file.file.source.num_requested_bytes)
        metadata = _metadata(job, str(file.file.source.url))
        if job.directory is not None:
            return self._output_of_columns(processor, file, metadata)
        from coffea.nanoevents import NanoAODSchema  # noqa: PLC0415 - heavy

        from agc_ml.columnar import records  # noqa: PLC0415 - it needs coffea

        entries = chunk.start, chunk.stop
        with input_errors():
            events = records.events(
                file,
                chunk.tree,
                entries,
                names=job.columns,
                metadata=metadata,
                clock=self.clock,
                schema=self.template.schema or NanoAODSchema,
            )
        opened = time.perf_counter()
        n_events = len(events)
        try:
            output = processor.process(events)
        finally:  # reports damage that the processor caught, or made another error of
            records.see_whole(events)
        n_bytes = int(file.file.source.num_requested_bytes) - bytes_before
        if n_events != chunk.events:
            raise InputFileError(f"{n_events} events were read, {chunk.events} planned")
        return output, opened, n_bytes

    def _output_of_columns(
        self, processor: Any, file: Any, metadata: dict[str, Any]
    ) -> tuple[Any, float, int]:
        """As `_output`, with events as flat columns."""
        job, chunk = self.job, self.job.chunk
        dropped = Dropped(chunk.tree, {}, 0) if job.dropped is None else job.dropped
        kept_range, dropped_range = in_both(
            chunk.start, chunk.stop, chunk.entries - dropped.entries
        )
        columns = Columns(file, chunk.tree, job.directory or {})
        others = Columns(file, dropped.tree, dropped.directory)
        events = Stream(columns, *kept_range, metadata, Stream(others, *dropped_range, metadata))
        opened = time.perf_counter()
        try:
            output = processor.process(events)
        finally:  # as above
            columns.see_whole()
            others.see_whole()
        self.clock.seconds += columns.seconds + others.seconds
        return output, opened, columns.bytes + others.bytes


def _kind_of_sum(job: Job, sumw: float | None) -> str:
    """Kind of the processor's ``sumw``, "" where it decides nothing."""
    if sumw is None:
        return ""
    if job.doubtful is not None and not any(is_sum(sumw, value) for value in job.doubtful):
        return ""
    chunk, file = job.chunk, open_file(job)
    if "genWeight" in (job.directory or {}):
        columns = Columns(file, chunk.tree, job.directory or {})
        return kind_of_sum(sumw, chunk.events, columns.read("genWeight", chunk.start, chunk.stop))
    tree, weights = file[chunk.tree], None
    if "genWeight" in tree.keys():  # noqa: SIM118 - RNTuples only have these
        weights = tree["genWeight"].array(entry_start=chunk.start, entry_stop=chunk.stop)
    return kind_of_sum(sumw, chunk.events, weights)


def _is_left_out(job: Job, path: str) -> bool:
    """Return whether an opened file counts already: an input, an attached or a library's file."""
    folder = attachment_folder(job.files)
    if folder is not None and path.startswith(str(folder)):
        return True
    return path in {str(local_path(url)) for url in job.file.replicas} or is_of_library(path)


def _metadata(job: Job, url: str) -> dict[str, Any]:
    """Content of ``events.metadata``; ``filename`` can be opened by Python and uproot."""
    chunk, path = job.chunk, local_path(url)
    folder = attachment_folder(job.files)
    files = {name: str(folder / name) for name in job.files} if folder is not None else {}
    return {
        **job.metadata,
        **({"files": files} if files else {}),
        "filename": url if path is None else str(path),
        "lfn": chunk.lfn,
        "treename": chunk.tree,
        "fileuuid": chunk.uuid,
        "entrystart": chunk.start,
        "entrystop": chunk.stop,
    }


class _ReadClock:
    """Runs uproot's decompression and decoding tasks at once, and adds up their time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def submit(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run a task, and return its result as uproot expects it."""
        from uproot.source.futures import TrivialFuture  # noqa: PLC0415 - heavy

        start = time.perf_counter()
        result = task(*args, **kwargs)
        self.seconds += time.perf_counter() - start
        return TrivialFuture(result)
