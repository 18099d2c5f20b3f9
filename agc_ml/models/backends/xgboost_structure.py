"""Consistency checks of the JSON of an xgboost model, before xgboost reads it.

xgboost trusts its input: a missing child, feature or category is looked up in other memory, and a
cycle is followed for ever.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.models.backends.xgboost_nodes import (
    InvalidModelError,
    check_categories,
    check_trees,
    integer,
    is_list_of,
    member,
    require,
)
from agc_ml.models.model_files import MOST_FEATURES, UnreadableError, parse_json

MOST_REAL: Final = 3.4e38
"""Largest number of single precision."""

_NUMBER: Final = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_UNUSUAL: Final = re.compile(rb"[0-9.]{25}|[0-9][eE][+-]?[0-9]{3}")
"""Numbers that xgboost does not write; it may parse them differently."""

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
        "base_score",
        "boost_from_average",
        "num_class",
        "num_feature",
        "num_target",
    },
    "gbtree_model_param": {"num_parallel_tree", "num_trees", "size_leaf_vector"},
    "tree_param": {"num_deleted", "num_feature", "num_nodes", "size_leaf_vector"},
    "model": {"cats", "gbtree_model_param", "iteration_indptr", "tree_info", "trees"},
    "tree": {
        "base_weights",
        "categories",
        "categories_nodes",
        "categories_segments",
        "categories_sizes",
        "default_left",
        "id",
        "leaf_child_counts",
        "left_children",
        "loss_changes",
        "parents",
        "right_children",
        "split_conditions",
        "split_indices",
        "split_type",
        "sum_hessian",
        "tree_param",
    },
}
"""Fields that are checked here, by object."""


class UnsupportedModelError(ValueError):
    """A model, perhaps valid, that does not give one score a row."""


class ParsedModel(NamedTuple):
    """Content of an xgboost model, checked.

    Attributes
    ----------
    learner
        The JSON under ``learner``.
    model
        Its trees, and their common parameters.
    n_features
        Number of features.
    objective
        Name of the objective.
    booster
        ``gbtree``, or ``dart``, with a weight for each tree.
    is_known
        True if every field is checked here; unknown ones are left to xgboost.
    is_categorical
        True if it tests categories.
    is_finite
        True if all thresholds are finite.
    """

    learner: dict[str, Any]
    model: dict[str, Any]
    n_features: int
    objective: str
    booster: str
    is_known: bool
    is_categorical: bool
    is_finite: bool

    @property
    def is_fully_checked(self) -> bool:
        """Return True if nothing in it is left to xgboost's own checks."""
        return (
            self.booster == "gbtree"
            and self.is_known
            and self.is_finite
            and not self.is_categorical
        )


def is_json(data: bytes) -> bool:
    """Return True if xgboost would parse a model as JSON, not as UBJ."""
    return data[:1] != b"{" or not data[1:2].isalpha()


def read(data: bytes) -> ParsedModel:
    """Parse a model, and check that it is consistent.

    Raises
    ------
    InvalidModelError
        It is not consistent.
    UnsupportedModelError
        It does not give one score a row.
    """
    if data[:1] != b"{":
        raise InvalidModelError("it is neither JSON nor UBJ of xgboost, or truncated")
    try:
        content = parse_json(data)
    except UnreadableError as error:
        raise InvalidModelError(str(error)) from error
    learner = member(content, "learner", dict, "the model")
    version = content.get("version", [])
    is_version = is_list_of(version, (int,)) and len(version) in {0, 3}
    require(is_version and not set(version) - set(range(1000)), "its version is invalid")
    # Check outer objects first: the checks of inner ones rely on their sizes.
    booster, model, weights = _booster(member(learner, "gradient_booster", dict, "learner"))
    n_features = _n_features(member(learner, "learner_model_param", dict, "learner"))
    objective = member(learner, "objective", dict, "learner")
    objective_name = member(objective, "name", str, "objective")
    _check_texts(learner, n_features)
    trees = member(model, "trees", list, "model")
    _check_counts(model, len(trees))
    require(
        weights is None or _are_finite(weights, len(trees)),
        "its weight_drop is not a finite number a tree",
    )
    thresholds = check_trees(trees, n_features)
    return ParsedModel(
        learner=learner,
        model=model,
        n_features=n_features,
        objective=objective_name,
        booster=booster,
        is_categorical=check_categories(trees) or _has_categories(model),
        is_known=_is_known(content, model, trees, objective) and not _UNUSUAL.search(data),
        is_finite=bool(np.isfinite(thresholds).all()),
    )


def _are_finite(values: Any, size: int) -> bool:
    return is_list_of(values, (float,)) and len(values) == size and all(map(math.isfinite, values))


