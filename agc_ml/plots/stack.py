"""The stacked plot: samples on top of each other, uncertainty band, points, ratio."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

import mplhep
import numpy as np
from matplotlib.ticker import MaxNLocator

from agc_ml.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agc_ml.plots.style import Array

SPIKY: Final = 100  # largest over median bin, from where only a logarithmic axis shows both


class Stack(NamedTuple):
    """What a stacked plot shows; arrays of shape ``(n_bins,)``, edges ``(n_bins + 1,)``.

    ``uncertainty`` is that of the sum, ``note`` stands in the plot, ``data`` may be None.
    """

    note: str
    label: str
    edges: Array
    samples: dict[str, Array]
    uncertainty: Array
    uncertainty_label: str
    data: Array | None
    data_label: str

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
    _draw_samples(main, stack)
    _decorate(main, stack)
    # now, while there are few axes: mplhep draws the whole figure to place the label
    style.experiment(main, label)
    bottom = main
    if has_ratio:
        main.tick_params(labelbottom=False)
        bottom = figure.add_subplot(grid[1])
        _draw_ratio(bottom, stack)
    bottom.set_xlabel(style.formula(stack.label))
    figure.align_ylabels()
    return figure


def _draw_samples(axes: Axes, stack: Stack) -> None:
    total, edges = stack.total, stack.edges
    order = stack.order
    colors = style.process_colors(stack.samples)
    if order:
        mplhep.histplot(
            [stack.samples[name] for name in order],
            edges,
            stack=True,
            histtype="fill",
            color=[colors[name] for name in order],
            label=[style.process_label(name) for name in order],
            flow="none",
            ax=axes,
        )
        axes.stairs(
            total + stack.uncertainty,
            edges,
            baseline=total - stack.uncertainty,
            fill=True,
            facecolor="none",
            edgecolor="black",
            alpha=0.6,
            linewidth=0,
            hatch="//////",
            label=stack.uncertainty_label,
        )
    if stack.data is not None:
        _points(axes, edges, stack.data, np.sqrt(np.maximum(stack.data, 0)), stack.data_label)


def _points(axes: Axes, edges: Array, values: Array, errors: Array, label: str | None) -> None:
    centers = (edges[:-1] + edges[1:]) / 2
    axes.errorbar(
        centers,
        values,
        yerr=errors,
        fmt="o",
        color="black",
        markersize=4 if len(centers) <= 60 else 2,  # noqa: PLR2004 - points must not merge
        elinewidth=1,
        label=label,
    )


def _decorate(axes: Axes, stack: Stack) -> None:
    edges = stack.edges
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel(_events_per_bin(edges, stack.label))
    axes.text(0.04, 0.96, style.plain(stack.note), transform=axes.transAxes, va="top")
    points = np.zeros(1) if stack.data is None else stack.data + np.sqrt(np.maximum(stack.data, 0))
    highest = style.largest(stack.total + stack.uncertainty, points)
    lowest = -style.largest(stack.uncertainty - stack.total)
    if highest == lowest:
        axes.set_ylim(0, 1)
        style.say_no_events(axes)
        return
    room = 0.12 + 0.062 * _legend(axes, stack)  # share of the height that the legend needs
    filled = stack.total[stack.total > 0]
    if len(filled) and float(np.max(filled)) > SPIKY * float(np.median(filled)):
        floor = float(np.min(filled)) / 2
        axes.set_yscale("log")
        axes.set_ylim(floor, floor * (highest / floor) ** (1 / (1 - room)))
    else:
        axes.set_ylim(1.05 * lowest, lowest + (highest - lowest) / (1 - room))
        style.short_numbers(axes, highest - lowest)


def _legend(axes: Axes, stack: Stack) -> int:
    """Make the legend, samples in the order of the stack; gives its number of rows."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    samples = [style.process_label(name) for name in reversed(stack.order)]
    wanted = [stack.data_label, *samples, stack.uncertainty_label]
    shown = [label for label in wanted if label in entries]
    axes.legend(
        [entries[label] for label in shown], shown, loc="upper right", ncols=2, columnspacing=1.2
    )
    return (len(shown) + 1) // 2


def _draw_ratio(axes: Axes, stack: Stack) -> None:
    total, edges = stack.total, stack.edges
    data = np.zeros(len(total)) if stack.data is None else stack.data
    ratio = style.divide(data, total)
    errors = style.divide(np.sqrt(np.maximum(data, 0)), total)
    band = np.nan_to_num(style.divide(stack.uncertainty, total))
    axes.stairs(1 + band, edges, baseline=1 - band, fill=True, color=style.BAND, alpha=0.4, lw=0)
    axes.axhline(1, color="black", linewidth=0.8)
    _points(axes, edges, ratio, errors, None)
    axes.set_xlim(edges[0], edges[-1])
    set_ratio_range(axes, style.largest(np.abs(ratio - 1) + errors, band))
    axes.set_ylabel("Data / pred.", loc="center")


def set_ratio_range(axes: Axes, largest: float) -> None:
    """Range around 1 that holds ``largest`` deviation, but no more than 0 to 2."""
    half = min(max(1.15 * largest, 0.02), 0.99)
    axes.set_ylim(1 - half, 1 + half)
    axes.yaxis.set_major_locator(MaxNLocator(4, prune="both", steps=[1, 2, 5, 10]))


def _events_per_bin(edges: Array, label: str) -> str:
    widths = np.diff(edges)
    if not np.allclose(widths, widths[0]):
        return "Events / bin"
    unit = re.search(r"\[([^\]]+)\]\s*$", label)
    return f"Events / {widths[0]:.4g}" + (f" {style.formula(unit[1])}" if unit else "")
