"""Figures of generated and published events, with their ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from agc_ml.analysis import analysis_of
from agc_ml.presentation.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agc_ml.presentation.figures.style import Array
    from agc_ml.presentation.page import FigureInfo
    from agc_ml.simulation.validation import Comparison

EDGES: Final = np.linspace(50, 550, 26)  # GeV, of the published histograms
_CENTRES: Final = (EDGES[:-1] + EDGES[1:]) / 2
LABELS: Final = {"4j1b": r"$H_T$ [GeV]", "4j2b": r"$m_{bjj}$ [GeV]"}
_RATIO: Final = (0.5, 1.5)
_MARGINS: Final = (0.09, 0.98, 0.90)
_PUBLISHED, _GENERATED = "0.25", style.PETROFF[2]


def draw(comparisons: Sequence[Comparison], directory: Path) -> list[FigureInfo]:
    """Draw both regions of each dataset, normalised to the same area, with the ratio below.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    style.make_folder(directory)
    with style.applied(analysis_of().processes):
        return [_draw(comparison, directory) for comparison in comparisons]


def _draw(comparison: Comparison, directory: Path) -> FigureInfo:
    figure = style.new_figure(11, 5.2)
    grid = figure.add_gridspec(
        2, 2, height_ratios=(3, 1), hspace=0.06, wspace=0.22,
        left=_MARGINS[0], right=_MARGINS[1], top=_MARGINS[2], bottom=0.13,
    )  # fmt: skip
    process, _, variation = comparison.dataset.partition("__")
    name = style.process_label(process)
    for column, region in enumerate(comparison.generated):
        upper = figure.add_subplot(grid[0, column])
        lower = figure.add_subplot(grid[1, column], sharex=upper)
        reference = _bins(comparison.published[region])
        counts = _bins(comparison.generated[region])
        _shapes(upper, counts, reference)
        _ratio(lower, counts, reference)
        upper.tick_params(labelbottom=False)
        upper.set_title(f"{region}, {name}, {style.plain(variation)}", loc="left", fontsize=13)
        lower.set_xlabel(LABELS[region])
    _legend(figure)
    published = sum(int(counts.sum()) for counts in comparison.published.values())
    return style.save(
        figure,
        directory,
        comparison.dataset,
        f"{comparison.dataset}: generated and published",
        f"Selected events, electrons only, normalised to the same area: {comparison.selected:,} "
        f"generated, {published:,} published; the last bin holds all above.",
    )


def _bins(counts: Array) -> Array:
    """Contents of the 25 bins, underflow added to the first, overflow to the last."""
    inner = counts[1:-1].copy()
    inner[0] += counts[0]
    inner[-1] += counts[-1]
    return inner


def _shapes(axes: Axes, counts: Array, reference: Array) -> None:
    n = max(counts.sum(), 1)
    axes.stairs(reference / reference.sum(), EDGES, color=_PUBLISHED, fill=True, alpha=0.25)
    axes.stairs(reference / reference.sum(), EDGES, color=_PUBLISHED, linewidth=1.2)
    axes.errorbar(
        _CENTRES, counts / n, yerr=np.sqrt(counts) / n, fmt="o", color=_GENERATED, markersize=3.5
    )
    axes.set_xlim(EDGES[0], EDGES[-1])
    axes.set_ylim(0, 1.25 * style.largest(counts / n, reference / reference.sum()))
    axes.set_ylabel("fraction of events")


def _ratio(axes: Axes, counts: Array, reference: Array) -> None:
    expected = reference * counts.sum() / reference.sum()
    ratio = style.divide(counts, expected)
    error = style.divide(np.sqrt(counts), expected)
    axes.axhline(1, color=_PUBLISHED, linewidth=1.2)
    axes.errorbar(_CENTRES, ratio, yerr=error, fmt="o", color=_GENERATED, markersize=3.5)
    axes.set_ylim(*_RATIO)
    axes.set_ylabel("ratio")


def _legend(figure: Figure) -> None:
    axes = figure.axes[0]
    points = axes.errorbar([], [], yerr=[], fmt="o", color=_GENERATED, label="generated")
    line = axes.stairs([np.nan], [50, 550], color=_PUBLISHED, label="published (CMS Open Data)")
    axes.legend(handles=[points, line], frameon=False, fontsize=11)
