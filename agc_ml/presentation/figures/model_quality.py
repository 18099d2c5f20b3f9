"""Figures by which people decide whether a bundle of models may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from agc_ml.presentation.figures import style

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from agc_ml.presentation.page import FigureInfo

Array = NDArray[Any]

_SIZE: Final = (6.4, 4.8)  # inches
_COLOURS: Final = style.PETROFF


class Facts(NamedTuple):
    """What is drawn.

    ``roc`` by whose it is: fractions of wrong and right permutations; ``calibration``: mean score,
    fraction of right ones and number in bins; ``multiplicity`` by number of jets: jet score, its
    standard error, events; ``variations`` by name: AUC and jet score; ``confusion`` of ``kinds``,
    rows are the true ones; ``importance`` by feature: loss of AUC and its spread;
    ``curve`` by parity: events, AUC and jet score; ``history`` by parity: jet score of each trial,
    and whether it ran to its end; ``events_of`` whose events they are, None if not known.
    """

    roc: Mapping[str, tuple[Array, Array]]
    calibration: tuple[Array, Array, Array]
    multiplicity: Mapping[str, tuple[float, float, int]]
    variations: Mapping[str, tuple[float, float]]
    confusion: Array
    kinds: Sequence[str]
    importance: Mapping[str, tuple[float, float]]
    curve: Mapping[str, Sequence[tuple[int, float, float]]]
    history: Mapping[str, Sequence[tuple[float, bool]]]
    events_of: str | None = None


def draw(facts: Facts, directory: Path) -> list[FigureInfo]:
    """Draw them all.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    style.make_folder(directory)
    with style.applied():
        return [
            _saved(one, facts, directory)
            for one in _DRAWN
            if not (one.name == "history" and not any(facts.history.values()))
        ]


def _saved(one: _Drawn, facts: Facts, directory: Path) -> FigureInfo:
    figure: Figure = style.new_figure(_SIZE[0], one.height)
    axes = figure.add_subplot()
    one.fill(axes, facts)
    style.experiment(axes, style.Label(None, simulation=True, source=facts.events_of))
    figure.tight_layout()
    return style.save(figure, directory, one.name, one.title, one.caption)


def _roc(axes: Axes, facts: Facts) -> None:
    for (name, (false, true)), colour in zip(facts.roc.items(), _COLOURS, strict=False):
        axes.plot(np.maximum(false, 1e-4), true, label=style.plain(name), color=colour, linewidth=2)
    axes.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.02))
    axes.set(xlabel="wrong permutations above the threshold", ylabel="right permutations above it")
    axes.legend(frameon=False, fontsize=11, loc="lower right")


def _confusion(axes: Axes, facts: Facts) -> None:
    axes.imshow(facts.confusion, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, values in enumerate(facts.confusion):
        for column, value in enumerate(values):
            colour = "white" if value > 0.5 else "black"  # noqa: PLR2004 - half of the scale
            axes.text(column, row, f"{value:.1%}", ha="center", va="center", color=colour)
    kinds = [style.plain(kind) for kind in facts.kinds]
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(which="both", length=0)
    axes.minorticks_off()
    axes.set(xlabel="given to", ylabel="comes from")


def _calibration(axes: Axes, facts: Facts) -> None:
    score, fraction, number = facts.calibration
    error = np.sqrt(np.maximum(fraction * (1 - fraction), 1e-9) / number)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    axes.errorbar(score, fraction, yerr=error, fmt="o", color=_COLOURS[0])
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set(xlabel="score", ylabel="fraction of right permutations")


def _multiplicity(axes: Axes, facts: Facts) -> None:
    names = list(facts.multiplicity)
    values, errors, numbers = (np.array(v) for v in zip(*facts.multiplicity.values(), strict=True))
    axes.axhline(float(np.average(values, weights=numbers)), color="0.6", linewidth=1)
    axes.errorbar(range(len(names)), values, yerr=errors, fmt="o", color=_COLOURS[0])
    labels = [f"{name} jets\n{n:,} events" for name, n in zip(names, numbers, strict=True)]
    axes.set_xticks(range(len(names)), labels)
    room = max(4 * float(errors.max()), 0.04)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylabel="jet score")
    axes.set_ylim(float(values.min()) - room, float(values.max()) + room)
    axes.tick_params(axis="x", which="both", length=0)


