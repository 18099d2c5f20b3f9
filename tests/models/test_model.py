"""Models in processors: pinned, checked, loaded once, scored in batches."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from models import linear_onnx

from agc_ml.errors import ModelError
from agc_ml.execution.code.canonical import canonical
from agc_ml.models import model as model_module
from agc_ml.models.backends import backends
from agc_ml.models.content import Content, provide
from agc_ml.models.loading import load_model
from agc_ml.models.model import Batches, Bundle, Model, by_reference, contents


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Scores rows of three features by 1, 2, 3 times them."""
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_onnx([1, 2, 3]))
    return load_model(path)


def test_rows_are_scored(model: Model) -> None:
    scores = model([[1, 1, 1], [0, 0, 0.5]])
    assert scores.dtype == np.float32
    assert scores.tolist() == [6, 1.5]


def test_an_empty_batch_never_reaches_the_backend(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "_backend", lambda model: pytest.fail("asked"))
    assert model(np.empty((0, 3), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 4)), r"model linear .*takes rows of 3 features, not .*\(2, 4\)"),
        (np.zeros(3), r"not an array of shape \(3,\)"),
        ([[0, 0, 0], [0, np.nan, 0]], "feature number 1 of row 1 is nan"),
        ([[0, 0, np.inf]], "feature number 2 of row 0 is inf"),
        ([[0, 0, 1e39]], "feature number 2 of row 0 is inf"),
        (np.ma.masked_equal([[0, 0, 1]], 1), "its features are masked"),
        (np.zeros((1, 3), complex), "its features are complex"),
    ],
)
def test_bad_rows_are_refused(model: Model, rows: Any, message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(ModelError, match=message):
        model(rows)


@pytest.mark.parametrize(
    "scores", [np.zeros((2, 2)), np.zeros(3), np.array([0, np.nan]), np.array([np.inf, 0])]
)
def test_bad_scores_are_refused(
    model: Model, scores: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "_backend", lambda model: lambda rows: scores)
    with pytest.raises(ModelError, match="one finite score a row is needed"):
        model(np.zeros((2, 3)))


def test_content_travels_once_and_is_checked(model: Model) -> None:
    with by_reference() as gathered:
        blob = cloudpickle.dumps({"model": model})
    assert gathered == [model]
    assert len(blob) < 1000
    pinned = contents(gathered)
    assert hashlib.sha256(pinned[model.sha256].data).hexdigest() == model.sha256
    with pytest.raises(ModelError, match="not what its sha256"):
        provide({"0" * 64: pinned[model.sha256]})


SCORE = """
import pickle, sys
import numpy as np
model = pickle.loads(bytes.fromhex(sys.stdin.read()))
print(model(np.ones((1, 3), np.float32)))
"""


def in_another_process(blob: bytes) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCORE], input=blob.hex(), capture_output=True, text=True, check=False
    )


def test_outside_of_a_run_a_pickle_is_whole(model: Model) -> None:
    assert in_another_process(pickle.dumps(model)).stdout == "[6.]\n"


def test_without_its_content_a_model_says_so(model: Model) -> None:
    with by_reference():
        blob = pickle.dumps(model)
    assert "its content never came to this process" in in_another_process(blob).stderr


def test_threads_load_a_model_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_backends", {})
    loaded = []
    right = backends.open_model

    def slow(*arguments: Any) -> Any:
        loaded.append(arguments)
        time.sleep(0.1)
        return right(*arguments)

    monkeypatch.setattr(backends, "open_model", slow)
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.extend(model(np.ones((5, 3))).tolist()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1
    assert found == [6.0] * 40


def test_a_model_is_known_by_its_bytes(model: Model) -> None:
    assert canonical({"model": model}) == {
        "model": f"linear@{model.version} sha256:{model.sha256} (3 features, delta phi wrapped)"
    }


# -- even and odd ---------------------------------------------------------------------------------


def bundle(**changes: Any) -> Bundle:
    models = {}
    for parity, weight in (("even", 1.0), ("odd", -1.0)):
        data = linear_onnx([weight])
        sha256 = hashlib.sha256(data).hexdigest()
        provide({sha256: Content(data)})
        models[parity] = Model(parity, "1", sha256, "onnx", 1, trained_on=parity)
    return Bundle("both", "1", **{**models, **changes})


def test_events_are_scored_by_the_model_that_never_saw_them() -> None:
    rows = np.array([[1], [2], [3], [4]], np.float32)
    event = np.array([10, 11, 2**63 + 4, 2**63 + 5], np.uint64)
    assert bundle()(rows, event).tolist() == [-1, 2, -3, 4]
    assert bundle()(rows[:0], event[:0]).tolist() == []
    assert bundle()(rows[:1], event[:1]).tolist() == [-1]


def test_models_in_the_wrong_place_are_refused() -> None:
    right = bundle()
    with pytest.raises(ModelError, match="the one for even events says it was trained on odd"):
        Bundle("wrong", "1", even=right.odd, odd=right.even)


def test_batches_are_gathered_and_scores_come_back_in_their_place() -> None:
    calls = []
    model = bundle().scorer("even")

    def scorer(rows: Any) -> Any:
        calls.append(len(rows))
        return model(rows)

    batches = Batches(scorer, rows=10)
    found: dict[int, list[float]] = {}
    for part, n in enumerate([3, 4, 0, 5, 1, 25, 2]):
        rows = np.full((n, 1), part, np.float32)

        def use(scores: Any, part: int = part) -> None:
            found[part] = scores.tolist()

        batches.add(rows, use)
    batches.flush()
    batches.flush()
    assert calls == [12, 26, 2]
    assert found == {part: [-float(part)] * n for part, n in enumerate([3, 4, 0, 5, 1, 25, 2])}


def test_a_bundle_of_one_model_twice_is_refused() -> None:
    even = bundle().even
    odd = replace(even, trained_on="odd")
    with pytest.raises(ModelError, match="both of its models are the same"):
        Bundle("twice", "1", even=even, odd=odd)


@pytest.mark.parametrize(
    "changes",
    [{"delta_phi": "raw"}, {"features": ("a", "b", "c")}, {"trained_on": "odd"}, {"version": "2"}],
)
def test_what_decides_how_a_model_is_used_is_part_of_its_identity(
    model: Model, changes: dict[str, Any]
) -> None:
    assert canonical(replace(model, **changes)) != canonical(model)


def test_columns_in_another_order_are_refused(model: Model) -> None:
    import pandas as pd  # noqa: PLC0415 - heavy

    named = replace(model, features=("a", "b", "c"))
    rows = pd.DataFrame({"a": [1.0], "b": [0.0], "c": [0.0]})
    assert named(rows).tolist() == [1]
    assert named(pd.DataFrame(rows.to_numpy())).tolist() == [1]
    with pytest.raises(ModelError, match=r"the columns are c, b, a; it takes a, b, c, in this"):
        named(rows[["c", "b", "a"]])


def test_rows_of_a_bundle_are_counted_before_they_are_parted() -> None:
    pair = bundle()
    rows = np.zeros((4, 1))
    rows[2] = np.nan
    with pytest.raises(ModelError, match="of row 2 is nan"):
        pair(rows, np.array([1, 1, 0, 1]))


def test_a_model_made_by_hand_has_no_content(model: Model) -> None:
    with pytest.raises(ModelError, match=r"its content never came to this process; .*load_model"):
        contents([replace(model, sha256="0" * 64)])
