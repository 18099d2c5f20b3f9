"""The forest kernel gives the bits of xgboost, and refuses what it can't do."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from agc_ml.models.backends import forest
from agc_ml.models.backends.xgboost_file import read_xgboost

PARITIES = ("even", "odd")

# what the features of a permutation depend on: places in it
OF = [
    (3,),
    (0, 1),
    (0, 2),
    (1, 2),
    (3,),
    (0, 1),
    (0, 1, 2),
    (0, 1, 2),
    *[(i,) for i in range(4)] * 3,
]


def booster_of(content: bytes) -> Any:
    booster = xgboost.Booster()
    booster.load_model(bytearray(content))
    booster.set_param({"nthread": 1})
    return booster


def bits(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float32
    return values.view(np.uint32)


def check(content: bytes, rows: np.ndarray) -> forest.Forest:
    """Margins and predictions are those of xgboost."""
    booster, trees = booster_of(content), read_xgboost(content)
    margins = booster.inplace_predict(rows, predict_type="margin")
    np.testing.assert_array_equal(bits(forest.margins(trees, rows)), bits(margins))
    scores = booster.inplace_predict(rows)
    np.testing.assert_array_equal(bits(forest.scores(trees, rows)), bits(scores))
    return trees


def around(values: np.ndarray) -> np.ndarray:
    """Finite values and those one ulp off them."""
    with np.errstate(over="ignore"):
        near = [np.nextafter(values, np.float32(end)) for end in (-np.inf, np.inf)]
    every = np.concatenate([values, *near])
    return every[np.isfinite(every)]


def near_cuts(content: bytes, n: int) -> np.ndarray:
    """Rows at the thresholds and one ulp off them; features without any are zero."""
    learner = json.loads(content)["learner"]
    n_features = int(learner["learner_model_param"]["num_feature"])
    trees = learner["gradient_booster"]["model"]["trees"]
    left, feature, value = (
        np.concatenate([tree[field] for tree in trees])
        for field in ("left_children", "split_indices", "split_conditions")
    )
    rng = np.random.default_rng(1)
    rows = np.zeros((n, n_features), np.float32)
    for column in np.unique(feature[left >= 0]):
        at = value[(left >= 0) & (feature == column)].astype(np.float32)
        rows[:, column] = rng.choice(around(at), n)
    return rows


def events(features: np.ndarray, n_jets: int, n: int) -> np.ndarray:
    """Rows of made-up events: the permutations share values as jets and their pairs do."""
    rng = np.random.default_rng(n_jets)
    table = np.array([p for p in permutations(range(n_jets), 4) if p[0] > p[1]])
    rows = np.empty((n, len(table), len(OF)), np.float32)
    for column, places in enumerate(OF):
        of = np.ravel_multi_index(tuple(table[:, places].T), (n_jets,) * len(places))
        rows[:, :, column] = rng.choice(features[:, column], (n, n_jets ** len(places)))[:, of]
    return rows.reshape(-1, len(OF))


@pytest.fixture(scope="module", params=PARITIES)
def published(request: pytest.FixtureRequest, real_data: Path) -> bytes:
    return (real_data / f"model_{request.param}.json").read_bytes()


@pytest.fixture(scope="module")
def features(real_data: Path) -> np.ndarray:
    """Real rows: those of the reference."""
    file = real_data / "reference" / "ttbar_nominal_unroot_NanoAODv5_sample.json"
    listed = [event.get("features") for event in json.loads(file.read_text())["events"]]
    rows = [json.loads(one) if isinstance(one, str) else one for one in listed if one]
    return np.concatenate(rows).astype(np.float32)


def test_published_models_score_real_rows(published: bytes, features: np.ndarray) -> None:
    assert features.shape == (5460, 20)
    check(published, features)


@pytest.mark.parametrize("n_jets", [4, 5, 6])
def test_published_models_score_events(published: bytes, features: np.ndarray, n_jets: int) -> None:
    check(published, events(features, n_jets, 60))


def test_published_models_score_rows_without_structure(
    published: bytes, features: np.ndarray
) -> None:
    rng = np.random.default_rng(3)
    check(published, rng.permuted(features, axis=0))
    check(published, rng.normal(0, 1e3, (2000, 20)).astype(np.float32))
    check(published, np.full((3, 20), np.finfo(np.float32).max) * np.float32([[1], [-1], [0]]))


def test_published_models_score_rows_at_thresholds(published: bytes) -> None:
    check(published, near_cuts(published, 20_000))


def test_a_row_does_not_depend_on_its_neighbours(published: bytes, features: np.ndarray) -> None:
    trees = read_xgboost(published)
    together = forest.margins(trees, features)
    order = np.random.default_rng(2).permutation(len(features))
    np.testing.assert_array_equal(forest.margins(trees, features[order]), together[order])
    for n in (0, 1, 2, 63, 64, 65, 129):
        np.testing.assert_array_equal(forest.margins(trees, features[:n]), together[:n])


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(3000, 6)).astype(np.float32)
    rows[:, 2] = rows[:, 2].round(1)
    target = rows[:, 0] * rows[:, 1] + np.sin(3 * rows[:, 2]) + rng.normal(size=3000)
    return rows, (target > 0).astype(np.float32)


def trained(drawn: tuple[np.ndarray, np.ndarray], rounds: int = 20, **parameters: Any) -> bytes:
    data = xgboost.DMatrix(*drawn)
    defaults = {"objective": "binary:logistic", "nthread": 1, "seed": 1}
    return bytes(xgboost.train(defaults | parameters, data, rounds).save_raw("json"))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_depth": 1},
        {"max_depth": 14, "min_child_weight": 0, "eta": 0.05},
        {"max_depth": 0, "grow_policy": "lossguide", "max_leaves": 40},
        {"tree_method": "exact", "gamma": 2.0},  # prunes
        {"tree_method": "approx"},
        {"num_parallel_tree": 3, "subsample": 0.5},
        {"base_score": 0.3},
        {"base_score": 0.97},
        {"objective": "binary:logitraw", "base_score": 0.2},
        {"objective": "reg:logistic"},
        {"objective": "reg:squarederror"},
        {"objective": "reg:squarederror", "base_score": -17.3, "max_depth": 8},
        {"eta": 0.0},  # all stumps
        {"lambda": 1e4, "max_depth": 2},
    ],
    ids=str,
)
def test_models_of_any_kind(drawn: tuple[np.ndarray, np.ndarray], parameters: Any) -> None:
    content = trained(drawn, **parameters)
    trees = check(content, drawn[0])
    check(content, near_cuts(content, 1000))
    assert trees.objective == parameters.get("objective", "binary:logistic")
    assert trees.n_features == 6


def test_base_margins() -> None:
    rows = np.zeros((1, 2), np.float32)
    for probability in np.random.default_rng(0).uniform(0.001, 0.999, 40).astype(np.float32):
        check(model([STUMP], base_score=str(probability)), rows)


def test_many_cuts_of_a_feature() -> None:
    rng = np.random.default_rng(5)
    rows = rng.exponential(size=(6000, 2)).astype(np.float32)
    target = np.sin(50 * rows[:, 0]) + rows[:, 1] ** 2
    content = trained((rows, target), max_bin=1024, objective="reg:squarederror", max_depth=10)
    trees = check(content, rows)
    check(content, near_cuts(content, 5000))
    assert np.diff(trees.cuts.begin).max() > 600


def test_many_features() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(300, 2000)).astype(np.float32)
    content = trained((rows, (rows[:, 1500] > rows[:, 3]).astype(np.float32)), colsample_bytree=0.1)
    check(content, rows)


def test_all_trees_count_whatever_iteration_was_best(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    rows, target = drawn
    train, test = (
        xgboost.DMatrix(rows[part], target[part]) for part in (slice(500), slice(500, None))
    )
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1, "max_depth": 8},
        train,
        50,
        evals=[(test, "test")],
        early_stopping_rounds=5,
        verbose_eval=False,
    )
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    check(bytes(booster.save_raw("json")), rows)


def test_sigmoids() -> None:
    rng = np.random.default_rng(7)
    margins = np.concatenate(
        [
            rng.normal(0, 3, 200_000),
            rng.uniform(-120, 120, 50_000),
            [0, -0.0, -88.7, 88.7, 1e30, -1e30],
        ]
    ).astype(np.float32)
    data = xgboost.DMatrix(np.zeros((len(margins), 2), np.float32), base_margin=margins)
    expected = booster_of(model([STUMP])).predict(data)
    np.testing.assert_array_equal(bits(forest.probabilities(margins)), bits(expected))


def model(
    trees: list[dict[str, Any]],
    n_features: int = 2,
    base_score: str = "5E-1",
    objective: str = "binary:logistic",
) -> bytes:
    """A model as xgboost writes it, of trees with children, features and values."""
    whole = []
    for number, tree in enumerate(trees):
        n = len(tree["left_children"])
        parents = [2**31 - 1, *[0] * (n - 1)]
        for side in ("left_children", "right_children"):
            for node, child in enumerate(tree[side]):
                if 0 < child < n:
                    parents[child] = node
        zeros = dict.fromkeys(("base_weights", "loss_changes", "sum_hessian"), [0.0] * n)
        none = {f"categories{part}": [] for part in ("", "_nodes", "_segments", "_sizes")}
        sizes = {"num_deleted": 0, "num_feature": n_features, "num_nodes": n, "size_leaf_vector": 1}
        whole.append(
            {"id": number, "default_left": [0] * n, "split_type": [0] * n, "parents": parents}
            | {"tree_param": {name: str(value) for name, value in sizes.items()}}
            | zeros
            | none
            | tree
        )
    learner = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": {
            "model": {
                "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
                "iteration_indptr": list(range(len(trees) + 1)),
                "tree_info": [0] * len(trees),
                "trees": whole,
            },
            "name": "gbtree",
        },
        "learner_model_param": {
            "base_score": base_score,
            "boost_from_average": "1",
            "num_class": "0",
            "num_feature": str(n_features),
            "num_target": "1",
        },
        "objective": {"name": objective, "reg_loss_param": {"scale_pos_weight": "1"}},
    }
    return json.dumps({"learner": learner, "version": [3, 2, 0]}).encode()


STUMP = {
    "left_children": [-1],
    "right_children": [-1],
    "split_indices": [0],
    "split_conditions": [0.0],
}


def tree_of(
    rng: np.random.Generator, size: int, n_features: int, cuts: np.ndarray
) -> dict[str, Any]:
    """A tree of any shape: a random leaf is split, again and again."""
    left, right, feature, value = [-1], [-1], [0], [0.0]
    leaves = [0]
    for _ in range(size):
        node = leaves.pop(rng.integers(len(leaves)))
        leaves += [len(left), len(left) + 1]
        left[node], right[node] = leaves[-2:]
        feature[node] = int(rng.integers(n_features))
        value[node] = shortest(rng.choice(cuts))
        for numbers, number in ((left, -1), (right, -1), (feature, 0), (value, 0.0)):
            numbers.extend([number] * 2)
    for node in leaves:
        value[node] = shortest(np.float32(rng.choice([rng.normal(), 0.0, -0.0])))
    return {
        "left_children": left,
        "right_children": right,
        "split_indices": feature,
        "split_conditions": value,
    }


def shortest(number: np.float32) -> float:
    """A number as xgboost writes it: with no more digits than it needs."""
    return float(str(number))


@st.composite
def forests_and_rows(draw: st.DrawFn) -> tuple[bytes, np.ndarray]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    number = st.floats(width=32, allow_nan=False, allow_infinity=False)
    cuts = np.array(draw(st.lists(number, min_size=1, max_size=30)), np.float32)
    n_features = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=8))
    trees = [tree_of(rng, size, n_features, cuts) for size in sizes]
    base_score = np.float32(draw(st.floats(2**-7, 1 - 2**-7, width=32)))
    objective = draw(st.sampled_from(forest.OBJECTIVES))
    values = np.concatenate([around(cuts), rng.normal(size=5).astype(np.float32)])
    rows = rng.choice(values, (draw(st.integers(1, 200)), n_features))
    return model(trees, n_features, str(base_score), objective), rows


@settings(max_examples=50)
@given(forests_and_rows())
def test_any_forest_and_any_rows(given: tuple[bytes, np.ndarray]) -> None:
    check(*given)


def test_rows_of_any_layout(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    trees = read_xgboost(trained(drawn))
    rows = drawn[0]
    expected = forest.margins(trees, rows)
    fixed = rows.copy()
    fixed.flags.writeable = False
    for same in (fixed, np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2], rows.tolist()):
        np.testing.assert_array_equal(forest.margins(trees, same), expected)
    with pytest.raises(ValueError, match=r"rows of 6 features, not an array \(3000, 5\)"):
        forest.margins(trees, rows[:, :5])
    with pytest.raises(ValueError, match="rows of 6 features"):
        forest.margins(trees, rows[0])


def test_rows_that_are_not_finite_do_no_harm(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    trees = read_xgboost(trained(drawn))
    rows = drawn[0].copy()
    rows[::7] = np.nan
    rows[::5, 0], rows[::11, 1] = np.inf, -np.inf
    harmless = np.isfinite(rows).all(axis=1)
    expected = forest.margins(trees, drawn[0])
    np.testing.assert_array_equal(forest.margins(trees, rows)[harmless], expected[harmless])


def refusal(content: bytes) -> str:
    with pytest.raises(ValueError, match=r"^(its?|a|the|two|tree \d+:?) ") as caught:
        read_xgboost(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_json(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    whole = trained(drawn, rounds=2)
    binary = bytes(xgboost.Booster({}, model_file=bytearray(whole)).save_raw("ubj"))
    for content in (b"", b"\x00\xff", b" " + whole, b"[" * 100_000, b"[]", b"3", b"null"):
        assert refusal(content) == "it is neither JSON nor UBJ of xgboost, or truncated"
    for content in (whole[:-1], whole[: len(whole) // 2], binary):
        assert refusal(content).startswith("it is not JSON, or truncated: ")
    assert refusal(b'{"a":' + b"[" * 100_000) == "its JSON is nested too deeply"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "the model has no learner, or one of another type"),
        (b'{"learner": 1}', "the model has no learner, or one of another type"),
        (b'{"learner": {}}', "learner has no gradient_booster, or one of another type"),
    ],
)
def test_what_is_not_a_model(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_xgboost(content)


SPLIT = {
    "left_children": [1, 3, -1, -1, -1],
    "right_children": [2, 4, -1, -1, -1],
    "split_indices": [0, 1, 0, 0, 0],
    "split_conditions": [0.5, 0.25, 1.0, 2.0, 3.0],
}


NO_CHILD = "a node has a child that does not exist"
TWO_WAYS = "two paths lead to one node: it is not a tree"
NO_FEATURE = "a node tests a feature that does not exist"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"left_children": [1, 5, -1, -1, -1]}, NO_CHILD),
        ({"left_children": [1, -2, -1, -1, -1]}, NO_CHILD),
        ({"left_children": [1, 2**40, -1, -1, -1]}, "a number of its left_children has too many"),
        ({"left_children": [1, 10**30, -1, -1, -1]}, "a number of its left_children has too many"),
        ({"left_children": [1, 3, -1, -1, -1.0]}, "its left_children are not 5 int numbers"),
        ({"left_children": [1, -1, -1, -1, -1]}, "a leaf of its trees has a child"),
        ({"right_children": [2, -1, -1, -1, -1]}, NO_CHILD),
        ({"right_children": [2, 1, -1, -1, -1]}, TWO_WAYS),  # a circle
        ({"right_children": [2, 0, -1, -1, -1]}, NO_CHILD),
        ({"right_children": [2, 2, -1, -1, -1]}, TWO_WAYS),
        ({"right_children": [2, 4, -1, -1]}, "its right_children are not 5 int numbers"),
        ({"split_indices": [0, 2, 0, 0, 0]}, NO_FEATURE),
        ({"split_indices": [-1, 1, 0, 0, 0]}, NO_FEATURE),
        ({"split_conditions": [0.5, float("nan"), 1.0, 2.0, 3.0]}, "no number to compare with"),
        ({"split_conditions": [0.5, 1e300, 1.0, 2.0, 3.0]}, "it has unknown fields, or thresholds"),
        ({"split_conditions": [0.5, 0.25, 1e300, 2.0, 3.0]}, "a leaf gives no finite number"),
        ({"split_conditions": [0.5, "x", 1.0, 2.0, 3.0]}, "are not 5 float numbers"),
    ],
    ids=str,
)
def test_damaged_trees(damage: dict[str, Any], reason: str) -> None:
    check(model([STUMP, SPLIT]), near_cuts(model([SPLIT]), 20))
    assert reason in refusal(model([STUMP, SPLIT | damage]))


def test_a_circle_that_no_root_leads_to_is_never_entered() -> None:
    circle = {
        "left_children": [-1, 3, -1, 1],
        "right_children": [-1, 2, -1, 4],
        "split_indices": [0] * 4,
        "split_conditions": [1.5] * 4,
    }
    circle = {field: [*values, values[0]] for field, values in circle.items()}
    trees = read_xgboost(model([circle, SPLIT]))
    margins = forest.margins(trees, np.array([[0, 0], [1, 1]], np.float32))
    assert margins.tolist() == [3.5, 2.5]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"booster": "dart"}, "its booster is dart; only gbtree is supported"),
        ({"booster": "gblinear"}, "a linear model (gblinear), which xgboost can't score"),
        ({"objective": "count:poisson"}, "its objective is count:poisson; supported are binary:"),
        ({"objective": "multi:softprob", "num_class": 2}, "it has several classes; "),
    ],
    ids=str,
)
def test_models_that_are_not_done(
    drawn: tuple[np.ndarray, np.ndarray], parameters: dict[str, Any], reason: str
) -> None:
    assert refusal(trained(drawn, rounds=2, **parameters)).startswith(reason)


def test_several_targets_are_not_done(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    rows, target = drawn
    for strategy in ("one_output_per_tree", "multi_output_tree"):
        content = trained((rows, np.stack([target, 1 - target], 1)), 2, multi_strategy=strategy)
        assert refusal(content) == "it has several targets; one score a row is needed"


def test_categories_are_not_done() -> None:
    rng = np.random.default_rng(8)
    category = rng.integers(0, 8, (500, 1)).astype(np.float32)
    data = xgboost.DMatrix(
        category, category[:, 0] % 2, feature_types=["c"], enable_categorical=True
    )
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 2)
    content = bytes(booster.save_raw("json"))
    assert refusal(content) == "it has categorical features; only numbers can be compared"


def test_no_trees() -> None:
    assert refusal(model([])) == "it has no trees"
