"""Add the outputs of chunks to the result of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import boost_histogram as bh
import hist
import numpy as np

from agc_ml.errors import AgcError, HistogramError, IncompleteError, ProcessorError
from agc_ml.execution.code.source_files import is_of_library, place_in_code
from agc_ml.execution.normalisation import generated
from agc_ml.execution.processor.opened_files import watch_opened
from agc_ml.execution.processor.outputs import (
    WARNINGS,
    add,
    by_name,
    check,
    collect,
    cutflow,
    has_sumw,
    rest,
    sum_of_weights,
    tables,
    warnings,
)
from agc_ml.execution.state.packing import unpack
from agc_ml.execution.state.run_state import RunState
from agc_ml.inputs.datasets import Dataset
from agc_ml.results import saved_outputs, variances
from agc_ml.results.categories import flatten, labels_of, lost_categories
from agc_ml.results.histograms import materialised
from agc_ml.results.tables import ColumnTable

_MOST_NAMED: Final = 4


@dataclass(frozen=True)
class Reduced:
    """Sum of all chunks, sorted by kind."""

    hists: dict[str, hist.Hist[Any]]
    templates: dict[str, hist.Hist[Any]]
    cutflow: dict[str, dict[str, float]]
    warnings: tuple[str, ...]
    outputs: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, ColumnTable] = field(default_factory=dict)
    scales: dict[str, float | None] = field(default_factory=dict)


def reduce(state: RunState) -> Reduced:
    """Add finished chunks, in the order of the fileset, and normalise each dataset.

    A processor that returns ``sumw`` (the sum of generator weights of the events it was given) has
    its histograms scaled by cross-section times luminosity over the dataset's ``sumw``, so that the
    normalisation stays right when chunks are missing. Skimmed files count the dropped events.

    Raises
    ------
    IncompleteError
        A finished chunk is damaged on disk, or nothing of a dataset was processed.
    InputFileError
        A dataset has a sum of weights that can't be normalised to.
    ProcessorError
        Outputs can't be added up or kept, or postprocess raised.
    """
    name = state.processor.label
    total: Any = None
    added: list[str] = []
    booked: set[str] = set()
    cutflows: dict[str, dict[str, float]] = {}
    factors: dict[str, float | None] = {}
    for dataset in state.fileset.datasets:
        if state.is_empty(dataset):
            continue
        part = _sum(_outputs(state, dataset), f"dataset {dataset.name}", state)
        if part is None:
            raise IncompleteError(
                f"dataset {dataset.name}: no chunk of it could be processed, and the result needs "
                "it; use --resume, or leave it out with --datasets"
            )
        part = materialised(part)
        cutflows |= cutflow(part, dataset.name)
        factor = _factor(part, dataset, state)
        if not dataset.is_data:
            factors[dataset.name] = factor
        part = part if factor is None else _scaled(part, factor)
        booked.update(_flat(part, state))
        where = f"datasets {' and '.join(added[-1:])} and {dataset.name}"
        total = part if total is None else _add(total, part, where, state)
        added.append(dataset.name)
    state.notes |= dict.fromkeys(_scaling_notes(factors))
    # combinations of categories that no dataset has, but that their sum seems to have
    phantoms = _flat(total, state).keys() - booked
    summed = collect(by_name(total, name))
    labels = {key: labels_of(histogram) for key, histogram in summed.items()}
    counts = _contents(summed)
    final = by_name(_postprocessed(total, state), name)
    try:
        _forget_variances(collect(final), counts)
        check(final)
    except (AgcError, RecursionError) as error:
        problem = error if isinstance(error, AgcError) else "it contains itself"
        raise ProcessorError(
            f"processor {state.processor.name}: the result of all chunks: {problem}"
        ) from error
    phantoms |= _phantoms_of_copies(collect(final), labels, phantoms)
    return replace(_sorted(final, phantoms, cutflows), scales=factors)


def _phantoms_of_copies(
    histograms: Mapping[str, hist.Hist[Any]],
    before: Mapping[str, Any],
    phantoms: Collection[str],
) -> set[str]:
    """Combinations that no dataset has, of histograms that postprocess renamed or made of others.

    A combination is one if it is in all earlier histograms with the same labels (``before``).
    """
    copies = set()
    for name, histogram in histograms.items():
        labels = labels_of(histogram)
        alike = [other for other, theirs in before.items() if theirs == labels]
        if name not in before and alike:
            for full in flatten({name: histogram}):
                if all(f"{other}{full[len(name) :]}" in phantoms for other in alike):
                    copies.add(full)
    return copies


def _flat(output: Any, state: RunState) -> dict[str, hist.Hist[Any]]:
    try:
        return flatten(collect(by_name(output, state.processor.label)))
    except HistogramError as error:
        raise ProcessorError(f"processor {state.processor.name}: {error}") from error


def _contents(histograms: Mapping[str, hist.Hist[Any]]) -> dict[str, Any]:
    """Contents of histograms without variances, by name; None for those that are not counts."""
    return {
        name: histogram.values(flow=True).copy() if variances.of(histogram) is not None else None
        for name, histogram in histograms.items()
        if not variances.keeps(histogram)
    }


def _forget_variances(histograms: Mapping[str, hist.Hist[Any]], counts: Mapping[str, Any]) -> None:
    """Mark variances as unknown of weighted histograms, and of those that postprocess changed.

    boost-histogram notices arithmetic, but not writes into a view, nor new histograms.
    """
    for name, before in counts.items():
        after = histograms.get(name)
        if after is None or variances.keeps(after):
            continue
        if before is None or not np.array_equal(after.values(flow=True), before):
            variances.mark(after, known=False)


def _outputs(state: RunState, dataset: Dataset) -> Iterable[Any]:
    for chunk in state.chunks:
        if chunk.dataset == dataset.name and chunk in state.done:
            path = state.path(chunk)
            checkpoint = state.store.load(path, chunk)
            if checkpoint is None:
                raise IncompleteError(f"{chunk}: its result on disk is damaged; use --resume")
            try:
                yield unpack(checkpoint[1])
            except ValueError as error:
                path.unlink()  # it is complete: another program wrote it
                raise IncompleteError(
                    f"{chunk}: its result on disk is {error}; use --resume to process it again"
                ) from error


def _sum(parts: Iterable[Any], where: str, state: RunState) -> Any | None:
    """Pairwise sum whose shape depends on the number of parts only; log2(n) of them in memory."""
    stack: list[tuple[int, Any]] = []
    for part in parts:
        level, value = 0, part
        while stack and stack[-1][0] == level:
            value = _add(stack.pop()[1], value, where, state)
            level += 1
        stack.append((level, value))
    if not stack:
        return None
    value = stack.pop()[1]
    while stack:
        value = _add(stack.pop()[1], value, where, state)
    return value


def _add(left: Any, right: Any, where: str, state: RunState) -> Any:
    try:
        return add(left, right)
    except ProcessorError as error:
        raise ProcessorError(f"processor {state.processor.name}: {where}: {error}") from error


def _factor(part: Any, dataset: Dataset, state: RunState) -> float | None:
    """Factor that scales a dataset to cross-section times luminosity, None for no scaling."""
    luminosity = state.fileset.luminosity
    if not state.is_scaled or dataset.is_data or dataset.xsec is None or luminosity is None:
        return None  # a sum of weights without xsec was refused with the first chunk
    if sum_of_weights(part, dataset.name) is None:
        if has_sumw(part):
            state.notes[
                f"{dataset.name}: 'sumw' is neither a number nor {{dataset: number}}, or stands "
                "deeper in the output than under the dataset's name: nothing is scaled to "
                "cross-section and luminosity"
            ] = None
        return None
    return dataset.xsec * luminosity / generated(state, dataset, part)


def _scaling_notes(factors: Mapping[str, float | None]) -> Iterator[str]:
    """Lines about the simulated datasets that are scaled, by ``factors``, and about the others."""
    scaled = {name: factor for name, factor in factors.items() if factor is not None}
    if not scaled:
        return
    what = ", ".join(f"{name} by {factor:.6g}" for name, factor in scaled.items())
    if len(scaled) > _MOST_NAMED:
        low, high = min(scaled.values()), max(scaled.values())
        what = f"{len(scaled)} datasets by {low:.4g} to {high:.4g}"
    yield f"scaled to cross-section x luminosity / sumw (before postprocess): {what}"
    raw = [name for name in factors if name not in scaled]
    if raw:
        more = f" and {len(raw) - _MOST_NAMED} more" if len(raw) > _MOST_NAMED else ""
        named = ", ".join(raw[:_MOST_NAMED])
        yield f"not scaled, as they have no 'sumw', unlike the others: {named}{more}"


def _scaled(output: Any, factor: float) -> Any:
    if isinstance(output, bh.Histogram):
        # a mean does not depend on the number of events
        return output if output.kind is bh.Kind.MEAN or factor == 1 else output * factor
    if isinstance(output, MutableMapping):
        for key, value in output.items():
            output[key] = _scaled(value, factor)
    elif type(output).__name__ == "value_accumulator":
        output.value = _scaled(output.value, factor)
    elif isinstance(output, list | tuple):
        return type(output)(_scaled(value, factor) for value in output)
    return output


def _postprocessed(total: Any, state: RunState) -> Any:
    postprocess = getattr(state.processor.instance, "postprocess", None)
    try:
        with watch_opened(is_of_library) as opened:  # a resume compares these files
            changed = postprocess(total) if callable(postprocess) else None
            state.opened |= opened()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ProcessorError(
            f"processor {state.processor.name}: postprocess failed: {error!r}"
            f"{place_in_code(error)}; fix it and rerun with --resume: no chunk is read again"
        ) from error
    return total if changed is None else changed


def _sorted(
    output: Mapping[Any, Any], phantoms: Collection[str], cutflows: dict[str, dict[str, float]]
) -> Reduced:
    """Sort an output by kind; ``cutflows`` are those of the datasets."""
    hists = collect(output)
    keyed = cutflow(output, "")
    lines = warnings(output)
    others = {key: value for key, value in output.items() if key != WARNINGS or lines is None}
    if keyed and "" not in keyed:  # by dataset, as postprocess left it
        cutflows = keyed
        others.pop("cutflow")
    return Reduced(
        hists=hists,
        # combinations that postprocess filled count
        templates={
            name: h
            for name, h in flatten(hists).items()
            if name not in phantoms or not h.empty(flow=True)
        },
        cutflow=cutflows,
        warnings=(*(lines or ()), *lost_categories(hists)),
        outputs=saved_outputs.decode(saved_outputs.encode(rest(others))),
        tables=tables(output),
    )
