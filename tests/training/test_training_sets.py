"""Training sets that nothing can be learned from, and how events are split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agc_ml.errors import TrainingError
from agc_ml.results import tables
from agc_ml.results.tables import ColumnTable
from agc_ml.training import training_set

Columns = dict[str, Any]


def without(name: str) -> Callable[[Columns], Columns]:
    return lambda columns: {key: v for key, v in columns.items() if key != name}


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Columns], Columns]:
    return lambda columns: {**columns, name: change(columns[name].copy())}


def put(values: Any, place: Any, value: Any) -> Any:
    values[place] = value
    return values


def few(columns: Columns) -> Columns:
    return {name: values[: 12 * 9] for name, values in columns.items()}


def doubled(columns: Columns) -> Columns:
    return {name: np.concatenate([v[:1200], v[:1200], v[1200:]]) for name, v in columns.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("pt_w1"), "it lacks pt_w1"),
        (without("weight"), "it lacks weight"),
        (changed("mass_w1w2", lambda v: put(v, 5, np.nan)), "column mass_w1w2 is nan in row 5"),
        (changed("weight", lambda v: put(v, 3, np.inf)), "column weight is inf in row 3"),
        (
            changed("pt_w1", lambda v: put(v.astype(float), 7, 1e300)),
            r"column pt_w1 is 1e\+300 in row 7",
        ),
        (changed("label", lambda v: v * 0), "all its labels are of one class"),
        (changed("label", lambda v: put(v, slice(0, 12), 1)), r"event \d+ has 12 right"),
        (
            changed("event", lambda v: put(v, 0, 999_999_999)),
            "the 12 rows of each event must be consecutive",
        ),
        (changed("event", lambda v: v // 2 * 2), "events are in it twice|0 fully matched odd"),
        (few, "variation 'nominal': .* fully matched even events; at least 50 are needed"),
        (doubled, "100 events are in it twice"),
        (changed("variation", lambda v: np.zeros(len(v))), "column variation is of a wrong type"),
        (changed("pt_w1", lambda v: v.astype("S")), "column pt_w1 is of a wrong type"),
    ],
)
def test_nothing_can_be_learned(
    training_run: Path, tmp_path: Path, change: Callable[[Columns], Columns], message: str
) -> None:
    table = tables.read(training_run / "training.parquet")
    path = tmp_path / "t.parquet"
    tables.write(path, ColumnTable(change(dict(table.columns)), table.about), {})
    with pytest.raises(TrainingError, match=message):
        training_set.load(path)


def test_other_faults(training_run: Path, tmp_path: Path) -> None:
    path = training_run / "training.parquet"
    with pytest.raises(TrainingError, match="its digest is"):
        training_set.load(path, "0" * 64)
    with pytest.raises(TrainingError, match=r"variation 'JER'; there are: nominal, pt_res_up"):
        training_set.load(path, variation="JER")
    tables.write(tmp_path / "t.parquet", ColumnTable({"x": [1.0]}), {})
    with pytest.raises(
        TrainingError, match="its task, features and rows of an event are not stated"
    ):
        training_set.load(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "change",
    [
        {"rows_an_event": 0},
        {"rows_an_event": -1},
        {"rows_an_event": 6},
        {"rows_an_event": float("inf")},
        {"features": []},
        {"features": ["pt_w1", "pt_w1"]},
        {"features": ["pt_w1", "label"]},
        {"features": ["pt_w1", "variation"]},
        {"features": 3},
        {"delta_phi": 5},
        {"inputs": "x"},
        {"inputs": {"ttbar": {"pt_w1": ["many"]}}},
        {"task": None, "features": None},
    ],
)
def test_what_it_says_of_itself_makes_no_sense(
    training_run: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    table = tables.read(training_run / "training.parquet")
    tables.write(tmp_path / "t.parquet", ColumnTable(table.columns, {**table.about, **change}), {})
    with pytest.raises(TrainingError, match=r"extract it|rows an event"):
        training_set.load(tmp_path / "t.parquet")


def test_what_is_loaded(training_run: Path) -> None:
    path = training_run / "training.parquet"
    data = training_set.load(path)
    columns = tables.read(path).columns
    nominal = columns["variation"] == b"nominal"
    assert data.features.shape == (len(data), 12, 20)
    assert np.array_equal(data.labels.ravel(), columns["label"][nominal] > 0)
    assert np.array_equal(data.features[:, :, 4].ravel(), columns["mass_leptonbtoplep"][nominal])
    assert len(data.of_parity("even")) + len(data.of_parity("odd")) == len(data)
    assert (data.of_parity("odd").is_even == 0).all()
    assert len(training_set.load(path, variation="pt_scale_up")) != len(data)


def test_parts_are_even_and_belong_to_events(training_run: Path) -> None:
    """The same event is in the same part in any variation, and all parts are alike."""
    rng = np.random.default_rng(1)
    ids = [rng.integers(0, 2**bits, 20_000).astype(np.uint64) for bits in (20, 12, 34)]
    parts = training_set._parts(*ids)
    counts = np.bincount(parts, minlength=10)
    assert len(counts) == 10
    assert ((counts - 2_000) ** 2 / 2_000).sum() < 30  # chi2 of nine degrees of freedom
    order = rng.permutation(20_000)
    assert np.array_equal(training_set._parts(*(one[order] for one in ids)), parts[order])
    one_bit = training_set._parts(ids[0], ids[1], ids[2] ^ np.uint64(1))
    assert abs((one_bit == parts).mean() - 0.1) < 0.02
    even = (ids[2] % np.uint64(2)) == 0
    assert abs(np.bincount(parts[even], minlength=10) / even.sum() - 0.1).max() < 0.02
