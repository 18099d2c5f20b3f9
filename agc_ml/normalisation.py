"""What histograms are normalised to: the generated events that the processed ones stand for.

A processor states ``sumw`` of the events that it was given: their number, or the sum of their
generator weights. In a file that a filter made these are not all that were generated. How many
were says the fileset (``generated``) or the file itself (NanoAOD's ``Runs``: genEventCount,
genEventSumw); which of the two numbers stands for ``sumw`` is found out, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from agc_ml.account import Account
from agc_ml.checkpoints import Chunk
from agc_ml.datasets import Dataset, File
from agc_ml.errors import InputFileError
from agc_ml.inspection import FileInfo
from agc_ml.outputs import BOTH, COUNTS, WEIGHTS, sum_of_weights

Source = Literal["entries", "fileset", "runs"]


class Share(NamedTuple):
    """A chunk that is done, with what is known of its file."""

    chunk: Chunk
    sumw: float
    sums: str
    file: File
    info: FileInfo
    source: Source


def source_of(account: Account, dataset: Dataset, file: File, info: FileInfo) -> Source:
    """Who says how many events were generated for a file."""
    if file.generated is not None or account.rules_nevts:
        return "fileset"
    is_filtered = info.generated is not None and info.generated > info.entries
    return "runs" if is_filtered and not dataset.is_data else "entries"


def shares(account: Account, dataset: Dataset) -> Iterator[Share]:
    """Chunks of a dataset that are done, in the order of the fileset: sums must not change."""
    files = {file.lfn: file for file in dataset.files}
    for chunk in account.chunks:
        if chunk.dataset == dataset.name and chunk in account.done:
            file, info = files[chunk.lfn], account.files[chunk.dataset, chunk.lfn]
            receipt = account.done[chunk]
            source = source_of(account, dataset, file, info)
            yield Share(chunk, receipt.sumw or 0.0, receipt.sums, file, info, source)


def generated(account: Account, dataset: Dataset, part: Any) -> float:
    """Generated events, or the sum of their weights, that the processed ones stand for.

    ``part`` is the sum of the outputs of the dataset.

    Raises
    ------
    InputFileError
        It is not above zero, or can't be told.
    """
    done = list(shares(account, dataset))
    by_runs = [share for share in done if share.source == "runs"]
    total = _as_stated(account, dataset, part, [share for share in done if share not in by_runs])
    if by_runs:
        total += _by_runs(account, dataset, by_runs)
    if not total > 0:
        raise InputFileError(
            f"dataset {dataset.name}: the sum of generator weights is {total:g}, nothing can be "
            "normalised to it; check genWeight in its files"
        )
    return total


def _as_stated(account: Account, dataset: Dataset, part: Any, done: list[Share]) -> float:
    """Stated by the processor, for the events that a filter dropped as for those that it kept."""
    if len(done) == sum(chunk.dataset == dataset.name for chunk in account.done):
        sumw = sum_of_weights(part) or 0.0
    else:
        sumw = math.fsum(share.sumw for share in done)
    kept = standing_for = 0.0
    for file in dataset.files:
        info = account.files.get((dataset.name, file.lfn))
        if info is not None and not info.entries and file.generated is not None:
            standing_for += file.generated
    for share in done:
        kept += share.chunk.events
        all_of_file = max(share.chunk.entries, share.file.generated or 0)
        standing_for += share.chunk.events * all_of_file / share.chunk.entries
    return sumw / (kept / standing_for) if kept and standing_for else sumw


def _by_runs(account: Account, dataset: Dataset, done: list[Share]) -> float:
    """As the files say, in the kind of sum that the processor's are.

    Raises
    ------
    InputFileError
        They are neither numbers of events nor sums of genWeight.
    """
    kinds = {share.sums for share in done}
    counts = kinds <= {COUNTS, BOTH} and COUNTS in kinds
    if not counts and not kinds <= {WEIGHTS, BOTH}:
        first = next(share for share in done if share.sums not in {COUNTS, WEIGHTS, BOTH})
        raise InputFileError(unclear(dataset, first.file, first.info))
    total = 0.0
    empty = (
        info
        for file in dataset.files
        if (info := account.files.get((dataset.name, file.lfn))) is not None
        and not info.entries
        and file.generated is None
    )
    for info in empty:
        total += (info.generated if counts else info.generated_sumw) or info.generated or 0.0
    for share in done:
        info, part = share.info, share.chunk.events / share.chunk.entries
        if counts:
            total += (info.generated or 0) * part
        elif info.generated_sumw is not None:
            total += info.generated_sumw * part
        else:  # of the weights of dropped events nothing is known: as of the kept ones
            total += share.sumw * (info.generated or 0) / info.entries
    return total


def unclear(dataset: Dataset, file: File, info: FileInfo) -> str:
    """Say that a sum of weights can't be extended to the events that a filter dropped."""
    return (
        f"dataset {dataset.name}: {file.lfn} has {info.entries:,} of {info.generated:,} generated "
        "events (Runs), and the processor's 'sumw' is neither their number nor the sum of "
        "genWeight, so that it says nothing of the others; state 'generated: N' of the file in the "
        "fileset"
    )


def lines(account: Account) -> Iterator[str]:
    """What histograms were normalised to, where somebody should know."""
    if not account.is_scaled:
        return
    for dataset in account.fileset.datasets:
        done = [share for share in shares(account, dataset) if not dataset.is_data]
        if any(account.done[share.chunk].sumw is not None for share in done):
            yield from _lines(account, dataset, done)


def _lines(account: Account, dataset: Dataset, done: list[Share]) -> Iterator[str]:
    files = {share.file.lfn: share for share in done}.values()
    if account.rules_nevts:
        n = sum(share.info.generated or 0 for share in files)
        if n > sum(max(share.info.entries, share.file.generated or 0) for share in files):
            yield (
                f"{dataset.name}: normalised to the fileset's number of events, as its processor "
                f"wants; its files say that {n:,} were generated (Runs/genEventCount)"
            )
        return
    of_runs = [share for share in files if share.source == "runs"]
    if of_runs:
        kept = sum(share.info.entries for share in of_runs)
        n = sum(share.info.generated or 0 for share in of_runs)
        what = (
            "their number, as the processor's sumw is one"
            if any(share.sums == COUNTS for share in done)
            else "the sum of their weights (Runs/genEventSumw)"
            if all(share.info.generated_sumw is not None for share in of_runs)
            else "them, taken to have the weights of those that were kept (no Runs/genEventSumw)"
        )
        yield (
            f"{dataset.name}: a filter kept {kept:,} of {n:,} generated events, by its files' "
            f"Runs/genEventCount (the fileset does not state them): normalised to {what}"
        )
    silent = [s for s in files if s.source == "entries" and s.info.generated is None]
    if silent:
        some = "its files" if len(silent) == len(files) else f"{len(silent)} of {len(files)} files"
        yield (
            f"{dataset.name}: no number of generated events in {some} (Runs/genEventCount), nor in "
            "the fileset: taken to be whole samples, of which no filter dropped events"
        )
