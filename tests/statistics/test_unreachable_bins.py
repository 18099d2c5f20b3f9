"""Bins in which no parameter can predict events."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from agc_ml.errors import FitError
from agc_ml.statistics.workspace.unreachable_bins import without_unreachable

SPEC: dict[str, Any] = {
    "version": "1.0.0",
    "channels": [
        {
            "name": "r",
            "samples": [
                {
                    "name": "signal",
                    "data": [1.0, 0.0, 3.0, 0.0],
                    "modifiers": [
                        {"name": "mu", "type": "normfactor", "data": None},
                        {"name": "stat", "type": "staterror", "data": [0.1, 0.0, 0.3, 0.0]},
                    ],
                },
                {
                    "name": "background",
                    "data": [5.0, 0.0, 0.0, 0.0],
                    "modifiers": [
                        {"name": "size", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}},
                        {
                            "name": "shape",
                            "type": "histosys",
                            "data": {"hi_data": [6.0, 0, 0, 2.0], "lo_data": [4.0, 0, 0, 0]},
                        },
                    ],
                },
            ],
        }
    ],
    "observations": [{"name": "r", "data": [7.0, 2.0, 1.0, 0.0]}],
    "measurements": [{"name": "m", "config": {"poi": "mu", "parameters": []}}],
}
EDGES = {"r": np.array([0.0, 10, 20, 30, 40])}


def test_a_variation_can_reach_a_bin() -> None:
    before = copy.deepcopy(SPEC)
    found = without_unreachable(SPEC, EDGES)
    assert before == SPEC
    assert found.kept["r"].tolist() == [True, False, True, True]
    (note,) = found.notes
    assert note == (
        "r: left out, since no parameter can predict events there: the bins [10, 20) with 2 in the "
        "data"
    )
    (channel,) = found.spec["channels"]
    signal, background = channel["samples"]
    assert signal["data"] == [1, 3, 0]
    assert signal["modifiers"][0]["data"] is None
    assert signal["modifiers"][1]["data"] == [0.1, 0.3, 0]
    assert background["modifiers"][0]["data"] == {"hi": 1.1, "lo": 0.9}
    assert background["modifiers"][1]["data"] == {"hi_data": [6, 0, 2], "lo_data": [4, 0, 0]}
    assert found.spec["observations"] == [{"name": "r", "data": [7, 1, 0]}]


def test_a_factor_fixed_at_zero_reaches_nothing() -> None:
    spec = copy.deepcopy(SPEC)
    parameter = {"name": "mu", "inits": [0], "fixed": True}
    spec["measurements"][0]["config"]["parameters"] = [parameter]
    assert without_unreachable(spec, EDGES).kept["r"].tolist() == [True, False, False, True]
    # one that only starts there is free to leave
    parameter["fixed"] = False
    assert without_unreachable(spec, EDGES).kept["r"].tolist() == [True, False, True, True]


def test_a_variation_fixed_at_zero_reaches_nothing() -> None:
    spec = copy.deepcopy(SPEC)
    parameter = {"name": "shape", "inits": [0.0], "fixed": True}
    spec["measurements"][0]["config"]["parameters"] = [parameter]
    assert without_unreachable(spec, EDGES).kept["r"].tolist() == [True, False, True, False]
    # where it is by itself if nothing is stated
    del parameter["inits"]
    assert without_unreachable(spec, EDGES).kept["r"].tolist() == [True, False, True, False]
    # and a factor is at one
    parameter["name"] = "mu"
    assert without_unreachable(spec, EDGES).kept["r"].tolist() == [True, False, True, True]


def test_where_all_is_reached_nothing_changes() -> None:
    spec = copy.deepcopy(SPEC)
    spec["channels"][0]["samples"][0]["data"][1] = 0.5
    found = without_unreachable(spec, EDGES)
    assert (found.spec, found.notes) == (spec, ())


def test_of_a_region_something_must_be_left() -> None:
    spec = copy.deepcopy(SPEC)
    spec["channels"][0]["samples"] = [{"name": "nothing", "data": [0.0] * 4, "modifiers": []}]
    with pytest.raises(FitError, match="region 'r': no sample predicts events in any bin"):
        without_unreachable(spec, EDGES)
