"""Whether the JSON of a model of xgboost is what it says: before xgboost sees it.

xgboost believes what it reads: a child, a feature or a category that is not there is looked up in
memory of something else, and a circle is walked for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.ml.given import NotTakenError, parse_json

Array = NDArray[Any]

MOST_FEATURES: Final = 1_000_000
MOST_LEVELS: Final = 10_000
"""Of a tree: xgboost calls itself once a level."""

MOST_CATEGORY: Final = 1 << 24
"""Larger ones have no number of their own in single precision; a set of them takes a bit each."""

MOST_WHOLE: Final = 2**31 - 1
"""Of 32 bits: larger ones make xgboost crash."""

NO_PARENT: Final = 2**31 - 1
"""The parent of a root."""

MOST_REAL: Final = 3.4e38
"""Of single precision."""

_NUMBER: Final = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_STRANGE: Final = re.compile(rb"[0-9.]{25}|[0-9][eE][+-]?[0-9]{3}")
"""Numbers as xgboost does not write them: it may read others than we do."""

_KNOWN: Final[dict[str, set[str]]] = {
    "the model": {"learner", "version"},
    "learner": {
        "attributes",
        "feature_names",
        "feature_types",
        "gradient_booster",
        "learner_model_param",
        "objective",
    },
    "learner_model_param": {
        *("base_score", "boost_from_average", "num_class", "num_feature", "num_target"),
    },
    "gbtree_model_param": {"num_parallel_tree", "num_trees", "size_leaf_vector"},
    "tree_param": {"num_deleted", "num_feature", "num_nodes", "size_leaf_vector"},
    "model": {"cats", "gbtree_model_param", "iteration_indptr", "tree_info", "trees"},
    "tree": {
        *("base_weights", "categories", "categories_nodes", "categories_segments"),
        *("categories_sizes", "default_left", "id", "leaf_child_counts", "left_children"),
        *("loss_changes", "parents", "right_children", "split_conditions", "split_indices"),
        *("split_type", "sum_hessian", "tree_param"),
    },
}
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


class OtherKindError(ValueError):
    """A model, sound perhaps, that gives something else than a score a row here."""


class Learner(NamedTuple):
    """What is in a model, checked.

    Attributes
    ----------
    content
        Under its ``learner``.
    model
        Its trees, and what is said of all.
    n_features
        How many features it takes.
    booster
        ``gbtree``, or ``dart``, which has a weight a tree.
    is_known
        Whether everything in it is known here; if not, it is checked as far as that goes.
    is_categorical
        Whether it asks which category a feature is.
    is_finite
        Whether it compares with finite numbers only.
    """

    content: dict[str, Any]
    model: dict[str, Any]
    n_features: int
    booster: str
    is_known: bool
    is_categorical: bool
    is_finite: bool

    @property
    def is_plain(self) -> bool:
        """Whether it is of the kind that is checked through and through."""
        return (
            self.booster == "gbtree"
            and self.is_known
            and self.is_finite
            and not self.is_categorical
        )


def is_json(data: bytes) -> bool:
    """Whether xgboost would take a model for JSON, not for its binary form."""
    return data[:1] != b"{" or not data[1:2].isalpha()


def read(data: bytes) -> Learner:
    """Read a model, and see that it holds together.

    Raises
    ------
    UnsoundError
        It does not.
    OtherKindError
        It gives something else than a score a row.
    """
    if data[:1] != b"{":
        raise UnsoundError("it is neither JSON nor UBJ of xgboost, or cut off")
    try:
        found = parse_json(data)
    except NotTakenError as error:
        raise UnsoundError(str(error)) from error
    content = _of(found, "learner", dict, "the model")
    version = found.get("version", [])
    _demand(
        _are(version, (int,)) and len(version) in {0, 3} and not set(version) - set(range(1000)),
        "its version is no version",
    )
    booster, model, weights = _booster(_of(content, "gradient_booster", dict, "learner"))
    n_features = _sizes(_of(content, "learner_model_param", dict, "learner"))
    objective = _of(content, "objective", dict, "learner")
    _of(objective, "name", str, "objective")
    _check_names(content, n_features)
    trees = _of(model, "trees", list, "model")
    _check_counts(model, len(trees))
    _demand(
        weights is None or _are_finite(weights, len(trees)),
        "its weight_drop is not a finite number a tree",
    )
    splits = _check_trees(trees, n_features)
    is_categorical = _check_categories(trees) or any(_of_cats(model))
    return Learner(
        content=content,
        model=model,
        n_features=n_features,
        booster=booster,
        is_known=_is_known(found, model, trees, objective) and not _STRANGE.search(data),
        is_categorical=is_categorical,
        is_finite=bool(np.isfinite(splits).all()),
    )


def _demand(holds: Any, what: str) -> None:
    if not holds:
        raise UnsoundError(what)


def _of(owner: Any, name: str, kind: type, what: str) -> Any:
    """What an object of JSON has under a name."""
    found = owner.get(name) if isinstance(owner, dict) else None
    _demand(type(found) is kind, f"{what} has no {name}, or one of another kind")
    return found


def _are(values: Any, kinds: Iterable[type]) -> bool:
    """Whether it is a list of nothing but these."""
    return type(values) is list and set(map(type, values)) <= set(kinds)


def _are_finite(values: Any, size: int) -> bool:
    return _are(values, (float,)) and len(values) == size and all(map(math.isfinite, values))


def _whole(owner: Mapping[str, Any], name: str, usual: str | None = None) -> int:
    """A number that xgboost wrote as text."""
    text = owner.get(name, usual)
    _demand(
        isinstance(text, str) and re.fullmatch(r"-?[0-9]{1,10}", text),
        f"its {name} is not a number of few digits",
    )
    return int(str(text))


def _check_real(text: Any, name: str) -> None:
    _demand(
        isinstance(text, str) and _NUMBER.fullmatch(text) and abs(float(text)) <= MOST_REAL,
        f"its {name} is not a finite number",
    )


def _booster(found: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """Name of the booster, its model, and the weights of its trees, None where there are none."""
    name = _of(found, "name", str, "gradient_booster")
    if name == "gblinear":
        raise OtherKindError("a linear model (gblinear), which xgboost can't score in place")
    _demand(name in {"gbtree", "dart"}, f"its booster {name[:50]!r} is not known")
    if name == "gbtree":
        return name, _of(found, "model", dict, "gradient_booster"), None
    weights = _of(found, "weight_drop", list, "gradient_booster")
    inner = _of(found, "gbtree", dict, "gradient_booster")
    return name, _of(inner, "model", dict, "gbtree"), weights


def _sizes(sizes: dict[str, Any]) -> int:
    """Number of features; there is one score a row, and it begins with a number."""
    number = _whole(sizes, "num_feature")
    _demand(1 <= number <= MOST_FEATURES, f"it takes {number} features; 1 to {MOST_FEATURES:,} can "
            "be done")  # fmt: skip
    n_classes, n_targets = _whole(sizes, "num_class", "0"), _whole(sizes, "num_target", "1")
    if n_classes > 1:
        raise OtherKindError("it tells several classes apart; one score a row is needed")
    if n_targets > 1:
        raise OtherKindError("it has several targets; one score a row is needed")
    _demand(n_classes >= 0 and n_targets == 1, "its numbers of classes and targets make no sense")
    _demand(_whole(sizes, "boost_from_average", "1") in {0, 1}, "its boost_from_average is no flag")
    base = sizes.get("base_score")
    is_list = isinstance(base, str) and base.startswith("[") and base.endswith("]")
    _check_real(base[1:-1] if is_list else base, "base_score")  # type: ignore[index]
    return number


def _check_names(content: dict[str, Any], n_features: int) -> None:
    for name in ("feature_names", "feature_types"):
        names = content.get(name, [])
        _demand(
            _are(names, (str,)) and len(names) in {0, n_features},
            f"its {name} are not {n_features} texts",
        )
    attributes = content.get("attributes", {})
    _demand(
        type(attributes) is dict and _are(list(attributes.values()), (str,)),
        "its attributes are not texts",
    )


def _check_counts(model: dict[str, Any], n_trees: int) -> None:
    """What is said of all trees: how many, of which class, in which round."""
    sizes = _of(model, "gbtree_model_param", dict, "model")
    _demand(_whole(sizes, "size_leaf_vector", "0") in {0, 1}, "its size_leaf_vector is not 0 or 1")
    _demand(
        _whole(sizes, "num_trees") == n_trees, f"its num_trees is not that of its {n_trees} trees"
    )
    a_round = _whole(sizes, "num_parallel_tree", "1")
    _demand(
        a_round > 0 and n_trees % a_round == 0,
        f"its num_parallel_tree {a_round} does not fit {n_trees} trees",
    )
    info = _of(model, "tree_info", list, "model")
    _demand(
        _are(info, (int,)) and len(info) == n_trees and not any(info),
        "its tree_info does not name the one class of each tree",
    )
    rounds = model.get("iteration_indptr", [0, n_trees])
    _demand(
        _are(rounds, (int,))
        and rounds[:1] == [0]
        and rounds[-1] == n_trees
        and rounds == sorted(rounds),
        "its iteration_indptr does not divide its trees",
    )


def _check_trees(trees: list[Any], n_features: int) -> Array:
    """See that all are trees; gives what their inner nodes compare with."""
    if not trees:
        return np.empty(0, np.float32)
    for number, tree in enumerate(trees):
        _check_tree(tree, number, n_features)
    left, right, feature = (
        _of_all(trees, name, np.int64) for name in ("left_children", "right_children",
                                                     "split_indices")  # fmt: skip
    )
    value = _of_all(trees, "split_conditions", np.float32)
    sizes = np.array([len(tree["left_children"]) for tree in trees], np.int64)
    root = np.cumsum(sizes) - sizes
    end = np.repeat(root + sizes, sizes)
    begin = np.repeat(root, sizes)
    is_seen = np.zeros(len(left), bool)
    level, n_levels = root, 0
    while len(level):
        n_levels += 1
        _demand(n_levels <= MOST_LEVELS, f"a tree has more than {MOST_LEVELS:,} levels")
        is_seen[level] = True
        inner = level[left[level] != -1]
        _demand((right[level[left[level] == -1]] == -1).all(), "a leaf of its trees has a child")
        children = np.concatenate([left[inner], right[inner]])
        limits = np.tile(end[inner] - begin[inner], 2)
        _demand(((children > 0) & (children < limits)).all(), "a node has a child that is not there")
        level = children + np.tile(begin[inner], 2)
        _demand(
            len(np.unique(level)) == len(level) and not is_seen[level].any(),
            "two ways lead to a node: it is no tree",
        )
    is_inner = is_seen & (left != -1)
    asked = feature[is_inner]
    _demand(((asked >= 0) & (asked < n_features)).all(), "a node asks for a feature that is not "
            "there")  # fmt: skip
    _demand(not np.isnan(value[is_seen]).any(), "a node has no number to compare with or to give")
    _demand(np.isfinite(value[is_seen & ~is_inner]).all(), "a leaf gives no finite number")
    return value[is_inner]


def _of_all(trees: list[Any], name: str, kind: type) -> Array:
    """What all trees list, one after the other."""
    with np.errstate(over="ignore"):  # which makes it infinite
        return np.array(list(chain.from_iterable(tree[name] for tree in trees)), kind)


def _check_tree(tree: Any, number: int, n_features: int) -> None:
    """See that the lists of a tree fit each other."""
    sizes = _of(tree, "tree_param", dict, "a tree")
    n_nodes = len(_of(tree, "left_children", list, "a tree"))
    _demand(
        0 < n_nodes == _whole(sizes, "num_nodes"),
        f"tree {number} has another number of nodes than it says",
    )
    _demand(tree.get("id") == number and type(tree["id"]) is int, f"tree {number} has another id")
    _demand(0 <= _whole(sizes, "num_deleted", "0") < n_nodes, f"tree {number} has no node left")
    _demand(_whole(sizes, "num_feature") == n_features, f"tree {number} takes other features")
    _demand(_whole(sizes, "size_leaf_vector", "0") in {0, 1}, f"tree {number} has several targets")
    for name, kinds in _A_NODE.items():
        values = tree.get(name)
        if values is None and name not in _NEEDED and name not in tree:
            continue
        _demand(
            _are(values, kinds) and len(values) == n_nodes,
            f"tree {number}: its {name} are not {n_nodes} {kinds[0].__name__} numbers",
        )
        _demand(
            kinds == (float,) or (min(values) >= -MOST_WHOLE and max(values) <= MOST_WHOLE),
            f"tree {number}: a number of its {name} has too many digits",
        )
    _check_parents(tree, number)


def _check_parents(tree: dict[str, Any], number: int) -> None:
    first, *others = tree.get("parents", [NO_PARENT])
    _demand(
        first in {NO_PARENT, -1} and all(0 <= one < len(others) + 1 for one in others),
        f"tree {number}: a node has a parent that is not there",
    )


def _check_categories(trees: list[Any]) -> bool:
    """See that nodes that ask for categories name them; gives whether there are any."""
    is_any = False
    for number, tree in enumerate(trees):
        nodes, begins, sizes, values = (
            tree.get(name, [])
            for name in ("categories_nodes", "categories_segments", "categories_sizes",
                         "categories")  # fmt: skip
        )
        asked = [node for node, kind in enumerate(tree.get("split_type", ())) if kind]
        if not (asked or nodes or begins or sizes or values):
            continue
        is_any = True
        _demand(
            all(_are(some, (int,)) for some in (nodes, begins, sizes, values))
            and set(tree["split_type"]) <= {0, 1}
            and nodes == asked
            and len(nodes) == len(begins) == len(sizes)
            and all(size > 0 for size in sizes)
            and [*begins, len(values)] == [0, *accumulate(sizes)]
            and all(0 <= value < MOST_CATEGORY for value in values),
            f"tree {number}: its categories do not fit its nodes",
        )
    return is_any


def _of_cats(model: dict[str, Any]) -> Iterable[Any]:
    """What is said of the categories of all trees, if anything."""
    cats = model.get("cats", {})
    _demand(type(cats) is dict, "its cats are of another kind")
    return (value for value in cats.values() if value)


def _is_known(
    found: dict[str, Any], model: dict[str, Any], trees: list[Any], objective: dict[str, Any]
) -> bool:
    """Whether it has nothing but what is checked here."""
    learner = found["learner"]
    places = [
        ("the model", found),
        ("learner", learner),
        ("learner_model_param", learner["learner_model_param"]),
        ("model", model),
        ("gbtree_model_param", model["gbtree_model_param"]),
    ]
    for tree in trees:
        places += [("tree", tree), ("tree_param", tree["tree_param"])]
    factors = objective.get("reg_loss_param", {"scale_pos_weight": "1"})
    is_plain = type(factors) is dict and set(factors) == {"scale_pos_weight"}
    if is_plain:
        _check_real(factors["scale_pos_weight"], "scale_pos_weight")
    return (
        is_plain
        and set(objective) <= {"name", "reg_loss_param"}
        and all(set(owner) <= _KNOWN[what] for what, owner in places)
    )
