"""Normalisation of histograms: generated events that the processed ones stand for.

A processor states ``sumw`` of the events that it was given: their number, or the sum of their
generator weights. A skimmed file holds only a part of the generated events. Their number is in the
fileset (``generated``) or in the file itself (NanoAOD's ``Runs``: genEventCount, genEventSumw);
which of the two numbers corresponds to ``sumw`` is tested, not guessed. A processor may read
``Runs`` itself, and state a file's whole sum in one of its chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from agc_ml.errors import InputFileError
from agc_ml.execution.inspection import FileInfo
from agc_ml.execution.processor.outputs import BOTH, COUNTS, WEIGHTS, is_sum, sum_of_weights
from agc_ml.execution.state.checkpoints import Chunk, Receipt
from agc_ml.execution.state.run_state import RunState
from agc_ml.inputs.datasets import Dataset, File

Source = Literal["entries", "fileset", "runs"]
NONE: Final = "none"


class Share(NamedTuple):
    """A finished chunk with its file.

    ``sums`` is the kind of ``sumw``; ``is_whole``: it is the whole file's sum, in a part of it.
    """

    chunk: Chunk
    sumw: float
    sums: str
    file: File
    info: FileInfo
    source: Source
    is_whole: bool


def source_of(state: RunState, dataset: Dataset, file: File, info: FileInfo) -> Source:
    """Return the source of the number of events that were generated for a file.

    The file goes before the fileset's ``generated`` where it has a sum of weights, too, that is
    a different number.
    """
    if state.rules_nevts:
        return "fileset"
    is_stated = file.generated is not None
    is_filtered = info.generated is not None and info.generated > info.entries
    is_better = not is_stated or info.generated_sumw not in {None, info.generated}
    if is_filtered and is_better and not dataset.is_data:
        return "runs"
    return "fileset" if is_stated else "entries"


def doubtful(state: RunState, dataset: Dataset, chunk: Chunk) -> tuple[float, ...] | None:
    """Values of ``sumw`` whose kind a worker has to find out; None for all.

    All, where Runs add to them. Else 0 and the whole file's sums: weights may cancel, or one chunk
    may state the sum of the whole file.
    """
    if not state.is_scaled or dataset.is_data:
        return ()
    file, info = state.file(chunk), state.files[chunk.dataset, chunk.lfn]
    if source_of(state, dataset, file, info) == "runs" or dataset.name in state.with_empty_files:
        return None
    whole = (info.generated, info.generated_sumw) if chunk.events < info.entries else ()
    return (0.0, *(float(sumw) for sumw in whole if sumw is not None))


def sum_kind(receipt: Receipt, info: FileInfo) -> str:
    """Kind of the ``sumw`` of a chunk; "" for one that tells nothing of the dropped events.

    A file's whole sum counts as one of its kind, and 0 as `NONE`: another chunk has the sum.
    """
    return receipt.sums or _of_whole_file(receipt.sumw, info) or ("" if receipt.sumw else NONE)


def _of_whole_file(sumw: float | None, info: FileInfo) -> str:
    for kind, whole in ((WEIGHTS, info.generated_sumw), (COUNTS, info.generated)):
        if whole and is_sum(sumw or 0.0, whole):
            return kind
    return ""


def shares(state: RunState, dataset: Dataset) -> Iterator[Share]:
    """Finished chunks of a dataset, in the order of the fileset, so that sums are reproducible."""
    files = {file.lfn: file for file in dataset.files}
    for chunk in state.chunks:
        if chunk.dataset == dataset.name and chunk in state.done:
            file, info = files[chunk.lfn], state.files[chunk.dataset, chunk.lfn]
            receipt = state.done[chunk]
            source, sums = source_of(state, dataset, file, info), sum_kind(receipt, info)
            # not a sum over the chunk itself
            is_other = not receipt.sums and chunk.events < max(info.entries, info.generated or 0)
            is_whole = is_other and bool(_of_whole_file(receipt.sumw, info))
            yield Share(chunk, receipt.sumw or 0.0, sums, file, info, source, is_whole)


def generated(state: RunState, dataset: Dataset, part: Any) -> float:
    """Generated events, or the sum of their weights, that the processed ones stand for.

    ``part`` is the sum of the outputs of the dataset.

    Raises
    ------
    InputFileError
        It is not above zero, or unknown.
    """
    done, empty = list(shares(state, dataset)), list(_empty(state, dataset))
    is_whole = _looks_itself(state, done)
    by_runs = [share for share in done if share.source == "runs" or is_whole]
    others = [share for share in done if share.source != "runs" and not is_whole]
    empty_by_runs = [one for one in empty if one.source == "runs" or is_whole]
    total, n = _as_stated(state, dataset, part, others)
    # the number of these is known, and not their weights
    stated = [one.file.generated or 0 for one in empty if one.source != "runs" and not is_whole]
    dropped = float(sum(stated))
    counts = None
    if by_runs or empty_by_runs:
        counts = _counts_events(dataset, done, by_runs, empty_by_runs)
        sums = (*_of_shares(by_runs, counts=counts), *_of_empty(empty_by_runs, counts=counts))
        total += math.fsum(sumw for sumw, _ in sums if sumw is not None)
        n += math.fsum(events for sumw, events in sums if sumw is not None)
        dropped += sum(events for sumw, events in sums if sumw is None)
    if counts:
        total += dropped
    elif dropped and n:  # assumed to have the weights of the others
        total *= 1 + dropped / n
    if not total > 0:
        raise InputFileError(
            f"dataset {dataset.name}: the sum of generator weights is {total:g}, nothing can be "
            "normalised to it; check genWeight in its files"
        )
    return total


class Empty(NamedTuple):
    """A skimmed file without events."""

    file: File
    info: FileInfo
    source: Source


def _empty(state: RunState, dataset: Dataset) -> Iterator[Empty]:
    for file in dataset.files:
        info = state.files.get((dataset.name, file.lfn))
        if info is not None and not info.entries:
            source = source_of(state, dataset, file, info)
            if info.generated_sumw is not None and source == "fileset" and not state.rules_nevts:
                source = "runs"  # no event of it has a weight for the processor
            yield Empty(file, info, source)


def _as_stated(
    state: RunState, dataset: Dataset, part: Any, done: list[Share]
) -> tuple[float, float]:
    """Processor's sum, extended to the events that a filter dropped, and the number of events."""
    if len(done) == sum(chunk.dataset == dataset.name for chunk in state.done):
        sumw = sum_of_weights(part, dataset.name) or 0.0
    else:
        sumw = math.fsum(share.sumw for share in done)
    kept = standing_for = 0.0
    for share in done:
        kept += share.chunk.events
        all_of_file = max(share.chunk.entries, share.file.generated or 0)
        standing_for += share.chunk.events * all_of_file / share.chunk.entries
    nevts = nevts_of(state, dataset)
    if nevts is not None:
        standing_for = nevts * kept / _entries(state, dataset, nevts)
    return (sumw / (kept / standing_for), standing_for) if standing_for else (sumw, 0.0)


