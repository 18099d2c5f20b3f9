"""Figures of a fit: pulls, ranking, correlations, and the regions before and after."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from agc_ml.presentation.figures import stack, style, unfitted_observables
from agc_ml.statistics.fit import CarriedOver, FitResult, Parameter, RegionYields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agc_ml.analysis import Process
    from agc_ml.presentation.figures.style import Array
    from agc_ml.presentation.page import FigureInfo

logger = logging.getLogger(__name__)

RANKED: Final = 20
UNCORRELATED: Final = 0.05


def draw_fit(
    fit: FitResult,
    directory: Path,
    luminosity: float | None,
    source: str | None = None,
    processes: Mapping[str, Process] = MappingProxyType({}),
) -> list[FigureInfo]:
    """Draw a fit: regions and other observables before and after, pulls, ranking, correlations.

    ``luminosity`` in 1/pb and ``source`` (whose events they are): None when they are not known;
    ``processes`` with their labels and colours, as the analysis declares them.
    What the fit does not have (impacts, constrained parameters, observables that it was carried
    over to) is left out, impacts with a line in the log.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    style.make_folder(directory)
    figures = []
    label = style.Label(luminosity, fit.points == "pseudodata", source)
    with style.applied(processes):
        for when, regions in (("pre-fit", fit.prefit), ("post-fit", fit.postfit)):
            figures += [_region(r, when, fit, directory, label) for r in regions]
        figures += [_carried_over(one, fit, directory, label) for one in fit.carried_over]
        if any(parameter.pull is not None for parameter in fit.parameters):
            figures.append(_save_pulls(fit, directory, label))
        if fit.impacts:
            figures.append(_save_ranking(fit, directory, label))
        else:
            logger.info("the fit has no impacts, so there is no ranking")
        if len(fit.parameters) > 1 and np.isfinite(fit.correlation).any():
            figures.append(_save_correlation(fit, directory, label))
    return figures


def _region(
    region: RegionYields, when: str, fit: FitResult, directory: Path, label: style.Label
) -> FigureInfo:
    content = stack.Stack(
        note=f"{region.region}, {when}",
        label=region.label,
        edges=region.edges,
        samples=region.samples,
        uncertainty=region.uncertainty,
        uncertainty_label="uncertainty",
        data=region.data,
        data_label=fit.kind,
        errors=np.sqrt(region.data),
        unit=region.unit,
    )
    caption = (
        f"{region.region}, {when}: the model with its total uncertainty (hatched), and "
        f"{fit.kind} with the square root of their number as uncertainty. All bins of the fit "
        f"are shown. {fit.closure}"
    ).rstrip()
    name = f"{region.region}_{when}"
    figure = stack.draw(content, label)
    return style.save(figure, directory, name, f"{region.region}: {when}", caption)


def _carried_over(
    carried: CarriedOver, fit: FitResult, directory: Path, label: style.Label
) -> FigureInfo:
    name = carried.prefit.region
    caption = (
        f"{name}, which was not fitted: the model with its total uncertainty (hatched) before the "
        f"fit and with its result, and {fit.kind} with the square root of their number as "
        "uncertainty. The tests take neighbouring bins with few events together, and count the "
        f"uncertainty of the model with its correlations. {fit.closure}"
    ).rstrip()
    figure = unfitted_observables.draw(carried, fit.kind, label)
    return style.save(
        figure, directory, f"{name}_carried_over", f"{name}: before and after the fit", caption
    )


