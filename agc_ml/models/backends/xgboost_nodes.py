"""Checks of the trees in an xgboost model: children, parents, features, categories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np

from agc_ml.models.content import Array

MOST_LEVELS: Final = 5_000
"""Most levels of a tree: xgboost recurses once a level."""

MOST_CATEGORY: Final = 1 << 24
"""Largest category: above, float32 can't represent each; a set of categories takes a bit each."""

MOST_WHOLE: Final = 2**31 - 1
"""Largest 32-bit integer: larger numbers make xgboost crash."""

NO_PARENT: Final = 2**31 - 1
"""Parent of a root; as parent of another node it makes xgboost crash."""

_NODE_FIELDS: Final[dict[str, tuple[type, ...]]] = {
    "left_children": (int,),
    "right_children": (int,),
    "split_indices": (int,),
    "split_conditions": (float,),
    "default_left": (int, bool),
    "parents": (int,),
    "base_weights": (float,),
    "loss_changes": (float,),
    "sum_hessian": (float,),
    "split_type": (int,),
    "leaf_child_counts": (int,),
}
"""Lists with one value a node, and the types of their values."""

_REQUIRED: Final = ("left_children", "right_children", "split_indices", "split_conditions")


class InvalidModelError(ValueError):
    """A model is inconsistent; the message says where."""


def require(condition: Any, problem: str) -> None:
    """Reject a model unless a condition holds."""
    if not condition:
        raise InvalidModelError(problem)


def member(owner: Any, name: str, kind: type, owner_name: str) -> Any:
    """Value of a JSON object under a name, of exactly one type."""
    value = owner.get(name) if isinstance(owner, dict) else None
    require(type(value) is kind, f"{owner_name} has no {name}, or one of another type")
    return value


def is_list_of(values: Any, kinds: Iterable[type]) -> bool:
    """Return True for a list with values of these exact types only."""
    return type(values) is list and set(map(type, values)) <= set(kinds)


def integer(owner: Mapping[str, Any], name: str, default: str | None = None) -> int:
    """Integer that xgboost stored as text."""
    text = owner.get(name, default)
    require(
        isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,10}", text),
        f"its {name} is not a number of few digits",
    )
    return int(str(text))


def check_trees(trees: list[Any], n_features: int) -> Array:
    """Check that all trees are trees; returns the thresholds of their inner nodes."""
    if not trees:
        return np.empty(0, np.float32)
    for number, tree in enumerate(trees):
        _check_tree(tree, number, n_features)
    left, right, feature = (
        _concatenated(trees, name, np.int64)
        for name in ("left_children", "right_children", "split_indices")
    )
    value = _concatenated(trees, "split_conditions", np.float32)
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    root = np.cumsum(sizes) - sizes
    begin = np.repeat(root, sizes)

    # All inner nodes, also unreachable ones: xgboost may look at them.
    is_inner = left != -1
    children = np.stack([left, right])[:, is_inner]
    exists = (children > 0) & (children < np.repeat(sizes, sizes)[is_inner])
    require(exists.all(), "a node has a child that does not exist")
    is_feature = (feature >= 0) & (feature < n_features)
    require(is_feature[is_inner].all(), "a node tests a feature that does not exist")
    require(not np.isnan(value[is_inner]).any(), "a node has no number to compare with")

    is_reached = _reached(root, is_inner, left + begin, right + begin)
    leaves = is_reached & ~is_inner
    require((right[leaves] == -1).all(), "a leaf of its trees has a child")
    require(np.isfinite(value[leaves]).all(), "a leaf gives no finite number")
    thresholds: Array = value[is_inner]
    return thresholds


def _reached(root: Array, is_inner: Array, left: Array, right: Array) -> Array:
    """Mask of the nodes that can be reached; rejects two paths to one node."""
    is_reached = np.zeros(len(is_inner), bool)
    level, n_levels = root, 0
    while len(level):
        n_levels += 1
        require(n_levels <= MOST_LEVELS, f"a tree has more than {MOST_LEVELS:,} levels")
        is_reached[level] = True
        inner = level[is_inner[level]]
        level = np.concatenate([left[inner], right[inner]])
        require(
            len(np.unique(level)) == len(level) and not is_reached[level].any(),
            "two paths lead to one node: it is not a tree",
        )
    return is_reached


def _concatenated(trees: list[Any], name: str, kind: type) -> Array:
    with np.errstate(over="ignore"):  # too large numbers become infinite
        return np.array(list(chain.from_iterable(tree[name] for tree in trees)), kind)


def _check_tree(tree: Any, number: int, n_features: int) -> None:
    """Check that the lists of a tree fit each other."""
    sizes = member(tree, "tree_param", dict, "a tree")
    n_nodes = len(member(tree, "left_children", list, "a tree"))
    require(
        0 < n_nodes == integer(sizes, "num_nodes"),
        f"tree {number} has another number of nodes than it says",
    )
    require(tree.get("id") == number and type(tree["id"]) is int, f"tree {number} has another id")
    require(0 <= integer(sizes, "num_deleted", "0") < n_nodes, f"tree {number} has no node left")
    require(integer(sizes, "num_feature") == n_features, f"tree {number} takes other features")
    is_single = integer(sizes, "size_leaf_vector", "0") in {0, 1}
    require(is_single, f"tree {number} has several targets")
    for name, kinds in _NODE_FIELDS.items():
        if name not in tree and name not in _REQUIRED:
            continue
        values = tree.get(name)
        require(
            is_list_of(values, kinds) and len(values) == n_nodes,
            f"tree {number}: its {name} are not {n_nodes} {kinds[0].__name__} numbers",
        )
        require(
            kinds == (float,) or (min(values) >= -MOST_WHOLE and max(values) <= MOST_WHOLE),
            f"tree {number}: a number of its {name} has too many digits",
        )
    parents = tree.get("parents", ())
    require(
        all(0 <= parent < len(parents) for parent in parents if parent != NO_PARENT)
        and NO_PARENT not in parents[1:],
        f"tree {number}: a node has a parent that does not exist",
    )


def check_categories(trees: list[Any]) -> bool:
    """Check the categories of nodes that test them; returns True if there are any."""
    has_any = False
    for number, tree in enumerate(trees):
        nodes, begins, sizes, values = (
            tree.get(f"categories{part}", []) for part in ("_nodes", "_segments", "_sizes", "")
        )
        categorical = [node for node, kind in enumerate(tree.get("split_type", ())) if kind]
        if not (categorical or nodes or begins or sizes or values):
            continue
        has_any = True
        require(
            all(is_list_of(numbers, (int,)) for numbers in (nodes, begins, sizes, values))
            and set(tree.get("split_type", ())) <= {0, 1}
            and nodes == categorical
            and len(nodes) == len(begins) == len(sizes)
            and all(size > 0 for size in sizes)
            and [*begins, len(values)] == [0, *accumulate(sizes)]
            and all(0 <= value < MOST_CATEGORY for value in values),
            f"tree {number}: its categories do not fit its nodes",
        )
    return has_any
