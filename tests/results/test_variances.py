"""Variances: known or not, and never made up on the way through a run."""

from __future__ import annotations

import pickle

import hist
import numpy as np
import pytest
from coffea.processor.accumulator import iadd
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.results import variances

COUNTS = [
    *(hist.storage.Double, hist.storage.Int64),
    *(hist.storage.AtomicInt64, hist.storage.Unlimited),
]


def made(storage: type = hist.storage.Double, weight: float | None = None) -> hist.Hist:
    histogram = hist.Hist(hist.axis.Regular(3, 0, 3, name="x"), storage=storage())
    return histogram.fill([0.5, 0.5, 1.5], weight=weight)


@pytest.mark.parametrize("storage", COUNTS)
def test_counts_are_known_and_weights_are_not(storage: type) -> None:
    assert variances.of(made(storage)).tolist() == [2, 1, 0]
    assert variances.of(made(storage, 2)) is None
    assert variances.of(made(storage) * 2.5) is None
    assert variances.of(pickle.loads(pickle.dumps(made(storage, 2)))) is None


@pytest.mark.parametrize("storage", COUNTS)
@given(weights=st.lists(st.sampled_from([None, 2]), min_size=2, max_size=5))
def test_a_sum_is_known_where_its_parts_are(storage: type, weights: list[float | None]) -> None:
    total, *rest = ({"a": {"h": made(storage, weight)}} for weight in weights)
    for part in rest:
        with variances.kept_in_sum(total["a"], part["a"]):
            iadd(total, part)
    found = variances.of(total["a"]["h"])
    if any(weights):
        assert found is None
    else:
        assert found.tolist() == [2 * len(weights), len(weights), 0]
    parts = [made(storage, weight) for weight in weights]
    assert (variances.of(variances.total(parts)) is None) == any(weights)


@pytest.mark.parametrize("content", [0.5, -1, np.nan, np.inf])
def test_contents_that_are_no_counts_are_not_known(content: float) -> None:
    histogram = made()
    histogram[1] = content
    assert (variances.of(histogram) is None) == (not np.isinf(content))
    weighted = made(hist.storage.Weight)
    weighted[1] = (content, 3)
    assert variances.of(weighted).tolist() == [2, 3, 0]


@pytest.mark.parametrize("flow", [True, False])
def test_filled_keeps_flow_and_what_is_known(flow: bool) -> None:
    axis = hist.axis.Regular(2, 0, 2, flow=flow, name="x", label="X")
    values = np.arange(4.0 if flow else 2.0)
    unknown = variances.filled([axis], values, None)
    assert variances.of(unknown) is None
    known = variances.filled([axis], values, 2 * values)
    assert variances.of(known, flow=True).tolist() == (2 * values).tolist()
    for histogram in (known, unknown):
        assert histogram.values(flow=True).tolist() == values.tolist()
        assert histogram.axes[0].label == "X"
