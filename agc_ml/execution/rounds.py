"""Opening files and processing chunks, in rounds over what is missing.

Workers return outcomes as data; the driver writes each finished chunk to disk, and what is on disk
decides what is done. Rounds take the place of retries, and partial results are added up in the
order of the fileset, so that neither timing nor faults change a bit of the result.
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
from agc_ml.execution.inspection import FileInfo, inspect_file, look
from agc_ml.execution.normalisation import doubtful, kind_of, source_of, unclear
from agc_ml.execution.processing import Failure, Finished, Job, offered, packed_job, process_packed
from agc_ml.execution.processor import attachments
from agc_ml.execution.processor.opened_files import Seen, changed, seen
from agc_ml.execution.processor.outputs import add
from agc_ml.execution.state.checkpoints import Chunk
from agc_ml.execution.state.inspection_cache import packed
from agc_ml.execution.state.run_state import Account, file_label, is_of_another
from agc_ml.inputs.datasets import Dataset, File, plain_tree
from agc_ml.models.model import contents
from agc_ml.results.packing import unpack
from agc_ml.transports.base import local_path
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

ROUNDS: Final = 3
FIRST_WAIT_S: Final = 0.5


def open_files(account: Account, executor: Executor) -> None:
    """Open every file that was not opened yet, and check what it is.

    Raises
    ------
    InputFileError
        A file is not what is needed: no tree, a missing branch, other than the fileset says; or
        all files of a dataset are empty.
    FilesetError
        A file is there twice in a dataset, under different names.
    """
    files = {
        f"{file_label(d, f)} (file {number})": (d, f)
        for number, (d, f) in enumerate(account.all_files())
        if (d.name, f.lfn) not in account.files and not account.remember(d, f)
    }
    jobs = {
        key: look(file, account.wanted(dataset), checksum=account.is_verified(file))
        for key, (dataset, file) in files.items()
    }
    for key, outcome in executor.outcomes(inspect_file, jobs):
        dataset, file = files[key]
        label = file_label(dataset, file)
        if isinstance(outcome, FileInfo):
            account.learn(dataset, file, outcome)
        elif isinstance(outcome, Failure):
            if outcome.kind != "input":
                raise InputFileError(f"{label}: {outcome.reason}")
            account.failed(label, outcome.reason)
        else:
            account.failed(label, "the worker died while it opened the file")
    _refuse_duplicates(account)
    _refuse_empty(account)
    account.plan()


def open_some(account: Account, executor: Executor) -> None:
    """Open the files, and if none can be opened try again, in rounds.

    Raises
    ------
    InputFileError
        No file could be opened; or as `open_files`.
    FilesetError
        As `open_files`.
    """
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        open_files(account, executor)
        if account.files:
            return
    dataset, file = account.unopened()[0]
    label, others = file_label(dataset, file), len(account.unopened()) - 1
    more = f" (and {others} more)" if others else ""
    raise InputFileError(
        f"no file can be opened: {label}: {account.errors[label][-1]}{more}; check path and access"
    )


def _refuse_duplicates(account: Account) -> None:
    """Refuse a file that is twice in what adds up to one histogram, under whatever names."""
    seen: dict[tuple[str, ...], tuple[Dataset, File]] = {}
    for dataset, file in account.all_files():
        info = account.files.get((dataset.name, file.lfn))
        if info is None:
            continue
        key = (dataset.process, dataset.variation, info.uuid, plain_tree(file.tree))
        owner, twin = seen.setdefault(key, (dataset, file))
        if (owner.name, twin.lfn) != (dataset.name, file.lfn):
            where = "" if owner.name == dataset.name else f" of dataset {owner.name}"
            raise FilesetError(
                f"dataset {dataset.name}: {file.lfn} and {twin.lfn}{where} are the same file (UUID "
                f"{info.uuid}), its events would count twice; remove one"
            )


def _refuse_empty(account: Account) -> None:
    """Refuse files without any event; say which datasets have none where others have some."""
    empty = [d for d in account.fileset.datasets if account.is_empty(d)]
    if len(empty) == len(account.fileset.datasets):
        raise InputFileError(
            f"dataset {empty[0].name}: no events in it ({redacted(empty[0].files[0].url)} has 0 "
            "entries), nor in any other; choose other files"
        )


def process(account: Account, executor: Executor) -> None:
    """Process all chunks, in rounds over what is missing, until all are done or rounds are up.

    Afterwards ``account.done`` says what there is. Input errors, poison chunks and files that can't
    be opened are noted in the account; the caller decides what they mean.

    Raises
    ------
    ProcessorError
        The processor raised: it would again.
    ModelError
        A model can't score: its server is gone, or it is not given what it takes.
    StoreError
        A finished chunk can't be written.
    ClusterError
        The scheduler is gone.
    """
    shipment = account.shipment
    executor.provide({**contents(shipment.models), **attachments.contents(shipment.files)})
    with offered(shipment.key, shipment.processor, shipment.schema):
        _in_rounds(account, executor)
    if account.cache is not None:
        for file, wanted, info in account.proven():
            account.cache.keep(file, wanted, info)


def _in_rounds(account: Account, executor: Executor) -> None:
    for attempt in range(ROUNDS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            open_files(account, executor)
        account.tick()
        lost = _round(account, executor, account.to_do())
        for chunk in lost:  # Dask blames all chunks of a dead worker, so each is tried alone
            is_known = (chunk.dataset, chunk.lfn) in account.files  # else it is planned anew
            if is_known and _round(account, executor, [chunk], alone=True):
                account.poison.add(chunk)
                logger.warning("%s: the worker dies each time, also when it runs alone", chunk)
        if not account.to_do() and not account.unopened():
            return


def recall(account: Account, executor: Executor) -> int:
    """Take over what an interrupted run has finished.

    Returns
    -------
    Number of its finished chunks that can't be used: of other parameters, code or inputs.

    Raises
    ------
    UsageError
        A file that the processor opened has changed since; or a chunk is a pickle of somebody
        else's.
    """
    there = account.store.names()
    for chunk in account.chunks:
        file = account.path(chunk)
        if chunk.events and file.name in there:
            receipt = account.store.receipt(file, chunk)
            info = account.files[chunk.dataset, chunk.lfn]
            if receipt is not None and not is_of_another(receipt, info):
                account.finish(chunk, receipt)
                account.recalled.add(chunk)
                there.discard(file.name)
    for path in compared(account.opened, executor):
        raise UsageError(
            f"{path}: changed since the run began, whose processor opens it, so that old and new "
            "would be mixed; put it back, or begin anew with --overwrite"
        )
    return len(there)


def compared(opened: Mapping[str, Seen], executor: Executor) -> list[str]:
    """Paths of files that are other than they were, where chunks are processed."""
    if not opened:
        return []
    ((_, now),) = executor.outcomes(seen, {"files that the processor opens": (list(opened),)})
    if not isinstance(now, dict):
        raise ClusterError("the worker died while it compared files; use --resume")
    return changed(opened, now)


def _round(
    account: Account, executor: Executor, chunks: list[Chunk], *, alone: bool = False
) -> list[Chunk]:
    """Process chunks once each; return those whose worker died."""
    jobs = {str(chunk): (packed_job(_job(account, chunk)), executor.topic) for chunk in chunks}
    by_key = {str(chunk): chunk for chunk in chunks}
    lost = []
    for key, outcome in executor.outcomes(process_packed, jobs, alone=alone):
        chunk = by_key[key]
        if isinstance(outcome, Finished):
            if (chunk.dataset, chunk.lfn) in account.files:  # else its file is in doubt
                _accept(account, chunk, outcome)
        elif isinstance(outcome, Failure):
            if outcome.kind == "processor" and _is_doubtful(account, executor, chunk, outcome):
                account.failed(key, outcome.reason)
            elif outcome.kind in {"model", "processor"}:
                account.errors.setdefault(key, []).append(outcome.reason)
                logger.debug("%s\n%s", chunk, outcome.details)
                if outcome.kind == "model":
                    raise ModelError(f"{chunk}: {outcome.reason}")
                raise ProcessorError(
                    f"{chunk}: processor {account.shipment.name}: {outcome.reason} (traceback: -v)"
                )
            else:
                account.failed(key, outcome.reason)
                if outcome.kind == "other" or account.is_verified(account.file(chunk)):
                    account.forget(chunk, outcome.reason)
        else:
            account.failed(key, "its worker died")
            lost.append(chunk)
        account.tick()
    return lost


def _is_doubtful(account: Account, executor: Executor, chunk: Chunk, failure: Failure) -> bool:
    """Whether what is known of a chunk's file is wrong, so that no processor is to blame for it.

    A server may have told nonsense once, in this run or in an earlier one: the file is looked into
    again, and forgotten if that tells something else.
    """
    key = (chunk.dataset, chunk.lfn)
    info, file = account.files.get(key), account.file(chunk)
    if info is None:  # another chunk of it was here before
        return True
    is_here = all(local_path(url) is not None for url in file.replicas)  # a disk tells no nonsense
    if key in account.forgotten or (is_here and key not in account.remembered):
        return False
    jobs = {str(chunk): look(file, account.wanted(account.dataset(chunk.dataset)))}
    ((_, now),) = executor.outcomes(inspect_file, jobs)
    if isinstance(now, FileInfo) and packed(now) == packed(info):
        account.forgotten.add(key)  # it is not asked a third time
        return False
    account.forget(chunk, failure.reason)
    return True


def _accept(account: Account, chunk: Chunk, finished: Finished) -> None:
    if account.mixes(chunk, finished.receipt):
        reason = (
            f"{finished.receipt.url}: its time or tag is another than that of the chunks before"
        )
        account.failed(str(chunk), reason)
        account.forget(chunk, reason)
        return
    if not account.done:
        _check_first(account, chunk, finished)
    dataset = account.dataset(chunk.dataset)
    sumw = finished.receipt.sumw
    if sumw is not None and account.is_scaled and not dataset.is_data:
        if dataset.xsec is None:
            raise FilesetError(
                f"dataset {dataset.name}: no xsec in the fileset, and processor "
                f"{account.shipment.name} needs it to normalise; state it, in pb"
            )
        file, info = account.file(chunk), account.files[chunk.dataset, chunk.lfn]
        is_filtered = source_of(account, dataset, file, info) == "runs"
        if is_filtered and not kind_of(finished.receipt, info):
            raise InputFileError(unclear(dataset, file, info))
    try:
        account.store.save(account.path(chunk), chunk, finished.receipt, finished.blob)
    except StoreError as error:
        raise StoreError(f"{error}; {len(account.done)} finished chunks are kept") from error
    account.notes |= dict.fromkeys(finished.notes)
    if sumw is not None and not account.is_scaled and not dataset.is_data:
        account.notes[account.why_unscaled] = None
    account.finish(chunk, finished.receipt)


def _check_first(account: Account, chunk: Chunk, finished: Finished) -> None:
    """Add the first output to itself: what can't be added is told before hours are spent."""
    if sum(bool(other.events) for other in account.chunks) < 2:  # noqa: PLR2004 - nothing to add
        return
    try:
        add(unpack(finished.blob), unpack(finished.blob))
    except ProcessorError as error:
        raise ProcessorError(f"{chunk}: processor {account.shipment.name}: {error}") from error


def _job(account: Account, chunk: Chunk) -> Job:
    dataset = account.dataset(chunk.dataset)
    shipment = account.shipment
    info = account.files[chunk.dataset, chunk.lfn]
    kept, dropped = info.parts(chunk.start, chunk.stop)
    return Job(
        chunk=chunk,
        file=account.file(chunk),
        known=info.known(is_remembered=(chunk.dataset, chunk.lfn) in account.remembered),
        metadata=account.metadata[dataset.name],
        columns=tuple(account.wanted(dataset).of_file(info.lacking).names()),
        key=shipment.key,
        processor=shipment.blob,
        modules=shipment.modules,
        module=shipment.module,
        source=shipment.source,
        where=shipment.where,
        values=shipment.values,
        files=shipment.files,
        models=tuple(model.sha256 for model in shipment.models),
        directory=kept,
        dropped=dropped,
        place=info.place,
        doubtful=doubtful(account, dataset, chunk),
    )