def _save_pulls(fit: FitResult, directory: Path, label: style.Label) -> FigureInfo:
    parameters = [parameter for parameter in fit.parameters if parameter.pull is not None]
    figure = style.new_figure(7.5, 1.3 + 0.26 * len(parameters))
    height = figure.get_figheight()
    axes = _names_axes(figure, label, [p.name for p in parameters], (0.33, 0.75 / height), 0.45)
    for width, color in ((2, "#fff3c4"), (1, "#cfe8cf")):
        axes.axvspan(-width, width, color=color, zorder=0, linewidth=0)
    _draw_pulls(axes, parameters, fit.widths)
    reach = max(2.5, _reach(parameters, fit.widths))
    axes.set(xlim=(-reach, reach), xlabel=r"(fitted $-$ nominal value) / pre-fit uncertainty")
    caption = (
        "Pulls of the constrained parameters: a point at 0 with a bar of 1 is one that the data "
        "leave as it was; a shorter bar is one that they constrain. Bands: 1 (green) and 2 "
        "(yellow) pre-fit standard deviations. Parameters named staterror are those of the "
        "simulation's statistics, one a bin."
    )
    return style.save(figure, directory, "pulls", "Pulls", caption)


def _reach(parameters: Sequence[Parameter], widths: Mapping[str, float]) -> float:
    """Largest distance from 0 that the pulls' bars have, and a bit."""
    return 1.1 * style.largest([abs(p.pull or 0) + _bar(p, widths) for p in parameters])


def _bar(parameter: Parameter, widths: Mapping[str, float]) -> float:
    """Post-fit over pre-fit uncertainty; 0 where there is no constraint."""
    width = widths.get(parameter.name, 0.0)
    return parameter.uncertainty / width if width > 0 else 0.0


def _draw_pulls(axes: Axes, parameters: list[Parameter], widths: Mapping[str, float]) -> None:
    rows = [row for row, parameter in enumerate(parameters) if parameter.pull is not None]
    axes.errorbar(
        [parameters[row].pull or 0 for row in rows],
        rows,
        xerr=[_bar(parameters[row], widths) for row in rows],
        fmt="o",
        color="black",
        markersize=5,
        elinewidth=1.5,
    )


