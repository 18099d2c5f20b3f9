"""A fit carried over to observables that it did not use, and predictions with their covariance."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import cabinetry
import hist
import numpy as np
import pytest
import yaml
from factories import CARRIED, ML_RANGES, ml_hists, run_result, true_templates, ttbar_hists

from agc_ml.analysis import analysis_of
from agc_ml.errors import FitError, HistogramError
from agc_ml.results import templates
from agc_ml.statistics import fit, unfitted_observables
from agc_ml.statistics.likelihood import likelihood as lk
from agc_ml.statistics.likelihood import pyhf_model
from agc_ml.statistics.likelihood.minimization import Minimum, minimise
from agc_ml.statistics.unfitted_observables import Observables, carry_over, prepare_unfitted
from agc_ml.statistics.workspace import fit_config
from agc_ml.statistics.workspace.workspace import prepare

Templates = dict[str, hist.Hist[Any]]

TWO = CARRIED[1:3]
"""As many observables as most tests need."""


@pytest.fixture(scope="module")
def made_up() -> Templates:
    """Regions and two observables, as a run with a model leaves them."""
    return true_templates({**ttbar_hists(), **ml_hists(TWO)})


def few_systematics() -> dict[str, Any]:
    """The shipped configuration with one-sided, two-sided and normalisation uncertainties."""
    config = copy.deepcopy(fit.shipped_config("ttbar"))
    kept = {"PS variation", "Jet energy scale", "b-tag NP 1", "Luminosity"}
    config["Systematics"] = [s for s in config["Systematics"] if s["Name"] in kept]
    return config


def histogram(values: list[float], variances: list[float] | None = None) -> hist.Hist[Any]:
    """Made of contents and variances, with bins of width 1."""
    made = hist.Hist(
        hist.axis.Regular(len(values), 0, len(values), name="x", label="x [GeV]"),
        storage=hist.storage.Weight(),
    )
    made.view()["value"] = values
    made.view()["variance"] = values if variances is None else variances
    return made


TWO_SAMPLES: dict[str, Any] = {
    "General": {
        "Measurement": "small",
        "POI": "mu",
        "InputPath": "file:{RegionPath}_{SamplePath}",
        "HistogramFolder": "",
    },
    "Regions": [{"Name": "fitted", "RegionPath": "fitted"}],
    "Samples": [
        {"Name": "Data", "SamplePath": "data", "Data": True},
        {"Name": "signal", "SamplePath": "signal"},
        {"Name": "background", "SamplePath": "background"},
    ],
    "NormFactors": [{"Name": "mu", "Samples": "signal", "Nominal": 1, "Bounds": [0, 10]}],
}
SIGNAL, BACKGROUND, DATA = [60.0, 30.0, 10.0], [20.0, 40.0, 90.0], [90.0, 80.0, 95.0]


def two_samples() -> Templates:
    """One bin that is fitted, with 100 + 50 events expected and 180 seen; another observable."""
    return {
        "fitted_signal": histogram([100], [25]),
        "fitted_background": histogram([50], [10]),
        "fitted_data": histogram([180]),
        "other_signal": histogram(SIGNAL, [9, 4, 1]),
        "other_background": histogram(BACKGROUND, [4, 9, 25]),
        "other_data": histogram(DATA),
    }


def carried(
    content: Templates, names: tuple[str, ...], config: dict[str, Any], region: str = ""
) -> tuple[unfitted_observables.Unfitted, Minimum, fit.CarriedOver]:
    """Fit and carry over to observables; gives the first one."""
    minimum = minimise(lk.build(prepare(content, config).spec))
    observables = Observables(region=region, histograms=names)
    unfitted = prepare_unfitted(content, observables, config, analysis_of().recipe())
    assert unfitted is not None
    return unfitted, minimum, carry_over(unfitted, minimum)[0]


@pytest.fixture(scope="module")
def result() -> fit.CarriedOver:
    """The small model carried over to its other observable."""
    return carried(two_samples(), ("other",), TWO_SAMPLES)[2]


class TestByHand:
    def test_yields(self, result: fit.CarriedOver) -> None:
        """The only fitted bin is described exactly: mu = (180 - 50) / 100."""
        np.testing.assert_allclose(result.prefit.samples["signal"], SIGNAL, rtol=1e-6)
        np.testing.assert_allclose(result.postfit.samples["signal"], 1.3 * np.array(SIGNAL), 1e-6)
        np.testing.assert_allclose(result.postfit.samples["background"], BACKGROUND, 1e-6)
        np.testing.assert_allclose(result.postfit.data, DATA, rtol=1e-6)
        assert result.prefit.region == result.postfit.region == "other"
        assert result.prefit.label == "x [GeV]"
        assert result.prefit.edges.tolist() == [0, 1, 2, 3]

    @staticmethod
    def covariances() -> tuple[Any, Any]:
        """Before the fit only the simulation's statistics, after it mu too, in all bins alike."""
        signal, background = np.array(SIGNAL), np.array(BACKGROUND)
        simulated = np.sqrt([13.0, 13.0, 26.0]) / (signal + background)
        before = np.diag((simulated * (signal + background)) ** 2)
        # of the data, and of the simulation in the fitted bin: 180 events there
        variance_of_mu = (180 + (180 * np.sqrt(35) / 150) ** 2) / 100**2
        after = np.diag((simulated * (1.3 * signal + background)) ** 2)
        return before, after + variance_of_mu * np.outer(signal, signal)

    def test_uncertainty(self, result: fit.CarriedOver) -> None:
        before, after = self.covariances()
        np.testing.assert_allclose(result.prefit.uncertainty, np.sqrt(np.diag(before)), rtol=1e-5)
        np.testing.assert_allclose(result.postfit.uncertainty, np.sqrt(np.diag(after)), rtol=1e-5)

    def test_chi2(self, result: fit.CarriedOver) -> None:
        signal, background = np.array(SIGNAL), np.array(BACKGROUND)
        tests = (result.prefit_test, result.postfit_test)
        for mu, covariance, test in zip((1, 1.3), self.covariances(), tests, strict=True):
            model = mu * signal + background
            off = np.array(DATA) - model
            expected = off @ np.linalg.inv(covariance + np.diag(model)) @ off
            assert test.chi2 == pytest.approx(expected, rel=1e-5)
            assert test.ndof == 3
        assert result.prefit_test.p_value == pytest.approx(
            np.exp(-result.prefit_test.chi2 / 2) * np.sqrt(2 * result.prefit_test.chi2 / np.pi)
            + _beyond(np.sqrt(result.prefit_test.chi2))
        )

    def test_of_a_perfect_model(self) -> None:
        content = two_samples()
        content["other_data"] = histogram([80, 70, 100])
        test = carried(content, ("other",), TWO_SAMPLES)[2].prefit_test
        assert test.chi2 == pytest.approx(0, abs=1e-9)
        assert test.p_value == pytest.approx(1)


