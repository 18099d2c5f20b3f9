"""Figures of a fit carried over: an observable before and after the fit, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from agc_ml.presentation.figures import stack, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agc_ml.statistics.fit import CarriedOver, GoodnessOfFit, RegionYields

EMPTY: Final = 1e-3  # events; a bin with fewer had none before the offset of the statistics
_HEIGHT: Final = 6  # inches


def draw(carried: CarriedOver, points: str, label: style.Label) -> Figure:
    """Draw both with their ratios, on the same scales; ``points`` says what the data are."""
    stacks = [
        _stack(carried.prefit, f"before the fit\n{_said(carried.prefit_test)}", points),
        _stack(carried.postfit, f"after the fit\n{_said(carried.postfit_test)}", points),
    ]
    figure = style.new_figure(11, _HEIGHT)
    left, right, header = 0.085, 0.985, 1 - 0.35 / _HEIGHT
    style.header(figure, (left, right, header), label)
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=[3, 1],
        hspace=0.06,
        wspace=0.08,
        left=left,
        right=right,
        top=header - (0.2 + stack.legend_height(stacks[0])) / _HEIGHT,
        bottom=0.11,
    )
    mains = [figure.add_subplot(grid[0, column]) for column in range(2)]
    ratios = [figure.add_subplot(grid[1, column]) for column in range(2)]
    farthest = 0.0
    for content, main, ratio in zip(stacks, mains, ratios, strict=True):
        stack.draw_samples(main, content)
        main.text(0.96, 0.95, content.note, transform=main.transAxes, ha="right", va="top")
        farthest = max(farthest, stack.draw_ratio(ratio, content))
        ratio.set_xlabel(style.formula(content.label))
    stack.set_range(mains, stacks, room=0.17)
    for axes in ratios:
        stack.set_ratio_range(axes, farthest)
    for axes in (*mains, *ratios):
        axes.minorticks_off()  # what costs time here is the number of ticks
        axes.tick_params(labelbottom=axes in ratios, labelleft=axes in {mains[0], ratios[0]})
    mains[0].set_ylabel(stack.events_per_bin(stacks[0]))
    ratios[1].set_ylabel("")
    stack.legend_above(figure, mains[0], stacks[0])
    figure.align_ylabels([mains[0], ratios[0]])
    return figure


def _stack(yields: RegionYields, note: str, points: str) -> stack.Stack:
    is_empty = yields.total < EMPTY
    data = np.where(yields.data < EMPTY, 0, yields.data)
    return stack.Stack(
        note=note,
        label=yields.label,
        edges=yields.edges,
        samples={name: np.where(is_empty, 0, v) for name, v in yields.samples.items()},
        uncertainty=np.where(is_empty, 0, yields.uncertainty),
        uncertainty_label="uncertainty",
        data=data,
        data_label=points,
        errors=np.sqrt(data),
        unit=yields.unit,
    )


def _said(test: GoodnessOfFit) -> str:
    if test.p_value is None:
        return "too few events for a test"
    return rf"$\chi^2$ = {test.chi2:.1f} / {test.ndof},  p = {test.p_value:.2g}"
