"""Whether the JSON of a model of xgboost is what it says: before xgboost sees it.

xgboost believes what it reads: a child, a feature or a category that is not there is looked up in
memory of something else, and a circle is walked for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.models.backends.xgboost_nodes import (
    UnsoundError,
    are,
    check_categories,
    check_trees,
    demand,
    of,
    whole,
)
from agc_ml.models.model_files import NotTakenError, parse_json

MOST_FEATURES: Final = 1_000_000
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
        """Return whether it is of the kind that is checked through and through."""
        return (
            self.booster == "gbtree"
            and self.is_known
            and self.is_finite
            and not self.is_categorical
        )


def is_json(data: bytes) -> bool:
    """Return whether xgboost would take a model for JSON, not for its binary form."""
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
    content = of(found, "learner", dict, "the model")
    version = found.get("version", [])
    demand(
        are(version, (int,)) and len(version) in {0, 3} and not set(version) - set(range(1000)),
        "its version is no version",
    )
    booster, model, weights = _booster(of(content, "gradient_booster", dict, "learner"))
    n_features = _sizes(of(content, "learner_model_param", dict, "learner"))
    objective = of(content, "objective", dict, "learner")
    of(objective, "name", str, "objective")
    _check_names(content, n_features)
    trees = of(model, "trees", list, "model")
    _check_counts(model, len(trees))
    demand(
        weights is None or _are_finite(weights, len(trees)),
        "its weight_drop is not a finite number a tree",
    )
    splits = check_trees(trees, n_features)
    is_categorical = check_categories(trees) or any(_of_cats(model))
    return Learner(
        content=content,
        model=model,
        n_features=n_features,
        booster=booster,
        is_known=_is_known(found, model, trees, objective) and not _STRANGE.search(data),
        is_categorical=is_categorical,
        is_finite=bool(np.isfinite(splits).all()),
    )


def _are_finite(values: Any, size: int) -> bool:
    return are(values, (float,)) and len(values) == size and all(map(math.isfinite, values))


def _check_real(text: Any, name: str) -> None:
    demand(
        isinstance(text, str) and _NUMBER.fullmatch(text) and abs(float(text)) <= MOST_REAL,
        f"its {name} is not a finite number",
    )


def _booster(found: dict[str, Any]) -> tuple[str, dict[str, Any], Any]:
    """Name of the booster, its model, and the weights of its trees, None where there are none."""
    name = of(found, "name", str, "gradient_booster")
    if name == "gblinear":
        raise OtherKindError("a linear model (gblinear), which xgboost can't score in place")
    demand(name in {"gbtree", "dart"}, f"its booster {name[:50]!r} is not known")
    if name == "gbtree":
        return name, of(found, "model", dict, "gradient_booster"), None
    weights = of(found, "weight_drop", list, "gradient_booster")
    inner = of(found, "gbtree", dict, "gradient_booster")
    return name, of(inner, "model", dict, "gbtree"), weights


def _sizes(sizes: dict[str, Any]) -> int:
    """Number of features; there is one score a row, and it begins with a number."""
    number = whole(sizes, "num_feature")
    demand(
        1 <= number <= MOST_FEATURES,
        f"it takes {number} features; 1 to {MOST_FEATURES:,} can be done",
    )
    n_classes, n_targets = whole(sizes, "num_class", "0"), whole(sizes, "num_target", "1")
    if n_classes > 1:
        raise OtherKindError("it tells several classes apart; one score a row is needed")
    if n_targets > 1:
        raise OtherKindError("it has several targets; one score a row is needed")
    demand(n_classes >= 0 and n_targets == 1, "its numbers of classes and targets make no sense")
    demand(whole(sizes, "boost_from_average", "1") in {0, 1}, "its boost_from_average is no flag")
    base = sizes.get("base_score")
    is_list = isinstance(base, str) and base.startswith("[") and base.endswith("]")
    _check_real(base[1:-1] if is_list else base, "base_score")  # type: ignore[index]
    return number


def _check_names(content: dict[str, Any], n_features: int) -> None:
    for name in ("feature_names", "feature_types"):
        names = content.get(name, [])
        demand(
            are(names, (str,)) and len(names) in {0, n_features},
            f"its {name} are not {n_features} texts",
        )
    attributes = content.get("attributes", {})
    demand(
        type(attributes) is dict and are(list(attributes.values()), (str,)),
        "its attributes are not texts",
    )


def _check_counts(model: dict[str, Any], n_trees: int) -> None:
    """Check the counts of all trees, their classes and rounds."""
    sizes = of(model, "gbtree_model_param", dict, "model")
    demand(whole(sizes, "size_leaf_vector", "0") in {0, 1}, "its size_leaf_vector is not 0 or 1")
    demand(
        whole(sizes, "num_trees") == n_trees, f"its num_trees is not that of its {n_trees} trees"
    )
    a_round = whole(sizes, "num_parallel_tree", "1")
    demand(
        a_round > 0 and n_trees % a_round == 0,
        f"its num_parallel_tree {a_round} does not fit {n_trees} trees",
    )
    info = of(model, "tree_info", list, "model")
    demand(
        are(info, (int,)) and len(info) == n_trees and not any(info),
        "its tree_info does not name the one class of each tree",
    )
    rounds = model.get("iteration_indptr", [0, n_trees])
    demand(
        are(rounds, (int,))
        and rounds[:1] == [0]
        and rounds[-1] == n_trees
        and rounds == sorted(rounds),
        "its iteration_indptr does not divide its trees",
    )


def _of_cats(model: dict[str, Any]) -> Iterable[Any]:
    """Categories of all trees, if there are any."""
    cats = model.get("cats", {})
    demand(type(cats) is dict, "its cats are of another kind")
    return (value for value in cats.values() if value)


def _is_known(
    found: dict[str, Any], model: dict[str, Any], trees: list[Any], objective: dict[str, Any]
) -> bool:
    """Return whether it has nothing but what is checked here."""
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
