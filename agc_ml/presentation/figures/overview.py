"""One figure of many small stacked plots, for histograms that are too many to be drawn large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.ticker import MaxNLocator

from agc_ml.presentation.figures import stack, style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS: Final = 4
_PANEL: Final = (2.9, 2.25)  # inches, with its labels


def draw(stacks: Sequence[stack.Stack], label: style.Label) -> Figure:
    """Draw stacked plots in rows of four, in their order; the first one's legend is for all."""
    rows = -(-len(stacks) // COLUMNS)
    above = 0.6 + stack.legend_height(stacks[0])
    width, height = _PANEL[0] * COLUMNS + 0.3, _PANEL[1] * rows + above
    figure = style.new_figure(width, height)
    left, right = 0.62 / width, 1 - 0.15 / width
    style.header(figure, (left, right, 1 - 0.35 / height), label)
    grid = figure.add_gridspec(
        rows,
        COLUMNS,
        left=left,
        right=right,
        top=1 - above / height,
        bottom=0.55 / height,
        hspace=0.42,
        wspace=0.3,
    )
    panels = [figure.add_subplot(grid[index]) for index in range(len(stacks))]
    for axes, content in zip(panels, stacks, strict=True):
        _panel(axes, content)
    stack.legend_above(figure, panels[0], stacks[0])
    return figure


def _panel(axes: Axes, content: stack.Stack) -> None:
    stack.draw_samples(axes, content)
    axes.tick_params(top=False, right=False, labelsize="x-small", length=3)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    stack.set_range([axes], [content], room=0.06)
    axes.minorticks_off()  # what costs time here is the number of ticks
    axes.set_xlabel(style.formula(content.label), fontsize="small", labelpad=2)
    axes.set_ylabel(stack.events_per_bin(content), fontsize="x-small", labelpad=2)
