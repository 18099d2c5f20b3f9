"""Finding models, and refusing what is not one."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models import forest, linear_onnx

from agc_ml.cli.validation import validate
from agc_ml.errors import ModelError
from agc_ml.models.cards import published_cards
from agc_ml.models.loading import load_model, scoring_notes
from agc_ml.models.model import Bundle, Model, notes


def card(folder: Path, **changes: Any) -> Path:
    """A card of two small ONNX models."""
    for parity, weight in (("even", 1.0), ("odd", 2.0)):
        (folder / f"{parity}.onnx").write_bytes(linear_onnx([weight, weight]))
    content = {
        "schema": 1,
        "name": "mine",
        "version": "7",
        "task": "a task",
        "features": ["a", "b"],
        "models": [{"file": f"{p}.onnx", "trained_on": p} for p in ("even", "odd")],
        **changes,
    }
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_file_alone_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(linear_onnx([1, 2]))
    model = load_model(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(model, Model)
    assert (model.name, model.version, model.sha256) == ("x", sha256[:12], sha256)
    assert (model.format, model.n_features, model.trained_on) == ("onnx", 2, None)
    assert model.members == (model,)


@pytest.mark.parametrize("ending", [".json", ".ubj"])
def test_xgboost_models(tmp_path: Path, ending: str) -> None:
    import xgboost  # noqa: PLC0415 - heavy

    path = forest(tmp_path / f"trees{ending}", n_features=5)
    model = load_model(path)
    rows = np.random.default_rng(2).normal(size=(50, 5)).astype(np.float32)
    booster = xgboost.Booster()
    booster.load_model(path)
    np.testing.assert_array_equal(model(rows), booster.inplace_predict(rows))
    told = notes([model.sha256])
    if ending == ".json":
        assert told == ()
    else:
        assert "scored by xgboost, not by the faster forest kernel" in told[0]


@pytest.mark.parametrize("what", ["card", "folder"])
def test_a_card_of_two_is_a_bundle(tmp_path: Path, what: str) -> None:
    path = card(tmp_path, delta_phi="raw")
    found = load_model(path if what == "card" else tmp_path)
    assert isinstance(found, Bundle)
    assert (found.name, found.version, found.delta_phi) == ("mine", "7", "raw")
    assert [m.name for m in found.members] == ["mine-even", "mine-odd"]
    assert found.even.features == ("a", "b")
    assert found(np.ones((2, 2)), np.array([0, 1])).tolist() == [4, 2]
    assert [m.n_features for m in found.members] == [2, 2]


def test_a_card_of_one_is_a_model(tmp_path: Path) -> None:
    found = load_model(card(tmp_path, models=[{"file": "odd.onnx", "trained_on": "odd"}]))
    assert isinstance(found, Model)
    assert (found.name, found.trained_on, found.task) == ("mine-odd", "odd", "a task")


def test_the_published_models_are_known_by_their_bytes(real_data: Path) -> None:
    found = load_model(real_data)
    assert isinstance(found, Bundle)
    assert (found.name, found.delta_phi, found.even.task) == (
        *("agc_jet_assignment", "raw"),
        "jet_assignment",
    )
    assert found.even.features[4] == "mass_leptonbtoplep"
    for model in found.members:
        path = real_data / f"model_{model.trained_on}.json"
        assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_golden_rows_of_the_published_models_are_those_of_xgboost(real_data: Path) -> None:
    import xgboost  # noqa: PLC0415 - heavy

    for entry in published_cards()[0].models:
        booster = xgboost.Booster()
        booster.load_model(real_data / str(entry.file))
        assert entry.golden is not None
        rows = np.array(entry.golden.rows, np.float32)
        margins = booster.inplace_predict(rows, predict_type="margin")
        assert margins.tolist() == np.array(entry.golden.margins, np.float32).tolist()


PICKLE = pickle.dumps({"a": "model"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.pkl", PICKLE, r"m\.pkl: a pickle, which runs whatever is in it; give xgboost's"),
        ("m.json", PICKLE, r"m\.json: a pickle"),
        ("m.keras", b"PK\x03\x04", r"m\.keras: \.keras: not a format; .*model\.export"),
        ("m", b"x", "no suffix: not a format"),
        ("m.onnx", linear_onnx([1])[:40], "not an ONNX model, or truncated; export it again"),
        ("m.onnx", b"", "ONNX Runtime can't read it"),
        ("m.onnx", linear_onnx([1], rows=32), "it takes 32 rows at a time, not any number"),
        ("m.json", b"", "it is empty; train or copy it again"),
        ("m.ubj", b"", "it is empty"),
        (
            "m.json",
            b'{"learner": ',
            r"it is not JSON, or truncated: Expecting.*; train or copy it again",
        ),
        ("m.json", b"[1, 2]", "it is neither JSON nor UBJ of xgboost"),
        ("m.json", b"binf" + bytes(300), "it is neither JSON nor UBJ of xgboost"),
        ("m.ubj", b"{L\x00", r"xgboost can't read it|takes more than 2\.0 GB of memory, damaged"),
        ("m.onnx", linear_onnx([1], columns=3), r"input \(n, k\) and output .* are needed"),
        ("m.onnx", linear_onnx([1], kind=11), "one input and one output of float32 are needed"),
        ("m.onnx", linear_onnx([1], k=None), "its number of features is not fixed"),
    ],
)
def test_what_is_no_model_is_refused(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


GOLDEN = {"rows": [[1, 2]], "margins": [0.5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema: "),
        ({"colour": "red"}, "colour: .*correct the card"),
        ({"models": []}, "models: "),
        ({"models": [{"file": "odd.onnx"}] * 2}, "one must be trained_on even events"),
        ({"models": [{"file": "odd.onnx", "trained_on": "odd"}] * 2}, "trained_on even"),
        ({"models": [{"trained_on": "odd"}]}, "needs either a file or a uri"),
        ({"models": [{"file": "gone.onnx"}]}, r"gone\.onnx: can't be read"),
        ({"models": [{"file": "odd.onnx", "sha256": "0" * 64}]}, "sha256 is .* but .* says 000"),
        ({"features": ["a"]}, "takes 2 features, but its card names 1"),
        ({"models": [{"file": "."}]}, "is a folder; name a model's file"),
        ({"models": [{"file": "odd.onnx", "golden": GOLDEN}]}, "golden rows are for a model of xg"),
        ({"models": [{"file": "a.onnx", "golden": {"rows": [], "margins": []}}]}, "golden.rows"),
        ({"models": [{"file": "a.onnx", "golden": {**GOLDEN, "margins": [1, 2]}}]}, "a margin for"),
        (
            {"models": [{"file": "a.onnx", "golden": {"rows": [[1], [1, 2]], "margins": [1, 2]}}]},
            "rows of one length",
        ),
        (
            {"models": [{"file": "a.onnx", "golden": {**GOLDEN, "margins": [float("nan")]}}]},
            "golden.margins.0: Input should be a finite number",
        ),
        ({"models": [{"file": "odd\0.onnx"}]}, "has characters that are not UTF-8, or NUL"),
        ({"models": [{"file": "x" * 300}]}, "can't be read .*too long"),
    ],
)
def test_wrong_cards_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(card(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.yaml", b"schema: 1\nversion: 2024-13-45\n"),
        ("model.yaml", b"[" * 20_000),
        ("model.yaml", b"name: \xff\xfe"),
        ("model.yaml", b'version: !!int ""'),
        ("model.yaml", b"version: !!bool maybe"),
        ("model.yaml", b"version: !!timestamp x"),
        ("model.json", b"[" * 200_000),
        ("model.json", b'{"schema": 1, "models": "\xff"}'),
    ],
)
def test_damaged_cards_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for spec in (tmp_path, tmp_path / "model.yaml"):
        if spec.exists():
            with pytest.raises(ModelError, match="not YAML or JSON") as caught:
                load_model(spec)
            assert name in str(caught.value)


def test_digits_of_a_digest_may_be_capital_letters(tmp_path: Path) -> None:
    content = linear_onnx([2.0, 2.0])
    sha256 = hashlib.sha256(content).hexdigest()
    found = load_model(card(tmp_path, models=[{"file": "odd.onnx", "sha256": sha256.upper()}]))
    assert found.members[0].sha256 == sha256


def test_a_model_of_xgboost_may_be_called_like_a_card(tmp_path: Path) -> None:
    forest(tmp_path / "model.json", n_features=2)
    with pytest.raises(ModelError, match=r"no card .*or give a model's file"):
        load_model(tmp_path)
    assert load_model(tmp_path / "model.json").members[0].n_features == 2
    card(tmp_path)
    (tmp_path / "model.yaml").rename(tmp_path / "model.yml")
    assert load_model(tmp_path).name == "mine"


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_trees_after_the_best_iteration_count_and_it_is_said(ending: str, tmp_path: Path) -> None:
    import xgboost  # noqa: PLC0415 - heavy

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 3)).astype(np.float32)
    target = (rows.sum(axis=1) + 3 * rng.normal(size=400) > 0).astype(int)
    booster = xgboost.train(
        {"objective": "binary:logistic"},
        xgboost.DMatrix(rows[:200], target[:200]),
        num_boost_round=100,
        evals=[(xgboost.DMatrix(rows[200:], target[200:]), "test")],
        early_stopping_rounds=5,
        verbose_eval=False,
    )
    booster.save_model(tmp_path / f"all.{ending}")
    booster[: booster.best_iteration + 1].save_model(tmp_path / f"best.{ending}")
    said = {}
    for name in ("all", "best"):
        model = load_model(tmp_path / f"{name}.{ending}").members[0]
        model(rows)
        said[name] = " ".join(notes([model.sha256]))
        expected = booster if name == "all" else booster[: booster.best_iteration + 1]
        np.testing.assert_array_equal(model(rows), expected.predict(xgboost.DMatrix(rows)))
    assert f"best iteration ({booster.best_iteration})" in said["all"]
    assert "best iteration" not in said["best"]


def test_a_damaged_model_of_the_published_pair_is_not_taken_for_it(
    real_data: Path, tmp_path: Path
) -> None:
    for parity in ("even", "odd"):
        content = (real_data / f"model_{parity}.json").read_bytes()
        (tmp_path / f"model_{parity}.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"no card .* in it, nor the published models"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone", "gone: can't be read .*give a model's file, a card, a folder"),
        ("s3://bucket/model.onnx", "no s3:// models; served ones are grpc://"),
        ("{not yaml", "can't be read"),
    ],
)
def test_wrong_places_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_cards_may_be_json(tmp_path: Path) -> None:
    content = yaml.safe_load(card(tmp_path).read_text())
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert isinstance(load_model(tmp_path / "mine.json"), Bundle)
    (tmp_path / "model.yaml").write_text("a: [")
    with pytest.raises(ModelError, match=r"model\.yaml: not YAML or JSON"):
        load_model(tmp_path / "model.yaml")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"booster": "gblinear"}, "a linear model"),
        ({"objective": "multi:softprob", "num_class": 2}, "it has several classes"),
        ({"objective": "multi:softmax", "num_class": 2}, "it has several classes"),
    ],
)
@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_models_that_give_no_score_a_row(
    parameters: dict[str, Any], message: str, ending: str, tmp_path: Path
) -> None:
    if parameters.get("booster") == "gblinear":
        parameters = {**parameters, "max_depth": None}
    path = forest(tmp_path / f"m.{ending}", **parameters)
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_of_two_classes_the_second_is_scored(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_onnx([3.0], columns=2))
    assert load_model(tmp_path / "m.onnx").members[0]([[1.0]]).tolist() == [6.0]


@pytest.mark.parametrize("off", [0, 1])
def test_a_forest_is_checked_with_the_golden_rows_of_its_card(off: int, tmp_path: Path) -> None:
    """By one bit of one margin: then xgboost itself scores, and it is said."""
    import xgboost  # noqa: PLC0415 - heavy

    path = forest(tmp_path / "trees.json", n_features=2, max_depth=2 + off)
    booster = xgboost.Booster()
    booster.load_model(path)
    rows = np.random.default_rng(3).normal(size=(20, 2)).astype(np.float32)
    margins = booster.inplace_predict(rows, predict_type="margin")
    if off:
        margins[7] = np.nextafter(margins[7], np.float32(9))
    golden = {"rows": rows.tolist(), "margins": margins.tolist()}
    entry = {"file": "trees.json", "golden": golden}
    model = load_model(card(tmp_path, models=[entry])).members[0]
    np.testing.assert_array_equal(model(rows), booster.inplace_predict(rows))
    assert any("other margins" in note for note in notes([model.sha256])) == bool(off)


def with_outer_weights(place: str) -> bytes:
    """Make a model that takes its weights from another file: its own, or those of a branch."""
    import onnx  # noqa: PLC0415 - heavy
    from onnx import TensorProto, helper  # noqa: PLC0415 - heavy

    weights = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2, 1], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "8")):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    score = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    rows = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    if place == "initializer":
        graph = helper.make_graph([product], "g", [rows], [score], [weights])
    elif place == "constant":
        constant = helper.make_node("Constant", [], ["w"])
        attribute = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR)
        attribute.t.CopyFrom(weights)
        constant.attribute.append(attribute)
        graph = helper.make_graph([constant, product], "g", [rows], [score])
    else:
        inner = helper.make_graph([product], "inner", [], [score], [weights])
        yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
        branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([branch], "g", [rows], [score], [yes])
    opset = helper.make_opsetid("", 17)
    content: bytes = helper.make_model(
        graph, opset_imports=[opset], ir_version=9
    ).SerializeToString()
    return content


@pytest.mark.parametrize("place", ["initializer", "constant", "branch"])
def test_weights_in_another_file_are_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would be the one in the working directory, whatever the model's sha256 says."""
    (tmp_path / "m.onnx").write_bytes(with_outer_weights(place))
    np.array([1, 2], np.float32).tofile(tmp_path / "w.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"m\.onnx: it takes weights from another file \(w\.bin\)"):
        load_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="takes weights from another file"):
        load_model(card(tmp_path, models=[{"file": "m.onnx"}]))