def _beyond(z: float) -> float:
    """Probability beyond ``z`` standard deviations on either side."""
    return math.erfc(z / math.sqrt(2))


def test_the_fitted_templates_again_give_the_fit_itself(made_up: Templates) -> None:
    """But for the parameters of the simulation's statistics, which are not carried over."""
    region, config = few_systematics()["Regions"][1], few_systematics()
    config["Regions"] = [region]
    content = dict(made_up)
    for name, h in made_up.items():
        if name.startswith("4j2b_"):
            content[f"same_{name[5:]}"] = templates.merge(h, region["Binning"])
    result = fit.fit(content, config)
    again = carried(content, ("same",), config)[2]
    found = {p.name: p.value for p in result.parameters}
    gammas = np.array([found[f"staterror_4j2b-SR[{i}]"] for i in range(11)])
    for name, values in again.postfit.samples.items():
        np.testing.assert_allclose(values * gammas, result.postfit[0].samples[name], rtol=1e-6)
    for name, values in again.prefit.samples.items():
        np.testing.assert_allclose(values, result.prefit[0].samples[name], rtol=1e-6)
    np.testing.assert_allclose(again.prefit.uncertainty, result.prefit[0].uncertainty, rtol=1e-6)


def test_predictions_are_those_of_cabinetry(made_up: Templates) -> None:
    unfitted, minimum, _ = carried(made_up, TWO, few_systematics())
    fitted = cabinetry.fit.FitResults(
        minimum.values, minimum.uncertainties, list(minimum.names), minimum.correlation, 0.0
    )
    model, _ = pyhf_model.model_and_data(unfitted.workspace.spec)
    with pyhf_model.quiet():
        predictions = [
            cabinetry.model_utils.prediction(model),
            cabinetry.model_utils.prediction(
                model, fit_results=cabinetry.model_utils.match_fit_results(model, fitted)
            ),
        ]
    for one in carry_over(unfitted, minimum):
        channel = model.config.channels.index(one.prefit.region)
        for yields, expected in zip((one.prefit, one.postfit), predictions, strict=True):
            np.testing.assert_allclose(
                [yields.samples[name] for name in model.config.samples],
                expected.model_yields[channel],
            )
            np.testing.assert_allclose(
                yields.uncertainty, expected.total_stdev_model_bins[channel][-1]
            )


