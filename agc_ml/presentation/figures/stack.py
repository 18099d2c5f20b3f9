"""The stacked plot: samples on top of each other, uncertainty band, points, ratio."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from agc_ml.presentation.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agc_ml.presentation.figures.style import Array

RELEVANT: Final = 0.01  # bins below this share of the fullest one don't set the range of a ratio
LEGEND_COLUMNS: Final = 7
TOTAL: Final = "total uncertainty"
SPIKY: Final = 100  # largest over median bin, from where only a logarithmic axis shows both


class Stack(NamedTuple):
    """What a stacked plot shows; arrays of shape ``(n_bins,)``, edges ``(n_bins + 1,)``.

    ``uncertainty`` is that of the sum, None where it is not known, and ``total_uncertainty`` a
    larger one that is shown beside it; ``note`` stands in the plot. ``data`` may be None, and so
    may their ``errors``. ``unit`` is what is counted: "Events", or "Entries" if that is not known.
    """

    note: str
    label: str
    edges: Array
    samples: dict[str, Array]
    uncertainty: Array | None
    uncertainty_label: str
    data: Array | None
    data_label: str
    errors: Array | None = None
    total_uncertainty: Array | None = None
    unit: str = "Events"

    @property
    def order(self) -> list[str]:
        """Samples from the bottom up: the small ones stand on the axis and keep their shape."""
        return sorted(self.samples, key=lambda name: float(np.sum(self.samples[name])))

    @property
    def total(self) -> Array:
        """Sum of the samples."""
        total = np.zeros(len(self.edges) - 1)
        for values in self.samples.values():
            total += values
        return total

    @property
    def band(self) -> Array:
        """Half the height of the uncertainty band; 0 where there is none."""
        return np.zeros(len(self.edges) - 1) if self.uncertainty is None else self.uncertainty

    @property
    def widest(self) -> Array:
        """Half the height of the wider band."""
        return self.band if self.total_uncertainty is None else self.total_uncertainty

    @property
    def error_bars(self) -> Array:
        """Uncertainties of the data; 0 where there are none."""
        return np.zeros(len(self.edges) - 1) if self.errors is None else self.errors


def draw(stack: Stack, label: style.Label) -> Figure:
    """Draw a stacked plot, with a ratio panel when there are data."""
    has_ratio = stack.data is not None and bool(stack.samples)
    figure = style.new_figure(7, 7 if has_ratio else 5.6)
    grid = figure.add_gridspec(
        2 if has_ratio else 1,
        1,
        height_ratios=[3, 1] if has_ratio else None,
        hspace=0.06,
        left=0.14,
        right=0.96,
        top=0.93,
        bottom=0.1,
    )
    main = figure.add_subplot(grid[0])
    draw_samples(main, stack)
    _decorate(main, stack)
    # now, while there are few axes: mplhep draws the whole figure to place the label
    style.experiment(main, label)
    bottom = main
    if has_ratio:
        main.tick_params(labelbottom=False)
        bottom = figure.add_subplot(grid[1])
        set_ratio_range(bottom, draw_ratio(bottom, stack))
    bottom.set_xlabel(style.formula(stack.label))
    figure.align_ylabels()
    return figure


def draw_samples(axes: Axes, stack: Stack) -> None:
    """Draw samples on top of each other, the uncertainty of their sum, and the data."""
    edges = stack.edges
    colors = style.process_colors(stack.samples)
    below = np.zeros(len(edges) - 1)
    for name in stack.order:
        above = below + stack.samples[name]
        axes.stairs(
            above,
            edges,
            baseline=below,
            fill=True,
            color=colors[name],
            label=style.process_label(name),
        )
        below = above
    if stack.samples and stack.total_uncertainty is not None:
        _band(axes, stack, stack.widest, facecolor="black", alpha=0.22, label=TOTAL)
    if stack.samples and stack.uncertainty is not None:
        look = {"facecolor": "none", "edgecolor": "black", "alpha": 0.6, "hatch": "//////"}
        _band(axes, stack, stack.band, **look, label=stack.uncertainty_label)
    if stack.data is not None:
        _points(axes, edges, stack.data, stack.error_bars, stack.data_label)


def _band(axes: Axes, stack: Stack, half: Array, **look: Any) -> None:
    """Draw an uncertainty of the sum, of which ``half`` is the half height."""
    total = stack.total
    axes.stairs(total + half, stack.edges, baseline=total - half, fill=True, linewidth=0, **look)


def _points(axes: Axes, edges: Array, values: Array, errors: Array, label: str | None) -> None:
    bin_width = 72 * axes.bbox.width / mpl.rcParams["figure.dpi"] / len(values)
    axes.errorbar(
        (edges[:-1] + edges[1:]) / 2,
        values,
        yerr=errors,
        fmt="o",
        color="black",
        markersize=np.clip(bin_width / 2, 2, 4),  # points, which must not merge
        elinewidth=1,
        label=label,
    )


def _decorate(axes: Axes, stack: Stack) -> None:
    axes.set_ylabel(events_per_bin(stack))
    note = stack.note if stack.uncertainty is not None else f"{stack.note}\n{style.UNKNOWN}"
    axes.text(0.04, 0.96, style.plain(note), transform=axes.transAxes, va="top")
    handles, labels = _legend_entries(axes, stack)
    axes.legend(handles, labels, loc="upper right", ncols=2, columnspacing=1.2)
    set_range([axes], [stack], room=0.12 + 0.062 * ((len(labels) + 1) // 2))


def set_range(panels: Sequence[Axes], stacks: Sequence[Stack], room: float) -> None:
    """Give panels the same range of events, with ``room`` (a share of the height) on top.

    It is logarithmic where the largest bin would hide the others.
    """
    points = [np.zeros(1) if s.data is None else s.data + s.error_bars for s in stacks]
    highest = style.largest(*(s.total + s.widest for s in stacks), *points)
    lowest = -style.largest(*(s.widest - s.total for s in stacks))
    floor = _logarithmic_floor(stacks)
    for axes, stack in zip(panels, stacks, strict=True):
        axes.set_xlim(stack.edges[0], stack.edges[-1])
        if floor is not None and highest > lowest:
            top = floor * (highest / floor) ** (1 / (1 - room))
            axes.set(yscale="log", ylim=(floor, top))
        else:
            top = lowest + (highest - lowest) / (1 - room)
            style.set_events_range(axes, highest - lowest, (1.05 * lowest, top))


def _logarithmic_floor(stacks: Sequence[Stack]) -> float | None:
    """Lower end of a logarithmic axis, None where a linear one shows all bins."""
    filled = np.concatenate([stack.total[stack.total > 0] for stack in stacks])
    if len(filled) and float(np.max(filled)) > SPIKY * float(np.median(filled)):
        return float(np.min(filled)) / 2
    return None


def legend_height(stack: Stack) -> float:
    """Inches that `legend_above` needs."""
    entries = len(stack.samples) + (stack.data is not None) + bool(stack.samples)
    entries += stack.total_uncertainty is not None
    return 0.27 * _rows(entries)


def _rows(entries: int) -> int:
    """Rows of a legend above all panels."""
    return -(-entries // LEGEND_COLUMNS)


def legend_above(figure: Figure, axes: Axes, stack: Stack) -> None:
    """Write the legend of one of a figure's stacked plots above all of them."""
    handles, labels = _legend_entries(axes, stack)
    figure.legend(
        handles,
        labels,
        loc="lower center",
        bbox_to_anchor=(0.52, axes.get_position().y1),
        ncols=-(-len(labels) // _rows(len(labels))),
        fontsize="small",
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def _legend_entries(axes: Axes, stack: Stack) -> tuple[list[Artist], list[str]]:
    """Handles and labels of what was drawn: data, samples in the order of the stack, band."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    samples = [style.process_label(name) for name in reversed(stack.order)]
    wanted = [stack.data_label, *samples, stack.uncertainty_label, TOTAL]
    shown = [label for label in wanted if label in entries]
    return [entries[label] for label in shown], shown


def draw_ratio(axes: Axes, stack: Stack) -> float:
    """Draw data over prediction; gives the largest deviation from 1, in relevant bins."""
    total, edges = stack.total, stack.edges
    data = np.zeros(len(total)) if stack.data is None else stack.data
    ratio = style.divide(data, total)
    errors = style.divide(stack.error_bars, total)
    band = np.nan_to_num(style.divide(stack.band, total))
    widest = np.nan_to_num(style.divide(stack.widest, total))
    if stack.total_uncertainty is not None:
        style.band(axes, widest, edges, light=True)
    if stack.uncertainty is not None:
        style.band(axes, band, edges)
    axes.axhline(1, color="black", linewidth=0.8)
    _points(axes, edges, ratio, errors, None)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("Data / pred.", loc="center")
    relevant = total > RELEVANT * style.largest(total)
    return style.largest(np.abs(ratio - 1)[relevant] + errors[relevant], widest[relevant])


def set_ratio_range(axes: Axes, largest: float) -> None:
    """Range around 1 that holds ``largest`` deviation, but no more than 0 to 2."""
    half = min(max(1.15 * largest, 0.02), 0.99)
    axes.set_ylim(1 - half, 1 + half)
    axes.yaxis.set_major_locator(MaxNLocator(4, prune="both", steps=[1, 2, 5, 10]))


def events_per_bin(stack: Stack) -> str:
    """Label of the axis of events, with the width of the bins and its unit."""
    widths = np.diff(stack.edges)
    if not np.allclose(widths, widths[0]):
        return f"{stack.unit} / bin"
    unit = re.search(r"\[([^\]]+)\]\s*$", stack.label)
    return f"{stack.unit} / {widths[0]:.4g}" + (f" {style.formula(unit[1])}" if unit else "")
