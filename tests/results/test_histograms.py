from __future__ import annotations

import zipfile
from pathlib import Path

import boost_histogram as bh
import hist
import numpy as np
import pytest
import uhi.io.zip
import uproot
from hypothesis import example, given
from hypothesis import strategies as st

from agc_ml.errors import HistogramError
from agc_ml.results import categories, histogram_files, histograms, templates, variances


def booked(process: str = "ttbar", variations: tuple[str, ...] = ("nominal", "a_up")) -> hist.Hist:
    made = histograms.book(5, 0, 10, label="$H_T$ [GeV]", process=process, variations=variations)
    made.fill(observable=[1, 2, 11], process=process, variation=variations[0], weight=[1, 2.5, -3])
    return made


def test_names_are_those_of_the_grand_challenge() -> None:
    flat = categories.flatten({"4j1b": booked()})
    assert list(flat) == ["4j1b_ttbar", "4j1b_ttbar_a_up"]
    assert flat["4j1b_ttbar"].sum(flow=True).value == pytest.approx(0.5)
    assert not flat["4j1b_ttbar_a_up"].values(flow=True).any()


def test_root_files_keep_contents_variances_and_flow(tmp_path: Path) -> None:
    flat = categories.flatten({"4j1b": booked()})
    histogram_files.write_root(tmp_path / "h.root", flat)
    again = histogram_files.read_root(tmp_path / "h.root")
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
    flat = categories.flatten(made)
    assert list(flat) == ["map", "nested/pt_1", "nested/pt_2"]
    histogram_files.write_root(tmp_path / "h.root", flat)
    assert set(histogram_files.read_root(tmp_path / "h.root")) >= {"map", "nested/pt_1"}
    histogram_files.write_zip(tmp_path / "h.zip", made)
    assert histogram_files.read_zip(tmp_path / "h.zip") == made


def test_means_of_single_entries_come_back_from_a_zip(tmp_path: Path) -> None:
    """Of which the file has the variance 0 / 0."""
    axis = hist.axis.Regular(4, 0, 4, name="x")
    for storage, weight in ((hist.storage.Mean(), None), (hist.storage.WeightedMean(), 0.3)):
        made = hist.Hist(axis, storage=storage)
        made.fill([0.5, 1.5, 1.5, 2.5], sample=[7, 1, 2, 5], weight=weight)
        histogram_files.write_zip(tmp_path / "h.zip", {"h": made})
        again = histogram_files.read_zip(tmp_path / "h.zip")["h"]
        for name in made.view().dtype.names:
            np.testing.assert_allclose(again.view()[name], made.view()[name], atol=1e-12)
        assert np.isfinite((again + again).view()[made.view().dtype.names[-1]]).all()


def test_attributes_that_are_numbers_of_numpy_are_kept(tmp_path: Path) -> None:
    made = hist.Hist(hist.axis.Regular(2, 0, 1, name="x", metadata={"n": np.int64(2)}))
    made.metadata = {"lumi": np.float32(1.5), "years": [np.int16(2016)]}
    assert histogram_files.unstorable(made) is None
    histogram_files.write_zip(tmp_path / "h.zip", {"h": made})
    again = histogram_files.read_zip(tmp_path / "h.zip")["h"]
    assert again.metadata == {"lumi": 1.5, "years": [2016]}
    assert again.axes[0].metadata == {"n": 2}


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
    histogram_files.write_zip(path, {"4j2b": made})
    again = histogram_files.read_zip(path)["4j2b"]
    assert again == made
    assert again.axes[0].label == "$H_T$ [GeV]"


def test_unreadable_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("nothing of the kind")
    with pytest.raises(HistogramError, match="bad: not a readable ROOT file"):
        histogram_files.read_root(bad)
    with pytest.raises(HistogramError, match="bad: not readable as histograms"):
        histogram_files.read_zip(bad)
    with uproot.recreate(tmp_path / "empty.root"):
        pass
    with pytest.raises(HistogramError, match="no histograms in it"):
        histogram_files.read_root(tmp_path / "empty.root")


STORAGES = [
    *(hist.storage.Double, hist.storage.Int64, hist.storage.AtomicInt64),
    *(hist.storage.Unlimited, hist.storage.Weight),
]
PROFILES = [hist.storage.Mean, hist.storage.WeightedMean]


