"""Templates: read from every form, merged, checked, compared, made into pseudodata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hist
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.analysis import analysis_of
from agc_ml.errors import FilesetError, HistogramError, RunDirectoryError, UsageError
from agc_ml.inputs import agc_published
from agc_ml.results import categories, histogram_files, histograms, templates, variances

EDGES = np.linspace(50, 550, 26)


PUBLISHED, COMPLETE = (analysis_of().recipe(kind) for kind in ("published", "complete"))


def make(values: Any, variances: Any = None, edges: Any = None) -> hist.Hist[Any]:
    """Make a weighted histogram; values without flow."""
    axis = hist.axis.Variable(range(len(values) + 1) if edges is None else edges, name="observable")
    histogram = hist.Hist(axis, storage=hist.storage.Weight())
    view = histogram.view()
    view["value"] = values
    view["variance"] = np.abs(values) if variances is None else variances
    return histogram


numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12)


@st.composite
def histograms_and_edges(draw: st.DrawFn) -> tuple[hist.Hist[Any], list[float]]:
    """Draw a histogram and some of its edges, the outer ones included."""
    values = draw(numbers)
    variances = [draw(st.floats(0, 1e6)) for _ in values]
    inner = [edge for edge in range(1, len(values)) if draw(st.booleans())]
    return make(values, variances), [0.0, *map(float, inner), float(len(values))]


class TestMerge:
    @given(histograms_and_edges())
    def test_conserves_contents_and_variances(self, drawn: Any) -> None:
        histogram, edges = drawn
        merged = templates.merge(histogram, edges)
        assert list(merged.axes[0].edges) == edges
        scale = np.abs(histogram.values()).sum()
        np.testing.assert_allclose(
            merged.values().sum(), histogram.values().sum(), atol=1e-12 * (1 + scale)
        )
        np.testing.assert_allclose(merged.variances().sum(), histogram.variances().sum())

    def test_adds_neighbours_and_drops_the_rest(self) -> None:
        merged = templates.merge(make([1, 2, 4, 8, 16], [1, 3, 5, 7, 9]), [1, 3, 4])
        assert merged.values(flow=True).tolist() == [6, 8]
        assert merged.variances(flow=True).tolist() == [8, 7]

    def test_takes_edges_that_are_rounded(self) -> None:
        histogram = hist.Hist(hist.axis.Regular(25, 0, 6, name="observable"), storage="weight")
        assert len(templates.merge(histogram, [0.24, 0.72, 6.0]).values()) == 2

    def test_takes_counts(self) -> None:
        histogram = hist.Hist(hist.axis.Regular(4, 0, 4, name="observable"))
        histogram.fill([0.5, 0.5, 2.5])
        assert templates.merge(histogram, [0, 2, 4]).variances().tolist() == [2, 1]

    @pytest.mark.parametrize("edges", [[1, 1.5], [-1, 2], [0, 6]])
    def test_names_the_edge_that_is_not_there(self, edges: list[float]) -> None:
        with pytest.raises(HistogramError, match=r"4j1b: .* is not among its bin edges \(5 bins"):
            templates.merge(make([1, 2, 3, 4, 5]), edges, name="4j1b")

    @pytest.mark.parametrize("edges", [[], [1], [2, 1], [0, 1, 1]])
    def test_refuses_edges_that_do_not_rise(self, edges: list[float]) -> None:
        with pytest.raises(HistogramError, match="not two or more rising numbers"):
            templates.merge(make([1, 2, 3]), edges)

    def test_refuses_two_axes(self) -> None:
        two = hist.Hist(hist.axis.Regular(2, 0, 1, name="x"), hist.axis.Regular(2, 0, 1, name="y"))
        with pytest.raises(HistogramError, match="has 2 axes"):
            templates.merge(two, [0, 1])


class TestCompare:
    @given(numbers)
    def test_nothing_differs_from_itself(self, values: list[float]) -> None:
        one = {"a": make(values)}
        assert templates.compare(one, one, rtol=0) == []

    @given(numbers, st.data())
    def test_is_symmetric(self, values: list[float], data: st.DataObject) -> None:
        other = [data.draw(st.floats(-1e6, 1e6)) for _ in values]
        a, b = {"a": make(values), "x": make([1])}, {"a": make(other), "y": make([1])}
        forth, back = templates.compare(a, b, rtol=1e-3), templates.compare(b, a, rtol=1e-3)
        assert {d.name for d in forth} == {d.name for d in back}
        assert sorted(d.size for d in forth) == sorted(d.size for d in back)

    def test_names_the_worst_bin(self) -> None:
        a = make([10, 20, 30], [1, 2, 3])
        b = make([10, 20, 33], [1, 2.1, 3])
        (found,) = templates.compare({"h": a}, {"h": b})
        assert (found.what, found.place) == ("contents differ", "bin [2, 3)")
        assert (found.values, found.variances) == ((30, 33), (3, 3))
        assert found.size == pytest.approx(3 / 33)
        assert "content 30 and 33, variance 3 and 3" in str(found)

    def test_sees_variances_and_flow(self) -> None:
        a, b = make([1, 2]), make([1, 2], [1, 2.5])
        assert templates.compare({"h": a}, {"h": b})[0].what == "variances differ"
        b = make([1, 2])
        b[hist.overflow] = (7, 7)
        assert templates.compare({"h": a}, {"h": b})[0].place == "overflow"

    def test_sorts_by_size_and_tells_what_is_missing(self) -> None:
        a = {"gone": make([1]), "little": make([100]), "much": make([1]), "bins": make([1, 2])}
        b = {"new": make([1]), "little": make([101]), "much": make([2]), "bins": make([1])}
        found = templates.compare(a, b)
        assert [(d.name, d.what) for d in found] == [
            ("bins", "bins differ"),
            ("gone", "only in A"),
            ("new", "only in B"),
            ("much", "contents differ"),
            ("little", "contents differ"),
        ]
        assert str(found[1]) == "gone: only in A"

    def test_rounding_of_cancelled_weights_is_no_difference(self) -> None:
        a, b = make([1e-14], [200]), make([-1e-14], [200])
        assert templates.compare({"h": a}, {"h": b}) == []

    def test_nan_differs_from_numbers_only(self) -> None:
        nan = {"h": make([np.nan], [1])}
        assert templates.compare(nan, nan) == []
        assert templates.compare(nan, {"h": make([1], [1])})[0].size == np.inf

    @pytest.mark.parametrize("rtol", [-1, np.nan, np.inf])
    def test_tolerances_that_are_none(self, rtol: float) -> None:
        with pytest.raises(UsageError, match=r"--rtol .*: a number from 0 up is needed"):
            templates.compare({}, {}, rtol)

    def test_takes_categories(self) -> None:
        axes = hist.axis.StrCategory(["p"], name="p"), hist.axis.Regular(2, 0, 2, name="x")
        a = hist.Hist(*axes, storage="weight").fill("p", [0.5])
        b = hist.Hist(*axes, storage="weight").fill("p", [1.5])
        assert templates.compare({"h": a}, {"h": b})[0].place == "p x bin [0, 1)"
        assert templates.compare({"h": a}, {"h": make([1])})[0].what == "bins differ"

    def test_known_and_unknown_variances_differ(self) -> None:
        known, unknown = (
            make([10, 20]),
            variances.filled([hist.axis.Regular(2, 0, 2)], [10, 20], None),
        )
        (found,) = templates.compare({"h": known}, {"h": unknown})
        assert (found.what, found.size) == ("variances are known in A only", np.inf)
        assert str(found) == "h: variances are known in A only"
        (found,) = templates.compare({"h": unknown}, {"h": known})
        assert found.what == "variances are known in B only"

    def test_unknown_variances_leave_contents_to_compare(self) -> None:
        axes = [hist.axis.Regular(2, 0, 2)]
        a, b = ({"h": variances.filled(axes, [10, v], None)} for v in (20, 30))
        assert templates.compare(a, a) == []
        (found,) = templates.compare(a, b)
        assert (found.what, found.variances) == ("contents differ", None)
        assert "content 20 and 30, variances unknown" in str(found)
        assert templates.unknown_in_both(a, b) == ["h"]
        assert templates.unknown_in_both(a, {"h": make([1, 2])}) == []

    def test_flow_bins_that_are_not_there_are_empty(self) -> None:
        counts = hist.Hist(hist.axis.Integer(0, 2, flow=False, name="n"), storage="weight").fill(
            [1]
        )
        again = hist.Hist(hist.axis.Regular(2, 0, 2), storage="weight").fill([1])
        assert templates.compare({"h": counts}, {"h": again}) == []
        again.fill([7])
        assert templates.compare({"h": counts}, {"h": again})[0].place == "overflow"


class TestUnknownVariances:
    """They stay unknown in all that is made of templates."""

    def test_merged(self) -> None:
        histogram = variances.filled([hist.axis.Regular(4, 0, 4)], [0, 1, 2, 3, 4, 0], None)
        merged = templates.merge(histogram, [0, 2, 4])
        assert merged.values().tolist() == [3, 7]
        assert variances.of(merged) is None

    def test_pseudodata(self) -> None:
        axes = [hist.axis.Regular(1, 0, 1)]
        parts = {
            "r_ttbar_ME_var": variances.filled(axes, [2], np.array([2.0])),
            "r_ttbar_PS_var": variances.filled(axes, [4], np.array([4.0])),
            "r_wjets": variances.filled(axes, [1], None),
        }
        made = templates.pseudodata(parts, PUBLISHED)["r_pseudodata"]
        assert made.values().tolist() == [4]
        assert variances.of(made) is None

    def test_digest(self) -> None:
        axes = [hist.axis.Regular(1, 0, 1)]
        unknown, counts = (variances.filled(axes, [4], v) for v in (None, np.array([4.0])))
        assert templates.digest({"h": unknown}) != templates.digest({"h": counts})

    def test_check(self) -> None:
        templates.check({"h": variances.filled([hist.axis.Regular(1, 0, 1)], [4.5], None)})
        bad = variances.filled([hist.axis.Regular(1, 0, 1)], [np.nan], None)
        with pytest.raises(HistogramError, match="content nan, variance not known"):
            templates.check({"h": bad})

    def test_zip_leaves_out_what_is_empty(self, tmp_path: Path) -> None:
        """Variations, which may be another process's: an empty nominal one is a template."""
        axes = (
            hist.axis.StrCategory(["a", "b"], name="process"),
            hist.axis.StrCategory(["nominal", "x_up"], name="variation"),
            hist.axis.Regular(1, 0, 1),
        )
        made = hist.Hist(*axes).fill(["a"], ["nominal"], [0.5], weight=2.5)
        histogram_files.write_zip(tmp_path / "h.zip", {"h": made})
        assert list(templates.load(tmp_path / "h.zip")) == ["h_a", "h_b"]


