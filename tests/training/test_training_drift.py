"""Drift: what is called one, and what is chance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agc_ml.errors import TrainingError
from agc_ml.training import drift

EDGES = np.linspace(-3, 3, 26)


def counts(values: np.ndarray) -> list[int]:
    inner = np.histogram(values, EDGES)[0]
    return [int((values < -3).sum()), *inner.tolist(), int((values >= 3).sum())]


def drawn(n: int, seed: int, shift: float = 0.0) -> list[int]:
    return counts(np.random.default_rng(seed).normal(shift, 1, n))


def test_the_same_distribution_does_not_drift() -> None:
    """Whatever the number of events is."""
    for n in (150, 1_000, 100_000):
        for seed in range(20):
            found = drift.compare({"p": {"x": drawn(20_000, 1)}}, {"p": {"x": drawn(n, seed + 2)}})
            assert not found[0].drifted, (n, seed, found)


def test_a_shift_drifts_and_a_small_one_does_not() -> None:
    trained = {"p": {"x": drawn(20_000, 1), "y": drawn(20_000, 2)}}
    seen = {"p": {"x": drawn(20_000, 3, shift=0.05), "y": drawn(20_000, 4, shift=0.6)}}
    worst, other = drift.compare(trained, seen)
    assert (worst.feature, worst.drifted) == ("y", True)
    # many events tell a small shift from chance, but it is small
    assert other.ks > other.ks_limit
    assert not other.drifted


def test_a_model_of_the_same_name_elsewhere() -> None:
    """What a run used is known by its bytes."""
    models = {"jet_assignment-even@1": "a" * 64, "jet_assignment-odd@1": "b" * 64}
    record: Any = SimpleNamespace(provenance=SimpleNamespace(models=models))
    files = {"even.json": "a" * 64, "odd.json": "b" * 64, "report.html": "c" * 64}
    drift.check_same(record, files)
    with pytest.raises(TrainingError, match="which came from another registry"):
        drift.check_same(record, {**files, "odd.json": "d" * 64})


def test_psi_by_hand() -> None:
    expected = np.array([100.0] * 10)
    observed = np.array([200.0] + [800 / 9] * 9)
    a, b = 100.5 / 1005, 200.5 / 1005
    c, d = 100.5 / 1005, (800 / 9 + 0.5) / 1005
    by_hand = (b - a) * np.log(b / a) + 9 * (d - c) * np.log(d / c)
    assert drift.psi(expected, observed) == pytest.approx(by_hand)
    assert drift.psi(expected, expected * 7) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("trained", "seen", "message"),
    [
        ({"p": {"x": [500]}}, {"q": {"x": [500]}}, "no process in common"),
        ({"p": {"x": [500]}}, {"p": {"y": [500]}}, "no feature x"),
        ({"p": {"x": [500]}}, {"p": {"x": [50]}}, "50 events; at least 100"),
        ({}, {"p": {"x": [500]}}, "trained on none"),
    ],
)
def test_what_can_not_be_compared(
    trained: dict[str, dict[str, list[int]]], seen: dict[str, dict[str, list[int]]], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        drift.compare(trained, seen)
