"""Figures of the variations of a process: shapes up and down, and their ratio to nominal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from agc_ml.inputs.variations import NOMINAL, Direction, source_of
from agc_ml.presentation.figures import bins, stack, style
from agc_ml.presentation.figures.bins import Histogram
from agc_ml.presentation.page import FigureInfo

NO_BAND: Final = (
    "There is no band for their statistical uncertainty, which is not known: "
    "histograms were filled with weights or scaled, in a storage that keeps no variances."
)
_GREY_BAND: Final = "The grey band is the statistical uncertainty of the nominal one."


class _Variations(NamedTuple):
    """Nominal histogram of a process in a region, and its variations by source and direction."""

    region: str
    process: str
    unit: str
    nominal: Histogram
    sources: Mapping[str, Mapping[Direction | None, Histogram]]

    @property
    def has_band(self) -> bool:
        """Whether the statistical uncertainty of the nominal histogram is known."""
        return bins.uncertainty([self.nominal]) is not None


def save_variations(
    variations: Mapping[str, Histogram],
    directory: Path,
    label: style.Label,
    *,
    region: str,
    process: str,
    unit: str,
) -> FigureInfo:
    """Draw the shapes of all ``variations`` of a process, and save the figure."""
    sources: dict[str, dict[Direction | None, Histogram]] = {}
    for variation, histogram in variations.items():
        if variation != NOMINAL:
            source, direction = source_of(variation)
            sources.setdefault(source, {})[direction] = histogram
    content = _Variations(region, process, unit, variations[NOMINAL], sources)
    caption = (
        f"{process} in {region}: each source of uncertainty, up (red) and down (blue) against "
        "nominal (black), below it the ratio to nominal; sources with one side show that side. "
        f"{_GREY_BAND if content.has_band else NO_BAND} "
        "Underflow and overflow are not shown."
    )
    name = f"{region}_{process}_variations"
    figure = _draw(content, label)
    return style.save(figure, directory, name, f"{region}: variations of {process}", caption)


def _draw(content: _Variations, label: style.Label) -> Figure:
    """Draw a panel with a ratio for each source, in up to three columns."""
    sources, nominal = content.sources, content.nominal
    columns = min(len(sources), 3) if len(sources) != 4 else 2  # noqa: PLR2004 - 2 x 2
    rows = -(-len(sources) // columns)
    above = 0.8 if columns > 1 else 1.1  # inches; one panel is too narrow for note and legend
    width, height = max(4.2 * columns, 5.5), 3.3 * rows + 0.7 + above
    figure = style.new_figure(width, height)
    left, right, top = 0.75 / width, 1 - 0.2 / width, 1 - above / height
    style.header(figure, (left, right, 1 - 0.35 / height), label._replace(simulation=True))
    # region, process and legend above all panels
    note = f"{style.plain(content.region)}, {style.process_label(content.process)}"
    if not content.has_band:
        note += f" ({style.UNKNOWN})"
    figure.text(left, 1 - 0.6 / height, note, va="center")
    _legend(figure, right, top + 0.2 / height)
    grid = figure.add_gridspec(
        rows,
        columns,
        left=left,
        right=right,
        top=top,
        bottom=0.65 / height,
        hspace=0.14,
        wspace=0.2,
    )
    for index, (source, sides) in enumerate(sources.items()):
        cell = grid[index].subgridspec(2, 1, height_ratios=[2.2, 1], hspace=0.06)
        main, ratio = figure.add_subplot(cell[0]), figure.add_subplot(cell[1])
        _panel(main, ratio, nominal, sides)
        main.text(0.96, 0.93, style.plain(source), transform=main.transAxes, ha="right", va="top")
        if index + columns >= len(sources):
            ratio.set_xlabel(style.formula(bins.axis_label(nominal)))
        else:
            ratio.tick_params(labelbottom=False)
        if index % columns == 0:
            main.set_ylabel(content.unit)
            ratio.set_ylabel("Ratio", loc="center")
    return figure


def _legend(figure: Figure, right: float, height: float) -> None:
    """Say once for all panels what the colours mean."""
    colors = {"nominal": "black", "up": style.UP, "down": style.DOWN}
    figure.legend(
        handles=[Line2D([], [], color=color, label=label) for label, color in colors.items()],
        loc="center right",
        bbox_to_anchor=(right, height),
        ncols=3,
        borderpad=0,
        borderaxespad=0,
    )


def _panel(
    main: Axes, ratio: Axes, nominal: Histogram, sides: Mapping[Direction | None, Histogram]
) -> None:
    edges, center = bins.edges(nominal), bins.values(nominal)
    uncertainty = bins.uncertainty([nominal])
    if uncertainty is not None:
        style.band(ratio, np.nan_to_num(style.divide(uncertainty, center)), edges)
    ratio.axhline(1, color="black", linewidth=1)
    main.stairs(center, edges, color="black", linewidth=1)
    lowest, highest, farthest = -style.largest(-center), style.largest(center), 0.0
    relevant = center > stack.RELEVANT * highest
    for direction, histogram in sides.items():
        values = bins.values(histogram)
        color = style.DOWN if direction == "down" else style.UP
        quotient = style.divide(values, center)
        main.stairs(values, edges, color=color, linewidth=1)
        ratio.stairs(quotient, edges, color=color, linewidth=1, baseline=None)
        lowest, highest = -style.largest(-lowest, -values), style.largest(highest, values)
        farthest = style.largest(farthest, np.abs(quotient[relevant] - 1))
    for axes in (main, ratio):
        axes.set_xlim(edges[0], edges[-1])
        # what costs time here is the number of ticks
        axes.minorticks_off()
        axes.tick_params(top=False, right=False)
        axes.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
    main.tick_params(labelbottom=False)
    main.yaxis.set_major_locator(MaxNLocator(4))
    style.set_events_range(main, highest - lowest, (1.1 * lowest, 1.3 * highest))
    stack.set_ratio_range(ratio, farthest)