def _names_axes(
    figure: Figure,
    label: style.Label,
    names: list[str],
    corner: tuple[float, float],
    above: float,
) -> Axes:
    """Axes with one named row a parameter, the first on top.

    ``corner``: left and bottom in fractions of the figure; ``above``: room on top in inches.
    """
    (left, bottom), height = corner, figure.get_figheight()
    style.header(figure, (left, 0.97, 1 - 0.45 / height), label)
    top = 1 - above / height
    axes = figure.add_axes((left, bottom, 0.97 - left, top - bottom))
    axes.set_yticks(range(len(names)), [style.plain(name) for name in names], fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.axvline(0, color="0.4", linewidth=0.8, linestyle=":")
    return axes


def _save_ranking(fit: FitResult, directory: Path, label: style.Label) -> FigureInfo:
    impacts = sorted(fit.impacts, key=lambda impact: impact.size, reverse=True)[:RANKED]
    figure = style.new_figure(7.5, 2.3 + 0.34 * len(impacts))
    height = figure.get_figheight()
    names = [impact.parameter for impact in impacts]
    axes = _names_axes(figure, label, names, (0.3, 1.25 / height), 0.95)
    rows = np.arange(len(impacts))
    for color, side in ((style.UP, "up"), (style.DOWN, "down")):
        before = [getattr(impact, f"prefit_{side}") for impact in impacts]
        after = [getattr(impact, f"postfit_{side}") for impact in impacts]
        axes.barh(rows, before, height=0.8, facecolor="none", edgecolor=color, linewidth=1)
        axes.barh(rows, after, height=0.8, color=color, alpha=0.55, linewidth=0)
    largest = style.largest(np.abs([impact.changes for impact in impacts]))
    limit = 1.15 * largest if largest > 0 else 1.0
    axes.set(xlim=(-limit, limit), xlabel=f"Change of {style.plain(fit.poi.name)}")
    _overlay_pulls(axes, fit, names)
    _ranking_legend(figure)
    shown = f"the {len(impacts)} largest of {len(fit.impacts)}" if names else "none"
    caption = (
        f"Impact on {fit.poi.name} of moving each parameter by its uncertainty, {shown}, sorted "
        "by the post-fit impact: filled bars with the post-fit uncertainty, outlines with the "
        "pre-fit one, red up and blue down. Points: the pull of the parameter, in units of its "
        "pre-fit uncertainty (scale on top)."
    )
    return style.save(figure, directory, "ranking", "Ranking of the parameters", caption)


def _overlay_pulls(axes: Axes, fit: FitResult, names: list[str]) -> None:
    """Draw the pulls over the bars, on a scale of their own."""
    by_name = {parameter.name: parameter for parameter in fit.parameters}
    unknown = Parameter("", 0.0, 0.0, None)
    upper = axes.twiny()
    _draw_pulls(upper, [by_name.get(name, unknown) for name in names], fit.widths)
    reach = max(2, _reach(fit.parameters, fit.widths))
    upper.set_xlim(-reach, reach)
    upper.set_xlabel("Pull", fontsize="small")
    upper.tick_params(axis="x", which="both", bottom=False)
    axes.tick_params(axis="x", which="both", top=False)
    for place in (-1, 1):
        upper.axvline(place, color="0.4", linewidth=0.8, linestyle=":")


def _ranking_legend(figure: Figure) -> None:
    handles = [
        Patch(facecolor="none", edgecolor=style.UP, label="pre-fit impact, up"),
        Patch(facecolor="none", edgecolor=style.DOWN, label="pre-fit impact, down"),
        Patch(color=style.UP, alpha=0.55, linewidth=0, label="post-fit impact, up"),
        Patch(color=style.DOWN, alpha=0.55, linewidth=0, label="post-fit impact, down"),
        Line2D([], [], color="black", marker="o", label="pull"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize="small", borderpad=0.3)


def _save_correlation(fit: FitResult, directory: Path, label: style.Label) -> FigureInfo:
    names = [parameter.name for parameter in fit.parameters]
    matrix = np.nan_to_num(np.asarray(fit.correlation, dtype=np.float64))
    off_diagonal = np.abs(matrix - np.diag(np.diag(matrix)))
    shown = np.flatnonzero(np.max(off_diagonal, axis=1) >= UNCORRELATED)
    caption = "Correlations of the fitted parameters, in percent"
    if len(shown) == 0:
        shown = np.arange(len(names))
        caption += f"; all are below {UNCORRELATED:.0%}."
    else:
        hidden = len(names) - len(shown)
        caption += f"; those below {UNCORRELATED:.0%} are not written out"
        caption += f", and {hidden} parameters without a larger one are hidden." if hidden else "."
    figure = _correlation(matrix[np.ix_(shown, shown)], [names[i] for i in shown], label)
    return style.save(figure, directory, "correlations", "Correlations", caption)


def _correlation(matrix: Array, names: list[str], label: style.Label) -> Figure:
    count = len(names)
    side = max(0.33 * count, 2.8)
    names_width = 0.3 + 0.07 * max(len(name) for name in names)
    width, height = side + names_width + 0.9, side + names_width + 0.5
    figure = style.new_figure(width, height)
    left, bottom, top = names_width / width, names_width / height, 1 - 0.45 / height
    right = left + side / width
    style.header(figure, (left, right, top), label)
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    labels = [style.plain(name) for name in names]
    axes.set_xticks(range(count), labels, rotation=90, fontsize="small")
    axes.set_yticks(range(count), labels, fontsize="small")
    axes.minorticks_off()
    axes.tick_params(length=0)
    for row, column in np.argwhere(np.abs(matrix) >= UNCORRELATED):
        value = matrix[row, column]
        axes.text(
            column,
            row,
            f"{100 * value:.0f}",
            color="white" if abs(value) > 0.6 else "black",  # noqa: PLR2004 - dark cells
            fontsize=8,
            ha="center",
            va="center",
        )
    bar = figure.colorbar(
        image, cax=figure.add_axes((right + 0.15 / width, bottom, 0.2 / width, top - bottom))
    )
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize="small", length=3)
    return figure
