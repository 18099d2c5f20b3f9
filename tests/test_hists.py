from __future__ import annotations

from pathlib import Path

import hist
import numpy as np
import pytest
import uproot
from hypothesis import given
from hypothesis import strategies as st

from agc_ml import hists
from agc_ml.errors import HistogramError


def booked(process: str = "ttbar", variations: tuple[str, ...] = ("nominal", "a_up")) -> hist.Hist:
    made = hists.book(5, 0, 10, label="$H_T$ [GeV]", process=process, variations=variations)
    made.fill(observable=[1, 2, 11], process=process, variation=variations[0], weight=[1, 2.5, -3])
    return made


def test_names_are_those_of_the_grand_challenge() -> None:
    flat = hists.flatten({"4j1b": booked()})
    assert list(flat) == ["4j1b_ttbar", "4j1b_ttbar_a_up"]
    assert flat["4j1b_ttbar"].sum(flow=True).value == pytest.approx(0.5)
    assert not flat["4j1b_ttbar_a_up"].values(flow=True).any()


def test_root_files_keep_contents_variances_and_flow(tmp_path: Path) -> None:
    flat = hists.flatten({"4j1b": booked()})
    hists.write_root(tmp_path / "h.root", flat)
    again = hists.read_root(tmp_path / "h.root")
    assert again.keys() == flat.keys()
    for name, histogram in flat.items():
        np.testing.assert_array_equal(again[name].values(flow=True), histogram.values(flow=True))
        np.testing.assert_array_equal(
            again[name].variances(flow=True), histogram.variances(flow=True)
        )
        np.testing.assert_array_equal(again[name].axes[0].edges, histogram.axes[0].edges)
    with uproot.open(tmp_path / "h.root") as file:
        assert set(file.classnames(cycle=False).values()) == {"TH1D"}


def test_other_histograms(tmp_path: Path) -> None:
    made = {
        "map": hist.Hist.new.Reg(3, 0, 1, name="x").Reg(4, 0, 1, name="y").Weight(),
        "nested/pt": hist.Hist.new.Reg(3, 0, 1, name="pt").IntCat([1, 2], name="n").Double(),
    }
    flat = hists.flatten(made)
    assert list(flat) == ["map", "nested/pt_1", "nested/pt_2"]
    hists.write_root(tmp_path / "h.root", flat)
    assert set(hists.read_root(tmp_path / "h.root")) >= {"map", "nested/pt_1"}
    hists.write_zip(tmp_path / "h.zip", made)
    assert hists.read_zip(tmp_path / "h.zip") == made


@given(
    fills=st.lists(st.tuples(st.floats(-5, 20), st.floats(-1e6, 1e6)), max_size=20),
    variation=st.sampled_from(["nominal", "a_up", "new"]),
)
def test_zip_keeps_every_bit(
    fills: list[tuple[float, float]], variation: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = booked()
    for value, weight in fills:
        made.fill(observable=value, process="wjets", variation=variation, weight=weight)
    path = tmp_path_factory.getbasetemp() / "bits.zip"
    hists.write_zip(path, {"4j2b": made})
    again = hists.read_zip(path)["4j2b"]
    assert again == made
    assert again.axes[0].label == "$H_T$ [GeV]"


def test_unreadable_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("nothing of the kind")
    with pytest.raises(HistogramError, match="bad: not a readable ROOT file"):
        hists.read_root(bad)
    with pytest.raises(HistogramError, match="bad: not readable as histograms"):
        hists.read_zip(bad)
    with uproot.recreate(tmp_path / "empty.root"):
        pass
    with pytest.raises(HistogramError, match="no histograms in it"):
        hists.read_root(tmp_path / "empty.root")
