"""Fits of random workspaces against Minuit's, with pyhf's own likelihood."""

from __future__ import annotations

from typing import Any

import pytest

from agc_ml.statistics.likelihood import likelihood as lk
from agc_ml.statistics.likelihood.minimization import Minimum
from benchmarks import fits


@pytest.mark.parametrize("index", range(40))
def test_as_minuit_finds_it_or_there_is_a_line(index: int) -> None:
    """Ten workspaces of each of four shapes; hundreds more: ``benchmarks/fits.py``."""
    outcome = fits.compare(index)
    assert outcome.verdict != "differs", outcome
    if outcome.verdict == "refused":
        assert outcome.line


@pytest.mark.parametrize("what", ["value", "uncertainty"])
def test_what_is_off_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fits.minimise

    def off(likelihood: lk.Likelihood, *arguments: Any) -> Minimum:
        minimum = found(likelihood, *arguments)
        if what == "value":
            return minimum._replace(values=minimum.values + 0.01 * minimum.uncertainties)
        return minimum._replace(uncertainties=1.03 * minimum.uncertainties)

    monkeypatch.setattr(fits, "minimise", off)
    assert fits.compare(4).verdict == "differs"