def _looks_itself(state: RunState, done: list[Share]) -> bool:
    """Return whether a processor states sums of whole files, from Runs, in one chunk each.

    If no chunk shows it, parts of files without a sum do, next to files that have theirs.
    """
    is_known = all(share.sums and share.info.generated is not None for share in done)
    if state.rules_nevts or not is_known:
        return False
    is_bare = any(s.sums == NONE and s.chunk.events < s.info.entries for s in done)
    has_sums = any(share.sums != NONE for share in done)
    return any(share.is_whole for share in done) or (is_bare and has_sums)


def nevts_of(state: RunState, dataset: Dataset) -> float | None:
    """Number of events of a dataset in the fileset, if it rules, as files state none."""
    if not state.rules_nevts or dataset.n_generated is not None:
        return None
    return dataset.metadata.get("nevts")


def _entries(state: RunState, dataset: Dataset, nevts: float) -> int:
    """Number of events in all files of a dataset, for which the fileset states only ``nevts``.

    Raises
    ------
    InputFileError
        It is larger, or unknown.
    """
    infos = [state.files.get((dataset.name, file.lfn)) for file in dataset.files]
    entries = sum(info.entries for info in infos if info is not None)
    if None in infos:
        raise InputFileError(
            f"dataset {dataset.name}: metadata -> nevts ({nevts:,}) is of all its files, and "
            f"{infos.count(None)} of them can't be opened; add 'entries' of each file"
        )
    if nevts < entries:
        raise InputFileError(
            f"dataset {dataset.name}: metadata -> nevts is {nevts:,}, but its files have "
            f"{entries:,} events; state the number that were generated, or take it out"
        )
    return entries


def _kind_of_all(done: list[Share]) -> str:
    """Kind of the processor's sums: numbers of events, sums of weights, or "" for neither.

    Sums that are both, in all chunks, are taken for weights. `NONE`: unknown.
    """
    kinds = {share.sums for share in done} - {NONE}
    if not kinds:
        return NONE
    if kinds <= {COUNTS, BOTH} and COUNTS in kinds:
        return COUNTS
    return WEIGHTS if kinds <= {WEIGHTS, BOTH} else ""


def _counts_events(
    dataset: Dataset, done: list[Share], by_runs: list[Share], empty: list[Empty]
) -> bool:
    """Return whether the processor's sums are numbers of events rather than of weights.

    Raises
    ------
    InputFileError
        They are neither.
    """
    kind = _kind_of_all(by_runs or done)
    if kind in {COUNTS, WEIGHTS}:
        return kind == COUNTS
    if kind == NONE:
        raise InputFileError(
            f"dataset {dataset.name}: 'sumw' is 0 in all its finished chunks, which can't be "
            "extended to the others; use --resume for these"
        )
    first = next((share for share in by_runs if share.sums in {"", NONE}), None)
    unclear_one: Share | Empty = first or (by_runs or empty)[0]
    raise InputFileError(unclear(dataset, unclear_one.file, unclear_one.info))


