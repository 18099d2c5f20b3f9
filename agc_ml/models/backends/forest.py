"""Gradient-boosted trees on one thread, with the very bits of xgboost.

The kernel takes 64 rows at a time, as sets: the bits of a word. First, each test of the forest,
feature < cut, becomes the set of rows that pass it. Then sets descend all trees at once, level by
level: a node splits its set with one `and`, once for all its rows; neighbouring rows, such as the
permutations of an event, often go together. There are hardly any branches that a CPU could
mispredict. Finally the leaves are added row by row, in the order of the trees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.columnar.compiled import kernel
from agc_ml.models.content import Array

LOGISTIC: Final = ("binary:logistic", "reg:logistic")
"""Objectives whose predictions are the sigmoid of the margins."""

OBJECTIVES: Final = (*LOGISTIC, "binary:logitraw", "reg:squarederror")
"""Supported objectives."""

_ROWS: Final = 64  # bits of a word
_NONE: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_ALL: Final = ~_NONE
CELLS: Final = 4  # cells per cut: more make the search of a cut shorter, and its table longer
_BITS_AT_ONCE: Final = 8


class Cuts(NamedTuple):
    """Cuts of all features: those of a feature ascend, and end with infinity.

    To locate a value among them, equal cells divide the range of a feature's cuts. The cuts of a
    cell begin with number ``first[4 * begin[j] + cell]``; there are at most ``window[j]``.
    """

    feature: Array  # (n_used,) columns with cuts
    begin: Array  # (n_used + 1,) first cut of each
    value: Array  # (n_cuts,) float32
    scale: Array  # (n_used,) float32, cells in a unit of the feature
    window: Array  # (n_used,)
    first: Array  # (4 * n_cuts,)


class Trees(NamedTuple):
    """Nodes of all trees: first the roots, then pairs of children, left and right.

    ``node`` is the left child * 2^32 + the cut; of a leaf it is the number of cuts + the tree.
    """

    n_trees: int
    node: Array  # (n_nodes,) uint64
    value: Array  # (n_nodes,) float32, of leaves


@dataclass(frozen=True)
class Forest:
    """Trees whose leaves add up to a margin, the value before a possible sigmoid.

    ``objective`` is one of `OBJECTIVES`; predictions are margins, or `probabilities` for those in
    `LOGISTIC`. Trees that add zero to every row are left out.
    """

    n_features: int
    objective: str
    base_margin: np.float32
    cuts: Cuts
    trees: Trees


def margins(forest: Forest, features: Array) -> Array:
    """Margins of rows, ``(n, n_features) float32 -> (n,) float32``, equal to xgboost's bit by bit.

    Similar rows should be neighbours. NaN is not detected: it counts as low.
    """
    rows = np.require(features, np.float32, ["C", "W"])  # other types would be compiled again
    if rows.shape != (len(rows), forest.n_features):
        raise ValueError(f"rows of {forest.n_features} features, not an array {rows.shape}")
    values: Array = _margins(forest.base_margin, forest.cuts, forest.trees, rows)
    return values


def scores(forest: Forest, features: Array) -> Array:
    """Predictions of xgboost for rows, ``(n, n_features) float32 -> (n,) float32``."""
    values = margins(forest, features)
    return probabilities(values) if forest.objective in LOGISTIC else values


@kernel
def probabilities(margins: Array) -> Array:
    """Sigmoid of margins, float32, shape ``(n,)``, with the bits of xgboost."""
    found = np.empty_like(margins)
    for row in range(len(margins)):
        power = math.exp(min(-margins[row], np.float32(88.7)))
        found[row] = np.float32(1) / (power + np.float32(1) + np.float32(1e-16))
    return found


@kernel
def logit(probability: Any) -> Any:
    """Margin of a probability, float32, with the bits of xgboost."""
    return -math.log(np.float32(1) / probability - np.float32(1))


@kernel
def _find(cuts: Cuts, j: int, x: Array, place: Array) -> None:
    """Find the first cut above each value, of the j-th feature with cuts."""
    # The cell of each value, which narrows the search to a window of cuts.
    begin = cuts.begin[j]
    low, scale = cuts.value[begin], cuts.scale[j]
    last = np.float32(CELLS * (cuts.begin[j + 1] - begin) - 1)
    for r in range(len(x)):
        cell = (x[r] - low) * scale
        cell = min(cell, last) if cell > np.float32(0) else np.float32(0)
        place[r] = cuts.first[CELLS * begin + np.uint32(cell)]
    # Binary search in the window, for all values in step.
    window = cuts.window[j]
    while window:
        half = (window + 1) // 2
        for r in range(len(x)):
            is_above = cuts.value[place[r] + np.uint32(half - 1)] <= x[r]
            place[r] += np.uint32(half) if is_above else np.uint32(0)
        window -= half


@kernel
def _compare(cuts: Cuts, rows: Array, place: Array, below: Array) -> None:
    """Find the set of rows below each cut."""
    below[: len(cuts.value)] = _NONE
    for j in range(len(cuts.feature)):
        _find(cuts, j, rows[:, cuts.feature[j]], place)
        for r in range(len(rows)):
            below[place[r]] |= _ONE << np.uint64(r)
        # Rows below a cut are below all later ones.
        own, so_far = below[cuts.begin[j] : cuts.begin[j + 1]], _NONE
        for i in range(len(own)):
            so_far |= own[i]
            own[i] = so_far


@kernel
def _descend(trees: Trees, below: Array, at: Array, sets: Array, leaves: Array) -> Any:
    """Send the first set down all trees; returns the number of ``leaves`` that rows reach.

    The rows ``sets[i]`` reach the node ``at[i]``.
    """
    for tree in range(trees.n_trees):
        at[tree], sets[tree] = tree, sets[0]
    i, end, n_leaves = _NONE, np.uint64(trees.n_trees), _NONE
    while i < end:
        node, rows = trees.node[at[i]], sets[i]
        left = node >> np.uint64(32)
        goes_on = np.uint64(left != _NONE)
        leaves[n_leaves] = i
        n_leaves += _ONE - goes_on
        # All rows are below the cut of a leaf, so that none goes right.
        to_left = rows & below[node & np.uint64(0xFFFFFFFF)]
        at[end], sets[end] = left, to_left
        end += np.uint64(to_left != _NONE) & goes_on
        at[end], sets[end] = left + _ONE, rows ^ to_left
        end += np.uint64(rows != to_left)
        i += _ONE
    return n_leaves


@kernel
def _lowest(bits: Any) -> Any:
    """Position of the lowest set bit, 64 if there is none: the number of bits below it."""
    n = ~bits & (bits - _ONE)
    n -= (n >> _ONE) & np.uint64(0x5555555555555555)
    n = (n & np.uint64(0x3333333333333333)) + ((n >> np.uint64(2)) & np.uint64(0x3333333333333333))
    n = (n + (n >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (n * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def _margins(base: Any, cuts: Cuts, trees: Trees, features: Array) -> Array:
    n_cuts, room = np.uint64(len(cuts.value)), len(trees.node) + 2
    at, sets = np.empty(room, np.uint32), np.empty(room, np.uint64)
    leaves, place = np.empty(room, np.uint32), np.empty(_ROWS, np.uint32)
    below = np.full(n_cuts + np.uint64(trees.n_trees), _ALL)
    found = np.zeros((trees.n_trees, _ROWS + 1), np.float32)  # the last one belongs to no row
    margins = np.full(len(features), base)
    for start in range(0, len(features), _ROWS):
        rows, total = features[start : start + _ROWS], margins[start : start + _ROWS]
        _compare(cuts, rows, place, below)
        # The values of the leaves, then their sum for each row in the order of the trees.
        sets[0] = _ALL >> np.uint64(_ROWS - len(rows))
        for k in range(_descend(trees, below, at, sets, leaves)):
            node, rest = at[leaves[k]], sets[leaves[k]]
            tree, value = trees.node[node] - n_cuts, trees.value[node]
            while rest != _NONE:
                # A few rounds too many are cheaper than a mispredicted branch.
                for _ in range(_BITS_AT_ONCE):
                    found[tree, _lowest(rest)] = value
                    rest &= rest - _ONE
        for tree in range(trees.n_trees):
            for r in range(len(total)):
                total[r] += found[tree, r]
    return margins