class TestGroups:
    @pytest.mark.parametrize(
        ("events", "variance", "starts"),
        [
            ([10, 10, 10], [0, 0, 0], [0, 1, 2]),
            ([4, 1, 4, 1], [0, 0, 0, 0], [0, 2]),
            ([5, 0, 5, 1], [0, 0, 0, 0], [0, 1]),  # the last ones are with the group before
            ([1, 1, 1], [0, 0, 0], []),
            (
                [100, 400, 100],
                [10_000, 2_000, 2_000],
                [0, 2],
            ),  # too few were simulated in the first
        ],
    )
    def test_neighbours_with_few_events(
        self, events: list[float], variance: list[float], starts: list[int]
    ) -> None:
        assert unfitted_observables._groups(np.array(events), np.array(variance)) == starts

    def test_too_few_events_for_any_test(self) -> None:
        content = two_samples() | {
            "other_signal": histogram([1, 1, 1]),
            "other_background": histogram([0, 0, 0]),
        }
        result = carried(content, ("other",), TWO_SAMPLES)[2]
        assert result.postfit_test == fit.GoodnessOfFit(0.0, 0, None)

    def test_covariance_is_added_up(self) -> None:
        content = two_samples()
        apart = carried(content, ("other",), TWO_SAMPLES)[2]
        # two halves of the first bin, that no single one of them suffices
        content["other_signal"] = histogram([1.0, 1.0, 2.0])
        content["other_background"] = histogram([1.0, 1.0, 2.0])
        content["other_data"] = histogram([3.0, 2.0, 4.0])
        together = carried(content, ("other",), TWO_SAMPLES)[2]
        assert (apart.postfit_test.ndof, together.postfit_test.ndof) == (3, 1)
        variance = (180 + (180 * np.sqrt(35) / 150) ** 2) / 100**2
        model = 1.3 * 4 + 4
        simulated = np.sum((np.array([2, 2, 4]) * model / 8) ** 2 / np.array([2, 2, 4]))
        expected = (9 - model) ** 2 / (model + simulated + variance * 4**2)
        assert together.postfit_test.chi2 == pytest.approx(expected, rel=1e-4)


class TestWhatIsThere:
    def test_all_of_it(self, tmp_path: Path) -> None:
        hists = {**ttbar_hists(), **ml_hists(CARRIED)}
        result = fit.fit(run_result(hists), few_systematics())
        assert tuple(one.prefit.region for one in result.carried_over) == CARRIED
        assert result.notes == ()
        assert set(result.inputs) == {"templates", "config", "observables"}
        one, name = result.carried_over[4], CARRIED[4]
        assert one.prefit.label == ML_RANGES[name][2]
        assert one.prefit.edges.tolist() == hists[name].axes[0].edges.tolist()
        # a millionth of an event is in each bin of each template, and so twice in the pseudodata
        flat = true_templates(hists)
        made = templates.pseudodata(flat, analysis_of().recipe())[f"{name}_pseudodata"]
        nominal = flat[f"{name}_ttbar"]
        assert nominal.values().min() == made.values().min() == 0
        np.testing.assert_allclose(one.prefit.samples["ttbar"], nominal.values() + 1e-6)
        np.testing.assert_allclose(one.prefit.data, made.values() + 2e-6)
        fit.save(result, tmp_path)
        _check_equal(result, fit.load(tmp_path))

    def test_none_of_it(self, tmp_path: Path) -> None:
        result = fit.fit(true_templates(ttbar_hists()), few_systematics())
        assert result.carried_over == ()
        assert result.notes == ()
        assert set(result.inputs) == {"templates", "config"}
        fit.save(result, tmp_path)
        content = json.loads((tmp_path / "fit.json").read_text())
        del content["carried_over"]  # as an earlier version has it
        (tmp_path / "fit.json").write_text(json.dumps(content))
        assert fit.load(tmp_path).carried_over == ()

    def test_some_of_it(self, made_up: Templates) -> None:
        result = fit.fit(made_up, few_systematics())
        assert tuple(one.prefit.region for one in result.carried_over) == TWO
        (note,) = result.notes
        assert note.startswith("carried over to 2 of 7 observables: there are no histograms of ")
        assert all(name in note for name in CARRIED if name not in TWO)

    def test_an_observable_that_is_fitted(self, made_up: Templates) -> None:
        config = few_systematics()
        config["Regions"] = [{"Name": "masses", "RegionPath": TWO[0]}]
        observables = Observables(region="4j2b", histograms=TWO)
        unfitted = prepare_unfitted(made_up, observables, config, analysis_of().recipe())
        assert unfitted is not None
        assert list(unfitted.workspace.labels) == [TWO[1]]
        assert unfitted.notes == ()

    @pytest.mark.parametrize("name", ["ttbar", "wjets_pt_scale_up", "ttbar_PS_var"])
    def test_a_missing_histogram_is_named(self, made_up: Templates, name: str) -> None:
        lacking = {key: h for key, h in made_up.items() if key != f"{TWO[1]}_{name}"}
        with pytest.raises((FitError, HistogramError), match=f"{TWO[1]}_{name} is missing") as e:
            fit.fit(lacking, few_systematics())
        assert "\n" not in str(e.value)

    def test_nan_is_named(self, made_up: Templates) -> None:
        broken = made_up[f"{TWO[0]}_ttbar"].copy()
        broken.view()["value"][3] = np.nan
        with pytest.raises(HistogramError, match=rf"histogram {TWO[0]}_ttbar, bin \[0.72, 0.96\)"):
            fit.fit(made_up | {f"{TWO[0]}_ttbar": broken}, few_systematics())


