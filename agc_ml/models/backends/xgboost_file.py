"""Reading models of xgboost into the arrays of the forest kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agc_ml.models.backends.forest import CELLS, LOGISTIC, OBJECTIVES, Cuts, Forest, Trees, logit
from agc_ml.models.backends.xgboost_structure import Learner, read

Array = NDArray[Any]


def read_xgboost(content: bytes) -> Forest:
    """Read a model that xgboost saved as JSON.

    Raises
    ------
    ValueError
        It is no such model, or as of `forest_of`. The message says which.
    """
    return forest_of(read(content))


def forest_of(learner: Learner) -> Forest:
    """Make a forest of what is in a model of xgboost.

    All its trees count, also where it remembers a best iteration: so does ``inplace_predict``.

    Raises
    ------
    ValueError
        It is of a kind that can't be done here. The message says which.
    """
    obstacle = _obstacle(learner)
    if obstacle:
        raise ValueError(obstacle)
    with np.errstate(all="ignore"):  # numbers that get out of range are noticed by golden rows
        return _forest(learner)


def _obstacle(learner: Learner) -> str:
    """Why a model of xgboost can't be done here, "" if it can."""
    objective = learner.content["objective"]["name"]
    if learner.booster != "gbtree":
        return f"its booster is {learner.booster}; only gbtree can be done"
    if objective not in OBJECTIVES:
        return f"its objective is {objective}; only {', '.join(OBJECTIVES)} can be done"
    if not learner.model["trees"]:
        return "it has no trees"
    if learner.is_categorical:
        return "it has categorical features; only numbers can be compared"
    if not learner.is_plain:
        return "it has what is not known here"
    return ""


def _forest(learner: Learner) -> Forest:
    objective = learner.content["objective"]["name"]
    base = np.float32(learner.content["learner_model_param"]["base_score"].strip("[]"))
    if objective in LOGISTIC:
        base = np.float32(logit(base))
    trees = []
    for tree in learner.model["trees"]:
        if len(tree["left_children"]) > 1 or tree["split_conditions"][0]:
            trees.append(tree)
        else:
            base += np.float32(tree["split_conditions"][0])  # makes a difference to -0
    return Forest(learner.n_features, objective, base, *_packed(trees))


def _packed(trees: list[dict[str, Any]]) -> tuple[Cuts, Trees]:
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    root, tree = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(trees)), sizes)
    left, right, feature = (
        np.array([number for tree in trees for number in tree[field]], np.int64)
        for field in ("left_children", "right_children", "split_indices")
    )
    value = np.array([number for tree in trees for number in tree["split_conditions"]], np.float32)
    inner = np.flatnonzero(left >= 0)
    children = np.stack([left[inner], right[inner]])
    children += root[tree[inner]]
    reached = np.concatenate([root, children.T.ravel()])  # not those that were pruned
    if len(np.unique(reached)) < len(reached):  # by ways from nodes that were pruned
        raise ValueError("its pruned nodes are not cut off")

    cuts, cut = _cuts(feature[inner], value[inner])
    place = np.empty_like(left)
    place[reached] = np.arange(len(reached))
    node = len(cuts.value) + tree
    node[inner] = (place[children[0]] << 32) | cut
    return cuts, Trees(len(trees), node[reached].astype(np.uint64), value[reached])


def _cuts(feature: Array, value: Array) -> tuple[Cuts, Array]:
    """Cuts of tests, of a feature against a value each, and the number of each test's cut."""
    order = np.lexsort((value, feature))
    feature, value = feature[order], value[order]
    is_first = np.diff(feature, prepend=-1) > 0
    is_new = is_first | (np.diff(value, prepend=value[:1]) > 0)
    which = np.cumsum(is_first) - 1
    place = np.cumsum(is_new) - 1 + which  # there is an infinity after each feature
    begin = np.append(place[is_first], is_new.sum() + is_first.sum())
    values = np.full(begin[-1], np.inf, np.float32)
    values[place] = value
    cut = np.empty_like(place)
    cut[order] = place

    size = np.diff(begin)
    low, last = values[begin[:-1]], (CELLS * size - 1).astype(np.float32)
    scale = last / (values[begin[1:] - 2] - low)
    scale[~np.isfinite(scale)] = 0  # one cell for all
    cell = np.minimum(np.fmax((value - low[which]) * scale[which], 0), last[which])
    cells = (CELLS * begin[which] + cell.astype(np.int64))[is_new]
    count = np.bincount(cells, minlength=CELLS * begin[-1])
    window = np.maximum.reduceat(count, CELLS * begin[:-1])
    before = np.cumsum(count) - count + np.repeat(np.arange(len(size)), CELLS * size)
    first = np.minimum(before, np.repeat(begin[1:] - 1 - window, CELLS * size))
    return Cuts(feature[is_first], begin, values, scale, window, first.astype(np.uint32)), cut
