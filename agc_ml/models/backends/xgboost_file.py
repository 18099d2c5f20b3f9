"""Models of xgboost as arrays of the forest kernel."""

from __future__ import annotations

from typing import Any

import numpy as np

from agc_ml.models.backends.forest import CELLS, LOGISTIC, OBJECTIVES, Cuts, Forest, Trees, logit
from agc_ml.models.backends.xgboost_structure import ParsedModel, read
from agc_ml.models.content import Array


def read_xgboost(content: bytes) -> Forest:
    """Read a model that xgboost saved as JSON.

    Raises
    ------
    ValueError
        The content is not such a model, or `forest_of` can't convert it.
    """
    return forest_of(read(content))


def forest_of(parsed: ParsedModel) -> Forest:
    """Convert a parsed model of xgboost.

    All its trees count, also after a best iteration, as in xgboost's ``inplace_predict``.

    Raises
    ------
    ValueError
        The kernel can't evaluate its kind of model; the message says why.
    """
    obstacle = _obstacle(parsed)
    if obstacle:
        raise ValueError(obstacle)
    with np.errstate(all="ignore"):  # golden rows reveal numbers out of range
        return _forest(parsed)


def _obstacle(parsed: ParsedModel) -> str:
    """Reason why the kernel can't evaluate a model, "" if it can."""
    if parsed.booster != "gbtree":
        return f"its booster is {parsed.booster}; only gbtree is supported"
    if parsed.objective not in OBJECTIVES:
        return f"its objective is {parsed.objective}; supported are {', '.join(OBJECTIVES)}"
    if not parsed.model["trees"]:
        return "it has no trees"
    if parsed.is_categorical:
        return "it has categorical features; only numbers can be compared"
    if not parsed.is_fully_checked:
        return "it has unknown fields, or thresholds that are not finite"
    return ""


def _forest(parsed: ParsedModel) -> Forest:
    base = np.float32(parsed.learner["learner_model_param"]["base_score"].strip("[]"))
    if parsed.objective in LOGISTIC:
        base = np.float32(logit(base))
    # Empty trees add a constant, mostly zero: add it once, here.
    trees = []
    for tree in parsed.model["trees"]:
        if len(tree["left_children"]) > 1 or tree["split_conditions"][0]:
            trees.append(tree)
        else:
            base += np.float32(tree["split_conditions"][0])  # even zero matters: it changes -0
    return Forest(parsed.n_features, parsed.objective, base, *_packed(trees))


def _packed(trees: list[dict[str, Any]]) -> tuple[Cuts, Trees]:
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    root, tree = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(trees)), sizes)
    left, right, feature = (
        np.array([number for tree in trees for number in tree[field]], np.int64)
        for field in ("left_children", "right_children", "split_indices")
    )
    value = np.array([number for tree in trees for number in tree["split_conditions"]], np.float32)
    # Number the nodes of all trees: roots first, then pairs of children; pruned nodes drop out.
    inner = np.flatnonzero(left >= 0)
    children = np.stack([left[inner], right[inner]])
    children += root[tree[inner]]
    reached = np.concatenate([root, children.T.ravel()])
    if len(np.unique(reached)) < len(reached):  # pruned nodes still point to others
        raise ValueError("its pruned nodes are not removed")

    cuts, cut = _cuts(feature[inner], value[inner])
    place = np.empty_like(left)
    place[reached] = np.arange(len(reached))
    node = len(cuts.value) + tree
    node[inner] = (place[children[0]] << 32) | cut
    return cuts, Trees(len(trees), node[reached].astype(np.uint64), value[reached])


def _cuts(feature: Array, value: Array) -> tuple[Cuts, Array]:
    """Sorted cuts of the tests ``feature < value``, and the index of each test's cut."""
    order = np.lexsort((value, feature))
    feature, value = feature[order], value[order]
    is_first = np.diff(feature, prepend=-1) > 0
    is_new = is_first | (np.diff(value, prepend=value[:1]) > 0)
    column = np.cumsum(is_first) - 1
    place = np.cumsum(is_new) - 1 + column  # each feature ends with infinity
    begin = np.append(place[is_first], is_new.sum() + is_first.sum())
    values = np.full(begin[-1], np.inf, np.float32)
    values[place] = value
    cut = np.empty_like(place)
    cut[order] = place

    # Equal cells over the range of each feature shorten the search for a value's cut.
    size = np.diff(begin)
    low, last = values[begin[:-1]], (CELLS * size - 1).astype(np.float32)
    scale = last / (values[begin[1:] - 2] - low)
    scale[~np.isfinite(scale)] = 0  # all cuts in one cell
    cell = np.minimum(np.fmax((value - low[column]) * scale[column], 0), last[column])
    cells = (CELLS * begin[column] + cell.astype(np.int64))[is_new]
    count = np.bincount(cells, minlength=CELLS * begin[-1])
    window = np.maximum.reduceat(count, CELLS * begin[:-1])
    before = np.cumsum(count) - count + np.repeat(np.arange(len(size)), CELLS * size)
    first = np.minimum(before, np.repeat(begin[1:] - 1 - window, CELLS * size))
    return Cuts(feature[is_first], begin, values, scale, window, first.astype(np.uint32)), cut
