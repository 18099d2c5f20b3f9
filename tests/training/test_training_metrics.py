"""Scores against definitions written out, and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from agc_ml.analysis import training_task
from agc_ml.training import metrics
from processors.ttbar import truth

SHAPE = (30, 12)
TASK = training_task("jet_assignment")


def made(seed: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 12, 400)
    found = rng.random((400, 12))
    found[np.arange(400), right] += power * rng.random(400)
    return (found / (1 + power)).astype(np.float32), right


def test_the_task_is_declared_as_the_processor_has_it() -> None:
    assert TASK is not None
    assert TASK.kinds == ("W", "hadronic b", "leptonic b")
    for kinds, (w1, w2, had, lep) in zip(TASK.rows, truth.PERMUTATIONS, strict=True):
        assert [kinds[jet] for jet in (w1, w2, had, lep)] == [0, 0, 1, 2]


def test_without_a_task_a_row_is_right_or_wrong() -> None:
    """As of a task that no analysis declares: one object an event, of as many kinds as rows."""
    found, right = made(6, power=2)
    quality = metrics.quality(found, right)
    assert quality.jet_score == quality.fully_right == (found.argmax(axis=1) == right).mean()
    assert metrics.quality(found, right, TASK).jet_score > quality.jet_score
    table = metrics.confusion(found, right)
    assert table.shape == (12, 12)
    assert np.allclose(table.sum(axis=1), 1)


@given(
    hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    hnp.arrays(np.int64, SHAPE[0], elements=st.integers(0, 11)),
)
@settings(max_examples=30)
def test_auc_is_that_of_scikit_learn(found: np.ndarray, right: np.ndarray) -> None:
    labels = np.arange(12) == right[:, None]
    assert metrics.quality(found, right).auc == pytest.approx(
        roc_auc_score(labels.ravel(), found.ravel())
    )


@given(st.integers(0, 11), st.integers(0, 11))
def test_jet_score_by_hand(best: int, right: int) -> None:
    found = np.zeros((1, 12))
    found[0, best] = 1
    roles = []
    for place in (best, right):
        w1, w2, had, lep = truth.PERMUTATIONS[place]
        roles.append({w1: "W", w2: "W", had: "had", lep: "lep"})
    same = sum(roles[0][jet] == roles[1][jet] for jet in range(4)) / 4
    quality = metrics.quality(found, np.array([right]), TASK)
    assert quality.jet_score == same
    assert quality.fully_right == (best == right)


def test_intervals_hold_what_they_should() -> None:
    """Nineteen of twenty times, the truth is inside."""
    true = np.mean([metrics.quality(*made(seed)).auc for seed in range(1000, 1200)])
    inside = 0
    for seed in range(60):
        low_high = metrics.bootstrap(*made(seed), seed=seed)["auc"]
        assert low_high.low < low_high.value < low_high.high
        inside += low_high.low <= true <= low_high.high
    assert inside >= 51


def test_a_difference_of_equals_is_nothing() -> None:
    found, right = made(1)
    for interval in metrics.bootstrap(found, right, found).values():
        assert interval == (0, 0, 0)
    better, _ = made(1, power=2)
    assert metrics.bootstrap(better, right, found)["auc"].low > 0


def test_calibration() -> None:
    rng = np.random.default_rng(3)
    right = rng.integers(0, 12, 50_000)
    honest = np.full((50_000, 12), 1 / 12)
    assert metrics.calibration(honest, right).error < 0.002
    assert metrics.calibration(np.full((50_000, 12), 0.95), right).error == pytest.approx(
        0.95 - 1 / 12, abs=0.002
    )
    assert metrics.calibration(honest, right).number.sum() == 600_000


def test_calibration_is_judged_where_permutations_are_chosen() -> None:
    """Eleven of twelve are wrong and score zero: their mean would hide that the best are off."""
    rng = np.random.default_rng(4)
    n = 4000
    found = np.zeros((n, 12))
    found[:, 0] = 0.75
    right = np.where(rng.random(n) < 0.55, 0, rng.integers(1, 12, n))
    off = metrics.calibration(found, right)
    assert off.error == pytest.approx(0.2, abs=0.03)
    assert off.score[off.worst] == pytest.approx(0.75)
    mean = np.sum(np.abs(off.score - off.fraction) * off.number) / off.number.sum()
    assert mean < 0.06
    # by chance alone it is nearly never off
    honest = []
    for _ in range(50):
        some = np.clip(rng.random((300, 12)) ** 3, 0, 1)
        some /= some.sum(axis=1, keepdims=True)
        hit = (rng.random(300)[:, None] < some.cumsum(axis=1)).argmax(axis=1)
        honest.append(metrics.calibration(some, hit).error)
    assert np.quantile(honest, 0.9) < 0.05


def test_confusion() -> None:
    found, right = made(2, power=4)
    table = metrics.confusion(found, right, TASK)
    assert np.allclose(table.sum(axis=1), 1)
    weights = np.array([0.5, 0.25, 0.25])  # two jets of four are a W's
    assert (np.diag(table) * weights).sum() == pytest.approx(
        metrics.quality(found, right, TASK).jet_score
    )


def test_roc_goes_from_nothing_to_all() -> None:
    found, right = made(5)
    false, true = metrics.roc(found, right)
    assert (false[0], true[0]) == (0, 0)
    assert (false[-1], true[-1]) == (1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    area = np.trapezoid(true, false)
    assert area == pytest.approx(metrics.quality(found, right).auc, abs=0.01)
