"""Gradient boosted trees on one thread, with the very bits of xgboost.

The rows are taken 64 at a time, as sets: the bits of a word. First, each test of the forest, feature
< cut, is made a set of the rows that pass. Then the sets go down all trees at once, level by level:
a node splits its set with one `and`. Neighbouring rows are often alike, such as the permutations of
an event's jets; then a node is visited once for many of them. All without branches that a processor
could guess wrong, but for a few. At last the leaves are added up row by row, in the order of trees.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.kernels.compiled import kernel

Array = NDArray[Any]

LOGISTIC: Final = ("binary:logistic", "reg:logistic")
"""Objectives whose predictions are the sigmoid of the margins."""

OBJECTIVES: Final = (*LOGISTIC, "binary:logitraw", "reg:squarederror")
"""Objectives whose models can be read."""

_ROWS: Final = 64  # bits of a word
_NONE: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_ALL: Final = ~_NONE
_CELLS: Final = 4  # a cut: more make the look-up of a cut shorter, and its table longer
_BITS_AT_ONCE: Final = 8


class Cuts(NamedTuple):
    """What the features are compared with: those of a feature ascend, and end with infinity.

    To find where a value is among those of feature j, equal cells divide their range. In a cell
    there are ``window[j]`` cuts at most, and they are the cut ``first[4 * begin[j] + cell]`` and
    those after it.
    """

    feature: Array  # (n_used,) columns that are compared with something
    begin: Array  # (n_used + 1,) where the cuts of each one begin
    value: Array  # (n_cuts,) float32
    scale: Array  # (n_used,) float32, cells in a unit of the feature
    window: Array  # (n_used,)
    first: Array  # (4 * n_cuts,)


class Trees(NamedTuple):
    """Nodes of all trees: first the roots, then pairs of children, left and right.

    ``node`` is the left child * 2^32 + its cut. For a leaf it is the number of cuts + its tree.
    """

    n_trees: int
    node: Array  # (n_nodes,) uint64
    value: Array  # (n_nodes,) float32, of leaves


@dataclass(frozen=True)
class Forest:
    """Trees whose leaves add up to a margin: the value before a sigmoid, if there is one.

    ``objective`` is what it was trained for, one of `OBJECTIVES`; predictions are margins, or
    `probabilities` where it is one of `LOGISTIC`. Trees that add zero to any row are left out.
    """

    n_features: int
    objective: str
    base_margin: np.float32
    cuts: Cuts
    trees: Trees


def read_xgboost(content: bytes) -> Forest:
    """Read a model that xgboost saved as JSON.

    All its trees are used, also where it remembers a best iteration, as xgboost does by default.

    Raises
    ------
    ValueError
        It is no such model, or one of a kind that can't be done here. The message says which.
    """
    try:
        model = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON, or cut off") from error
    try:
        learner = model["learner"]
        obstacle = _obstacle(learner)
        if not obstacle:
            return _forest(learner)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError("it is not a model of xgboost, or a damaged one") from error
    raise ValueError(obstacle)


def margins(forest: Forest, features: Array) -> Array:
    """Margins of rows, ``(n, n_features) float32 -> (n,) float32``: those of xgboost, bit by bit.

    Rows that are alike should be neighbours. There may be no NaN: it would count as low.
    """
    rows = np.require(features, np.float32, ["C", "W"])  # numba would compile for others once more
    if rows.ndim != 2 or rows.shape[1] != forest.n_features:
        raise ValueError(f"rows of {forest.n_features} features, not an array {rows.shape}")
    found: Array = _margins(forest.base_margin, forest.cuts, forest.trees, rows)
    return found


def scores(forest: Forest, features: Array) -> Array:
    """What xgboost predicts for rows, ``(n, n_features) float32 -> (n,) float32``."""
    found = margins(forest, features)
    return probabilities(found) if forest.objective in LOGISTIC else found


@kernel
def probabilities(margins: Array) -> Array:
    """Sigmoid of margins, float32, shape ``(n,)``, with the bits of xgboost."""
    found = np.empty_like(margins)
    for row in range(len(margins)):
        power = math.exp(min(-margins[row], np.float32(88.7)))
        found[row] = np.float32(1) / (power + np.float32(1) + np.float32(1e-16))
    return found


@kernel
def _logit(probability: Any) -> Any:
    return -math.log(np.float32(1) / probability - np.float32(1))


def _obstacle(learner: dict[str, Any]) -> str:
    """Why a model of xgboost can't be done here, "" if it can."""
    booster, objective = learner["gradient_booster"]["name"], learner["objective"]["name"]
    if booster != "gbtree":
        return f"its booster is {booster}; only gbtree can be done"
    if objective not in OBJECTIVES:
        return f"its objective is {objective}; only {', '.join(OBJECTIVES)} can be done"
    sizes = learner["learner_model_param"]
    if int(sizes["num_class"]) > 1 or int(sizes.get("num_target", 1)) > 1:
        return "it has several classes or targets; only one value a row can be done"
    trees = learner["gradient_booster"]["model"]["trees"]
    if any(any(tree.get("split_type", ())) for tree in trees):
        return "it has categorical features; only numbers can be compared"
    return ""


