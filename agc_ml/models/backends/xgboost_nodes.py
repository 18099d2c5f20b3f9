"""Whether the trees in a model of xgboost are trees: children, parents, features, categories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MOST_LEVELS: Final = 5_000
"""Of a tree: xgboost calls itself once a level."""

MOST_CATEGORY: Final = 1 << 24
"""Larger ones have no number of their own in single precision; a set of them takes a bit each."""

MOST_WHOLE: Final = 2**31 - 1
"""Of 32 bits: larger ones make xgboost crash."""

NO_PARENT: Final = 2**31 - 1
"""The parent of a root; of any other node it makes xgboost crash."""

_A_NODE: Final[dict[str, tuple[type, ...]]] = {
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
"""What a tree lists for each of its nodes, and what these are."""

_NEEDED: Final = ("left_children", "right_children", "split_indices", "split_conditions")


class UnsoundError(ValueError):
    """A model is not what it says: the message says where."""


def demand(holds: Any, what: str) -> None:
    """Refuse a model that does not hold what is demanded."""
    if not holds:
        raise UnsoundError(what)


def of(owner: Any, name: str, kind: type, what: str) -> Any:
    """Value of a JSON object under a name."""
    found = owner.get(name) if isinstance(owner, dict) else None
    demand(type(found) is kind, f"{what} has no {name}, or one of another kind")
    return found


def are(values: Any, kinds: Iterable[type]) -> bool:
    """Return whether it is a list of nothing but these."""
    return type(values) is list and set(map(type, values)) <= set(kinds)


def whole(owner: Mapping[str, Any], name: str, usual: str | None = None) -> int:
    """A number that xgboost wrote as text."""
    text = owner.get(name, usual)
    demand(
        isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,10}", text),
        f"its {name} is not a number of few digits",
    )
    return int(str(text))


def check_trees(trees: list[Any], n_features: int) -> Array:
    """See that all are trees; gives what their inner nodes compare with."""
    if not trees:
        return np.empty(0, np.float32)
    for number, tree in enumerate(trees):
        _check_tree(tree, number, n_features)
    left, right, feature = (
        _of_all(trees, name, np.int64)
        for name in ("left_children", "right_children", "split_indices")
    )
    value = _of_all(trees, "split_conditions", np.float32)
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    root = np.cumsum(sizes) - sizes
    begin = np.repeat(root, sizes)

    # also of nodes that no way leads to
    is_inner = left != -1
    children = np.stack([left, right])[:, is_inner]
    is_there = (children > 0) & (children < np.repeat(sizes, sizes)[is_inner])
    demand(is_there.all(), "a node has a child that is not there")
    is_known = (feature >= 0) & (feature < n_features)
    demand(is_known[is_inner].all(), "a node asks for a feature that is not there")
    demand(not np.isnan(value[is_inner]).any(), "a node has no number to compare with")

    is_seen = _seen(root, is_inner, left + begin, right + begin)
    leaves = is_seen & ~is_inner
    demand((right[leaves] == -1).all(), "a leaf of its trees has a child")
    demand(np.isfinite(value[leaves]).all(), "a leaf gives no finite number")
    compared: Array = value[is_inner]
    return compared


def _seen(root: Array, is_inner: Array, left: Array, right: Array) -> Array:
    """Find the nodes that can be reached; reject a second way to one."""
    is_seen = np.zeros(len(is_inner), bool)
    level, n_levels = root, 0
    while len(level):
        n_levels += 1
        demand(n_levels <= MOST_LEVELS, f"a tree has more than {MOST_LEVELS:,} levels")
        is_seen[level] = True
        inner = level[is_inner[level]]
        level = np.concatenate([left[inner], right[inner]])
        demand(
            len(np.unique(level)) == len(level) and not is_seen[level].any(),
            "two ways lead to a node: it is no tree",
        )
    return is_seen


def _of_all(trees: list[Any], name: str, kind: type) -> Array:
    """Concatenate a list of all trees."""
    with np.errstate(over="ignore"):  # which makes it infinite
        return np.array(list(chain.from_iterable(tree[name] for tree in trees)), kind)


def _check_tree(tree: Any, number: int, n_features: int) -> None:
    """See that the lists of a tree fit each other."""
    sizes = of(tree, "tree_param", dict, "a tree")
    n_nodes = len(of(tree, "left_children", list, "a tree"))
    demand(
        0 < n_nodes == whole(sizes, "num_nodes"),
        f"tree {number} has another number of nodes than it says",
    )
    demand(tree.get("id") == number and type(tree["id"]) is int, f"tree {number} has another id")
    demand(0 <= whole(sizes, "num_deleted", "0") < n_nodes, f"tree {number} has no node left")
    demand(whole(sizes, "num_feature") == n_features, f"tree {number} takes other features")
    demand(whole(sizes, "size_leaf_vector", "0") in {0, 1}, f"tree {number} has several targets")
    for name, kinds in _A_NODE.items():
        values = tree.get(name)
        if values is None and name not in _NEEDED and name not in tree:
            continue
        demand(
            are(values, kinds) and len(values) == n_nodes,
            f"tree {number}: its {name} are not {n_nodes} {kinds[0].__name__} numbers",
        )
        demand(
            kinds == (float,) or (min(values) >= -MOST_WHOLE and max(values) <= MOST_WHOLE),
            f"tree {number}: a number of its {name} has too many digits",
        )
    _check_parents(tree, number)


def _check_parents(tree: dict[str, Any], number: int) -> None:
    parents = tree.get("parents", ())
    demand(
        all(0 <= one < len(parents) for one in parents if one != NO_PARENT)
        and NO_PARENT not in parents[1:],
        f"tree {number}: a node has a parent that is not there",
    )


def check_categories(trees: list[Any]) -> bool:
    """See that nodes that ask for categories name them; gives whether there are any."""
    is_any = False
    for number, tree in enumerate(trees):
        nodes, begins, sizes, values = (
            tree.get(f"categories{part}", []) for part in ("_nodes", "_segments", "_sizes", "")
        )
        asked = [node for node, kind in enumerate(tree.get("split_type", ())) if kind]
        if not (asked or nodes or begins or sizes or values):
            continue
        is_any = True
        demand(
            all(are(some, (int,)) for some in (nodes, begins, sizes, values))
            and set(tree.get("split_type", ())) <= {0, 1}
            and nodes == asked
            and len(nodes) == len(begins) == len(sizes)
            and all(size > 0 for size in sizes)
            and [*begins, len(values)] == [0, *accumulate(sizes)]
            and all(0 <= value < MOST_CATEGORY for value in values),
            f"tree {number}: its categories do not fit its nodes",
        )
    return is_any
