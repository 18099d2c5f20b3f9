from __future__ import annotations

import hist
import numpy as np
import pytest
from coffea.processor.accumulator import iadd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from agc_ml.errors import HistogramError
from agc_ml.results.histograms import DenseHist, book, materialised

VARIATIONS = ["nominal", "up"]
BOOKING = {"label": "$x$ [GeV]", "process": "ttbar", "variations": VARIATIONS}
values = of_numpy.arrays(
    np.float64,
    st.integers(0, 40),
    elements=st.floats(40, 560) | st.sampled_from([50.0, 70.0, 550.0, np.nan, np.inf, -np.inf]),
)


@given(values=values, seed=st.integers(0, 99))
def test_bins_are_those_of_hist(values: np.ndarray, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(1, 1, len(values))
    dense, plain = DenseHist(25, 50, 550, **BOOKING), book(25, 50, 550, **BOOKING)
    for variation in VARIATIONS:
        dense.fill(variation, values, weights)
        plain.fill(observable=values, process="ttbar", variation=variation, weight=weights)
    assert dense.hist() == plain


def test_single_precision_is_not_rounded_again() -> None:
    values = np.array([69.999999, 70], np.float32)
    dense, plain = DenseHist(25, 50, 550, **BOOKING), book(25, 50, 550, **BOOKING)
    dense.fill("up", values, np.ones(2))
    plain.fill(observable=values, process="ttbar", variation="up", weight=np.ones(2))
    assert dense.hist() == plain


def test_adding_up() -> None:
    parts = [DenseHist(25, 50, 550, **BOOKING) for _ in range(3)]
    for i, part in enumerate(parts):
        part.fill("nominal", np.array([60.0 + 20 * i]), np.array([1.0 + i]))
    total = parts[0] + parts[1]
    assert total.bins.sum() == parts[0].bins.sum() + parts[1].bins.sum()
    nested = iadd({"a": {"b": parts[1]}}, {"a": {"b": parts[2]}})
    made = materialised(nested)["a"]["b"]
    assert isinstance(made, hist.Hist)
    assert made[:, "ttbar", "nominal"].values()[1:3].tolist() == [2, 3]
    assert made[:, "ttbar", "nominal"].variances()[1:3].tolist() == [4, 9]
    assert made.axes["observable"].label == "$x$ [GeV]"


def test_other_bookings_do_not_add_up() -> None:
    one = DenseHist(25, 50, 550, **BOOKING)
    other = DenseHist(25, 50, 550, **{**BOOKING, "process": "wjets"})
    with pytest.raises(ValueError, match="booked differently"):
        one += other


def test_one_weight_for_all_and_single_precision() -> None:
    values = np.array([60.0, 80.0])
    one, each = DenseHist(25, 50, 550, **BOOKING), DenseHist(25, 50, 550, **BOOKING)
    one.fill("nominal", values, 1e-25)
    each.fill("nominal", values, np.full(2, 1e-25, np.float32))
    np.testing.assert_allclose(one.bins, each.bins, rtol=1e-6)
    assert each.bins[0, 1, 1] > 0  # squared in double precision


@pytest.mark.parametrize(
    ("variation", "values", "weights", "message"),
    [
        ("down", np.ones(3), np.ones(3), "variation 'down' was not booked; booked are nominal, up"),
        ("up", np.ones(3000), np.ones(3), "one weight per value is needed"),
        ("up", np.ones(3), np.ones(300), "one weight per value is needed"),
        ("up", np.ones((3, 1)), np.ones((3, 1)), "one weight per value is needed"),
    ],
)
def test_what_does_not_fit_is_refused(
    variation: str, values: np.ndarray, weights: np.ndarray, message: str
) -> None:
    dense = DenseHist(25, 50, 550, **BOOKING)
    with pytest.raises(HistogramError, match=message):
        dense.fill(variation, values, weights)
    assert not dense.bins.any()