def test_means_are_no_templates_of_a_fit() -> None:
    mean = hist.Hist(hist.axis.Regular(2, 0, 2), storage="mean").fill([0.5], sample=[3])
    templates.check({"h": mean})
    with pytest.raises(HistogramError, match="h: holds means"):
        templates.merge(mean, [0, 2], name="h")


class TestCheck:
    def test_passes_what_is_finite(self) -> None:
        templates.check({"a": make([1, -2, 0])})

    @pytest.mark.parametrize(
        ("content", "variance"), [(np.nan, 1), (np.inf, 1), (1, np.nan), (1, -1)]
    )
    def test_names_histogram_and_bin(self, content: float, variance: float) -> None:
        bad = make([1, content], [1, variance])
        with pytest.raises(HistogramError, match=r"histogram bad, bin \[1, 2\)"):
            templates.check({"good": make([1]), "bad": bad})

    def test_looks_at_the_flow(self) -> None:
        bad = make([1])
        bad[hist.underflow] = (np.nan, 1)
        with pytest.raises(HistogramError, match="bad, underflow"):
            templates.check({"bad": bad})


def parts(*, single_top: bool = True) -> dict[str, hist.Hist[Any]]:
    """Make templates of one bin."""
    content = {"ttbar_ME_var": 10, "ttbar_PS_var": 20, "wjets": 3}
    if single_top:
        content |= {"single_top_s_chan": 1, "single_top_t_chan": 2, "single_top_tW": 4}
    return {f"r_{name}": make([number]) for name, number in content.items()}


