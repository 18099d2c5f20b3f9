"""From templates to a fit: configuration, workspace, result, and the published fits."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cabinetry
import hist
import numpy as np
import pyhf
import pytest
import yaml
from factories import partial_run, run_result, true_templates, ttbar_hists
from places import REFERENCE, ROOT

from agc_ml.analysis import analysis_of
from agc_ml.errors import AgcError, FitError, HistogramError, StoreError, UsageError
from agc_ml.inputs import agc_published
from agc_ml.results import templates, variances
from agc_ml.results.histogram_files import write_root
from agc_ml.statistics import fit, fit_setup
from agc_ml.statistics.cross_section import measured_cross_section
from agc_ml.statistics.likelihood.pyhf_model import quiet
from agc_ml.statistics.workspace.fit_inputs import collect
from agc_ml.statistics.workspace.workspace import prepare

SHIPPED = ROOT / "processors" / "ttbar" / "fit.yml"
EXPECTED = json.loads((REFERENCE / "fits.json").read_text())

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def fits(real_data: Path) -> Callable[[str], fit.FitResult]:
    """Fit the published histograms of N files, once for each N."""
    done: dict[str, fit.FitResult] = {}

    def fitted(n: str) -> fit.FitResult:
        if n not in done:
            done[n] = fit.fit(real_data / f"reference/histos_{n}_file_per_process.json")
        return done[n]

    return fitted


@pytest.fixture(scope="session")
def published(real_data: Path) -> dict[str, hist.Hist[Any]]:
    return templates.load(real_data / "reference/histos_1_file_per_process.json")


@pytest.fixture
def made_up() -> dict[str, hist.Hist[Any]]:
    return true_templates(ttbar_hists())


def shipped(edit: Edit | None = None) -> dict[str, Any]:
    """Make a copy of the shipped configuration, edited."""
    config = copy.deepcopy(fit.shipped_config("ttbar"))
    if edit is not None:
        edit(config)
    return config


def simple(config: dict[str, Any]) -> None:
    """Leave two uncertainties, so that a fit takes little time."""
    config["Systematics"] = config["Systematics"][:1] + config["Systematics"][-1:]
    for sample in config["Samples"]:
        if not sample.get("Data"):
            sample["DisableStaterror"] = True


def thinned(content: dict[str, Any], fraction: float, seed: int) -> dict[str, hist.Hist[Any]]:
    """Draw what the published histograms could be with a fraction of the events of one file."""
    random = np.random.default_rng(seed)
    found = {}
    for name, histogram in content.items():
        process = next(p for p in agc_published.CROSS_SECTIONS if f"_{p}" in name)
        weight = agc_published.event_weight(process, "nominal", 1)
        drawn = histogram.copy()
        view = drawn.view(flow=True)
        counts = random.poisson(np.maximum(view["value"], 0) / weight * fraction)
        view["value"] = counts * weight / fraction
        view["variance"] = counts * (weight / fraction) ** 2
        found[name] = drawn
    return found


class TestPublishedFits:
    @pytest.mark.parametrize("n", ["1", "10", "all"])
    def test_value_and_uncertainty(self, fits: Any, n: str) -> None:
        result, expected = fits(n), EXPECTED["fits"][n]
        assert result.poi.name == "ttbar_norm"
        assert result.poi.value == pytest.approx(expected["value"], abs=1e-4)
        assert result.poi.uncertainty == pytest.approx(expected["uncertainty"], rel=1e-3)
        assert (result.minimizer, result.converged, result.notes) == ("newton", True, ())
        if "twice_nll" in expected:
            assert result.twice_nll == pytest.approx(expected["twice_nll"], abs=1e-5)

    def test_reads_well_at_a_prompt_and_in_a_notebook(self, fits: Any) -> None:
        text = "sigma(tt) = 700 ± 60 pb (predicted 729.84; ttbar_norm 0.96 ± 0.09)"
        assert str(fits("10")) == text
        page = fits("10")._repr_html_()
        assert text in page
        assert "published pseudodata" in page
        assert page.count("<tr>") == 35

    def test_pulls(self, fits: Any) -> None:
        found = {parameter.name: parameter for parameter in fits("10").parameters}
        for name, (value, uncertainty) in EXPECTED["pulls"].items():
            assert found[name].pull == pytest.approx(value, abs=2e-3)
            assert found[name].uncertainty == pytest.approx(uncertainty, abs=2e-3)

    def test_parameters(self, fits: Any) -> None:
        result = fits("10")
        assert len(result.parameters) == 34
        assert sum(p.name.startswith("staterror") for p in result.parameters) == 22
        assert [p.name for p in result.parameters if p.pull is None] == ["ttbar_norm"]
        assert result.correlation.shape == (34, 34)
        np.testing.assert_allclose(result.correlation, result.correlation.T, atol=1e-9)
        assert np.diag(result.correlation).tolist() == [1] * 34
        assert np.abs(result.correlation).max() <= 1 + 1e-12

    def test_with_single_top_in_the_data_it_closes(self, real_data: Path) -> None:
        path = real_data / "reference/histos_all_file_per_process.json"
        result = fit.fit(path, pseudodata="complete")
        assert result.pseudodata == "complete"
        assert result.poi.value == pytest.approx(1.007, abs=1e-3)
        assert result.poi.uncertainty == pytest.approx(0.0950, abs=1e-3)

    def test_goodness_of_fit(self, fits: Any) -> None:
        quality = fits("1").goodness_of_fit
        assert quality.ndof == 21
        assert quality.chi2 == pytest.approx(1.7206, abs=1e-3)
        assert 0.999 < quality.p_value < 1

    def test_impacts(self, fits: Any) -> None:
        result = fits("10")
        sizes = [max(abs(i.postfit_up), abs(i.postfit_down)) for i in result.impacts]
        assert len(sizes) == 33
        assert sizes == sorted(sizes, reverse=True)
        names = [p.name for p in result.parameters]
        poi = names.index("ttbar_norm")
        for impact in result.impacts:
            linear = result.correlation[poi, names.index(impact.parameter)] * result.poi.uncertainty
            assert (impact.postfit_up - impact.postfit_down) / 2 == pytest.approx(linear, abs=0.01)

    def test_yields(self, fits: Any, real_data: Path) -> None:
        result = fits("10")
        flat = templates.load(real_data / "reference/histos_10_file_per_process.json")
        for prefit, postfit in zip(result.prefit, result.postfit, strict=True):
            assert len(prefit.samples) == 5
            assert prefit.edges.tolist() == list(range(110, 551, 40))
            merged = templates.merge(flat[f"{prefit.region[:4]}_ttbar"], prefit.edges)
            np.testing.assert_allclose(prefit.samples["ttbar"], merged.values())
            np.testing.assert_array_equal(prefit.data, postfit.data)
            total = sum(postfit.samples.values())
            np.testing.assert_allclose(total, postfit.data, rtol=0.02)
            assert (postfit.uncertainty < prefit.uncertainty).all()
        assert [region.region for region in result.prefit] == ["4j1b CR", "4j2b SR"]
        assert [region.label for region in result.prefit] == ["$H_T$ [GeV]", "$m_{bjj}$ [GeV]"]

    def test_inputs_are_named_by_their_content(self, fits: Any) -> None:
        digests = [fits(n).inputs for n in ("1", "10")]
        assert digests[0]["config"] == digests[1]["config"]
        assert digests[0]["templates"] != digests[1]["templates"]
        assert all(re.fullmatch("[0-9a-f]{64}", d["templates"]) for d in digests)


class TestKeeping:
    def test_comes_back_as_it_was(self, fits: Any, tmp_path: Path) -> None:
        result = fits("1")
        fit.save(result, tmp_path / "new" / "fit")
        for place in (tmp_path / "new" / "fit", tmp_path / "new" / "fit" / "fit.json"):
            again = fit.load(place)
            assert again.poi == result.poi
            assert again.parameters == result.parameters
            assert again.impacts == result.impacts
            assert again.workspace == result.workspace
            np.testing.assert_array_equal(again.correlation, result.correlation)
            for a, b in zip(again.postfit, result.postfit, strict=True):
                np.testing.assert_array_equal(a.uncertainty, b.uncertainty)
                assert a.samples.keys() == b.samples.keys()
            for field in ("goodness_of_fit", "twice_nll", "minimizer", "inputs", "notes"):
                assert getattr(again, field) == getattr(result, field)

    def test_the_files_are_as_agreed(self, fits: Any, tmp_path: Path) -> None:
        fit.save(fits("1"), tmp_path)
        content = json.loads((tmp_path / "fit.json").read_text())
        assert content["schema"] == 1
        assert set(content["poi"]) == {"name", "value", "uncertainty"}
        assert set(content["parameters"][0]) == {"name", "value", "uncertainty", "pull"}
        assert set(content["goodness_of_fit"]) == {"chi2", "ndof", "p_value"}
        assert {"correlation", "minimizer", "converged", "pseudodata", "inputs"} <= set(content)
        with quiet():
            workspace = pyhf.Workspace(json.loads((tmp_path / "workspace.json").read_text()))
            assert workspace.model().config.npars == 34
        assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.json", "workspace.json"]

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FitError, match=r"fit.json: no such file; 'agc-ml fit' writes it"):
            fit.load(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "cut off or not JSON"),
            ("[]", r"fit.json: field"),
            ('{"schema": 2}', r"fit.json: field schema"),
            ('{"schema": 1}', r"fit.json: field poi: Field required"),
        ],
    )
    def test_damaged(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "fit.json").write_text(content)
        with pytest.raises(FitError, match=message) as caught:
            fit.load(tmp_path)
        assert "\n" not in str(caught.value)

    def test_without_its_workspace(self, fits: Any, tmp_path: Path) -> None:
        fit.save(fits("1"), tmp_path)
        (tmp_path / "workspace.json").unlink()
        with pytest.raises(FitError, match=r"workspace.json: no such file"):
            fit.load(tmp_path)

    def test_no_folder_can_be_made(self, fits: Any, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="can't be written"):
            fit.save(fits("1"), tmp_path / "file" / "fit")


class TestConfig:
    def test_shipped(self) -> None:
        assert fit.shipped_config("ttbar") == yaml.safe_load(SHIPPED.read_text())
        assert fit.shipped_config("processors.ttbar:TtbarProcessor") == shipped()

    @pytest.mark.parametrize(
        ("processor", "message"),
        [
            ("dimuon", "the processor 'dimuon' ships no fit configuration"),
            ("nope", r"no processor 'nope' with a fit \(dimuon, jet_assignment, ttbar are reg"),
            ("folder/file.py:Class", "no processor 'folder/file.py:Class' with a fit"),
        ],
    )
    def test_not_shipped(self, processor: str, message: str) -> None:
        with pytest.raises(FitError, match=message):
            fit.shipped_config(processor)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a:\n\t- b", "can't be read as YAML"),
            (b"\xff\xfe\x00", "can't be read as YAML"),
            (b"", "field (top): None is not of type 'object'"),
            (b"- a", "field (top): ['a'] is not of type 'object'"),
            (b"General:\n  POI: a\n  POI: b\n", "line 2: 'POI' is there twice"),
            (b"- [{a: 1, a: 2}]", "line 1: 'a' is there twice"),
        ],
    )
    def test_no_configuration(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "my.yml"
        path.write_bytes(content)
        with pytest.raises(FitError, match=re.escape(message)) as caught:
            fit.load_config(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such file"):
            fit.load_config(tmp_path / "my.yml")

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda c: c.pop("Samples"), "field (top): 'Samples' is a required property"),
            (lambda c: c["Regions"][0].update(Bining=[1, 2]), "field Regions -> 0: Additional"),
            (lambda c: c["Samples"][1].update(Data=True), "exactly one data sample"),
            (lambda c: c["Samples"][1].update(Name="a.b"), "Samples -> a.b: names can't have"),
            (
                lambda c: c["Systematics"][0].update(Samples="tbar"),
                "Systematics -> ME variation -> Samples: 'tbar' is none of ['Pseudodata', 'ttbar'",
            ),
            (
                lambda c: c["Samples"][1].update(Regions=["4j1b CR", "5j"]),
                "Samples -> ttbar -> Regions: '5j' is none of ['4j1b CR', '4j2b SR']",
            ),
            (
                lambda c: c["Systematics"][0].update(Up={"Symmetrize": True}),
                "Systematics -> ME variation -> Up: can't be the mirror image",
            ),
            (
                lambda c: c["Systematics"][-1].update(Up={}),
                "Systematics -> Luminosity -> Up: Normalization is missing",
            ),
            (lambda c: c["General"].update(POI="x"), "General -> POI: name what is to be measured"),
            (
                lambda c: c["General"].update(Fixed=[{"Name": "x", "Value": 1}]),
                "General -> Fixed -> x: none of",
            ),
            (
                lambda c: c["General"].update(Fixed=[{"Name": "ttbar_norm", "Value": 2}]),
                "General -> Fixed -> ttbar_norm: cabinetry would take its Nominal",
            ),
        ],
    )
    def test_wrong_fields(self, tmp_path: Path, edit: Edit, message: str) -> None:
        path = tmp_path / "my.yml"
        path.write_text(yaml.safe_dump(shipped(edit)))
        with pytest.raises(FitError, match=re.escape(message)) as caught:
            fit.load_config(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


class TestWorkspace:
    def test_holds_the_merged_templates(self, made_up: dict[str, hist.Hist[Any]]) -> None:
        spec = fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        assert [channel["name"] for channel in spec["channels"]] == ["4j1b CR", "4j2b SR"]
        sample = spec["channels"][1]["samples"][0]
        merged = templates.merge(made_up["4j2b_ttbar"], list(range(110, 551, 40)))
        np.testing.assert_allclose(sample["data"], merged.values())
        staterror = next(m for m in sample["modifiers"] if m["type"] == "staterror")
        np.testing.assert_allclose(staterror["data"], np.sqrt(merged.variances()))
        data = templates.pseudodata(made_up, analysis_of().recipe())["4j2b_pseudodata"]
        merged = templates.merge(data, list(range(110, 551, 40)))
        np.testing.assert_allclose(spec["observations"][1]["data"], merged.values())

    def test_effects_are_normalised_to_the_nominal(self, made_up: dict[str, Any]) -> None:
        spec = fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        modifiers = spec["channels"][0]["samples"][0]["modifiers"]
        me = {m["type"]: m["data"] for m in modifiers if m["name"] == "ME variation"}
        edges = list(range(110, 551, 40))
        nominal, varied = (
            templates.merge(made_up[f"4j1b_{name}"], edges).values().sum()
            for name in ("ttbar", "ttbar_ME_var")
        )
        assert me["normsys"]["hi"] == pytest.approx(varied / nominal)
        assert me["normsys"]["lo"] == pytest.approx(2 - varied / nominal)
        assert sum(me["histosys"]["hi_data"]) == pytest.approx(nominal)

    def test_unknown_variances_are_refused(self, made_up: dict[str, Any]) -> None:
        made_up["4j2b_wjets"] = variances.filled(
            made_up["4j2b_wjets"].axes, made_up["4j2b_wjets"].values(flow=True), None
        )
        with pytest.raises(FitError) as caught:
            fit.fit(made_up)
        for part in ("4j2b_wjets", "hist.storage.Weight()", "region '4j2b SR'"):
            assert part in str(caught.value)

    def test_variances_that_enter_nothing_may_be_unknown(self, made_up: dict[str, Any]) -> None:
        """Those of variations, of data, and of samples without staterror."""
        known = fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        blind = {
            name: h
            if name.endswith(tuple(agc_published.CROSS_SECTIONS))
            else variances.filled(h.axes, h.values(flow=True), None)
            for name, h in made_up.items()
        }
        assert fit.build_workspace(blind, fit.shipped_config("ttbar")) == known
        name = "4j1b_wjets"
        blind[name] = variances.filled(blind[name].axes, blind[name].values(flow=True), None)

        def exact(config: dict[str, Any]) -> None:
            next(s for s in config["Samples"] if s["Name"] == "W+jets")["DisableStaterror"] = True

        fit.build_workspace({**blind, "4j2b_wjets": made_up["4j2b_wjets"]}, shipped(exact))

    def test_counts_have_the_variance_of_counts(self, made_up: dict[str, Any]) -> None:
        name, edges = "4j1b_wjets", list(range(110, 551, 40))
        old = made_up[name]
        made_up[name] = hist.Hist(*old.axes, data=np.round(old.values(flow=True)))
        spec = fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        sample = next(s for s in spec["channels"][0]["samples"] if s["name"] == "W+jets")
        staterror = next(m for m in sample["modifiers"] if m["type"] == "staterror")
        merged = templates.merge(made_up[name], edges)
        np.testing.assert_allclose(staterror["data"], np.sqrt(merged.values()))

    def test_without_binning_the_bins_stay(self, made_up: dict[str, Any]) -> None:
        spec = fit.build_workspace(made_up, shipped(lambda c: c["Regions"][0].pop("Binning")))
        assert len(spec["observations"][0]["data"]) == 25
        assert len(spec["observations"][1]["data"]) == 11

    @pytest.mark.parametrize("scale", [1, 1e-9, 1e9])
    @pytest.mark.parametrize("last", [2.0, 1e9, np.inf])
    def test_edges_are_found_at_any_size(self, scale: float, last: float) -> None:
        edges = scale * np.array([0, 0.5, 1.0, last])
        axis = hist.axis.Variable(edges, name="x")
        made = variances.filled([axis], np.array([0, 5.0, 10, 20, 0]), np.ones(5))
        assert templates.merge(made, edges).values().tolist() == [5, 10, 20]
        assert templates.merge(made, edges[:3]).values().tolist() == [5, 10]
        assert templates.merge(made, edges[[0, 2, 3]]).values().tolist() == [15, 20]
        with pytest.raises(HistogramError, match="is not among its bin edges"):
            templates.merge(made, [0, 0.7 * scale])

    def test_two_regions_may_have_parts_of_a_histogram(self, made_up: dict[str, Any]) -> None:
        def parts(config: dict[str, Any]) -> None:
            config["Regions"][1].update(RegionPath="4j1b", Binning=[50, 110])

        spec = fit.build_workspace(made_up, shipped(parts))
        assert [len(o["data"]) for o in spec["observations"]] == [11, 1]

        def overlapping(config: dict[str, Any]) -> None:
            config["Regions"][1].update(RegionPath="4j1b", Binning=[50, 150])

        with pytest.raises(FitError, match="lead to one histogram, 4j1b_pseudodata"):
            fit.build_workspace(made_up, shipped(overlapping))

    @pytest.mark.parametrize(
        "name", ["4j1b_ttbar", "4j2b_ttbar_PS_var", "4j1b_wjets_btag_var_2_up"]
    )
    def test_a_missing_histogram_is_named(self, made_up: dict[str, Any], name: str) -> None:
        del made_up[name]
        with pytest.raises(FitError, match=rf"histogram {name} is missing .*region '4j") as caught:
            fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        assert "sample '" in str(caught.value)
        assert ("systematic '" in str(caught.value)) == (name != "4j1b_ttbar")

    def test_single_top_is_needed_for_complete_pseudodata(self, made_up: dict[str, Any]) -> None:
        def without(config: dict[str, Any]) -> None:
            simple(config)
            config["Samples"] = config["Samples"][:3]

        content = {name: h for name, h in made_up.items() if "single_top" not in name}
        fit.build_workspace(content, shipped(without))
        with pytest.raises(HistogramError, match="4j1b_single_top_s_chan is missing: the complete"):
            fit.build_workspace(content, shipped(without), analysis_of().recipe("complete"))

    @pytest.mark.parametrize(
        ("edit", "error", "message"),
        [
            (
                lambda c: c["Regions"][0].update(RegionPath="5j"),
                FitError,
                "histogram 5j_ttbar is missing",
            ),
            (
                lambda c: c["Regions"][0].pop("RegionPath"),
                FitError,
                "4j1b CR: RegionPath is missing",
            ),
            (
                lambda c: c["Samples"][1].update(SamplePath=["a", "b"]),
                FitError,
                "ttbar: SamplePath is missing, or more than one name",
            ),
            (
                lambda c: c["Regions"][0].update(Binning=[110, 155, 550]),
                HistogramError,
                "region '4j1b CR', histogram 4j1b_pseudodata: 155 is not among its bin edges",
            ),
            (
                lambda c: c["Regions"][0].update(Name="4j2b-SR"),
                FitError,
                "cabinetry calls it 4j2b-SR_Pseudodata, and another one too",
            ),
        ],
    )
    def test_what_does_not_fit_together(
        self, made_up: dict[str, Any], edit: Edit, error: type[AgcError], message: str
    ) -> None:
        with pytest.raises(error, match=re.escape(message)):
            fit.build_workspace(made_up, shipped(edit))

    def test_nan_is_named(self, made_up: dict[str, Any]) -> None:
        made_up["4j2b_wjets_pt_res_up"].view(flow=True)["value"][5] = np.nan
        with pytest.raises(HistogramError, match=r"4j2b_wjets_pt_res_up, bin \[130, 150\)"):
            fit.build_workspace(made_up, fit.shipped_config("ttbar"))

    def test_data_of_ones_own(self, made_up: dict[str, Any]) -> None:
        def own(config: dict[str, Any]) -> None:
            simple(config)
            config["Samples"][0]["SamplePath"] = "data"

        config = shipped(own)
        with pytest.raises(FitError, match="histogram 4j1b_data is missing"):
            fit.build_workspace(made_up, config)
        content = made_up | {f"{region}_data": made_up[f"{region}_ttbar"] for region in REGIONS}
        workspace = prepare(content, config)
        assert workspace.data == "data"
        assert "4j1b_data" in workspace.templates
        merged = templates.merge(made_up["4j1b_ttbar"], list(range(110, 551, 40)))
        np.testing.assert_allclose(workspace.spec["observations"][0]["data"], merged.values())

    def test_pseudodata_are_always_made_anew(self, made_up: dict[str, Any]) -> None:
        wrong = {f"{region}_pseudodata": made_up[f"{region}_ttbar"] for region in REGIONS}
        config = fit.shipped_config("ttbar")
        expected = fit.build_workspace(made_up, config)
        assert fit.build_workspace(made_up | wrong, config) == expected


REGIONS = ("4j1b", "4j2b")


class TestSmallSamples:
    def test_an_empty_sample_is_left_out_and_told(
        self, made_up: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        made_up["4j1b_single_top_tW"].reset()
        spec = fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        assert "tW" not in {sample["name"] for sample in spec["channels"][0]["samples"]}
        assert [record.message for record in caplog.records] == [
            "4j1b CR, tW: no events, the sample is left out of this region"
        ]

    @pytest.mark.parametrize(
        ("name", "factor", "message"),
        [
            (
                "4j2b_ttbar_PS_var",
                2.5,
                "'PS variation (Up)': 1.337e+05 events for 5.35e+04, so its",
            ),
            ("4j2b_ttbar_scaleup", 0, "'ttbar scale variations (Up)': 0 events for 5.35e+04;"),
            ("4j1b_ttbar_scaledown", -1, "'ttbar scale variations (Down)': -5.35e+04 events"),
        ],
    )
    def test_varied_yields_below_zero(
        self, made_up: dict[str, Any], name: str, factor: float, message: str
    ) -> None:
        made_up[name] = made_up[f"{name[:4]}_ttbar"] * factor
        with pytest.raises(FitError, match=re.escape(message)) as caught:
            fit.build_workspace(made_up, fit.shipped_config("ttbar"))
        assert str(caught.value).startswith(
            f"varied yields have to be above zero: region '{name[:4]}"
        )
        assert "\n" not in str(caught.value)

    def test_no_events_at_all(self, made_up: dict[str, Any]) -> None:
        empty = {name: h * 0 for name, h in made_up.items()}
        with pytest.raises(FitError, match="region '4j1b CR': no sample has events there"):
            fit.fit(empty)

    def test_nothing_to_measure(self, made_up: dict[str, Any]) -> None:
        made_up["4j1b_ttbar"].reset()
        made_up["4j2b_ttbar"].reset()
        with pytest.raises(FitError, match="ttbar_norm: the samples that it scales have no events"):
            fit.fit(made_up)

    def test_negative_weights(self, made_up: dict[str, Any]) -> None:
        def own(config: dict[str, Any]) -> None:
            config["Samples"][0]["SamplePath"] = "data"

        content = dict(made_up)
        for region in REGIONS:
            content[f"{region}_ttbar_ME_var"] = made_up[f"{region}_ttbar_ME_var"].copy()
            content[f"{region}_ttbar_ME_var"].view()["value"][3:5] = -1e4
            content[f"{region}_data"] = content[f"{region}_ttbar_ME_var"]
        workspace = prepare(content, fit.shipped_config("ttbar"))
        assert workspace.spec["observations"][0]["data"][0] == 0
        assert "bin [110, 150): the pseudodata are" in workspace.notes[0]
        with pytest.raises(FitError, match=r"4j1b CR, bin \[110, 150\): the data are -"):
            fit.build_workspace(content, shipped(own))

    def test_bins_without_prediction_are_told(self, made_up: dict[str, Any]) -> None:
        def own(config: dict[str, Any]) -> None:
            simple(config)
            config["Samples"][0]["SamplePath"] = "data"

        for name, histogram in made_up.items():
            if name.startswith("4j1b"):
                histogram.view()["value"][3:7] = 0
        made_up |= {f"{region}_data": made_up[f"{region}_ttbar"].copy() for region in REGIONS}
        made_up["4j1b_data"].view()["value"][3] = 7
        result = fit.fit(made_up, shipped(own))
        note = (
            "4j1b CR: left out, since no parameter can predict events there: the bins [110, 150) "
            "with 7 in the data, [150, 190)"
        )
        assert note in result.notes
        assert result.goodness_of_fit.ndof == 19
        assert result.converged
        region = result.postfit[0]
        assert region.data[0] == 7
        assert region.total[:2].tolist() == region.uncertainty[:2].tolist() == [0, 0]
        assert region.total[2] > 0
        # the exported workspace is the one that was fitted
        assert len(result.workspace["observations"][0]["data"]) == 9
        with quiet():
            model, data = cabinetry.model_utils.model_and_data(result.workspace)
            again = cabinetry.fit.fit(model, data)
        assert again.bestfit[again.labels.index("ttbar_norm")] == pytest.approx(
            result.poi.value, abs=1e-3 * result.poi.uncertainty
        )

    def test_a_fit_ends(self, published: dict[str, Any]) -> None:
        result = fit.fit(thinned(published, fraction=0.002, seed=0), shipped(simple))
        numbers = [result.poi, *result.parameters]
        assert np.isfinite([(p.value, p.uncertainty) for p in numbers]).all()
        assert np.isfinite([i.changes for i in result.impacts]).all()
        assert np.isfinite([r.uncertainty for r in result.prefit + result.postfit]).all()

    def test_a_poor_fit_is_told(self, made_up: dict[str, Any]) -> None:
        def own(config: dict[str, Any]) -> None:
            simple(config)
            config["Samples"][0]["SamplePath"] = "data"

        content = made_up | {f"{region}_data": made_up["4j1b_ttbar"].copy() for region in REGIONS}
        content["4j1b_data"].view()["value"] = content["4j1b_data"].values()[::-1]
        result = fit.fit(content, shipped(own))
        assert result.pseudodata == "data"
        assert any("the model does not describe the data (p-value" in n for n in result.notes)


class TestAskedFor:
    """What a configuration asks for is done, or refused in a line that names it."""

    def fitted(self, content: dict[str, Any], edit: Edit) -> dict[str, Any]:
        def small(config: dict[str, Any]) -> None:
            simple(config)
            edit(config)

        return fit.build_workspace(content, shipped(small))

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (
                lambda c: c["Systematics"][0]["Up"].update(Weight="w * 2"),
                "ME variation -> Up -> Weight: not used, since templates are histograms",
            ),
            (
                lambda c: c["Systematics"][0]["Up"].update(Filter="x > 1", Tree="t"),
                "ME variation -> Up -> Filter: not used",
            ),
            (
                lambda c: c["Systematics"][0].update(Up={"Normalization": 0.3}),
                "ME variation -> Up -> Normalization: not used",
            ),
            (
                lambda c: c["Systematics"][0].update(Down={}),
                "ME variation -> Down: no template; give one of RegionPath, SamplePath, Variation",
            ),
            (
                lambda c: c["Systematics"][0].update(Down={"Symmetrize": False}),
                "ME variation -> Down: no template",
            ),
            (
                lambda c: c["Systematics"][0]["Down"].update(VariationPath="_x"),
                "ME variation -> Down: with Symmetrize it has no template, so VariationPath is not",
            ),
            (
                lambda c: c["Systematics"][0].update(Down={"VariationPath": ""}),
                "lead to one histogram, 4j1b_ttbar: the variation is the nominal one; give Down",
            ),
            (
                lambda c: c["General"].update(InputPath="x.root:{RegionPath}_{SamplePath}"),
                "ME variation -> Up -> VariationPath: not used, since InputPath ('x.root:{Region",
            ),
            (
                lambda c: c["Samples"][2].update(SamplePath="ttbar"),
                "region '4j1b CR', sample 'ttbar' and region '4j1b CR', sample 'W+jets' lead to",
            ),
            (
                lambda c: c["Regions"][1].update(RegionPath="4j1b"),
                "sample 'Pseudodata' and region '4j2b SR', sample 'Pseudodata' lead to one",
            ),
            (
                lambda c: c["Systematics"].append({**c["Systematics"][0], "Name": "copy"}),
                "systematic 'ME variation (Up)' and region '4j1b CR', sample 'ttbar', systematic",
            ),
            (
                lambda c: c["Systematics"][1]["Up"].update(Normalization=-1),
                "Luminosity -> Up -> Normalization: -1 takes all events away; it must be above -1",
            ),
            (
                lambda c: c["Systematics"][1]["Down"].update(Normalization=-1.5),
                "Luminosity -> Down -> Normalization: -1.5 takes",
            ),
            (
                lambda c: c["Systematics"][1]["Down"].update(VariationPath="_x"),
                "Luminosity -> Down -> VariationPath: not used, since the Type is Normalization",
            ),
            (
                lambda c: c["Systematics"][1].update(Smoothing={"Algorithm": "353QH, twice"}),
                "Luminosity -> Smoothing: a Normalization has no template",
            ),
            (
                lambda c: c["NormFactors"][0].update(Nominal=11),
                "ttbar_norm -> Nominal: 11 is not within its Bounds [0, 10]",
            ),
            (
                lambda c: c["NormFactors"][0].update(Bounds=[3, 1]),
                "ttbar_norm -> Bounds: 3 is not below 1",
            ),
            (
                lambda c: c["NormFactors"].append({"Name": "k", "Samples": "tW", "Nominal": 20}),
                "k -> Nominal: 20 is not within the default Bounds [0, 10]",
            ),
            (
                lambda c: c["NormFactors"].append({"Name": "k", "Samples": "tW", "Bounds": [2, 9]}),
                "k -> Nominal: 1 (the default) is not within its Bounds [2, 9]",
            ),
            (
                lambda c: c["General"].update(Fixed=[{"Name": "ME variation", "Value": 7}]),
                "Fixed -> ME variation: 7 is out of the parameter's bounds; state wider Bounds",
            ),
            (
                lambda c: c["Systematics"][1]["Up"].update(Normalization=float("nan")),
                "Luminosity -> Up -> Normalization: nan takes all events away",
            ),
            (
                lambda c: c["Systematics"][0].update(
                    Smoothing={"Algorithm": "353QH, twice", "Regions": "typo"}
                ),
                "ME variation -> Smoothing -> Regions: 'typo' is none of",
            ),
            (
                lambda c: c["Samples"][0].update(Regions="4j1b CR"),
                "Samples -> Pseudodata -> Regions: data are needed in ['4j2b SR'], too",
            ),
            (
                lambda c: c["Systematics"].append(
                    {**c["Systematics"][1], "Name": "copy", "ModifierName": "Luminosity"}
                ),
                "4j1b CR, ttbar: two systematics with the ModifierName 'Luminosity' act on it",
            ),
            (
                lambda c: c["Samples"].append({"Name": "tW_modified", "SamplePath": "wjets_2"}),
                "cabinetry calls it 4j1b-CR_tW_modified, and another one too",
            ),
            (
                lambda c: c["Systematics"][1].update(ModifierName="ttbar_norm"),
                "Luminosity -> ModifierName: 'ttbar_norm' is the parameter of a NormFactor",
            ),
            (
                lambda c: c["Systematics"][1].update(ModifierName="staterror_4j1b-CR"),
                "Luminosity -> ModifierName: 'staterror_4j1b-CR' is the parameter of the statisti",
            ),
            (
                lambda c: c["Regions"][0].update(Binning=[150, 110, 190]),
                "Regions -> 4j1b CR -> Binning: edges must be finite and rise",
            ),
            (
                lambda c: c["Regions"][0].update(Binning=[110, float("nan"), 190]),
                "Regions -> 4j1b CR -> Binning: edges must be finite and rise",
            ),
            (
                lambda c: c["Systematics"][0].update(Samples=["ttbar", "Pseudodata"]),
                "ME variation -> Samples: 'Pseudodata' are the data, which stay as they are",
            ),
            (
                lambda c: c["NormFactors"][0].update(Samples="Pseudodata"),
                "NormFactors -> ttbar_norm -> Samples: 'Pseudodata' are the data",
            ),
            (
                lambda c: (
                    c["NormFactors"][0].update(Regions="4j1b CR"),
                    c["Samples"][1].update(Regions="4j2b SR"),
                ),
                "NormFactors -> ttbar_norm: the parameter of interest scales no sample in any reg",
            ),
            (
                lambda c: c["Regions"][0].update(Name="r" * 250),
                "names are too long to be those of a file",
            ),
        ],
    )
    def test_or_refused(self, made_up: dict[str, Any], edit: Edit, message: str) -> None:
        with pytest.raises(FitError, match=re.escape(message)) as caught:
            self.fitted(made_up, edit)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("field", ["RegionPath", "SamplePath", "VariationPath"])
    def test_every_path_leads_to_its_histogram(self, made_up: dict[str, Any], field: str) -> None:
        """A systematic may override each of them."""
        names = {"RegionPath": "other_ttbar", "SamplePath": "4j1b_other", "VariationPath": None}
        varied = made_up["4j1b_ttbar"] * 1.4
        name = names[field] or "4j1b_ttbar_other"
        value = "_other" if field == "VariationPath" else "other"

        def one_region(config: dict[str, Any]) -> None:
            config["Regions"] = config["Regions"][:1]
            config["Systematics"][0]["Up"] = {field: value}

        spec = self.fitted({**made_up, name: varied}, one_region)
        modifiers = spec["channels"][0]["samples"][0]["modifiers"]
        normsys = next(m for m in modifiers if m["type"] == "normsys")
        assert normsys["data"]["hi"] == pytest.approx(1.4)

    @pytest.mark.parametrize("name", ["ME variation", "alpha"])
    def test_a_systematic_is_fixed_by_either_name(self, made_up: dict[str, Any], name: str) -> None:
        def fixed(config: dict[str, Any]) -> None:
            simple(config)
            config["Systematics"][0]["ModifierName"] = "alpha"
            config["General"]["Fixed"] = [{"Name": name, "Value": 1.0}]

        result = fit.fit(made_up, shipped(fixed))
        alpha = next(p for p in result.parameters if p.name == "alpha")
        assert (alpha.value, alpha.uncertainty) == (1.0, 0.0)
        assert result.states == {"alpha": "fixed"}
        assert "alpha" not in {impact.parameter for impact in result.impacts}

    def test_a_factor_keeps_its_bounds_beside_a_systematic_of_its_name(
        self, made_up: dict[str, Any]
    ) -> None:
        def named(config: dict[str, Any]) -> None:
            config["Systematics"][1].update(Name="ttbar_norm", ModifierName="lumi")
            config["NormFactors"][0].update(Nominal=0.2, Bounds=[0, 0.3])

        spec = self.fitted(made_up, named)
        (parameter,) = spec["measurements"][0]["config"]["parameters"]
        assert parameter == {"name": "ttbar_norm", "inits": [0.2], "bounds": [[0, 0.3]]}

    def test_what_acts_on_nothing_is_told(self, made_up: dict[str, Any]) -> None:
        def idle(config: dict[str, Any]) -> None:
            simple(config)
            config["Samples"][1]["Regions"] = "4j2b SR"
            config["Systematics"][0]["Regions"] = "4j1b CR"

        notes = prepare(made_up, shipped(idle)).notes
        assert "ME variation: acts on no sample of any region" in notes

    def test_fixed_twice(self, made_up: dict[str, Any]) -> None:
        def twice(config: dict[str, Any]) -> None:
            config["Systematics"][0]["ModifierName"] = "alpha"
            names = ("ME variation", "alpha")
            config["General"]["Fixed"] = [{"Name": name, "Value": 1.0} for name in names]

        with pytest.raises(FitError, match="alpha: the parameter is fixed twice, by ME variation"):
            self.fitted(made_up, twice)

    def test_histograms_of_another_range(self, made_up: dict[str, Any]) -> None:
        axis = hist.axis.Regular(25, 0, 500, name="observable")
        made_up["4j1b_wjets"] = hist.Hist(axis, storage=hist.storage.Weight())
        made_up["4j1b_wjets"].fill(np.linspace(1, 499, 300))

        def whole(config: dict[str, Any]) -> None:
            config["Regions"][0].pop("Binning")
            config["Samples"][0]["SamplePath"] = "single_top_tW"
            config["Samples"] = config["Samples"][:3]

        with pytest.raises(FitError, match="4j1b_wjets: ranges from 0 to 500, and the region's"):
            self.fitted(made_up, whole)

    def test_up_and_down_may_be_the_same_and_are_told(self, made_up: dict[str, Any]) -> None:
        def same(config: dict[str, Any]) -> None:
            simple(config)
            config["Systematics"][0]["Down"] = dict(config["Systematics"][0]["Up"])

        workspace = prepare(made_up, shipped(same))
        assert "ME variation: Up and Down are the same histogram" in workspace.notes[0]

    def test_what_selects_events_is_told(self, made_up: dict[str, Any]) -> None:
        def selecting(config: dict[str, Any]) -> None:
            config["Regions"][0]["Filter"] = "n_jets > 3"
            config["Samples"][1]["Weight"] = "w"

        notes = prepare(made_up, shipped(selecting)).notes
        assert "Filter of regions 4j1b CR is not applied: histograms are taken as they are" in notes
        assert "Weight of samples ttbar is not applied: histograms are taken as they are" in notes


class TestFilesOfTheConfiguration:
    """InputPath with placeholders before its colon, as cabinetry has it."""

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        return {
            "General": {
                "Measurement": "m",
                "POI": "mu",
                "InputPath": "hist/{SamplePath}.root:{RegionPath}{VariationPath}",
                "HistogramFolder": "h/",
                "VariationPath": "",
            },
            "Regions": [{"Name": "SR", "RegionPath": "SR"}],
            "Samples": [
                {"Name": "Data", "SamplePath": "data", "Data": True},
                {"Name": "Signal", "SamplePath": "signal"},
                {"Name": "Background", "SamplePath": "bkg"},
            ],
            "Systematics": [
                {
                    "Name": "sys",
                    "Type": "NormPlusShape",
                    "Samples": "Background",
                    "Up": {"VariationPath": "_up"},
                    "Down": {"VariationPath": "_down"},
                }
            ],
            "NormFactors": [{"Name": "mu", "Samples": "Signal", "Nominal": 1, "Bounds": [0, 10]}],
        }

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "hist").mkdir()
        background = np.array([50.0, 40, 25])
        content = {
            "data": {"SR": [60.0, 55, 50]},
            "signal": {"SR": [5.0, 10, 20]},
            "bkg": {"SR": background, "SR_up": 1.1 * background, "SR_down": 0.9 * background},
        }
        for name, histograms in content.items():
            made = {}
            for key, values in histograms.items():
                axis = hist.axis.Regular(3, 0, 3, name="x")
                made[key] = variances.filled([axis], np.pad(values, 1), np.pad(values, 1) / 10)
            write_root(tmp_path / "hist" / f"{name}.root", made)
        return tmp_path

    def test_agrees_with_cabinetry(
        self, folder: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        with quiet():
            cabinetry.templates.collect(config, method="uproot")
            cabinetry.templates.postprocess(config)
            expected = cabinetry.workspace.build(config)
        specs = [
            prepare(collect(config, Path(source)), config).spec
            for source in (folder, folder / "hist" / "bkg.root", "hist/data.root")
        ]
        for spec in (*specs, fit.fit(".", config).workspace):
            assert spec["channels"] == expected["channels"]
            assert spec["observations"] == expected["observations"]

    def test_what_is_none_of_its_files(
        self, folder: Path, config: dict[str, Any], made_up: dict[str, Any]
    ) -> None:
        write_root(folder / "other.root", {"SR": made_up["4j1b_ttbar"]})
        with pytest.raises(UsageError, match=r"other.root: none of the files that InputPath"):
            fit.fit(folder / "other.root", config)
        with pytest.raises(UsageError, match="no such file"):
            fit.fit(folder / "hist", config)
        (folder / "run").mkdir()
        run_result().save(folder / "run")
        with pytest.raises(UsageError, match="a run directory, whose histograms are in one file"):
            fit.fit(folder / "run", config)
        with pytest.raises(FitError, match=r"InputPath .* names files, and a run has"):
            fit.fit(run_result(), config)

    def test_a_missing_histogram_is_named_with_its_file(
        self, folder: Path, config: dict[str, Any]
    ) -> None:
        config["Systematics"][0]["Up"]["VariationPath"] = "_upwards"
        with pytest.raises(FitError, match=r"histogram hist/bkg.root:SR_upwards is missing"):
            fit.fit(folder, config)

    def test_a_histogram_by_two_names_is_one(self, folder: Path, config: dict[str, Any]) -> None:
        (folder / "hist" / "linked.root").symlink_to("bkg.root")
        config["Samples"].append({"Name": "Other", "SamplePath": "linked"})
        with pytest.raises(FitError, match=r"hist/linked.root:SR is the same as hist/bkg.root:SR"):
            fit.fit(folder, config)
        config["Samples"][-1]["SamplePath"] = "../hist/bkg"
        with pytest.raises(FitError, match=r"hist/../hist/bkg.root:SR is the same as hist/bkg.ro"):
            fit.fit(folder, config)

    def test_pseudodata_need_one_source(self, folder: Path, config: dict[str, Any]) -> None:
        config["Samples"][0]["SamplePath"] = "pseudodata"
        (folder / "hist" / "pseudodata.root").write_bytes(
            (folder / "hist" / "data.root").read_bytes()
        )
        with pytest.raises(FitError, match="makes data of the templates of one file"):
            fit.fit(folder, config)


class TestWhatIsMeasured:
    @pytest.mark.parametrize(
        ("edit", "is_known"),
        [
            (lambda c: None, True),
            (lambda c: c["NormFactors"][0].update(Regions=["4j1b CR", "4j2b SR"]), True),
            (lambda c: c["NormFactors"].append({"Name": "k", "Samples": "W+jets"}), True),
            # another factor scales the sample, or the parameter not everywhere, or others too
            (lambda c: c["NormFactors"].append({"Name": "k", "Samples": ["ttbar", "tW"]}), False),
            (lambda c: c["NormFactors"].append({"Name": "k"}), False),
            (lambda c: c["NormFactors"][0].update(Regions="4j2b SR"), False),
            (lambda c: c["NormFactors"][0].update(Samples=["ttbar", "tW"]), False),
            (lambda c: c["NormFactors"][0].pop("Samples"), False),
        ],
    )
    def test_is_a_cross_section_only_if_nothing_else_scales_it(
        self, edit: Edit, is_known: bool, real_data: Path
    ) -> None:
        published = real_data / "reference/histos_1_file_per_process.json"
        for source in (published, run_result()):
            found = measured_cross_section(source, shipped(edit), analysis_of().processes)
            assert found == (fit.CrossSection("ttbar", "tt", 729.84) if is_known else None)

    def test_of_what_is_not_scaled_there_is_none(self, made_up: dict[str, Any]) -> None:
        for source in (made_up, run_result(scales=None), run_result(scales={})):
            assert measured_cross_section(source, shipped(), analysis_of().processes) is None

    def test_a_factor_of_the_yield_is_none_of_the_process(self) -> None:
        result = run_result()
        datasets = tuple(
            d.model_copy(update={"xsec": d.xsec / 1.12, "process_xsec": d.xsec})
            if d.xsec is not None
            else d
            for d in result.provenance.datasets
        )
        made = result.provenance.model_copy(update={"datasets": datasets})
        found = measured_cross_section(
            run_result(provenance=made), shipped(), analysis_of().processes
        )
        assert found is not None
        assert found.predicted == 729.84

    def test_a_closure_test_has_all_in_the_model(self, made_up: dict[str, Any]) -> None:
        config = fit.shipped_config("ttbar")
        assert prepare(made_up, config).is_closure
        assert prepare(made_up, config, analysis_of().recipe("complete")).is_closure

        def without(config: dict[str, Any]) -> None:
            del config["Systematics"][1]

        assert not prepare(made_up, shipped(without)).is_closure


class TestSources:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        path = tmp_path / "my.yml"
        path.write_text(yaml.safe_dump(shipped(simple)))
        return path

    def test_run_directory_root_file_and_templates_agree(
        self, tmp_path: Path, config: Path, made_up: dict[str, Any]
    ) -> None:
        run = run_result()
        run.save(tmp_path)
        results = [
            fit.fit(source, config)
            for source in (run, str(tmp_path), tmp_path / "histograms.root", made_up)
        ]
        assert len({result.inputs["templates"] for result in results}) == 1
        assert len({result.poi for result in results}) == 1
        assert len({result.notes for result in results}) == 1

    def test_a_run_uses_what_its_processor_ships(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        config = shipped(simple)

        def ships(processor: str) -> dict[str, Any]:
            asked.append(processor)
            return config

        monkeypatch.setattr(fit_setup, "shipped_config", ships)
        result = fit.fit(partial_run())
        assert asked == ["ttbar"]
        assert result.notes[0] == "the run is partial: 2 ranges of events are missing"

    def test_without_jax(self, made_up: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        config = shipped(simple)
        exact = fit.fit(made_up, config)
        monkeypatch.setitem(sys.modules, "jax", None)
        result = fit.fit(made_up, config)
        assert (result.minimizer, result.converged) == ("minuit", True)
        assert "approximate" in result.notes[0]
        assert result.poi.value == pytest.approx(exact.poi.value, abs=1e-3)
        assert result.poi.uncertainty == pytest.approx(exact.poi.uncertainty, rel=0.01)
