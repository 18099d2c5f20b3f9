"""Quality of a model: numbers from its scores of the rows of events, shape ``(n_events, k)``.

One row of each event is right. A training task says which kind each object of a row is assigned to
(`agc_ml.analysis.TrainingTask`); without one, a row is an object of a kind of its own.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.analysis import TrainingTask

Array = NDArray[Any]

N_BOOTSTRAP: Final = 400
INTERVAL: Final = 0.95


class Quality(NamedTuple):
    """Quality of a model on some events.

    ``auc``: chance that a right row has a higher score than a wrong one, of any event.
    ``jet_score``: fraction of the objects, such as jets, that the best row assigns correctly.
    ``fully_right``: fraction of events in which all of them are.
    """

    auc: float
    jet_score: float
    fully_right: float


class Interval(NamedTuple):
    """A number, and the interval that holds it at 95 %, from a bootstrap over events."""

    value: float
    low: float
    high: float


def kinds_of(task: TrainingTask | None, k: int) -> Array:
    """Kind of each object in each row of an event, shape ``(k, n_objects)``."""
    return np.arange(k)[:, None] if task is None else np.array(task.rows)


def names_of_kinds(task: TrainingTask | None, k: int) -> tuple[str, ...]:
    """Names of the kinds that objects are assigned to."""
    return tuple(f"row {place}" for place in range(k)) if task is None else task.kinds


def jet_scores(scores: Array, right: Array, task: TrainingTask | None = None) -> Array:
    """Fraction of each event's objects that the best row assigns correctly, ``(n_events,)``."""
    kinds = kinds_of(task, scores.shape[1])
    return np.asarray((kinds[scores.argmax(axis=1)] == kinds[right]).mean(axis=1))


def quality(scores: Array, right: Array, task: TrainingTask | None = None) -> Quality:
    """Quality of scores; ``right`` is the place of each event's right row."""
    per_event = jet_scores(scores, right, task)
    return Quality(
        auc=_Ranking(scores, right).auc(np.ones(len(right))),
        jet_score=float(per_event.mean()),
        fully_right=float((per_event == 1).mean()),
    )


def bootstrap(
    scores: Array,
    right: Array,
    other: Array | None = None,
    seed: int = 0,
    task: TrainingTask | None = None,
) -> dict[str, Interval]:
    """AUC and jet score with their intervals, or how much higher they are than those of another.

    Both are resampled alike, so that what they have in common drops out of the difference.
    """
    n = len(right)
    rng = np.random.default_rng(seed)
    both = (scores,) if other is None else (scores, other)
    rankings = [_Ranking(values, right) for values in both]
    jets = [jet_scores(values, right, task) for values in both]
    draws = np.empty((N_BOOTSTRAP + 1, 2))
    for draw in range(len(draws)):  # one after the other: all at once would not fit into memory
        weight = rng.multinomial(n, np.full(n, 1 / n)).astype(float) if draw else np.ones(n)
        each = np.array(
            [(one.auc(weight), weight @ its / n) for one, its in zip(rankings, jets, strict=True)]
        )
        draws[draw] = each[0] - each[1:].sum(axis=0)  # less the other's, if there is one
    tail = (1 - INTERVAL) / 2
    return {
        name: Interval(float(values[0]), *map(float, np.quantile(values[1:], [tail, 1 - tail])))
        for name, values in zip(("auc", "jet_score"), draws.T, strict=True)
    }


class _Ranking:
    """Rows in the order of their scores."""

    def __init__(self, scores: Array, right: Array) -> None:
        k = scores.shape[1]
        flat = scores.ravel()
        order = np.argsort(flat, kind="stable")
        ranked = flat[order]
        self._event = order // k
        self._is_right = order % k == right[self._event]
        self._last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of equal ones

    def auc(self, weight: Array) -> float:
        """AUC with a weight for each event; ties count half."""
        of_row = weight[self._event]
        positive, negative = (
            np.cumsum(np.where(chosen, of_row, 0))[self._last]
            for chosen in (self._is_right, ~self._is_right)
        )
        below = np.append(0, negative[:-1])
        gained = np.diff(positive, prepend=0)
        won = (gained * (below + (negative - below) / 2)).sum()
        return float(won / (positive[-1] * negative[-1]))


def roc(scores: Array, right: Array, points: int = 400) -> tuple[Array, Array]:
    """Fractions of wrong and of right rows above a threshold, from high to low ones."""
    is_right = (np.arange(scores.shape[1]) == right[:, None]).ravel()
    order = np.argsort(-scores.ravel(), kind="stable")
    hits, all_above = np.cumsum(is_right[order]), np.arange(1, is_right.size + 1)
    at = np.unique(np.geomspace(1, is_right.size, points).astype(int)) - 1
    true = np.append(0, hits[at] / hits[-1])
    false = np.append(0, (all_above - hits)[at] / (is_right.size - hits[-1]))
    return false, true


class Calibration(NamedTuple):
    """Bins of the score: its mean, the fraction of right rows, and their number."""

    score: Array
    fraction: Array
    number: Array

    @property
    def _excess(self) -> Array:
        """Distance of score and fraction beyond two standard errors of the fraction."""
        spread = np.sqrt(self.score * (1 - self.score) / self.number)
        return np.asarray(np.maximum(np.abs(self.score - self.fraction) - 2 * spread, 0))

    @property
    def worst(self) -> int:
        """The bin that is farthest off."""
        return int(self._excess.argmax())

    @property
    def error(self) -> float:
        """Distance of score and fraction in the worst bin, beyond two standard errors.

        Not the mean over all rows: nearly all are wrong, and score near zero.
        """
        return float(self._excess.max())


def calibration(scores: Array, right: Array, bins: int = 10) -> Calibration:
    """Fraction of right rows by their score; bins of the score without any are left out."""
    flat = scores.ravel().astype(float)
    is_right = (np.arange(scores.shape[1]) == right[:, None]).ravel()
    place = np.minimum((flat * bins).astype(int), bins - 1)
    number = np.bincount(place, minlength=bins)
    some = number > 0
    mean, fraction = (
        np.bincount(place, values, minlength=bins)[some] / number[some]
        for values in (flat, is_right)
    )
    return Calibration(mean, fraction, number[some])


def confusion(scores: Array, right: Array, task: TrainingTask | None = None) -> Array:
    """Fraction of the objects of each kind (rows) that are assigned to each kind (columns)."""
    kinds = kinds_of(task, scores.shape[1])
    true, guess = kinds[right].ravel(), kinds[scores.argmax(axis=1)].ravel()
    counts = np.zeros((kinds.max() + 1,) * 2)
    np.add.at(counts, (true, guess), 1)
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