def test_which_of_two_columns_is_the_score_is_said(tmp_path: Path) -> None:
    (tmp_path / "two.onnx").write_bytes(linear_onnx([3.0], columns=2))
    (tmp_path / "one.onnx").write_bytes(linear_onnx([3.0]))
    two, one = (load_model(tmp_path / f"{name}.onnx") for name in ("two", "one"))
    (note,) = scoring_notes(two)
    assert note.endswith(
        "of the two columns of its output the second is the score, as of the second class"
    )
    assert scoring_notes(one) == ()
    assert (
        "two columns of its output the second is the score"
        in validate(tmp_path / "two.onnx").summary
    )


@pytest.fixture(params=["json", "ubj"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Train a forest on a table with names, which xgboost keeps."""
    import pandas as pd  # noqa: PLC0415 - heavy
    import xgboost  # noqa: PLC0415 - heavy

    rng = np.random.default_rng(1)
    table = pd.DataFrame(rng.normal(size=(300, 3)), columns=["mass", "pt", "eta"])
    label = table.mass + 0.5 * table.pt > 0
    rows = xgboost.DMatrix(table, label.astype(int), nthread=1)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, rows, 3)
    path = tmp_path / f"named.{request.param}"
    booster.save_model(path)
    return path


def test_names_that_a_file_of_xgboost_carries_are_compared(named: Path) -> None:
    import pandas as pd  # noqa: PLC0415 - heavy
    import pyarrow as pa  # noqa: PLC0415 - heavy

    model = load_model(named)
    assert isinstance(model, Model)
    assert model.features == ("mass", "pt", "eta")
    table = pd.DataFrame(np.random.default_rng(2).normal(size=(5, 3)), columns=model.features)
    scores = model(table)
    np.testing.assert_array_equal(scores, model(table.to_numpy()))
    np.testing.assert_array_equal(scores, model(pa.Table.from_pandas(table)))
    for other in (table[["pt", "mass", "eta"]], table.rename(columns={"eta": "phi"})):
        for form in (other, pa.Table.from_pandas(other)):
            with pytest.raises(ModelError, match="it takes mass, pt, eta, in this order"):
                model(form)
    with pytest.raises(ModelError, match="can't be taken as rows of numbers"):
        model(table.to_records(index=False))


def test_names_of_card_and_file_have_to_agree(named: Path, tmp_path: Path) -> None:
    entry = {"models": [{"file": named.name}]}
    agreed = load_model(card(tmp_path, **entry, features=["mass", "pt", "eta"]))
    assert agreed.members[0].features == ("mass", "pt", "eta")
    taken = load_model(card(tmp_path, **entry, features=[]))
    assert taken.members[0].features == ("mass", "pt", "eta")
    with pytest.raises(ModelError, match="its features are mass, pt, eta, but its card names pt,"):
        load_model(card(tmp_path, **entry, features=["pt", "mass", "eta"]))


def test_names_that_only_number_features_are_none(tmp_path: Path) -> None:
    import pandas as pd  # noqa: PLC0415 - heavy
    import xgboost  # noqa: PLC0415 - heavy

    values = np.random.default_rng(1).normal(size=(300, 2))
    rows = xgboost.DMatrix(values, values[:, 0] > 0, feature_names=["f0", "f1"], nthread=1)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, rows, 2)
    booster.save_model(tmp_path / "m.json")
    model = load_model(tmp_path / "m.json")
    assert model.members[0].features == ()
    assert model.members[0](pd.DataFrame(values, columns=["a", "b"])).shape == (300,)