def _forest(learner: dict[str, Any]) -> Forest:
    objective, sizes = learner["objective"]["name"], learner["learner_model_param"]
    n_features = int(sizes["num_feature"])
    base = np.float32(str(sizes["base_score"]).strip("[]"))
    if objective in LOGISTIC:
        base = np.float32(_logit(base))
    trees = []
    for tree in learner["gradient_booster"]["model"]["trees"]:
        if len(tree["left_children"]) > 1 or tree["split_conditions"][0]:
            trees.append(tree)
        else:
            base += np.float32(tree["split_conditions"][0])  # to -0 this makes a difference
    return Forest(n_features, objective, base, *_packed(trees, n_features))


def _packed(trees: list[dict[str, Any]], n_features: int) -> tuple[Cuts, Trees]:
    sizes = [len(tree["left_children"]) for tree in trees]
    tree = np.repeat(np.arange(len(trees)), sizes)
    root = np.cumsum([0, *sizes])[:-1]
    left, right = (_flat(trees, f"{side}_children", np.int64) for side in ("left", "right"))
    value = _flat(trees, "split_conditions", np.float32)
    feature = _flat(trees, "split_indices", np.int64)
    inner = np.flatnonzero(left >= 0)
    children = np.stack([left[inner], right[inner]], axis=1)
    within = np.repeat(np.array(sizes)[tree[inner], None], 2, axis=1)
    _ensure(((children > 0) & (children < within)).all())
    _ensure(((feature[inner] >= 0) & (feature[inner] < n_features)).all())
    _ensure(np.isfinite(value).all())
    children += root[tree[inner], None]
    _ensure(len(np.unique(children)) == children.size)  # one parent each: no way leads back

    place = np.full(len(left), -1)  # stays so for nodes that were pruned
    place[np.concatenate([root, children.ravel()])] = np.arange(len(root) + children.size)
    _ensure((place[inner] >= 0).all())
    cuts, cut = _cuts(feature[inner], value[inner])
    leaf = np.flatnonzero((left < 0) & (place >= 0))
    node = np.empty(len(root) + children.size, np.uint64)
    node[place[inner]] = (place[children[:, 0]] << 32) | cut
    node[place[leaf]] = len(cuts.value) + tree[leaf]
    values = np.zeros(len(node), np.float32)
    values[place[leaf]] = value[leaf]
    return cuts, Trees(len(root), node, values)


def _flat(trees: list[dict[str, Any]], field: str, dtype: type) -> Array:
    return np.array([value for tree in trees for value in tree[field]], dtype)


def _ensure(is_sound: Any) -> None:
    if not is_sound:
        raise ValueError("not a forest")


def _cuts(feature: Array, value: Array) -> tuple[Cuts, Array]:
    """Cuts of tests of a feature against a value, and the number of the cut of each test."""
    order = np.argsort(feature, kind="stable")
    columns, starts = np.unique(feature[order], return_index=True)
    cut = np.empty(len(feature), np.int64)
    begin, values, scales, windows, firsts = [0], [], [], [], []
    for tests in np.split(order, starts[1:])[: len(columns)]:
        own, which = np.unique(value[tests], return_inverse=True)
        cut[tests] = begin[-1] + which
        scale, window, first = _cells(own)
        firsts.append(begin[-1] + first)
        begin.append(begin[-1] + len(own) + 1)
        values.append(np.append(own, np.float32(np.inf)))
        scales.append(scale)
        windows.append(window)
    return Cuts(
        columns,
        np.array(begin),
        np.concatenate([np.empty(0, np.float32), *values]),
        np.array(scales, np.float32),
        np.array(windows, np.int64),
        np.concatenate([np.empty(0, np.uint32), *firsts]).astype(np.uint32),
    ), cut


def _cells(values: Array) -> tuple[np.float32, int, Array]:
    """Scale, window and first cut of each cell, of one feature; as in `Cuts`."""
    last = _CELLS * (len(values) + 1) - 1
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.float32(last) / (values[-1] - values[0])
    if not np.isfinite(scale):
        scale = np.float32(0)  # one cell has them all
    cells = np.minimum((values - values[0]) * scale, np.float32(last)).astype(np.int64)
    counts = np.bincount(cells, minlength=last + 1)
    window = counts.max()
    return scale, window, np.minimum(np.cumsum(counts) - counts, len(values) - window)