def _variations(axes: Axes, facts: Facts) -> None:
    nominal = facts.variations["nominal"]
    names = [name for name in facts.variations if name != "nominal"]
    places = np.arange(len(names))
    axes.axhline(0, color="0.6", linewidth=1)
    for index, (label, offset) in enumerate((("AUC", -0.08), ("jet score", 0.08))):
        shifts = [facts.variations[name][index] - nominal[index] for name in names]
        axes.plot(places + offset, shifts, "os"[index], color=_COLOURS[index * 2], label=label)
    most = max(
        (abs(facts.variations[n][i] - nominal[i]) for n in names for i in (0, 1)), default=0.0
    )
    reach = 1.4 * max(most, 0.005)
    axes.set_xticks(places, [style.plain(name) for name in names])
    axes.set(xlim=(-0.5, max(len(names), 1) - 0.5), ylim=(-reach, reach))
    axes.set_ylabel("change from nominal")
    axes.tick_params(axis="x", which="both", length=0)
    axes.legend(frameon=False, fontsize=11)


def _curve(axes: Axes, facts: Facts) -> None:
    for (parity, points), colour in zip(
        facts.curve.items(), (_COLOURS[0], _COLOURS[2]), strict=False
    ):
        events, auc, jet = (np.array(v) for v in zip(*points, strict=True))
        axes.plot(events, auc, "o-", color=colour, label=f"AUC, trained on {parity}")
        axes.plot(events, jet, "s--", color=colour, label=f"jet score, trained on {parity}")
    axes.set(xscale="log", xlabel="training events", ylabel="AUC, jet score")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.5 * (high - low), high)
    axes.legend(frameon=False, fontsize=10, ncols=2, loc="lower center")


def _importance(axes: Axes, facts: Facts) -> None:
    order = sorted(facts.importance, key=lambda name: facts.importance[name][0])
    values, errors = (np.array([facts.importance[name][i] for name in order]) for i in (0, 1))
    places = np.arange(len(order))
    axes.barh(places, values, xerr=errors, color=_COLOURS[0], height=0.7, error_kw={"lw": 1})
    axes.set_yticks(places, [style.plain(name) for name in order], fontsize=10)
    axes.tick_params(axis="y", which="both", length=0)
    axes.minorticks_off()
    axes.set(ylim=(-0.6, len(order) - 0.4), xlabel="loss of AUC when it is shuffled")


def _history(axes: Axes, facts: Facts) -> None:
    for (parity, trials), colour in zip(
        facts.history.items(), (_COLOURS[0], _COLOURS[2]), strict=False
    ):
        values = np.array([value for value, _ in trials])
        whole = np.array([done for _, done in trials], bool)
        number = np.arange(len(trials))
        axes.plot(number[whole], values[whole], "o", color=colour, label=f"trained on {parity}")
        axes.plot(number[~whole], values[~whole], "o", color=colour, fillstyle="none")
        best = np.maximum.accumulate(np.where(whole, values, 0))
        axes.step(number, best, where="post", color=colour, linewidth=1)
    scores = [value for trials in facts.history.values() for value, _ in trials]
    low, high = min(scores), max(scores)
    room = max(high - low, 0.02)
    axes.set_ylim(max(low, high - 0.3) - 0.1 * room, high + 0.3 * room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.minorticks_off()
    axes.set(xlabel="trial", ylabel="cross-validated jet score")
    axes.legend(frameon=False, fontsize=11, ncols=2, loc="upper center")


class _Drawn(NamedTuple):
    """A figure: its name, title and caption, and what draws it."""

    name: str
    title: str
    caption: str
    fill: Callable[[Axes, Facts], None]
    height: float = _SIZE[1]


_DRAWN: Final = (
    _Drawn(
        "roc",
        "ROC curve",
        "Right permutations against wrong ones, of events that the scoring model never saw. The "
        "closer to the upper left corner, the better.",
        _roc,
    ),
    _Drawn(
        "confusion",
        "Confusion of the kinds",
        "Of objects of a kind (row), the fraction that the row with the best score assigns to each "
        "kind.",
        _confusion,
    ),
    _Drawn(
        "calibration",
        "Calibration",
        "Fraction of right permutations among those of a score; on the diagonal, scores are "
        "probabilities. Bars are standard errors.",
        _calibration,
    ),
    _Drawn(
        "multiplicity",
        "Jet score by number of jets",
        "Fraction of jets given to the right quark, by the number of selected jets; bars are "
        "standard errors, the line is the mean of all.",
        _multiplicity,
    ),
    _Drawn(
        "variations",
        "Shifts under variations of the jets",
        "Change of AUC and of the jet score when jets are shifted, with the models as they are.",
        _variations,
    ),
    _Drawn(
        "curve",
        "Learning curve",
        "AUC and jet score on the other parity, of models trained on a part of the events.",
        _curve,
    ),
    _Drawn(
        "importance",
        "Importance of features",
        "Loss of AUC when a feature is shuffled among all permutations, mean and spread of three "
        "shuffles.",
        _importance,
        height=6.4,
    ),
    _Drawn(
        "history",
        "Trials",
        "Cross-validated jet score of each trial; open symbols were stopped early.",
        _history,
    ),
)
