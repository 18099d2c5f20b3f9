"""Models of xgboost that are not what they say: refused in a line, before xgboost sees them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import forest

from agc_ml.errors import ModelError
from agc_ml.models import model_files
from agc_ml.models.backends import (
    isolated_loading,
    xgboost_backend,
    xgboost_nodes,
    xgboost_structure,
)
from agc_ml.models.content import content_of
from agc_ml.models.loading import load_model
from agc_ml.models.model import Model, notes

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return forest(tmp_path_factory.mktemp("sound") / "m.json", n_features=4).read_bytes()


def edited(data: bytes, edit: Edit) -> bytes:
    content = json.loads(data)
    edit(content)
    return json.dumps(content).encode()


def refusal(data: bytes, folder: Path, name: str = "m.json") -> str:
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    line = str(caught.value)
    assert line.startswith(f"model {path}: ")
    assert "\n" not in line
    return line


def put(*where: str | int, value: Any) -> Edit:
    """Put a value where the names lead, from the learner on."""

    def edit(content: dict[str, Any]) -> None:
        owner: Any = content["learner"]
        for name in where[:-1]:
            owner = owner[name]
        owner[where[-1]] = value

    return edit


MODEL = ("gradient_booster", "model")
TREE = (*MODEL, "trees", 0)
SIZES = ("learner_model_param",)
PARAM = (*MODEL, "gbtree_model_param")


def of_tree(**values: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["learner"]["gradient_booster"]["model"]["trees"][0].update(values)

    return edit


def at(field: str, node: int, value: Any) -> Edit:
    return put(*TREE, field, node, value=value)


def with_features(number: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        put(*SIZES, "num_feature", value=number)(content)
        for tree in content["learner"]["gradient_booster"]["model"]["trees"]:
            tree["tree_param"]["num_feature"] = number

    return edit


def in_circle(content: dict[str, Any]) -> None:
    at("left_children", 1, 1)(content)
    at("right_children", 1, 1)(content)


def with_categories(**changes: Any) -> Edit:
    """Ask for a category at the root; ``changes`` are what is wrong with it."""

    def edit(content: dict[str, Any]) -> None:
        at("split_type", 0, 1)(content)
        right = {"_nodes": [0], "_segments": [0], "_sizes": [2], "": [1, 3]} | changes
        of_tree(**{f"categories{part}": values for part, values in right.items()})(content)

    return edit


def dart(weights: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        booster = content["learner"]["gradient_booster"]
        inner = {"name": "gbtree", "model": booster["model"]}
        content["learner"]["gradient_booster"] = {
            "name": "dart",
            "gbtree": inner,
            "weight_drop": weights,
        }

    return edit


NO_CHILD = "a node has a child that does not exist"
CATEGORIES = "its categories do not fit its nodes"
NUMBERS = "is not a number of few digits"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (at("left_children", 0, 10**9), NO_CHILD),
        (at("left_children", 0, -2), NO_CHILD),
        (at("left_children", 1, 0), NO_CHILD),
        (at("left_children", 0, 10**30), "left_children has too many digits"),
        (at("left_children", 0, 1.0), "left_children are not .* int numbers"),
        (at("left_children", 0, "1"), "left_children are not .* int numbers"),
        (at("left_children", 0, None), "left_children are not .* int numbers"),
        (at("left_children", 0, True), "left_children are not .* int numbers"),
        (at("left_children", 0, -1), "a leaf of its trees has a child"),
        (in_circle, "two paths lead to one node"),
        (at("right_children", 0, 1), "two paths lead to one node"),
        (at("parents", 1, 10**30), "parents has too many digits"),
        (at("parents", 1, -1), "a node has a parent that does not exist"),
        (at("parents", 1, xgboost_nodes.NO_PARENT), "a node has a parent that does not exist"),
        (at("parents", -1, xgboost_nodes.NO_PARENT), "a node has a parent that does not exist"),
        (at("parents", 1, 10**6), "a node has a parent that does not exist"),
        (at("split_indices", 0, 10**9), "a node tests a feature that does not exist"),
        (at("split_indices", 0, -1), "a node tests a feature that does not exist"),
        (at("split_conditions", 0, float("nan")), "no number to compare with"),
        (at("split_conditions", -1, float("inf")), "a leaf gives no finite number"),
        (at("split_conditions", -1, 1e300), "a leaf gives no finite number"),
        (at("split_conditions", 0, "0.5"), "split_conditions are not .* float numbers"),
        (of_tree(left_children=[1]), "tree 0 has another number of nodes than it says"),
        (of_tree(left_children=7), "a tree has no left_children, or one of another type"),
        (of_tree(default_left=[0]), "default_left are not .* int numbers"),
        (of_tree(loss_changes=None), "loss_changes are not .* float numbers"),
        (of_tree(id=3), "tree 0 has another id"),
        (of_tree(tree_param={}), "its num_nodes is not a number"),
        (put(*TREE, "tree_param", "num_nodes", value="1000000000"), "number of nodes"),
        (put(*TREE, "tree_param", "num_nodes", value="9" * 5000), NUMBERS),
        (put(*TREE, "tree_param", "num_deleted", value="-5"), "tree 0 has no node left"),
        (put(*TREE, "tree_param", "num_feature", value="3"), "tree 0 takes other features"),
        (put(*TREE, "tree_param", "size_leaf_vector", value="2"), "tree 0 has several targets"),
        (put(*MODEL, "trees", value=[[]]), "num_trees is not that of its 1 trees"),
        (put(*MODEL, "trees", 3, value=[]), "a tree has no tree_param"),
        (put(*MODEL, "trees", 3, value=None), "a tree has no tree_param"),
        (put(*MODEL, "tree_info", value=[10**6] * 10), "tree_info does not name the one class"),
        (put(*MODEL, "tree_info", value=[0]), "tree_info does not name the one class"),
        (put(*MODEL, "iteration_indptr", value=[0, 2]), "iteration_indptr does not divide"),
        (put(*MODEL, "iteration_indptr", value=[0, 9, 2, 10]), "iteration_indptr does not"),
        (put(*MODEL, "iteration_indptr", value=[]), "iteration_indptr does not divide"),
        (put(*MODEL, "cats", value=3), "its cats are of another type"),
        (put(*PARAM, "num_trees", value="2000000000"), "num_trees is not that of its 10 trees"),
        (put(*PARAM, "num_parallel_tree", value="0"), "num_parallel_tree 0 does not fit 10"),
        (put(*PARAM, "num_parallel_tree", value="3"), "num_parallel_tree 3 does not fit 10"),
        (put(*PARAM, "num_parallel_tree", value="-1"), "num_parallel_tree -1 does not fit"),
        (with_features("0"), "it takes 0 features"),
        (with_features("-3"), "it takes -3 features"),
        (with_features("1"), "a node tests a feature that does not exist"),
        (with_features("10000000"), "it takes 10000000 features; 1 to 1,000,000 are supported"),
        (with_features("2000000000"), "it takes 2000000000 features"),
        (with_features("\N{ARABIC-INDIC DIGIT FOUR}"), "num_feature " + NUMBERS),
        (with_features("4_0"), "num_feature " + NUMBERS),
        (put(*SIZES, "num_feature", value=4), "num_feature " + NUMBERS),
        (put(*SIZES, "num_target", value="-1"), "numbers of classes and targets are invalid"),
        (put(*SIZES, "num_target", value="0"), "numbers of classes and targets are invalid"),
        (put(*SIZES, "num_target", value="3"), "it has several targets"),
        (put(*SIZES, "num_class", value="-1"), "numbers of classes and targets are invalid"),
        (put(*SIZES, "num_class", value="1000000000"), "it has several classes"),
        (put(*SIZES, "base_score", value="nan"), "base_score is not a finite number"),
        (put(*SIZES, "base_score", value="[0.5,0.5]"), "base_score is not a finite number"),
        (put(*SIZES, "base_score", value="[1e99]"), "base_score is not a finite number"),
        (put(*SIZES, "base_score", value=0.5), "base_score is not a finite number"),
        (put(*SIZES, "base_score", value="2"), "xgboost can't read it .*base_score must be in"),
        (put(*SIZES, "boost_from_average", value="7"), "boost_from_average is not 0 or 1"),
        (put("objective", "name", value="x:y"), "xgboost can't read it .*Unknown objective"),
        (put("objective", "name", value=7), "objective has no name"),
        (put("objective", value=[]), "learner has no objective"),
        (put("objective", "reg_loss_param", value={"scale_pos_weight": "inf"}), "scale_pos_weight"),
        (put("feature_names", value=["a"]), "feature_names are not 4 texts"),
        (put("feature_types", value=[1, 2, 3, 4]), "feature_types are not 4 texts"),
        (put("attributes", value={"best_iteration": 3}), "its attributes are not texts"),
        (put("gradient_booster", "name", value="other"), "its booster 'other' is unknown"),
        (put("gradient_booster", "name", value="gblinear"), "a linear model"),
        (put("gradient_booster", value={"name": "gbtree"}), "gradient_booster has no model"),
        (dart([1.0]), "weight_drop is not a finite number a tree"),
        (dart([float("nan")] * 10), "weight_drop is not a finite number a tree"),
        (dart([1] * 10), "weight_drop is not a finite number a tree"),
        (dart(None), "gradient_booster has no weight_drop"),
        (with_categories(_segments=[10**9], _sizes=[10**9]), CATEGORIES),
        (with_categories(_sizes=[3]), CATEGORIES),
        (with_categories(_segments=[1]), CATEGORIES),
        (with_categories(_sizes=[0], **{"": []}), CATEGORIES),
        (with_categories(**{"": [1, 2**31 - 1]}), CATEGORIES),
        (with_categories(**{"": [-1, 3]}), CATEGORIES),
        (with_categories(_nodes=[1]), CATEGORIES),
        (with_categories(_nodes=[]), CATEGORIES),
        (with_categories(_nodes=None), CATEGORIES),
        (at("split_type", 0, 2), CATEGORIES),
        (lambda content: content.pop("learner"), "the model has no learner"),
        (lambda content: content.update(version=[3]), "its version is invalid"),
        (lambda content: content.update(version="3"), "its version is invalid"),
    ],
)
def test_what_does_not_hold_together(
    edit: Edit, message: str, sound: bytes, tmp_path: Path
) -> None:
    assert re.search(message, refusal(edited(sound, edit), tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"num_class":"0"', b'"num_class":"0","num_class":"0"', "names 'num_class' twice"),
        (b'"version":', b'"version":[1,0,0],"version":', "names 'version' twice"),
        (b'"attributes":{}', b'"attributes":' + b"[" * 100_000, "its JSON is nested too deeply"),
        (b'"attributes":{}', b'"attributes":' + b"[" * 500 + b"]" * 500, "attributes are not"),
        (b'"version":[3', b'"version":[' + b"3" * 5000, "it is not JSON, or truncated: Exceeds"),
        (b'"version":[3', b'"version":[' + b"3" * 4000, "its version is invalid"),
        (b'{"learner"', b'{"learner\xff"', "it is not JSON, or truncated: 'utf-8' codec"),
        (b'{"learner"', b'\xef\xbb\xbf{"learner"', "it is neither JSON nor UBJ"),
        (b'{"learner"', b' {"learner"', "it is neither JSON nor UBJ"),
        (b'{"learner"', b"", "it is neither JSON nor UBJ"),
        (b'"id":0', b'"id":-0.0', "tree 0 has another id"),
    ],
)
def test_what_is_not_its_json(
    old: bytes, new: bytes, message: str, sound: bytes, tmp_path: Path
) -> None:
    assert old in sound
    assert message in refusal(sound.replace(old, new, 1), tmp_path)


UNREACHED: dict[str, Any] = {
    "left_children": [-1, 2, -1, -1],
    "right_children": [-1, 3, -1, -1],
    "split_indices": [0, 0, 0, 0],
    "split_conditions": [0.25, 0.5, 1.0, 2.0],
    "parents": [xgboost_nodes.NO_PARENT, 0, 1, 1],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, ""),
        ({"left_children": [-1, 9, -1, -1]}, NO_CHILD),
        ({"right_children": [-1, -5, -1, -1]}, NO_CHILD),
        ({"split_indices": [0, 10**6, 0, 0]}, "a node tests a feature that does not exist"),
        ({"split_conditions": [0.25, float("nan"), 1.0, 2.0]}, "no number to compare with"),
    ],
)
def test_nodes_that_no_way_leads_to(
    change: dict[str, Any], message: str, sound: bytes, tmp_path: Path
) -> None:
    others: dict[str, Any] = {
        **dict.fromkeys(("default_left", "split_type"), [0] * 4),
        **dict.fromkeys(("base_weights", "loss_changes", "sum_hessian"), [0.0] * 4),
        "tree_param": {
            "num_deleted": "0",
            "num_feature": "4",
            "num_nodes": "4",
            "size_leaf_vector": "1",
        },
    }
    data = edited(sound, of_tree(**{**UNREACHED, **others, **change}))
    if message:
        assert message in refusal(data, tmp_path)
        return
    (tmp_path / "m.json").write_bytes(data)
    rows = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    scores = load_model(tmp_path / "m.json").members[0](rows)
    np.testing.assert_array_equal(scores, by_xgboost(tmp_path / "m.json", rows))


def test_trees_of_very_many_levels(sound: bytes, tmp_path: Path) -> None:
    """xgboost calls itself once a level."""
    content = json.loads(edited(sound, lambda _: None))
    model = content["learner"]["gradient_booster"]["model"]
    for n_levels, is_taken in (
        (xgboost_nodes.MOST_LEVELS, True),
        (xgboost_nodes.MOST_LEVELS + 1, False),
    ):
        n = 2 * n_levels - 1
        inner = np.arange(0, n, 2)[1:] - 2
        inner[0] = 0
        left, right, parents = np.full((3, n), -1)
        left[inner], right[inner] = np.arange(1, n, 2), np.arange(2, n, 2)
        parents[:] = xgboost_nodes.NO_PARENT
        parents[left[inner]] = parents[right[inner]] = inner
        zeros: dict[str, Any] = dict.fromkeys(("base_weights", "loss_changes"), [0.0] * n)
        model["trees"][0].update(
            zeros,
            left_children=left.tolist(),
            right_children=right.tolist(),
            parents=parents.tolist(),
            split_conditions=[0.5] * n,
            sum_hessian=[0.0] * n,
            **{name: [0] * n for name in ("split_indices", "default_left", "split_type")},
        )
        model["trees"][0]["tree_param"]["num_nodes"] = str(n)
        (tmp_path / "deep.json").write_text(json.dumps(content))
        if is_taken:
            rows = np.ones((3, 4), np.float32)
            with ThreadPoolExecutor(1) as pool:  # whose stack is small
                found = pool.submit(load_model, tmp_path / "deep.json").result()
            model_of = found.members[0]
            np.testing.assert_array_equal(model_of(rows), by_xgboost(tmp_path / "deep.json", rows))
        else:
            with pytest.raises(ModelError, match="a tree has more than 5,000 levels"):
                load_model(tmp_path / "deep.json")


def by_xgboost(path: Path, rows: np.ndarray) -> np.ndarray:
    import xgboost  # noqa: PLC0415 - heavy

    booster = xgboost.Booster()
    booster.load_model(path)
    return np.asarray(booster.inplace_predict(rows))


def as_of_xgboost_1(content: dict[str, Any]) -> None:
    """As xgboost 1.0 wrote it."""
    content["version"] = [1, 0, 2]
    learner = content["learner"]
    learner.pop("feature_names")
    learner.pop("feature_types")
    learner["learner_model_param"] = {
        "base_score": "0.500000",
        "num_class": "0",
        "num_feature": learner["learner_model_param"]["num_feature"],
    }
    model = learner["gradient_booster"]["model"]
    model.pop("cats", None)
    model.pop("iteration_indptr", None)
    model["gbtree_model_param"] = {"num_trees": "10", "size_leaf_vector": "0"}
    for tree in model["trees"]:
        for name in [name for name in tree if name.startswith(("categories", "split_type"))]:
            tree.pop(name)
        tree["default_left"] = [value == 1 for value in tree["default_left"]]
        tree["leaf_child_counts"] = [0] * len(tree["parents"])
        tree["tree_param"].pop("num_deleted")


SOUND: dict[str, Edit] = {
    "as it is": lambda _: None,
    "of xgboost 1": as_of_xgboost_1,
    "dart": dart([1.0] * 9 + [0.25]),
    "categories": with_categories(),
    "an infinite threshold": at("split_conditions", 0, float("inf")),
    "something new": put("other", value={"a": 1}),
    "a million features": with_features("1000000"),
    "no trees": lambda content: content["learner"]["gradient_booster"]["model"].update(
        trees=[],
        tree_info=[],
        iteration_indptr=[0],
        gbtree_model_param={"num_parallel_tree": "1", "num_trees": "0"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*Found JSON model saved before XGBoost 1.6")
@pytest.mark.parametrize("kind", SOUND)
def test_what_holds_together_scores_as_xgboost(kind: str, sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(edited(sound, SOUND[kind]))
    model = load_model(path)
    assert isinstance(model, Model)
    rows = np.zeros((50, model.n_features), np.float32)
    rows[:, :4] = np.random.default_rng(2).normal(size=(50, 4)).round(1)
    np.testing.assert_array_equal(model(rows), by_xgboost(path, rows))
    content = content_of(model.sha256)
    assert content is not None
    assert content.golden is None or content.golden.rows.size <= xgboost_backend.GOLDEN_CELLS
    by_kernel = not any("scored by xgboost" in note for note in notes([model.sha256]))
    assert by_kernel == (kind in {"as it is", "of xgboost 1", "a million features"})


@pytest.mark.parametrize("gamma", [3.0, 1e9])
def test_what_training_pruned(gamma: float, tmp_path: Path) -> None:
    """Down to leaves that ask for nothing."""
    path = forest(tmp_path / "m.json", n_features=4, gamma=gamma, tree_method="exact")
    rows = np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32)
    model = load_model(path).members[0]
    np.testing.assert_array_equal(model(rows), by_xgboost(path, rows))


def test_a_plain_forest_needs_no_process_of_its_own(
    sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_loading, "_trial_failure", lambda *_: pytest.fail("tried apart"))
    (tmp_path / "m.json").write_bytes(edited(sound, put("attributes", value={"its": "own"})))
    load_model(tmp_path / "m.json")


@pytest.mark.parametrize("text", ["0." + "1" * 30, "1E-100", "1" * 30 + ".0"])
def test_numbers_that_xgboost_does_not_write_are_left_to_it(text: str, sound: bytes) -> None:
    found = re.search(rb'"split_conditions":\[([^,]+),', sound)
    assert found is not None
    data = sound.replace(found[1], text.encode(), 1)
    assert xgboost_structure.read(sound).is_fully_checked
    assert not xgboost_structure.read(data).is_fully_checked


def test_json_that_would_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few MB can take a hundred times as much; so can what is called like a card."""
    boxes = b'{"learner":[' + b"[]," * model_files.MOST_CONTAINERS + b"[]]}"
    assert "more than 3,000,000 arrays and objects" in refusal(boxes, tmp_path)
    (tmp_path / "model.json").write_bytes(boxes.replace(b"learner", b"models"))
    with pytest.raises(ModelError, match="more than 3,000,000 arrays and objects"):
        load_model(tmp_path)
    monkeypatch.setattr(model_files, "MOST_JSON_BYTES", 1000)
    assert "it is JSON of more than" in refusal(b"{" + b" " * 1000 + b"}", tmp_path)