@kernel
def _find(cuts: Cuts, j: int, rows: Array, x: Array, place: Array) -> None:
    """Find the first cut that each row is below in the j-th feature that is compared."""
    begin = cuts.begin[j]
    column, low, scale = cuts.feature[j], cuts.value[begin], cuts.scale[j]
    last = np.float32(_CELLS * (cuts.begin[j + 1] - begin) - 1)
    for r in range(len(rows)):
        x[r] = rows[r, column]
        cell = (x[r] - low) * scale
        cell = min(cell, last) if cell > np.float32(0) else np.float32(0)
        place[r] = cuts.first[_CELLS * begin + np.uint32(cell)]
    window = cuts.window[j]
    while window > 1:
        half = window // 2
        for r in range(len(rows)):
            is_above = cuts.value[place[r] + np.uint32(half - 1)] <= x[r]
            place[r] += np.uint32(half) if is_above else np.uint32(0)
        window -= half
    for r in range(len(rows)):
        place[r] += np.uint32(cuts.value[place[r]] <= x[r])


@kernel
def _compare(cuts: Cuts, rows: Array, x: Array, place: Array, below: Array) -> None:
    """Find which rows are below each cut."""
    below[: len(cuts.value)] = _NONE
    for j in range(len(cuts.feature)):
        _find(cuts, j, rows, x, place)
        for r in range(len(rows)):
            below[place[r]] |= _ONE << np.uint64(r)
        own = below[cuts.begin[j] : cuts.begin[j + 1]]
        so_far = _NONE
        for i in range(len(own)):
            so_far |= own[i]
            own[i] = so_far


@kernel
def _descend(trees: Trees, below: Array, at: Array, sets: Array, leaves: Array) -> Any:
    """Send the set that is first down all trees; how many leaves were found, and where they are.

    The node ``at[i]`` is reached by the rows ``sets[i]``.
    """
    for tree in range(trees.n_trees):
        at[tree] = tree
        sets[tree] = sets[0]
    i, end, n_leaves = _NONE, np.uint64(trees.n_trees), _NONE
    while i < end:
        node, rows = trees.node[at[i]], sets[i]
        left = node >> np.uint64(32)
        goes_on = np.uint64(left != _NONE)
        leaves[n_leaves] = i
        n_leaves += _ONE - goes_on
        # of a leaf all are below, so that none goes right
        to_left = rows & below[node & np.uint64(0xFFFFFFFF)]
        to_right = rows ^ to_left
        at[end], sets[end] = left, to_left
        end += np.uint64(to_left != _NONE) & goes_on
        at[end], sets[end] = left + _ONE, to_right
        end += np.uint64(to_right != _NONE)
        i += _ONE
    return n_leaves


@kernel
def _lowest(bits: Any) -> Any:
    """Place of the lowest bit, 64 if there is none: the number of those under it, added in pairs."""
    n = ~bits & (bits - _ONE)
    n -= (n >> _ONE) & np.uint64(0x5555555555555555)
    n = (n & np.uint64(0x3333333333333333)) + ((n >> np.uint64(2)) & np.uint64(0x3333333333333333))
    n = (n + (n >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (n * np.uint64(0x0101010101010101)) >> np.uint64(56)


@kernel
def _margins(base: Any, cuts: Cuts, trees: Trees, features: Array) -> Array:
    margins = np.empty(len(features), np.float32)
    n_cuts, n_nodes = len(cuts.value), len(trees.node)
    x, place = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.uint32)
    below = np.full(n_cuts + trees.n_trees, _ALL)
    at, leaves = np.empty(n_nodes + 2, np.uint32), np.empty(n_nodes + 2, np.uint32)
    sets = np.empty(n_nodes + 2, np.uint64)
    found = np.zeros((trees.n_trees, _ROWS + 1), np.float32)  # the last is for no row
    total = np.empty(_ROWS, np.float32)
    for start in range(0, len(features), _ROWS):
        rows = features[start : start + _ROWS]
        _compare(cuts, rows, x, place, below)
        sets[0] = _ALL >> np.uint64(_ROWS - len(rows))
        for k in range(_descend(trees, below, at, sets, leaves)):
            leaf, left_over = at[leaves[k]], sets[leaves[k]]
            tree, value = trees.node[leaf] - np.uint64(n_cuts), trees.value[leaf]
            while left_over != _NONE:
                for _ in range(_BITS_AT_ONCE):  # too many cost less than to guess how many
                    found[tree, _lowest(left_over)] = value
                    left_over &= left_over - _ONE
        total[:] = base
        for tree in range(trees.n_trees):
            for r in range(_ROWS):
                total[r] += found[tree, r]
        margins[start : start + _ROWS] = total[: len(rows)]
    return margins