def _check_real(text: Any, name: str) -> None:
    require(
        isinstance(text, str) and _NUMBER.fullmatch(text) and abs(float(text)) <= MOST_REAL,
        f"its {name} is not a finite number",
    )


def _booster(content: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """Name of the booster, its model, and the weights of its trees, None for gbtree."""
    name = member(content, "name", str, "gradient_booster")
    if name == "gblinear":
        raise UnsupportedModelError("a linear model (gblinear), which xgboost can't score in place")
    require(name in {"gbtree", "dart"}, f"its booster {name[:50]!r} is unknown")
    if name == "gbtree":
        return name, member(content, "model", dict, "gradient_booster"), None
    weights = member(content, "weight_drop", list, "gradient_booster")
    inner = member(content, "gbtree", dict, "gradient_booster")
    return name, member(inner, "model", dict, "gbtree"), weights


def _n_features(sizes: dict[str, Any]) -> int:
    """Number of features, of a model that gives one score a row, starting from a number."""
    n_features = integer(sizes, "num_feature")
    require(
        1 <= n_features <= MOST_FEATURES,
        f"it takes {n_features} features; 1 to {MOST_FEATURES:,} are supported",
    )
    n_classes, n_targets = integer(sizes, "num_class", "0"), integer(sizes, "num_target", "1")
    if n_classes > 1:
        raise UnsupportedModelError("it has several classes; one score a row is needed")
    if n_targets > 1:
        raise UnsupportedModelError("it has several targets; one score a row is needed")
    require(n_classes >= 0 and n_targets == 1, "its numbers of classes and targets are invalid")
    is_flag = integer(sizes, "boost_from_average", "1") in {0, 1}
    require(is_flag, "its boost_from_average is not 0 or 1")
    base = sizes.get("base_score")
    is_list = isinstance(base, str) and base.startswith("[") and base.endswith("]")
    _check_real(base[1:-1] if is_list else base, "base_score")  # type: ignore[index]
    return n_features


def _check_texts(learner: dict[str, Any], n_features: int) -> None:
    for name in ("feature_names", "feature_types"):
        names = learner.get(name, [])
        require(
            is_list_of(names, (str,)) and len(names) in {0, n_features},
            f"its {name} are not {n_features} texts",
        )
    attributes = learner.get("attributes", {})
    require(
        type(attributes) is dict and is_list_of(list(attributes.values()), (str,)),
        "its attributes are not texts",
    )


def _check_counts(model: dict[str, Any], n_trees: int) -> None:
    """Check the numbers of trees, classes and rounds against the trees."""
    sizes = member(model, "gbtree_model_param", dict, "model")
    is_single = integer(sizes, "size_leaf_vector", "0") in {0, 1}
    require(is_single, "its size_leaf_vector is not 0 or 1")
    is_right = integer(sizes, "num_trees") == n_trees
    require(is_right, f"its num_trees is not that of its {n_trees} trees")
    per_round = integer(sizes, "num_parallel_tree", "1")
    require(
        per_round > 0 and n_trees % per_round == 0,
        f"its num_parallel_tree {per_round} does not fit {n_trees} trees",
    )
    info = member(model, "tree_info", list, "model")
    require(
        is_list_of(info, (int,)) and len(info) == n_trees and not any(info),
        "its tree_info does not name the one class of each tree",
    )
    rounds = model.get("iteration_indptr", [0, n_trees])
    require(
        is_list_of(rounds, (int,))
        and rounds[:1] == [0]
        and rounds[-1] == n_trees
        and rounds == sorted(rounds),
        "its iteration_indptr does not divide its trees",
    )


def _has_categories(model: dict[str, Any]) -> bool:
    categories = model.get("cats", {})
    require(type(categories) is dict, "its cats are of another type")
    return any(categories.values())


def _is_known(
    content: dict[str, Any], model: dict[str, Any], trees: list[Any], objective: dict[str, Any]
) -> bool:
    """Return True if all fields are checked here."""
    learner = content["learner"]
    objects = [
        ("the model", content),
        ("learner", learner),
        ("learner_model_param", learner["learner_model_param"]),
        ("model", model),
        ("gbtree_model_param", model["gbtree_model_param"]),
    ]
    for tree in trees:
        objects += [("tree", tree), ("tree_param", tree["tree_param"])]
    factors = objective.get("reg_loss_param", {"scale_pos_weight": "1"})
    is_plain = type(factors) is dict and set(factors) == {"scale_pos_weight"}
    if is_plain:
        _check_real(factors["scale_pos_weight"], "scale_pos_weight")
    return (
        is_plain
        and set(objective) <= {"name", "reg_loss_param"}
        and all(set(fields) <= _KNOWN[name] for name, fields in objects)
    )