def filled(storage: type, weight: float | None = None, **axis: bool) -> hist.Hist:
    """38 fills in three bins and the overflow, in a region with a category axis."""
    axes = (
        hist.axis.StrCategory(["tt"], name="process"),
        hist.axis.Regular(3, 0, 3, name="x", **axis),
    )
    more = {} if weight is None else {"weight": weight}
    if storage in PROFILES:
        more["sample"] = np.arange(38)
    return hist.Hist(*axes, storage=storage()).fill("tt", np.arange(38) % 4 + 0.5, **more)


def through_files(made: hist.Hist, folder: Path) -> list[hist.Hist]:
    """The template of a histogram in memory, and as read from each file."""
    histogram_files.write_zip(folder / "h.zip", {"h": made})
    flat = categories.flatten({"h": made})
    histogram_files.write_root(folder / "h.root", flat)
    again = categories.flatten(histogram_files.read_zip(folder / "h.zip"))
    return [flat["h_tt"], again["h_tt"], histogram_files.read_root(folder / "h.root")["h_tt"]]


@pytest.mark.parametrize("storage", STORAGES)
def test_counts_keep_the_variance_of_counts(storage: type, tmp_path: Path) -> None:
    for found in through_files(filled(storage), tmp_path):
        assert variances.of(found, flow=True).tolist() == [0, 10, 10, 9, 9]
        assert found.variances(flow=True).tolist() == [0, 10, 10, 9, 9]


@pytest.mark.parametrize("storage", [hist.storage.Double, hist.storage.Int64])
@pytest.mark.parametrize("weight", [1, 100])
def test_what_is_not_known_is_not_made_up(storage: type, weight: float, tmp_path: Path) -> None:
    for found in through_files(filled(storage, weight), tmp_path):
        assert found.values(flow=True).tolist() == [
            0,
            10 * weight,
            10 * weight,
            9 * weight,
            9 * weight,
        ]
        assert variances.of(found) is None
        assert found.variances() is None
    with uproot.open(tmp_path / "h.root") as file:
        assert not file["h_tt"].weighted


@pytest.mark.parametrize("storage", PROFILES)
def test_means_keep_their_spread(storage: type, tmp_path: Path) -> None:
    expected, *others = through_files(filled(storage), tmp_path)
    for found in others:
        for what in ("values", "variances", "counts"):
            of_both = [getattr(one, what)(flow=True) for one in (found, expected)]
            np.testing.assert_allclose(*of_both, rtol=1e-12)


def test_empty_templates_keep_whether_they_are_known(tmp_path: Path) -> None:
    weighted = filled(hist.storage.Double)
    weighted.reset()
    assert [variances.of(h) is None for h in through_files(weighted * 1, tmp_path)] == [True] * 3
    assert [variances.of(h) is None for h in through_files(weighted, tmp_path)] == [False] * 3


