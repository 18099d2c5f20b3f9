"""How good a model is: numbers from its scores of permutations, shape ``(n_events, k)``."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.columnar.combinatorics import FIRST, PERMUTATIONS

Array = NDArray[Any]

ROLES: Final = ("W", "W", "b of hadronic top", "b of leptonic top")
_PERMUTATIONS: Final = PERMUTATIONS[: FIRST[1]]
N_BOOTSTRAP: Final = 400
INTERVAL: Final = 0.95


class Quality(NamedTuple):
    """Of a model on some events.

    ``auc``: chance that a right permutation has a higher score than a wrong one, of any event.
    ``jet_score``: fraction of the four jets that the best permutation gives to the right quark,
    the two of the W being alike. ``fully_right``: fraction of events in which it is all four.
    """

    auc: float
    jet_score: float
    fully_right: float


class Interval(NamedTuple):
    """A number, and the interval that holds it at 95 %, from a bootstrap over events."""

    value: float
    low: float
    high: float


def _kinds() -> Array:
    """Kind of quark of each jet in each permutation (0: W, 1 and 2: the b's); (12, 4)."""
    kind = np.empty_like(_PERMUTATIONS)
    np.put_along_axis(kind, _PERMUTATIONS, np.array([[0, 0, 1, 2]]).repeat(len(kind), 0), axis=1)
    return kind


KINDS: Final = _kinds()
AGREEMENT: Final = (KINDS[:, None] == KINDS[None]).mean(axis=2)
"""Fraction of the jets that two permutations give to the same kind of quark, shape (12, 12)."""


def jet_scores(scores: Array, right: Array) -> Array:
    """Fraction of the jets of each event that are given to the right quark, shape (n_events,)."""
    return np.asarray(AGREEMENT[scores.argmax(axis=1), right])


def quality(scores: Array, right: Array) -> Quality:
    """Quality of scores; ``right`` is the place of each event's right permutation."""
    per_event = jet_scores(scores, right)
    return Quality(
        auc=_Ranking(scores, right).auc(np.ones(len(right))),
        jet_score=float(per_event.mean()),
        fully_right=float((per_event == 1).mean()),
    )


def bootstrap(
    scores: Array, right: Array, other: Array | None = None, seed: int = 0
) -> dict[str, Interval]:
    """AUC and jet score with their intervals, or how much higher they are than those of another.

    Both are resampled alike, so that what they have in common drops out of the difference.
    """
    n = len(right)
    rng = np.random.default_rng(seed)
    both = (scores,) if other is None else (scores, other)
    rankings = [_Ranking(values, right) for values in both]
    jets = [jet_scores(values, right) for values in both]
    found = np.empty((N_BOOTSTRAP + 1, 2))
    for draw in range(len(found)):  # one after the other: all at once would not fit into memory
        weight = rng.multinomial(n, np.full(n, 1 / n)).astype(float) if draw else np.ones(n)
        each = np.array(
            [(one.auc(weight), weight @ its / n) for one, its in zip(rankings, jets, strict=True)]
        )
        found[draw] = each[0] - each[1:].sum(axis=0)  # less the other's, if there is one
    tail = (1 - INTERVAL) / 2
    return {
        name: Interval(float(values[0]), *map(float, np.quantile(values[1:], [tail, 1 - tail])))
        for name, values in zip(("auc", "jet_score"), found.T, strict=True)
    }


class _Ranking:
    """Permutations in the order of their scores."""

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
    """Fractions of wrong and of right permutations above a threshold, from high to low ones."""
    is_right = (np.arange(scores.shape[1]) == right[:, None]).ravel()
    order = np.argsort(-scores.ravel(), kind="stable")
    hits, all_above = np.cumsum(is_right[order]), np.arange(1, is_right.size + 1)
    at = np.unique(np.geomspace(1, is_right.size, points).astype(int)) - 1
    true = np.append(0, hits[at] / hits[-1])
    false = np.append(0, (all_above - hits)[at] / (is_right.size - hits[-1]))
    return false, true


class Calibration(NamedTuple):
    """Bins of the score: its mean, the fraction of right permutations, and how many there are."""

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

        Not the mean over all permutations: nearly all are wrong, and score near zero.
        """
        return float(self._excess.max())


def calibration(scores: Array, right: Array, bins: int = 10) -> Calibration:
    """How often permutations of a score are right; bins of the score without any are left out."""
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


def confusion(scores: Array, right: Array) -> Array:
    """Fraction of the jets of each kind of quark (rows) that are given to each kind; (3, 3)."""
    true, guess = KINDS[right].ravel(), KINDS[scores.argmax(axis=1)].ravel()
    counts = np.zeros((3, 3))
    np.add.at(counts, (true, guess), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))