def _check_equal(a: Any, b: Any) -> None:
    for one, other in zip(a.carried_over, b.carried_over, strict=True):
        assert one.prefit_test == other.prefit_test
        assert one.postfit_test == other.postfit_test
        for yields, again in ((one.prefit, other.prefit), (one.postfit, other.postfit)):
            assert (yields.region, yields.label) == (again.region, again.label)
            np.testing.assert_array_equal(yields.total, again.total)
            np.testing.assert_array_equal(yields.uncertainty, again.uncertainty)


class TestRestrictions:
    def modifiers(self, made_up: Templates, regions: Any) -> set[str]:
        """Names of the modifiers of ttbar in an observable, b-tagging in some regions only."""
        config = few_systematics()
        config["General"]["Fixed"] = [{"Name": "b-tag NP 1", "Value": 0}]
        for systematic in config["Systematics"]:
            if systematic["Name"] == "b-tag NP 1":
                systematic["Regions"] = regions
        observables = Observables(region="4j2b", histograms=TWO[:1])
        unfitted = prepare_unfitted(made_up, observables, config, analysis_of().recipe())
        assert unfitted is not None
        pyhf_model.model_and_data(unfitted.workspace.spec)
        (channel,) = [c for c in unfitted.workspace.spec["channels"] if c["name"] == TWO[0]]
        return {modifier["name"] for modifier in channel["samples"][0]["modifiers"]}

    @pytest.mark.parametrize("regions", ["4j2b SR", ["4j1b CR", "4j2b SR"]])
    def test_to_the_region_of_the_observables(self, made_up: Templates, regions: Any) -> None:
        assert "b-tag NP 1" in self.modifiers(made_up, regions)

    def test_to_another_region(self, made_up: Templates) -> None:
        found = self.modifiers(made_up, ["4j1b CR"])
        assert "b-tag NP 1" not in found
        assert {"PS variation", "Luminosity", "ttbar_norm"} <= found


class TestShipped:
    def test_are_features_of_the_model(self) -> None:
        assignment = pytest.importorskip("processors.ttbar.assignment")
        shipped = unfitted_observables.shipped_observables("ttbar")
        assert shipped is not None
        features = list(assignment.FEATURES)
        assert [features.index(name) for name in shipped.histograms] == [0, 1, 2, 4, 5, 6, 7]
        assert shipped.region == assignment.REGION
        assert shipped.region in fit_config.region_paths(fit.shipped_config("ttbar"))

    @pytest.mark.parametrize("processor", ["dimuon", "nope", "folder/file.py:Class"])
    def test_none(self, processor: str) -> None:
        assert unfitted_observables.shipped_observables(processor) is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("- a\n", "field (top): Input should be a valid dictionary"),
            ("a:\n\t- b", "can't be read as YAML"),
            (yaml.safe_dump({"region": "4j2b"}), "field histograms: Field required"),
            (yaml.safe_dump({"region": "r", "histograms": []}), "field histograms: Tuple should"),
        ],
    )
    def test_damaged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
    ) -> None:
        file = tmp_path / "carryover.yml"
        file.write_text(content)
        monkeypatch.setattr(unfitted_observables, "shipped_file", lambda processor, name: file)
        with pytest.raises(FitError) as caught:
            unfitted_observables.shipped_observables("mine")
        assert str(caught.value).startswith(f"{file}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