@given(weight=st.sampled_from([None, 1, 2.5, -1]), flow=st.tuples(st.booleans(), st.booleans()))
def test_files_keep_contents_whatever_flow_an_axis_has(
    weight: float | None, flow: tuple[bool, bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    made = filled(hist.storage.Double, weight, underflow=flow[0], overflow=flow[1])
    one, two, three = through_files(made, folder)
    assert one == two
    assert three.sum(flow=True) == one.sum(flow=True)
    assert three.values().tolist() == one.values().tolist()
    assert (three.variances() is None) == (weight is not None)


@pytest.mark.parametrize(
    "axis",
    [
        hist.axis.Integer(0, 3, name="n", underflow=False),
        hist.axis.Boolean(name="b"),
        hist.axis.Regular(4, 1, 100, transform=hist.axis.transform.log, name="l"),
        hist.axis.Regular(3, 0, 3, growth=True, name="g"),
        hist.axis.Variable([0, 1, 7], overflow=False, name="v"),
        hist.axis.Regular(3, 0, 3, circular=True, name="c"),
    ],
    ids=lambda axis: axis.name,
)
def test_all_numeric_axes_are_written_whole(axis: object, tmp_path: Path) -> None:
    made = {
        "h": hist.Hist(axis, storage=hist.storage.Weight()).fill([0, 1, 5, 1], weight=[1, 2, 3, -4])
    }
    histogram_files.write_root(tmp_path / "h.root", made)
    again = histogram_files.read_root(tmp_path / "h.root")
    assert again["h"].sum(flow=True) == made["h"].sum(flow=True)
    assert templates.compare(made, again) == []


def test_flow_of_each_axis_is_kept(tmp_path: Path) -> None:
    axes = [
        hist.axis.Regular(2, 0, 2, underflow=first, overflow=second, name=name)
        for name, first, second in (("x", False, True), ("y", True, False), ("z", True, True))
    ]
    made = hist.Hist(*axes, storage=hist.storage.Weight())
    made.fill([5, 0.5, 5], [-1, -1, 0.5], [1, 7, -1], weight=[1, 2, 4])
    histogram_files.write_root(tmp_path / "h.root", {"h": made})
    again = histogram_files.read_root(tmp_path / "h.root")["h"]
    where = (hist.overflow, hist.underflow, 1), (0, hist.underflow, hist.overflow)
    assert [again[index].value for index in where] == [1, 2]
    assert again[hist.overflow, 0, hist.underflow].variance == 16
    assert again.sum(flow=True) == made.sum(flow=True)


def test_storages_that_no_file_holds_are_refused() -> None:
    made = hist.Hist(hist.axis.Regular(2, 0, 2), storage=bh.storage.MultiCell(2))
    with pytest.raises(HistogramError, match="histogram h: the storage MultiCell"):
        categories.flatten({"h": made})


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
)
ODD = st.text(st.sampled_from("a1;/:%. \\*\n[]'é"), min_size=1, max_size=6)


@given(names=st.sets(NAMES | ODD, min_size=1, max_size=6))
@example(names={"a;1", "a;2", "a", "a%3B1"})
@example(names={"a", "a/b", "a/b/c", "/a", "a/", "a//b", "a%2Fb"})
@example(names={"a:b", "x/a:b", "..", "a/../b", ".", "./a"})
def test_names_survive_files(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    made = {
        name: hist.Hist.new.Reg(2, 0, 2).Weight().fill([0.5], weight=number)
        for number, name in enumerate(sorted(names), 1)
    }
    path = tmp_path_factory.getbasetemp() / "names"
    for write, read in (
        (histogram_files.write_root, histogram_files.read_root),
        (histogram_files.write_zip, histogram_files.read_zip),
    ):
        write(path, made)
        again = read(path)
        assert {n: h.sum() for n, h in again.items()} == {n: h.sum() for n, h in made.items()}


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_names_that_no_file_holds_are_refused(name: str) -> None:
    with pytest.raises(HistogramError, match="which files can't hold; rename it"):
        categories.flatten({name: hist.Hist.new.Reg(2, 0, 2).Double()})


def test_labels_are_taken_apart_and_kept(tmp_path: Path) -> None:
    labels = ["a;1", "a;2", "a", "a/b"]
    made = hist.Hist.new.StrCat(labels, name="process").Reg(2, 0, 2, name="x").Weight()
    made.fill(labels, [0.5] * 4, weight=[1, 2, 3, 4])
    histogram_files.write_root(tmp_path / "h.root", categories.flatten({"h": made}))
    again = histogram_files.read_root(tmp_path / "h.root")
    assert [again[f"h_{label}"].sum().value for label in labels] == [1, 2, 3, 4]


class TestForeign:
    """Files that ROOT or others wrote without Sumw2."""

    def written(self, path: Path, contents: list[float], **statistics: float) -> hist.Hist | None:
        data = np.array(contents, dtype=np.float64)
        inside = float(data[1:-1].sum())
        given = {"fEntries": data.sum(), "fTsumw": inside, "fTsumw2": inside, **statistics}
        axis = uproot.writing.identify.to_TAxis("xaxis", "", len(data) - 2, 0.0, 1.0)
        made = uproot.writing.identify.to_TH1x(
            None, "", data, fTsumwx=0.0, fTsumwx2=0.0, fSumw2=None, fXaxis=axis, **given
        )
        with uproot.recreate(path / "f.root") as file:
            file["h"] = made
        return histogram_files.read_root(path / "f.root")["h"]

    @pytest.mark.parametrize(
        ("contents", "statistics"),
        [
            ([0, 3, 4, 0], {}),
            ([2, 3, 4, 1], {}),
            ([2, 3, 4, 1], {"fTsumw": 10, "fTsumw2": 10}),  # flow counts in statistics
            ([0, 0, 0, 0], {}),
        ],
    )
    def test_counts(self, contents: list[float], statistics: dict, tmp_path: Path) -> None:
        assert (
            self.written(tmp_path, contents, **statistics).variances(flow=True).tolist() == contents
        )

    @pytest.mark.parametrize(
        ("contents", "statistics"),
        [
            ([0, 1000, 2800, 0], {"fEntries": 38, "fTsumw2": 380000}),
            ([0, 1000, 2800, 0], {"fEntries": 38}),
            ([0, 3, 4, 0], {"fEntries": 2, "fTsumw": 0, "fTsumw2": 0}),  # SetBinContent
            ([0, 1, 1, 0], {"fTsumw": 0, "fTsumw2": 0}),
            ([0, 3.5, 4.5, 0], {}),
            ([0, -3, 4, 0], {}),
            ([0, np.nan, 4, 0], {}),
            ([0, 3, 4, 0], {"fTsumw2": np.nan}),
        ],
    )
    def test_weights(self, contents: list[float], statistics: dict, tmp_path: Path) -> None:
        assert self.written(tmp_path, contents, **statistics).variances() is None

    def test_the_last_cycle_counts(self, tmp_path: Path) -> None:
        with uproot.recreate(tmp_path / "f.root") as file:
            for n in range(1, 12):
                file["h"] = hist.Hist.new.Reg(2, 0, 2).Weight().fill([0.5] * n)
        assert histogram_files.read_root(tmp_path / "f.root")["h"].sum().value == 11

    @pytest.mark.parametrize("variance", [np.nan, -1.0])
    def test_damaged_variances_are_not_zero(self, variance: float, tmp_path: Path) -> None:
        made = hist.Hist.new.Reg(2, 0, 2).Reg(3, 0, 3).Weight()
        made.view()["variance"][1, 2] = variance
        histogram_files.write_root(tmp_path / "f.root", {"h": made})
        again = histogram_files.read_root(tmp_path / "f.root")
        np.testing.assert_array_equal(again["h"].variances()[1], [0, 0, variance])
        with pytest.raises(HistogramError, match="variances not negative"):
            templates.check(again)

    def test_zip_of_others(self, tmp_path: Path) -> None:
        made = hist.Hist.new.Reg(2, 0, 2).Double().fill([0.5])
        with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
            uhi.io.zip.write(archive, "counts", made)
            uhi.io.zip.write(archive, "scaled", made * 2.5)
            archive.writestr("no.json", "[]")
        with pytest.raises(HistogramError, match="not readable as histograms"):
            histogram_files.read_zip(tmp_path / "f.zip")
        with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
            uhi.io.zip.write(archive, "counts", made)
            uhi.io.zip.write(archive, "scaled", made * 2.5)
        again = histogram_files.read_zip(tmp_path / "f.zip")
        assert variances.of(again["counts"]).tolist() == [1, 0]
        assert variances.of(again["scaled"]) is None


class TestLostCategories:
    def test_says_what_is_in_no_template(self) -> None:
        made = (
            hist.Hist.new.StrCat(["a", "b"], name="process")
            .IntCat([1], name="n")
            .Reg(2, 0, 2)
            .Int64()
        )
        made.fill(["a", "c", "c", "c"], 1, [0.5] * 4)
        (line,) = categories.lost_categories({"h": made})
        assert "histogram h: 3 of 4 entries" in line
        assert "axis 'process' (a, b)" in line
        assert "growth=True" in line

    def test_weights_that_cancel_are_told_too(self) -> None:
        made = hist.Hist.new.StrCat(["a"], name="p").Reg(2, 0, 2).Weight()
        made.fill(["x", "x"], [0.5, 1.5], weight=[1, -1])
        assert len(categories.lost_categories({"h": made})) == 1
        assert (
            categories.lost_categories({"h": hist.Hist.new.StrCat(["a"]).Reg(2, 0, 2).Mean()}) == ()
        )

    def test_nothing_is_lost(self) -> None:
        grows = hist.Hist.new.StrCat([], growth=True, name="p").Reg(2, 0, 2).Weight()
        only = hist.Hist.new.StrCat(["a"], name="p").Int64().fill(["b"])  # its own template
        whole = hist.Hist.new.StrCat(["a"], name="p").Reg(2, 0, 2).Int64().fill(["a"], [7])
        grows.fill(["b"], [0.5])
        assert categories.lost_categories({"grows": grows, "only": only, "whole": whole}) == ()