def _of_shares(done: list[Share], *, counts: bool) -> Iterator[tuple[float | None, float]]:
    """Sums that the files state, of the processor's kind, with numbers of events."""
    for share in done:
        info, part = share.info, share.chunk.events / share.chunk.entries
        n = (info.generated or 0) * part
        if counts:
            yield n, n
        elif info.generated_sumw is not None:
            yield info.generated_sumw * part, n
        else:  # the dropped events are assumed to have the weights of the kept ones
            yield share.sumw * (info.generated or 0) / info.entries, n


def _of_empty(empty: list[Empty], *, counts: bool) -> Iterator[tuple[float | None, float]]:
    """Sums of skimmed files without events, None where unknown, with numbers of events."""
    for info in (one.info for one in empty):
        yield info.generated if counts else info.generated_sumw, info.generated or 0


def unclear(dataset: Dataset, file: File, info: FileInfo) -> str:
    """Message: a sum of weights can't be extended to the events that a filter dropped."""
    return (
        f"dataset {dataset.name}: {file.lfn} has {info.entries:,} of {info.generated:,} generated "
        "events (Runs), and the processor's 'sumw' is neither their number nor the sum of "
        "genWeight, so that it can't be extended to the others; return one of the two as 'sumw'"
    )


def normalisation_notes(state: RunState) -> Iterator[str]:
    """Lines about the normalisation of datasets that is not by the processor's sum alone."""
    if not state.is_scaled:
        return
    for dataset in state.fileset.datasets:
        done = [share for share in shares(state, dataset) if not dataset.is_data]
        if any(state.done[share.chunk].sumw is not None for share in done):
            yield from _notes(state, dataset, done)


def _notes(state: RunState, dataset: Dataset, done: list[Share]) -> Iterator[str]:
    files = list({share.file.lfn: share for share in done}.values())
    nevts = nevts_of(state, dataset)
    if nevts is not None:
        yield (
            f"{dataset.name}: normalised to metadata -> nevts of the fileset, {nevts:,} events, as "
            "its processor declares"
        )
        return
    if state.rules_nevts:
        if dataset.n_generated is None:
            yield (
                f"{dataset.name}: no number of generated events in the fileset (nevts), to which "
                "its processor normalises: its files are assumed to be whole samples"
            )
        n = sum(share.info.generated or 0 for share in files)
        if n > sum(max(share.info.entries, share.file.generated or 0) for share in files):
            yield (
                f"{dataset.name}: normalised to the fileset's number of events, as its processor "
                f"declares; its files state {n:,} generated events (Runs/genEventCount)"
            )
        return
    if _looks_itself(state, done):
        yield (
            f"{dataset.name}: normalised to the processor's 'sumw', which is that of whole files "
            "(Runs)"
        )
        return
    empty = list(_empty(state, dataset))
    all_files: list[Share | Empty] = [*files, *empty]
    of_runs = [one for one in all_files if one.source == "runs" and one.file.generated is None]
    if of_runs:
        kept = sum(share.info.entries for share in of_runs)
        n = sum(share.info.generated or 0 for share in of_runs)
        basis = (
            "their number, like the processor's sumw"
            if _kind_of_all([s for s in done if s.source == "runs"] or done) == COUNTS
            else "the sum of their weights (Runs/genEventSumw)"
            if all(share.info.generated_sumw is not None for share in of_runs)
            else "their number, with the weights of the kept events (no Runs/genEventSumw)"
        )
        yield (
            f"{dataset.name}: skimmed files with {kept:,} of {n:,} generated events "
            f"(Runs/genEventCount; the fileset does not state them): normalised to {basis}"
        )
    yield from _assumed(dataset, done, empty)
    silent = [s for s in files if s.source == "entries" and s.info.generated is None]
    nevts, there = dataset.metadata.get("nevts"), sum(share.info.entries for share in files)
    if silent and nevts != there:
        which = "its files" if len(silent) == len(files) else f"{len(silent)} of {len(files)} files"
        stated = (
            "nor in the fileset"
            if nevts is None
            else f"and metadata -> nevts ({nevts:,}, of {there:,} events in them) rules only where "
            "a processor has normalised_to = 'nevts'"
        )
        yield (
            f"{dataset.name}: no number of generated events in {which} (Runs/genEventCount), "
            f"{stated}: assumed to be whole samples, without a filter"
        )


def _assumed(dataset: Dataset, done: list[Share], empty: list[Empty]) -> Iterator[str]:
    """Lines about dropped events of which only the number is known, not the weights."""
    parts: list[Share | Empty] = [*done, *empty]
    stated = [
        one
        for one in parts
        if one.source == "fileset" and (one.file.generated or 0) > one.info.entries
    ]
    is_sum = any(share.sumw != share.chunk.events for share in done)
    if is_sum and any(one.info.generated_sumw is None for one in stated):
        yield (
            f"{dataset.name}: 'generated' of the fileset is a number of events, and the "
            "processor's 'sumw' a sum of weights: dropped events are assumed to have the weights "
            "of the kept ones (no Runs/genEventSumw)"
        )
