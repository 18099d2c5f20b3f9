"""Open files and process chunks, in rounds over what is missing.

Workers return outcomes as data; the driver writes each finished chunk to disk, and the files on
disk decide which chunks are done. Rounds take the place of retries, and partial results are added
in the order of the fileset, so that neither timing nor faults change a bit of the result.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final

from agc_ml.errors import (
    ClusterError,
    FilesetError,
    InputFileError,
    ModelError,
    ProcessorError,
    StoreError,
    UsageError,
)
from agc_ml.execution.cluster.executors import Executor
from agc_ml.execution.inspection import FileInfo, inspect_file, inspection_arguments
from agc_ml.execution.normalisation import doubtful, source_of, sum_kind, unclear
from agc_ml.execution.processor import attachments
from agc_ml.execution.processor.opened_files import FileState, changed_files, file_states
from agc_ml.execution.processor.outputs import add
from agc_ml.execution.state.checkpoints import Chunk
from agc_ml.execution.state.inspection_cache import pack_info
from agc_ml.execution.state.packing import unpack
from agc_ml.execution.state.run_state import RunState, file_label, is_replaced
from agc_ml.execution.worker.job import Failure, Finished, Job, pack_job
from agc_ml.execution.worker.processing import process_packed
from agc_ml.execution.worker.processors import provide_processor
from agc_ml.inputs.datasets import Dataset, File, plain_tree
from agc_ml.models import model
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

ROUNDS: Final = 3
FIRST_WAIT_S: Final = 0.5


def open_files(state: RunState, executor: Executor) -> None:
    """Open every file that was not opened yet, and check it.

    Raises
    ------
    InputFileError
        A file has no tree, lacks a branch, or differs from the fileset; or all files are empty.
    FilesetError
        A file is there twice in a dataset, under different names.
    """
    files = {
        f"{file_label(d, f)} (file {number})": (d, f)
        for number, (d, f) in enumerate(state.all_files())
        if (d.name, f.lfn) not in state.files and not state.take_from_cache(d, f)
    }
    jobs = {
        key: inspection_arguments(file, state.wanted(dataset), checksum=state.is_verified(file))
        for key, (dataset, file) in files.items()
    }
    for key, outcome in executor.outcomes(inspect_file, jobs):
        dataset, file = files[key]
        label = file_label(dataset, file)
        if isinstance(outcome, FileInfo):
            state.add_file(dataset, file, outcome)
        elif isinstance(outcome, Failure):
            if outcome.kind != "input":
                raise InputFileError(f"{label}: {outcome.reason}")
            state.add_error(label, outcome.reason)
        else:
            state.add_error(label, "the worker died while it opened the file")
    _refuse_duplicates(state)
    _refuse_all_empty(state)
    state.plan_chunks()


def open_with_retries(state: RunState, executor: Executor) -> None:
    """Open the files, and retry in rounds as long as none can be opened.

    Raises
    ------
    InputFileError
        No file could be opened; or as `open_files`.
    FilesetError
        As `open_files`.
    """
    for attempt in range(ROUNDS):
        _wait(attempt)
        open_files(state, executor)
        if state.files:
            return
    dataset, file = state.unopened()[0]
    label, others = file_label(dataset, file), len(state.unopened()) - 1
    more = f" (and {others} more)" if others else ""
    raise InputFileError(
        f"no file can be opened: {label}: {state.errors[label][-1]}{more}; check path and access"
    )


def _wait(attempt: int) -> None:
    if attempt:
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))


def _refuse_duplicates(state: RunState) -> None:
    """Reject a file that counts twice in one histogram, under whatever names."""
    first: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for dataset, file, info in state.inspected_files():
        key = (dataset.process, dataset.variation, info.uuid, plain_tree(file.tree))
        owner, twin = first.setdefault(key, (dataset, file))
        if (owner.name, twin.lfn) != (dataset.name, file.lfn):
            where = "" if owner.name == dataset.name else f" of dataset {owner.name}"
            raise FilesetError(
                f"dataset {dataset.name}: {file.lfn} and {twin.lfn}{where} are the same file (UUID "
                f"{info.uuid}), its events would count twice; remove one"
            )


def _refuse_all_empty(state: RunState) -> None:
    """Reject a fileset without any event."""
    datasets = state.fileset.datasets
    if all(map(state.is_empty, datasets)):
        raise InputFileError(
            f"dataset {datasets[0].name}: no events in it ({redacted(datasets[0].files[0].url)} "
            "has 0 entries), nor in any other; choose other files"
        )


def process(state: RunState, executor: Executor) -> None:
    """Process all chunks, in rounds over what is missing, until all are done or rounds are up.

    Afterwards ``state.done`` has the finished chunks. Input errors, poison chunks and files that
    can't be opened are noted in the state, for the caller to decide.

    Raises
    ------
    ProcessorError
        The processor raised: it would again.
    ModelError
        A model can't score: its server is gone, or the inputs do not fit it.
    StoreError
        A finished chunk can't be written.
    ClusterError
        The scheduler is gone.
    """
    processor = state.processor
    executor.provide({**model.contents(processor.models), **attachments.contents(processor.files)})
    with provide_processor(processor.key, processor.instance, processor.schema):
        _process_in_rounds(state, executor)
    if state.cache is not None:
        for file, wanted, info in state.proven():
            state.cache.keep(file, wanted, info)


def _process_in_rounds(state: RunState, executor: Executor) -> None:
    for attempt in range(ROUNDS):
        _wait(attempt)
        if attempt:
            open_files(state, executor)
        state.report_progress()
        lost = _process_once(state, executor, state.pending())
        for chunk in lost:  # Dask blames all chunks of a dead worker, so each is tried alone
            is_planned = (chunk.dataset, chunk.lfn) in state.files
            if is_planned and _process_once(state, executor, [chunk], alone=True):
                state.poison.add(chunk)
                logger.warning("%s: the worker dies each time, also when it runs alone", chunk)
        if not state.pending() and not state.unopened():
            return


def recall_chunks(state: RunState, executor: Executor) -> int:
    """Use the finished chunks of an interrupted run; return the number that can't be used.

    Those are of other parameters, code or inputs.

    Raises
    ------
    UsageError
        A file that the processor opened has changed since; or a chunk is a pickle of somebody
        else's.
    """
    names = state.store.names()
    for chunk in state.chunks:
        path = state.path(chunk)
        if chunk.events and path.name in names:
            receipt = state.store.receipt(path, chunk)
            info = state.files[chunk.dataset, chunk.lfn]
            if receipt is not None and not is_replaced(receipt, info):
                state.add_finished(chunk, receipt)
                state.recalled.add(chunk)
                names.discard(path.name)
    for changed in _changed_on_workers(state.opened, executor):
        raise UsageError(
            f"{changed}: changed since the run began, whose processor opens it, so that old and "
            "new would be mixed; restore it, or start over with --overwrite"
        )
    return len(names)


def _changed_on_workers(opened: Mapping[str, FileState], executor: Executor) -> list[str]:
    """Paths of files that have changed, as seen where chunks are processed."""
    if not opened:
        return []
    jobs = {"files that the processor opens": (list(opened),)}
    ((_, now),) = executor.outcomes(file_states, jobs)
    if not isinstance(now, dict):
        raise ClusterError("the worker died while it compared files; use --resume")
    return changed_files(opened, now)


def _process_once(
    state: RunState, executor: Executor, chunks: list[Chunk], *, alone: bool = False
) -> list[Chunk]:
    """Process chunks once each; return those whose worker died."""
    jobs = {str(chunk): (pack_job(_job(state, chunk)),) for chunk in chunks}
    by_key = {str(chunk): chunk for chunk in chunks}
    lost = []
    for key, outcome in executor.outcomes(process_packed, jobs, alone=alone):
        chunk = by_key[key]
        if isinstance(outcome, Finished):
            if (chunk.dataset, chunk.lfn) in state.files:  # else its file is doubted
                _accept(state, chunk, outcome)
        elif isinstance(outcome, Failure):
            _accept_failure(state, executor, chunk, outcome)
        else:
            state.add_error(key, "its worker died")
            lost.append(chunk)
        state.report_progress()
    return lost


def _accept_failure(state: RunState, executor: Executor, chunk: Chunk, failure: Failure) -> None:
    """Note a failure of the input, and raise the others."""
    key = str(chunk)
    is_of_code = failure.kind in {"model", "processor"}
    if failure.kind == "processor" and _is_inspection_wrong(state, executor, chunk, failure):
        state.add_error(key, failure.reason)
    elif is_of_code:
        state.errors.setdefault(key, []).append(failure.reason)
        logger.debug("%s\n%s", chunk, failure.details)
        if failure.kind == "model":
            raise ModelError(f"{chunk}: {failure.reason}")
        raise ProcessorError(
            f"{chunk}: processor {state.processor.name}: {failure.reason} (traceback: -v)"
        )
    else:
        state.add_error(key, failure.reason)
        if failure.kind == "other" or state.is_verified(state.file(chunk)):
            state.doubt(chunk, failure.reason)


def _is_inspection_wrong(
    state: RunState, executor: Executor, chunk: Chunk, failure: Failure
) -> bool:
    """Return whether the inspection of a chunk's file is wrong, so that no processor is to blame.

    A server may have sent nonsense once, in this run or an earlier one: the file is inspected
    again, and doubted if that differs.
    """
    key = (chunk.dataset, chunk.lfn)
    info, file = state.files.get(key), state.file(chunk)
    if info is None:  # another chunk of it failed before
        return True
    is_local = all(local_path(url) is not None for url in file.replicas)  # a disk is right
    if key in state.forgotten or (is_local and key not in state.remembered):
        return False
    wanted = state.wanted(state.dataset(chunk.dataset))
    jobs = {str(chunk): inspection_arguments(file, wanted)}
    ((_, now),) = executor.outcomes(inspect_file, jobs)
    if isinstance(now, FileInfo) and pack_info(now) == pack_info(info):
        state.forgotten.add(key)  # not inspected a third time
        return False
    state.doubt(chunk, failure.reason)
    return True


def _accept(state: RunState, chunk: Chunk, finished: Finished) -> None:
    """Save a finished chunk, unless it is of another version of its file."""
    receipt = finished.receipt
    if state.mixes_versions(chunk, receipt):
        reason = f"{receipt.url}: its time or tag differs from that of earlier chunks"
        state.add_error(str(chunk), reason)
        state.doubt(chunk, reason)
        return
    if not state.done:
        _check_first(state, chunk, finished)
    # refuse what can't be normalised before hours are spent
    dataset = state.dataset(chunk.dataset)
    is_summed = receipt.sumw is not None and not dataset.is_data
    if is_summed and state.is_scaled:
        if dataset.xsec is None:
            raise FilesetError(
                f"dataset {dataset.name}: no xsec in the fileset, and processor "
                f"{state.processor.name} needs it to normalise; add it, in pb"
            )
        file, info = state.file(chunk), state.files[chunk.dataset, chunk.lfn]
        is_filtered = source_of(state, dataset, file, info) == "runs"
        if is_filtered and not sum_kind(receipt, info):
            raise InputFileError(unclear(dataset, file, info))
    try:
        state.store.save(state.path(chunk), chunk, receipt, finished.blob)
    except StoreError as error:
        raise StoreError(f"{error}; {len(state.done)} finished chunks are kept") from error
    state.notes |= dict.fromkeys(finished.notes)
    if is_summed and not state.is_scaled:
        state.notes[state.why_unscaled] = None
    state.add_finished(chunk, receipt)


def _check_first(state: RunState, chunk: Chunk, finished: Finished) -> None:
    """Add the first output to itself, to reject early what can't be added."""
    if sum(bool(other.events) for other in state.chunks) < 2:  # noqa: PLR2004 - nothing to add
        return
    try:
        add(unpack(finished.blob), unpack(finished.blob))
    except ProcessorError as error:
        raise ProcessorError(f"{chunk}: processor {state.processor.name}: {error}") from error


def _job(state: RunState, chunk: Chunk) -> Job:
    dataset, processor = state.dataset(chunk.dataset), state.processor
    key = (chunk.dataset, chunk.lfn)
    info = state.files[key]
    kept, dropped = info.parts(chunk.start, chunk.stop)
    return Job(
        chunk=chunk,
        file=state.file(chunk),
        known=info.known(is_remembered=key in state.remembered),
        metadata=state.metadata[dataset.name],
        columns=tuple(state.wanted(dataset).of_file(info.lacking).names()),
        key=processor.key,
        processor=processor.blob,
        modules=processor.modules,
        module=processor.module,
        source=processor.source,
        where=processor.where,
        values=processor.values,
        files=processor.files,
        models=tuple(one.sha256 for one in processor.models),
        directory=kept,
        dropped=dropped,
        place=info.place,
        doubtful=doubtful(state, dataset, chunk),
    )