class TestPseudodata:
    def test_published(self) -> None:
        (name, found), *_ = templates.pseudodata(parts(single_top=False), PUBLISHED).items()
        assert name == "r_pseudodata"
        assert found.values().tolist() == [18]
        assert found.variances().tolist() == [30 / 4 + 3]

    def test_complete_adds_single_top(self) -> None:
        found = templates.pseudodata(parts(), COMPLETE)["r_pseudodata"]
        assert found.values().tolist() == [25]

    def test_names_what_is_missing(self) -> None:
        with pytest.raises(HistogramError, match="r_single_top_s_chan is missing: the complete"):
            templates.pseudodata(parts(single_top=False), COMPLETE)

    def test_refuses_other_bins(self) -> None:
        with pytest.raises(HistogramError, match="bins of r_wjets are not those of r_ttbar_ME_var"):
            templates.pseudodata({**parts(), "r_wjets": make([1, 2])}, PUBLISHED)


class TestLoad:
    def test_root_and_zip_hold_the_same(self, tmp_path: Path) -> None:
        booked = histograms.book(
            4, 0, 4, label="x [GeV]", process="ttbar", variations=["nominal", "pt_res_up"]
        )
        booked.fill(observable=[0.5, 1.5], process="ttbar", variation="nominal", weight=[2, 3])
        booked.fill(observable=[9], process="ttbar", variation="pt_res_up", weight=[2])
        flat = categories.flatten({"r": booked})
        histogram_files.write_root(tmp_path / "h.root", {**flat, "r_pseudodata": flat["r_ttbar"]})
        histogram_files.write_zip(tmp_path / "h.zip", {"r": booked})
        a, b = templates.load(tmp_path / "h.root"), templates.load(tmp_path / "h.zip")
        assert set(a) == {"r_ttbar", "r_ttbar_pt_res_up"}
        assert templates.compare(a, b, rtol=0) == []
        assert templates.digest(a) == templates.digest(b) == templates.digest(flat)

    def test_zip_leaves_out_combinations_that_no_process_has(self, tmp_path: Path) -> None:
        booked = histograms.book(4, 0, 4, label="x [GeV]", process="ttbar", variations=["nominal"])
        other = histograms.book(
            4, 0, 4, label="x [GeV]", process="wjets", variations=["nominal", "scale_var_up"]
        )
        other.fill(observable=[1.0], process="wjets", variation="scale_var_up", weight=2)
        histogram_files.write_zip(tmp_path / "h.zip", {"r": booked + other})
        found = set(templates.load(tmp_path / "h.zip"))
        assert found == {"r_ttbar", "r_wjets", "r_wjets_scale_var_up"}

    def test_zip_keeps_what_is_empty_in_one_region_only(self, tmp_path: Path) -> None:
        regions = {
            name: histograms.book(4, 0, 4, label="x", process="bkg", variations=["nominal", "up"])
            for name in ("SR", "CR")
        }
        for variation in ("nominal", "up"):
            regions["SR"].fill(observable=[1.0], process="bkg", variation=variation)
        histogram_files.write_zip(tmp_path / "h.zip", regions)
        assert set(templates.load(tmp_path / "h.zip")) == {
            *("SR_bkg", "SR_bkg_up"),
            *("CR_bkg", "CR_bkg_up"),
        }

    def test_pseudodata_of_another_name_are_data(self, tmp_path: Path) -> None:
        made = {name: make([1]) for name in ("SR_sig", "SR_pseudodata", "SR_my_pseudodata")}
        histogram_files.write_root(tmp_path / "h.root", made)
        assert set(templates.load(tmp_path / "h.root")) == {"SR_sig", "SR_my_pseudodata"}

    def test_only_the_published_json_is_published(self, real_data: Path, tmp_path: Path) -> None:
        assert templates.is_published(real_data / "reference/histos_1_file_per_process.json")
        histogram_files.write_root(tmp_path / "h.json", {"a": make([1])})
        (tmp_path / "ws.json").write_text('{"channels": [], "observations": []}')
        assert not templates.is_published(tmp_path / "h.json")
        assert not templates.is_published(tmp_path / "ws.json")
        assert not templates.is_published(tmp_path / "gone.json")

    def test_zip_of_a_run_has_its_empty_templates(self, tmp_path: Path) -> None:
        booked = histograms.book(4, 0, 4, label="x", process="ttbar", variations=["nominal", "up"])
        booked.fill(observable=[1.0], process="ttbar", variation="nominal")
        other = histograms.book(4, 0, 4, label="x", process="wjets", variations=["nominal", "down"])
        names = ["r_ttbar", "r_ttbar_up", "r_wjets", "r_wjets_down"]
        histogram_files.write_zip(tmp_path / "h.zip", {"r": booked + other}, names)
        assert sorted(templates.load(tmp_path / "h.zip")) == names

    def test_a_digest_sees_contents_variances_edges_and_names(self) -> None:
        variants = [
            {"a": make([1, 2])},
            {"b": make([1, 2])},
            {"a": make([1, 3], [1, 2])},
            {"a": make([1, 2], [1, 3])},
            {"a": make([1, 2], edges=[0, 1, 3])},
        ]
        assert len({templates.digest(variant) for variant in variants}) == len(variants)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file or folder; give a run directory"):
            templates.load(tmp_path / "absent")

    def test_no_run_directory(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            templates.load(tmp_path)

    def test_only_pseudodata(self, tmp_path: Path) -> None:
        histogram_files.write_root(tmp_path / "h.root", {"r_pseudodata": make([1])})
        with pytest.raises(HistogramError, match="no templates in it"):
            templates.load(tmp_path / "h.root")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"PK\x03\x04 cut off", "not readable as histograms"),
            (b"\xff\xfe\x00", "neither a ROOT file, nor a zip, nor JSON"),
            (b'{"cut": ', "neither a ROOT file, nor a zip, nor JSON"),
            (b"[1, 2]", "not the published reference histograms"),
            (b"{}", "not the published reference histograms"),
            (b'{"schema": 1}', "schema: not a published reference histogram"),
            (b'{"r_ttbar": {"edges": [0], "contents": "x"}}', "r_ttbar: not a published"),
            (b'{"r_ttbar": {"edges": [0, 1], "contents": [1]}}', "r_ttbar: edges must rise"),
            (b'{"r_ttbar": {"edges": [1, 0], "contents": [0, 1, 0]}}', "r_ttbar: edges must"),
            (
                b'{"r_data": {"edges": [0, 1], "contents": [0, 1, 0]}}',
                "r_data: not a published name",
            ),
            (b'{"r_ttbar": {"edges": [0, 1], "contents": [0, 1, 0]}}', "whole counts x weight"),
            (b'{"r_ttbar": {"edges": [0, 1], "contents": [0, 0, 0]}}', "whole counts x weight"),
        ],
    )
    def test_something_else(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(HistogramError, match=message) as caught:
            templates.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


class TestReference:
    @pytest.mark.parametrize(("n", "files"), [("1", 1), ("10", 10), ("all", 349)])
    def test_counts_and_variances(self, real_data: Path, n: str, files: int) -> None:
        found = templates.load(real_data / f"reference/histos_{n}_file_per_process.json")
        assert len(found) == 122
        for name, process, variation in [
            ("4j1b_ttbar", "ttbar", "nominal"),
            ("4j2b_ttbar_ME_var", "ttbar", "ME_var"),
            ("4j2b_wjets_pt_res_up", "wjets", "nominal"),
        ]:
            weight = agc_published.event_weight(process, variation, files)
            counts = found[name].values(flow=True) / weight
            np.testing.assert_allclose(counts, np.round(counts), atol=1e-6)
            variances = found[name].variances(flow=True)
            np.testing.assert_allclose(variances, found[name].values(flow=True) * weight)

    def test_known_counts(self, real_data: Path) -> None:
        found = templates.load(real_data / "reference/histos_1_file_per_process.json")
        weight = agc_published.event_weight("ttbar", "nominal", 1)
        counts = [found[f"{r}_ttbar"].sum(flow=True).value / weight for r in ("4j1b", "4j2b")]
        assert counts == pytest.approx([12693, 28616])

    @pytest.mark.parametrize("n", ["1", "10", "all"])
    def test_pseudodata_are_the_published_ones(self, real_data: Path, n: str) -> None:
        path = real_data / f"reference/histos_{n}_file_per_process.json"
        made = templates.pseudodata(templates.load(path), PUBLISHED)
        published = json.loads(path.read_text())
        for name, histogram in made.items():
            np.testing.assert_allclose(
                histogram.values(flow=True), published[name]["contents"], rtol=1e-12, atol=1e-9
            )

    def test_the_file_list_is_the_published_one(self, real_data: Path) -> None:
        published = json.loads((real_data / "nanoaod_inputs.json").read_text())
        assert set(published) == set(agc_published.CROSS_SECTIONS)
        for process, variations in published.items():
            assert set(variations) == set(agc_published.variations(process))
            for variation, content in variations.items():
                numbers = tuple(file["nevts"] for file in content["files"])
                assert agc_published.entries(process, variation) == numbers
                assert sum(numbers) == content["nevts_total"]

    def test_unknown_datasets(self) -> None:
        with pytest.raises(FilesetError, match="process 'zjets' is not one of the published ones"):
            agc_published.entries("zjets")
        with pytest.raises(FilesetError, match="wjets has no published dataset 'ME_var'"):
            agc_published.entries("wjets", "ME_var")
