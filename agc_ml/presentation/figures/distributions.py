"""Figures of histograms: a stacked plot a region, the shapes of all variations of each process."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import boost_histogram as bh
import hist
import numpy as np

from agc_ml.errors import HistogramError
from agc_ml.inputs.variations import NOMINAL
from agc_ml.presentation.figures import bins, overview, stack, style
from agc_ml.presentation.figures.bins import Histogram
from agc_ml.presentation.figures.variations import NO_BAND, save_variations
from agc_ml.results import variances

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from agc_ml.analysis import Process
    from agc_ml.presentation.figures.style import Array
    from agc_ml.presentation.page import FigureInfo
    from agc_ml.results.run_result import RunResult

logger = logging.getLogger(__name__)

ENTRIES: Final = "Entries"
NAMED: Final = 5  # histograms in a line that says what was not drawn


class Region(NamedTuple):
    """One-dimensional histograms of a region: process -> variation -> histogram."""

    name: str
    processes: dict[str, dict[str, Histogram]]


class _Points(NamedTuple):
    """Points of a figure, their name, and the unit of an entry of each histogram.

    ``totals`` are the total uncertainties of a model, of the histograms that have one.
    """

    data: Mapping[str, Histogram]
    label: str
    units: Mapping[str, str]
    totals: Mapping[str, Array]
    is_pseudo: bool


def draw_run(
    result: RunResult,
    directory: Path,
    data: Mapping[str, Histogram] | None = None,
    large: Collection[str] | None = None,
    *,
    data_label: str = "pseudodata",
    totals: Mapping[str, Array] | None = None,
    processes: Mapping[str, Process] = MappingProxyType({}),
) -> list[FigureInfo]:
    """Draw the histograms of a run: stacked plots, and the shapes of its variations.

    Parameters
    ----------
    result
        The run. Category axes other than the variation's tell the samples of a stack apart.
        Histograms of two and more numeric axes are left out, with a line in the log.
    directory
        Folder of the figures; made if needed.
    data
        Histogram of each region that is drawn as points, such as pseudodata; without it, the
        run's datasets of recorded collisions.
    large
        Names of the histograms that get figures of their own, None for all; the others go into
        one overview, without their variations.
    data_label
        What ``data`` are.
    totals
        Total uncertainties of the fit's model, by histogram, shape ``(n_bins,)``.
    processes
        Their labels and colours, as the analysis declares them.

    Raises
    ------
    HistogramError
        ``data`` are binned differently.
    StoreError
        The folder can't be written.
    """
    recorded = {d.process for d in result.provenance.datasets if d.is_data}
    regions, points = [], dict(data or {})
    for name, histogram in result.hists.items():
        region = Region(name, _processes(name, histogram, result.templates))
        popped = [region.processes.pop(p, {}) for p in recorded]
        measured = [variations[NOMINAL] for variations in popped if NOMINAL in variations]
        if measured and name not in points:
            points[name] = variances.total(measured)
        regions.append(region)
    simulated = [d for d in result.provenance.datasets if not d.is_data and d.xsec is not None]
    is_simulation = data is not None or (bool(simulated) and not recorded)
    label = style.Label(result.luminosity, is_simulation, result.provenance.label)
    what = data_label if data is not None else "data"
    units = {name: _unit(histogram, result) for name, histogram in result.hists.items()}
    return _draw(
        regions,
        directory,
        _Points(points, what, units, totals or {}, data is not None),
        label,
        large,
        processes=processes,
    )


def _unit(histogram: Histogram, result: RunResult) -> str:
    """Unit of an entry, as the histogram says; weights that are scaled to nothing are no events."""
    stated = getattr(histogram, "label", None)
    is_known = bool(stated) and (stated != "Events" or result.luminosity is not None)
    return str(stated) if is_known else ENTRIES


def draw_templates(
    templates: Mapping[str, Histogram],
    directory: Path,
    samples: Sequence[str],
    regions: Sequence[str],
    *,
    luminosity: float | None = None,
    source: str | None = None,
    data: Mapping[str, Histogram] | None = None,
    data_label: str = "pseudodata",
    totals: Mapping[str, Array] | None = None,
    processes: Mapping[str, Process] = MappingProxyType({}),
) -> list[FigureInfo]:
    """Draw histograms named ``{region}_{process}[_{variation}]``, as `draw_run` does.

    ``luminosity`` in 1/pb and ``source`` (whose events they are): None when they are not known.
    ``totals`` are total uncertainties of the fit's model, by region; ``processes`` have labels and
    colours of ``samples``.

    Raises
    ------
    HistogramError
        ``data`` are binned differently.
    StoreError
        The folder can't be written.
    """
    owners = {f"{region}_{process}": (region, process) for region in regions for process in samples}
    drawn = {region: Region(region, {}) for region in regions}
    others = []
    for name, histogram in templates.items():
        # the longest name wins: single_top_tW is no variation of single_top
        owner = max(
            (o for o in owners if name == o or name.startswith(f"{o}_")), key=len, default=""
        )
        if owner and histogram.ndim == 1 and histogram.kind is bh.Kind.COUNT:
            region, process = owners[owner]
            variation = name[len(owner) + 1 :] or NOMINAL
            drawn[region].processes.setdefault(process, {})[variation] = histogram
        else:
            others.append(name)
    if others:
        more = ", ..." if len(others) > NAMED else ""
        logger.warning(
            "not drawn, as they are not of the regions and samples of the fit configuration: "
            "%d histograms (%s%s)",
            len(others),
            ", ".join(others[:NAMED]),
            more,
        )
    label = style.Label(luminosity, simulation=True, source=source)
    units = {
        region: str(getattr(histogram, "label", None) or ENTRIES)
        for region, owned in drawn.items()
        for histogram in owned.processes.get(next(iter(owned.processes), ""), {}).values()
    }
    return _draw(
        drawn.values(),
        directory,
        _Points(data or {}, data_label, units, totals or {}, is_pseudo=True),
        label,
        processes=processes,
    )


def _processes(
    name: str, histogram: Histogram, templates: Mapping[str, Histogram]
) -> dict[str, dict[str, Histogram]]:
    """Find the templates of a histogram: sample -> variation -> template; empty if not drawable."""
    categories = [
        axis
        for axis in histogram.axes
        if isinstance(axis, (hist.axis.StrCategory, hist.axis.IntCategory))
    ]
    if histogram.ndim - len(categories) != 1:
        logger.info("%s: %d numeric axes, not drawn", name, histogram.ndim - len(categories))
        return {}
    if histogram.kind is bh.Kind.MEAN:
        logger.info("%s: means, which don't add up, not drawn", name)
        return {}
    if not categories:
        return {name: {NOMINAL: histogram}}
    names, variations = [""], [NOMINAL]
    for axis in categories:
        if axis is categories[-1] and axis.name == "variation":
            variations = [str(label) for label in axis]
        else:
            names = [f"{before}_{label}" for before in names for label in axis]
    by_sample: dict[str, dict[str, Histogram]] = {}
    for sample in names:
        for variation in variations:
            suffix = "" if variation == NOMINAL else f"_{variation}"
            template = templates.get(f"{name}{sample}{suffix}")
            if template is not None:
                by_sample.setdefault(sample.removeprefix("_"), {})[variation] = template
    return by_sample


def _draw(
    regions: Iterable[Region],
    directory: Path,
    points: _Points,
    label: style.Label,
    large: Collection[str] | None = None,
    *,
    processes: Mapping[str, Process],
) -> list[FigureInfo]:
    style.make_folder(directory)
    stacks, small, shapes = [], [], []
    with style.applied(processes):
        for region in regions:
            content = _stack(region, points)
            unit = points.units.get(region.name, ENTRIES)
            if large is not None and region.name not in large:
                small += [] if content is None else [content]
                continue
            if content is not None:
                stacks.append(_save_stack(content, region, points, directory, label))
            for process, variations in region.processes.items():
                if NOMINAL not in variations:
                    logger.info("%s: %s has no nominal histogram, not drawn", region.name, process)
                elif len(variations) > 1:
                    names = {"region": region.name, "process": process, "unit": unit}
                    shapes.append(save_variations(variations, directory, label, **names))
        if small:
            stacks.append(_save_overview(small, points, directory, label))
    return stacks + shapes


def _stack(region: Region, given: _Points) -> stack.Stack | None:
    """Collect the stacked plot of a region; None when it has neither nominal samples nor data."""
    points = given.data.get(region.name)
    nominal = {p: v[NOMINAL] for p, v in region.processes.items() if NOMINAL in v}
    together = nominal if points is None else nominal | {"data": points}
    if not together:
        return None
    first = next(iter(together.values()))
    edges = bins.edges(first)
    for process, histogram in together.items():
        if not np.array_equal(bins.edges(histogram), edges):
            raise HistogramError(f"{region.name}: {process} is binned differently from the others")
    return stack.Stack(
        note=region.name,
        label=bins.axis_label(first),
        edges=edges,
        samples={process: bins.values(histogram) for process, histogram in nominal.items()},
        uncertainty=bins.uncertainty(list(nominal.values())),
        uncertainty_label="stat. uncertainty",
        data=None if points is None else bins.values(points),
        data_label=given.label,
        unit=given.units.get(region.name, ENTRIES),
        errors=None if points is None else _errors(points, is_pseudo=given.is_pseudo),
        total_uncertainty=given.totals.get(region.name),
    )


def _errors(points: Histogram, *, is_pseudo: bool) -> Array | None:
    """Uncertainties of data: their own, or what as many counted events would have."""
    if is_pseudo:
        return np.sqrt(np.maximum(bins.values(points), 0))
    variance = variances.of(points)
    return None if variance is None else np.sqrt(np.maximum(variance, 0))


def _save_stack(
    content: stack.Stack, region: Region, points: _Points, directory: Path, label: style.Label
) -> FigureInfo:
    parts = [f"{content.unit} in {region.name}.", *_legend_in_words(content, points, label)]
    parts.append(
        _flow_note([v[NOMINAL] for v in region.processes.values() if NOMINAL in v], content.unit)
    )
    figure = stack.draw(content, label)
    name = f"{region.name}_stack"
    return style.save(figure, directory, name, f"{region.name}: stacked", " ".join(parts).strip())


def _save_overview(
    small: Sequence[stack.Stack], points: _Points, directory: Path, label: style.Label
) -> FigureInfo:
    names = ", ".join(content.note for content in small)
    parts = [f"Row by row: {names}.", *_legend_in_words(small[0], points, label)]
    unknown = [content.note for content in small if content.uncertainty is None]
    if unknown:
        parts.append(f"No band, as variances are not known: {', '.join(unknown)}.")
    parts.append("Underflow and overflow are not shown.")
    figure = overview.draw(small, label)
    title = f"{len(small)} more observables"
    return style.save(figure, directory, "overview", title, " ".join(parts))


def _legend_in_words(content: stack.Stack, points: _Points, label: style.Label) -> Iterator[str]:
    if content.samples and content.uncertainty is not None:
        yield (
            "The processes are on top of each other, the hatched band is their statistical "
            "uncertainty."
        )
    elif content.samples:
        yield f"The processes are on top of each other. {NO_BAND}"
    if content.total_uncertainty is not None:
        yield "The grey band is the total uncertainty of the fit's model before the fit."
    if content.data is not None and content.errors is None:
        yield f"Points: {content.data_label}, without uncertainty: they were filled with weights."
    elif content.data is not None and points.is_pseudo:
        yield (
            f"Points: {content.data_label}, mixed from the templates themselves, with the square "
            "root of their number as uncertainty."
        )
    elif content.data is not None:
        yield f"Points: {content.data_label}, with their statistical uncertainty."
        if content.samples and label.luminosity is None:
            yield "The simulation is not scaled to them."


def _flow_note(histograms: Sequence[Histogram], unit: str) -> str:
    """Say how much is outside of the axis, where anything is."""
    inside = sum(float(np.sum(bins.values(h))) for h in histograms)
    outside = sum(float(np.sum(h.values(flow=True))) for h in histograms) - inside
    if abs(outside) <= 1e-9 * abs(inside):
        return ""
    amount = f"{outside:,.4g} {unit.lower()}"
    return f"Not shown: {amount} below or above the axis (underflow and overflow)."
