"""Rounding as the Particle Data Group does it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.statistics.rounding import pdg, with_uncertainty


@pytest.mark.parametrize(
    ("value", "uncertainty", "expected"),
    [
        # the examples of the Review of Particle Physics
        (0.827, 0.119, ("0.83", "0.12")),
        (0.827, 0.367, ("0.8", "0.4")),
        # each side of each limit
        (1.0, 0.354, ("1.00", "0.35")),
        (1.0, 0.355, ("1.0", "0.4")),
        (1.0, 0.949, ("1.0", "0.9")),
        (1.0, 0.950, ("1.0", "1.0")),
        (1.0, 0.0999, ("1.00", "0.10")),
        (727.599, 119.047, ("730", "120")),
        (697.5, 64.3, ("700", "60")),
        (12345.6, 998.0, ("12300", "1000")),
        (-0.00123, 0.000456, ("-0.0012", "0.0005")),
        (1e-9, 2.34e-10, ("0.00000000100", "0.00000000023")),
        (5.0, 0.0, ("5", "0")),
        (-1e-9, 0.2, ("0.00", "0.20")),
        (5.0, math.nan, ("5", "nan")),
        (math.inf, 1.0, ("inf", "1")),
    ],
)
def test_examples(value: float, uncertainty: float, expected: tuple[str, str]) -> None:
    assert pdg(value, uncertainty) == expected
    assert with_uncertainty(value, uncertainty) == " ± ".join(expected)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6, exclude_min=True),
)
def test_nothing_is_lost(value: float, uncertainty: float) -> None:
    """Both are within half of the last place, which is at most an eighth of the uncertainty."""
    shown = [float(text) for text in pdg(value, uncertainty)]
    assert abs(shown[0] - value) <= 0.15 * uncertainty
    assert abs(shown[1] - uncertainty) <= 0.15 * uncertainty
