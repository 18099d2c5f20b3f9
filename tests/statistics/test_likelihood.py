"""The likelihood of a workspace, its minimum, and impacts."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cabinetry
import iminuit
import numpy as np
import pyhf
import pytest

from agc_ml.errors import FitError
from agc_ml.results.templates import load
from agc_ml.statistics import fit
from agc_ml.statistics import impacts as ip
from agc_ml.statistics.fit_result import Impact
from agc_ml.statistics.likelihood import likelihood as lk
from agc_ml.statistics.likelihood import minimization as mn
from agc_ml.statistics.likelihood import newton, pyhf_model
from agc_ml.statistics.workspace.workspace import prepare


def workspace(
    *,
    data: Sequence[float] = (112.0, 93.0, 61.0),
    signal: Sequence[float] = (40.0, 30.0, 10.0),
    background: Sequence[float] = (60.0, 60.0, 50.0),
    tilt: Sequence[float] = (0.9, 1.0, 1.2),
    spread: Sequence[float] | None = (6.0, 5.0, 4.0),
    bounds: Sequence[float] = (0.0, 10.0),
    more: Sequence[dict[str, Any]] = (),
    fixed: Sequence[str] = (),
) -> dict[str, Any]:
    """Make a workspace of one region: a signal, and a background with an uncertain shape."""
    shape = {
        "hi_data": [b * t for b, t in zip(background, tilt, strict=True)],
        "lo_data": [b * (2 - t) for b, t in zip(background, tilt, strict=True)],
    }
    of_background: list[dict[str, Any]] = [
        {"name": "tilt", "type": "histosys", "data": shape},
        {"name": "size", "type": "normsys", "data": {"hi": 1.1, "lo": 0.92}},
    ]
    if spread is not None:
        of_background.append({"name": "staterror_r", "type": "staterror", "data": list(spread)})
    return {
        "version": "1.0.0",
        "channels": [
            {
                "name": "r",
                "samples": [
                    {
                        "name": "signal",
                        "data": list(signal),
                        "modifiers": [{"name": "mu", "type": "normfactor", "data": None}, *more],
                    },
                    {"name": "background", "data": list(background), "modifiers": of_background},
                ],
            }
        ],
        "observations": [{"name": "r", "data": list(data)}],
        "measurements": [
            {
                "name": "m",
                "config": {
                    "poi": "mu",
                    "parameters": [
                        {"name": "mu", "inits": [1.0], "bounds": [list(bounds)]},
                        *({"name": name, "inits": [0.0], "fixed": True} for name in fixed),
                    ],
                },
            }
        ],
    }


def counting(data: float, signal: float = 10.0, background: float = 5.0) -> dict[str, Any]:
    """Make a workspace of one bin, where the answer is known: (data - background) / signal."""
    spec = workspace(data=[data], signal=[signal], background=[background], tilt=[1], spread=None)
    spec["measurements"][0]["config"]["parameters"][0]["bounds"] = [[0, 100]]
    del spec["channels"][0]["samples"][1]["modifiers"][:]
    return spec


@pytest.fixture(scope="module")
def small() -> lk.Likelihood:
    return lk.build(workspace())


@pytest.fixture(scope="module")
def measured(real_data: Path) -> lk.Likelihood:
    """Build the likelihood of the published histograms of ten files."""
    templates = load(real_data / "reference/histos_10_file_per_process.json")
    return lk.build(prepare(templates, fit.shipped_config("ttbar")).spec)


def points(likelihood: lk.Likelihood, number: int = 5) -> list[np.ndarray[Any, Any]]:
    """Draw points around the start, the same in every run."""
    random = np.random.default_rng(1)
    width = np.where(likelihood.prefit > 0, likelihood.prefit, 0.2)
    return [likelihood.start + width * random.normal(size=len(width)) for _ in range(number)]


def differences(likelihood: lk.Likelihood, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Hessian from central differences of the gradient."""
    assert likelihood.derivatives is not None
    rows = []
    for index in range(len(x)):
        h = 1e-5 * (likelihood.prefit[index] or 1.0)
        step = np.zeros_like(x)
        step[index] = h
        up, down = likelihood.derivatives(x + step)[1], likelihood.derivatives(x - step)[1]
        rows.append((up - down) / (2 * h))
    return np.array(rows)


class TestBuild:
    def test_is_what_pyhf_says(self, small: lk.Likelihood) -> None:
        assert pyhf.tensorlib.name == "numpy"
        with pyhf_model.quiet():
            model, data = cabinetry.model_utils.model_and_data(workspace())
        for x in points(small):
            expected = -2 * model.logpdf(x, data)[0]
            assert small.value(x) + small.saturated == pytest.approx(expected, abs=1e-9)

    def test_derivatives_are_those_of_the_value(self, small: lk.Likelihood) -> None:
        assert small.derivatives is not None
        for x in points(small):
            value, gradient, hessian = small.derivatives(x)
            assert value == pytest.approx(small.value(x), abs=1e-12)
            h = 1e-6
            slopes = [
                (small.value(x + h * unit) - small.value(x - h * unit)) / (2 * h)
                for unit in np.eye(len(x))
            ]
            np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(hessian, differences(small, x), rtol=1e-5, atol=1e-4)

    def test_the_backend_is_put_back(self) -> None:
        before = pyhf.get_backend()
        with pytest.raises(FitError):
            lk.build({"version": "1.0.0"})
        assert pyhf.get_backend() == before
        with pyhf_model.backend("jax"):
            assert pyhf.tensorlib.name == "jax"
        assert pyhf.get_backend() == before

    def test_says_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        level = logging.getLogger("cabinetry").level
        with caplog.at_level(logging.DEBUG):
            lk.build(counting(20))
        assert not [r for r in caplog.records if r.name.startswith(("cabinetry", "pyhf"))]
        assert logging.getLogger("cabinetry").level == level

    def test_a_workspace_that_is_none(self) -> None:
        with pytest.raises(FitError, match="pyhf makes no model of the workspace") as caught:
            lk.build({**workspace(), "channels": []})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("n_bins", [20, 5000])
    def test_bins_without_data_count_what_they_predict(self, n_bins: int) -> None:
        """Thousands of bins with a thousandth of an event each: the answer is known."""
        data = np.zeros(n_bins)
        data[: n_bins // 2 : n_bins // 20] = 1
        spec = workspace(
            data=data.tolist(),
            signal=[5 / n_bins] * n_bins,
            background=[5 / n_bins] * n_bins,
            tilt=[1] * n_bins,
            spread=None,
        )
        del spec["channels"][0]["samples"][1]["modifiers"][:]
        likelihood = lk.build(spec)
        found = mn.minimise(likelihood)
        n = data.sum()
        assert found.values[0] == pytest.approx((n - 5) / 5, rel=1e-9)
        assert found.uncertainties[0] == pytest.approx(np.sqrt(n) / 5, rel=1e-9)
        model, observed = pyhf_model.model_and_data(spec)
        expected = -2 * float(model.logpdf(found.values, observed)[0])
        assert found.twice_nll == pytest.approx(expected, abs=1e-8)

    def test_below_zero_it_bends(self) -> None:
        spec = workspace(data=[0, 50, 50], background=[0.2, 50, 50], tilt=[6, 1, 1], spread=None)
        spec["channels"][0]["samples"][0]["data"][0] = 0.0
        likelihood = lk.build(spec)
        assert likelihood.derivatives is not None
        x = likelihood.start.copy()
        index = likelihood.names.index("tilt")
        terms = []
        for x[index] in (-0.1999, -0.2001, -3, -30):
            value, gradient, hessian = likelihood.derivatives(x)
            assert np.isfinite([value, *gradient, *hessian.ravel()]).all()
            terms.append(value - x[index] ** 2 + 2 * 2 * lk.SOFT)
        # continuous, falling, and never far below zero
        assert terms[0] == pytest.approx(terms[1], abs=1e-3)
        assert terms[1] > terms[2] >= terms[3]
        assert terms[2] - terms[3] < 2 * lk.SOFT

    def test_infinite_where_nothing_is_predicted_for_data(self, small: lk.Likelihood) -> None:
        x = small.start.copy()
        x[small.names.index("mu")] = -5
        assert small.value(x) == np.inf


class TestMinimise:
    @pytest.mark.parametrize("data", [5.5, 20, 123.456])
    def test_one_bin(self, data: float) -> None:
        likelihood = lk.build(counting(data))
        found = mn.minimise(likelihood)
        assert found.values[0] == pytest.approx((data - 5) / 10, abs=1e-6)
        assert found.uncertainties[0] == pytest.approx(np.sqrt(data) / 10, rel=1e-6)
        assert found.chi2 == pytest.approx(0, abs=1e-9)
        assert (found.converged, found.minimizer, found.notes) == (True, "newton", ())

    def test_is_the_lowest_point_around(self, small: lk.Likelihood) -> None:
        found = mn.minimise(small)
        random = np.random.default_rng(2)
        for _ in range(50):
            x = found.values + 0.1 * found.uncertainties * random.normal(size=len(found.values))
            assert small.value(x) > found.chi2

    def test_gradient_and_hessian_there(self, measured: lk.Likelihood) -> None:
        assert measured.derivatives is not None
        found = mn.minimise(measured)
        _, gradient, hessian = measured.derivatives(found.values)
        assert np.abs(gradient * found.uncertainties).max() < 1e-4
        numeric = differences(measured, found.values)
        scale = np.sqrt(np.outer(np.diag(hessian), np.diag(hessian)))
        np.testing.assert_allclose(hessian / scale, numeric / scale, atol=1e-6)
        np.testing.assert_allclose(
            found.covariance @ hessian / 2, np.eye(len(found.names)), atol=1e-6
        )
        assert found.edm < newton.EDM
        assert found.steps < 20

    def test_starts_anywhere(self, measured: lk.Likelihood) -> None:
        found = mn.minimise(measured)
        for x in points(measured, number=3):
            start = np.clip(x, measured.lower + 1e-3, measured.upper - 1e-3)
            again = mn.minimise(replace(measured, start=start))
            np.testing.assert_allclose(again.values, found.values, atol=1e-4)

    def test_a_fixed_parameter_stays(self) -> None:
        found = mn.minimise(lk.build(workspace(fixed=["tilt"], spread=None)))
        index = found.names.index("tilt")
        assert found.values[index] == 0
        assert found.uncertainties[index] == 0
        assert found.correlation[index].tolist() == np.eye(len(found.names))[index].tolist()

    def test_all_fixed(self, small: lk.Likelihood) -> None:
        found = mn.minimise(replace(small, fixed=np.ones_like(small.fixed)))
        assert found.values.tolist() == small.start.tolist()
        assert not found.covariance.any()

    def test_a_bound_holds_and_is_told(self) -> None:
        found = mn.minimise(lk.build(workspace(data=[50, 50, 45], spread=None)))
        assert found.values[found.names.index("mu")] == 0
        assert found.uncertainties[found.names.index("mu")] == 0
        assert found.converged
        assert found.notes == ("at their bound, without uncertainty: mu",)

    def test_what_nothing_depends_on(self) -> None:
        idle = {"name": "idle", "type": "normfactor", "data": None}
        spec = workspace(spread=None)
        spec["channels"][0]["samples"].append(
            {"name": "nothing", "data": [0.0] * 3, "modifiers": [idle]}
        )
        with pytest.raises(FitError, match="the data do not determine idle: no prediction depends"):
            mn.minimise(lk.build(spec))

    @pytest.mark.parametrize("scale", [0.02, 1, 1000])
    @pytest.mark.parametrize("is_product", [True, False])
    def test_parameters_that_only_count_together(self, is_product: bool, scale: float) -> None:
        """Two factors of one sample, or one each of two samples of the same shape."""
        other = {"name": "other", "type": "normfactor", "data": None}
        signal = [40 * scale, 30 * scale, 10 * scale]
        background = [60 * scale, 60 * scale, 50 * scale]
        spec = workspace(
            data=[112 * scale, 93 * scale, 61 * scale],
            signal=signal,
            background=background,
            spread=None,
            more=[other] if is_product else [],
        )
        if not is_product:
            spec["channels"][0]["samples"].append(
                {"name": "same", "data": [2 * s for s in signal], "modifiers": [other]}
            )
        with pytest.raises(FitError, match=r"determine only a combination of .*mu"):
            mn.minimise(lk.build(spec))

    @pytest.mark.parametrize(
        ("data", "signal"), [([58, 53, 33], [5.0, 10, 5]), ([70, 70, 45], [4.0, 8, 2])]
    )
    def test_two_factors_of_one_template(self, data: list[float], signal: list[float]) -> None:
        """The curvature is exactly zero here, not nearly."""
        other = {"name": "other", "type": "normfactor", "data": None}
        spec = workspace(data=data, signal=signal, background=[50.0, 40, 30], spread=None)
        spec["channels"][0]["samples"][1]["modifiers"].clear()
        spec["channels"][0]["samples"].append(
            {"name": "same", "data": signal, "modifiers": [other]}
        )
        with pytest.raises(FitError, match=r"determine only a combination of .*, "):
            mn.minimise(lk.build(spec))

    @pytest.mark.parametrize("most", [1.0, 0.5])
    def test_a_bound_that_was_met_by_chance(self, most: float) -> None:
        """Along a direction that nothing determines a parameter may end anywhere."""
        other = {"name": "other", "type": "normfactor", "data": None}
        signal = [5.0, 10, 5]
        spec = workspace(data=[70, 70, 45], signal=signal, background=[50.0, 40, 30], spread=None)
        spec["channels"][0]["samples"][1]["modifiers"].clear()
        spec["channels"][0]["samples"].append(
            {"name": "same", "data": signal, "modifiers": [other]}
        )
        settings = {"name": "other", "inits": [most / 2], "bounds": [[0, most]]}
        spec["measurements"][0]["config"]["parameters"].append(settings)
        with pytest.raises(FitError, match="determine only a combination of "):
            mn.minimise(lk.build(spec))

    def test_a_minimum_at_a_bound_has_its_uncertainty(self) -> None:
        """Data that are as expected with the factor at its bound, which then holds nothing."""
        data = [60.0, 60, 50]
        free = mn.minimise(lk.build(workspace(data=data, bounds=[-1, 10], spread=None)))
        for bounds in ([0.0, 10.0], [-1.0, 0.0]):
            spec = workspace(data=data, bounds=bounds, spread=None)
            spec["measurements"][0]["config"]["parameters"][0]["inits"] = [np.mean(bounds)]
            found = mn.minimise(lk.build(spec))
            assert found.values[found.names.index("mu")] == pytest.approx(0, abs=1e-6)
            np.testing.assert_allclose(found.uncertainties, free.uncertainties, rtol=1e-5)

    @pytest.mark.parametrize("lowest", [-10.0, -1e4])
    def test_without_data_nothing_says_how_low_a_factor_is(self, lowest: float) -> None:
        spec = workspace(data=[0, 0, 0], bounds=[lowest, 10], spread=None)
        with pytest.raises(FitError, match="the data don't say how low mu may be: bins without"):
            mn.minimise(lk.build(spec))

    def test_within_bounds_where_something_is_predicted_all_is_well(self) -> None:
        found = mn.minimise(lk.build(workspace(data=[0, 0, 0], bounds=[-0.9, 10], spread=None)))
        assert found.values[found.names.index("mu")] == pytest.approx(-0.9)

    def test_nor_do_bins_without_data_beside_others(self) -> None:
        """Where they alone hold a factor, our bend would decide its uncertainty."""
        spec = workspace(
            data=[10, 0], signal=[1, 5], background=[10, 0.5], tilt=[1, 1], spread=None
        )
        spec["channels"][0]["samples"][1]["modifiers"].clear()
        spec["measurements"][0]["config"]["parameters"][0]["bounds"] = [[-10, 10]]
        with pytest.raises(FitError, match="the data don't say how low mu"):
            mn.minimise(lk.build(spec))
        spec["measurements"][0]["config"]["parameters"][0]["bounds"] = [[-0.05, 10]]
        found = mn.minimise(lk.build(spec))
        assert found.values[found.names.index("mu")] == -0.05

    def test_all_that_is_not_determined_is_named(self) -> None:
        """Free bins and a factor; those of all bins are one, however many there are."""
        n = 8
        spec = workspace(
            data=[50 + i for i in range(n)],
            signal=[10] * n,
            background=[40] * n,
            tilt=[1] * n,
            spread=None,
            more=[{"name": "free", "type": "shapefactor", "data": None}],
        )
        spec["channels"][0]["samples"][1]["modifiers"].clear()
        with pytest.raises(FitError, match=r"determine only a combination of (free, mu|mu, free),"):
            mn.minimise(lk.build(spec))

    def test_a_fixed_value_stays_where_it_is(self) -> None:
        """Also out of bounds, and where other minima are looked for."""
        spec = alike()
        spec["channels"][0]["samples"][0]["modifiers"].append(
            {"name": "k", "type": "normfactor", "data": None}
        )
        settings = {"name": "k", "inits": [12.0], "fixed": True}
        spec["measurements"][0]["config"]["parameters"].append(settings)
        likelihood = lk.build(spec)
        for start in mn._turned(likelihood, mn._exact(likelihood, lambda _: None), [0]):
            assert start[likelihood.names.index("k")] == 12
        found = mn.minimise(likelihood)
        assert found.values[found.names.index("k")] == 12

    def test_a_saddle_that_can_not_be_left_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(newton, "_escape", lambda *_: None)
        found = mn._exact(lk.build(alike()), lambda _: None)
        assert not found.converged
        assert "it ended at a saddle, from which no step led down" in found.notes[0]

    def test_a_constraint_determines_what_the_data_do_not(self) -> None:
        """Two uncertainties of the same effect, whose sum the data know well."""
        huge = [1e8, 8e7, 3e7]
        twins = [{"name": name, "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}} for name in "xy"]
        spec = workspace(data=huge, signal=huge, background=[1e3] * 3, spread=None, more=twins)
        del spec["channels"][0]["samples"][0]["modifiers"][0]
        spec["channels"][0]["samples"][1]["modifiers"] = [
            {"name": "mu", "type": "normfactor", "data": None}
        ]
        found = mn.minimise(lk.build(spec))
        for name in "xy":
            index = found.names.index(name)
            assert found.uncertainties[index] == pytest.approx(np.sqrt(0.5), rel=1e-3)
        assert found.correlation[found.names.index("x"), found.names.index("y")] < -0.999

    def test_a_start_without_prediction(self, small: lk.Likelihood) -> None:
        x = small.start.copy()
        x[small.names.index("mu")] = -5
        with pytest.raises(FitError, match="not finite where the fit starts"):
            mn.minimise(replace(small, start=x, lower=np.full_like(small.lower, -10)))

    @pytest.mark.parametrize("start", [0, 1e-4, 1, -0.5])
    def test_where_it_starts_decides_nothing(self, start: float) -> None:
        """Only the signal can fill the last bin, and it may start at nothing."""
        spec = workspace(
            data=[50, 20, 9],
            signal=[2, 3, 5],
            background=[50, 15, 0],
            tilt=[1, 1, 1],
            bounds=[-1, 20],
            spread=None,
        )
        spec["channels"][0]["samples"][1]["modifiers"] = []
        spec["measurements"][0]["config"]["parameters"][0]["inits"] = [start]
        found = mn.minimise(lk.build(spec))
        signal, background, data = (np.array(v) for v in ([2, 3, 5], [50, 15, 0], [50, 20, 9]))
        rates = found.values[0] * signal + background
        assert np.sum(signal * (1 - data / rates)) == pytest.approx(0, abs=1e-6)
        width = 1 / np.sqrt(np.sum(data * signal**2 / rates**2))
        assert found.uncertainties[0] == pytest.approx(width, rel=1e-6)

    def test_a_shape_can_fill_a_bin(self) -> None:
        """The background is in the last bin only when its shape is moved."""
        spec = workspace(signal=[40, 30, 0], background=[60, 60, 0], data=[100, 90, 3], spread=None)
        shape = spec["channels"][0]["samples"][1]["modifiers"][0]["data"]
        shape["hi_data"][2], shape["lo_data"][2] = 0.0, 2.0
        found = mn.minimise(lk.build(spec))
        assert found.converged
        assert found.values[found.names.index("tilt")] < 0

    def test_bins_without_data_count(self) -> None:
        found = mn.minimise(lk.build(counting(0, signal=1, background=2)))
        assert found.values.tolist() == [0]
        assert found.twice_nll == pytest.approx(4, abs=1e-9)

    def test_stops_when_it_does_not_converge(
        self, small: lk.Likelihood, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        defaults = {**(newton.descend.__kwdefaults__ or {}), "max_steps": 2}
        monkeypatch.setattr(newton.descend, "__kwdefaults__", defaults)
        found = mn.minimise(small)
        assert not found.converged
        assert "did not converge" in found.notes[0]
        assert np.isfinite(found.covariance).all()


def alike(
    *, nearly: float = 0.0, number: int = 1, data: Sequence[float] = (1010, 150)
) -> dict[str, Any]:
    """Make a workspace of backgrounds that vary to the same side, up and down, or nearly."""
    spec = workspace(
        data=data, signal=[1000, 0.001], background=[10, 100], tilt=[1, 1], spread=None
    )
    first = spec["channels"][0]["samples"].pop()
    for index in range(number):
        share = [value / number for value in first["data"]]
        up = [share[0], 1.5 * share[1]]
        down = [share[0], (1.5 + nearly) * share[1]]
        shape = {
            "name": f"gen{index}",
            "type": "histosys",
            "data": {"hi_data": up, "lo_data": down},
        }
        spec["channels"][0]["samples"].append(
            {"name": f"background{index}", "data": share, "modifiers": [shape]}
        )
    return spec


class TestAuxiliaryData:
    """What was measured beside the data need not be what a model calls nominal."""

    def test_nominal_values_are_the_measured_ones(self) -> None:
        spec = workspace(
            more=[
                {"name": "lumi", "type": "lumi", "data": None},
                {"name": "bins", "type": "shapesys", "data": [4.0, 3.0, 2.0]},
            ]
        )
        spec["measurements"][0]["config"]["parameters"] += [
            {
                "name": "lumi",
                "inits": [1.0],
                "bounds": [[0.5, 1.5]],
                "auxdata": [0.9],
                "sigmas": [0.02],
            },
            {"name": "tilt", "auxdata": [0.7]},
            {"name": "bins", "auxdata": [90.0, 110.0, 20.0]},
        ]
        likelihood = lk.build(spec)
        nominal = dict(zip(likelihood.names, likelihood.centre, strict=True))
        width = dict(zip(likelihood.names, likelihood.prefit, strict=True))
        assert (nominal["lumi"], width["lumi"]) == (0.9, 0.02)
        assert (nominal["tilt"], width["tilt"]) == (0.7, 1.0)
        # Poisson: (40 / 4)^2 = 100 expected, 90 measured
        assert nominal["bins[0]"] == pytest.approx(0.9)
        assert width["bins[0]"] == pytest.approx(np.sqrt(90) / 100)
        # twice the negative log-likelihood has its lowest possible value there
        index = likelihood.names.index("bins[0]")
        with pyhf_model.backend("numpy"):
            model = likelihood.model
            auxdata = np.asarray(model.config.auxdata)
            step = 1e-3 * np.eye(len(likelihood.names))[index]
            constraint = [
                np.ravel(model.constraint_logpdf(auxdata, likelihood.centre + side * step))[0]
                for side in (-1, 0, 1)
            ]
        assert constraint[1] == max(constraint)

    def test_the_goodness_of_fit_knows_them(self) -> None:
        spec = counting(20.0)
        spec["channels"][0]["samples"][1]["modifiers"] = [
            {"name": "size", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}
        ]
        settings = spec["measurements"][0]["config"]["parameters"]
        settings.append({"name": "size", "auxdata": [1.5]})
        found = mn.minimise(lk.build(spec))
        # one free factor for one bin: all is as measured
        assert found.chi2 == pytest.approx(0, abs=1e-9)
        assert found.values[found.names.index("size")] == pytest.approx(1.5)

    def test_a_fixed_parameter_costs_nothing(self) -> None:
        spec = counting(20.0)
        spec["channels"][0]["samples"][1]["modifiers"] = [
            {"name": "size", "type": "normsys", "data": {"hi": 1.1, "lo": 0.9}}
        ]
        settings = spec["measurements"][0]["config"]["parameters"]
        settings.append({"name": "size", "inits": [4.0], "fixed": True})
        found = mn.minimise(lk.build(spec))
        assert found.chi2 == pytest.approx(0, abs=1e-9)
        index = found.names.index("mu")
        assert found.values[index] == pytest.approx((20 - 5 * 1.1**4) / 10)


class TestSaddles:
    """Systematics whose variations up and down act alike: no gradient where they start."""

    def test_a_saddle_is_no_minimum(self) -> None:
        likelihood = lk.build(alike())
        assert likelihood.derivatives is not None
        _, gradient, hessian = likelihood.derivatives(likelihood.start)
        assert np.abs(gradient).max() < 0.1
        assert np.linalg.eigvalsh(hessian)[0] < 0
        found = mn.minimise(likelihood)
        index = found.names.index("gen0")
        # by brute force: code 4p of equal variations is 100 + 50 (15 a^2 - 10 a^4 + 3 a^6) / 8
        a = np.linspace(0, 1, 1_000_001)
        rate = 100 + 50 * (15 * a**2 - 10 * a**4 + 3 * a**6) / 8
        t = 2 * (rate - 150 - 150 * np.log(rate / 150)) + a**2
        assert found.values[index] == pytest.approx(a[t.argmin()], abs=2e-3)
        assert found.chi2 == pytest.approx(t.min(), abs=1e-3)
        assert found.converged
        assert "another minimum is as good" in found.notes[0]
        assert "gen0 = -0.9" in found.notes[0]

    @pytest.mark.parametrize("number", [2, 3])
    def test_several(self, number: int) -> None:
        likelihood = lk.build(alike(number=number))
        found = mn.minimise(likelihood)
        assert found.converged
        moved = [found.values[found.names.index(f"gen{i}")] for i in range(number)]
        np.testing.assert_allclose(moved, moved[0], atol=1e-5)
        assert moved[0] > 0.5
        assert np.all(np.linalg.eigvalsh(2 * np.linalg.inv(found.covariance)) > 0)

    @pytest.mark.parametrize("nearly", [1e-6, 0.01, 0.05, -0.05, 0.3])
    @pytest.mark.parametrize("number", [1, 2])
    def test_nearly_alike(self, nearly: float, number: int) -> None:
        """The lower of two minima is found, whichever side it is on."""
        likelihood = lk.build(alike(nearly=nearly, number=number))
        found = mn.minimise(likelihood)
        for sides in itertools.product((-1, 1), repeat=number):
            start = likelihood.start.copy()
            for index, side in enumerate(sides):
                start[likelihood.names.index(f"gen{index}")] = side
            point = mn._exact(replace(likelihood, start=start), lambda _: None)
            assert found.chi2 <= point.chi2 + 2 * mn.DEEPER

    def test_two_that_can_only_turn_together(self) -> None:
        """They cancel each other in the first bins: either alone would leave one without events."""
        spec = workspace(
            data=[100, 100, 160, 160],
            signal=[1, 1, 1, 1],
            background=[50, 50, 50, 50],
            tilt=[1] * 4,
            spread=None,
        )
        samples = spec["channels"][0]["samples"]
        samples[1]["modifiers"].clear()
        settings = spec["measurements"][0]["config"]["parameters"]
        for name, side, own in (("a", 1, 2), ("b", -1, 3)):
            up, down = (
                [25.0 + turn * side * 120, 25.0 - turn * side * 120, 25, 25] for turn in (1, -1)
            )
            up[own], down[own] = 25 + 75.0, 25 + 85.0
            shape = {"hi_data": up, "lo_data": down}
            modifiers = [{"name": name, "type": "histosys", "data": shape}]
            samples.append({"name": f"of {name}", "data": [25.0] * 4, "modifiers": modifiers})
            settings.append({"name": name, "inits": [1.0]})
        likelihood = lk.build(spec)
        near, found = mn._exact(likelihood, lambda _: None), mn.minimise(likelihood)
        index = [found.names.index(name) for name in "ab"]
        assert near.converged
        assert (near.values[index] > 0.5).all()
        assert (found.values[index] < -0.5).all()
        assert found.chi2 < near.chi2

    def test_a_large_shape_may_have_two_minima(self) -> None:
        """Up and down act on opposite sides, but not by the same: the deeper one is far away."""
        spec = workspace(
            data=[792, 770, 498, 479],
            signal=[102.32, 84.61, 59.36, 43.74],
            background=[565.1, 429.4, 403.33, 368.5],
            tilt=[1] * 4,
            spread=None,
            bounds=[0, 10],
        )
        nominal = sum(spec["channels"][0]["samples"][1]["data"])
        sides = {"hi": [754.05, 1022.13, 406.08, 488.7], "lo": [1, 360.75, 39.31, 394.11]}
        sizes = {side: sum(values) / nominal for side, values in sides.items()}
        shape = {f"{s}_data": [v / sizes[s] for v in values] for s, values in sides.items()}
        modifiers = spec["channels"][0]["samples"][1]["modifiers"]
        modifiers[:] = [
            {"name": "a", "type": "normsys", "data": sizes},
            {"name": "a", "type": "histosys", "data": shape},
        ]
        likelihood = lk.build(spec)
        found = mn.minimise(likelihood)
        near = mn._exact(likelihood, lambda _: None)
        assert near.chi2 > found.chi2 + 10
        # on a grid of all there is nothing deeper
        index, poi = found.names.index("a"), found.names.index("mu")
        x = found.values.copy()
        for x[index] in np.linspace(-5, 5, 101):
            for x[poi] in np.linspace(0, 10, 101):
                assert likelihood.value(x) > found.chi2 - 1e-6

    def test_a_minimum_far_out(self) -> None:
        """The lower one is at nearly four standard deviations, on the side of the higher one."""
        spec = workspace(
            data=[130, 77, 130, 0, 70],
            signal=[19.54, 10.72, 21.08, 17.63, 4.2],
            background=[71.02, 46.92, 69.79, 28.16, 75.84],
            tilt=[1] * 5,
            spread=None,
        )
        sides = {
            "signal": ([24.46, 10.4, 13.75, 20.64, 6.39], [27.18, 13.52, 17.17, 13.03, 5.02]),
            "other": ([34.79, 14.55, 24.25, 8.73, 8.2], [26.62, 16.37, 42.48, 4.97, 4.96]),
            "background": (
                [44.64, 53.89, 39.57, 40.37, 85.28],
                [47.79, 44.46, 39.73, 23.15, 33.16],
            ),
        }
        shapes = {
            name: {
                "name": "c" if name == "background" else "a",
                "type": "histosys",
                "data": {"hi_data": up, "lo_data": down},
            }
            for name, (up, down) in sides.items()
        }
        signal, background = spec["channels"][0]["samples"]
        signal["modifiers"].append(shapes["signal"])
        size = {"name": "a", "type": "normsys", "data": {"hi": 1.107, "lo": 0.652}}
        background["modifiers"] = [shapes["background"], size]
        spec["channels"][0]["samples"].append(
            {
                "name": "other",
                "data": [22.57, 13.9, 29.8, 6.63, 5.94],
                "modifiers": [{"name": "k", "type": "normfactor", "data": None}, shapes["other"]],
            }
        )
        likelihood = lk.build(spec)
        found, near = mn.minimise(likelihood), mn._exact(likelihood, lambda _: None)
        assert near.converged
        assert near.values[near.names.index("mu")] == 0
        assert near.chi2 > found.chi2 + 3
        assert found.values[found.names.index("a")] == pytest.approx(-3.9, abs=0.1)

    @pytest.mark.parametrize(
        ("lowest", "start", "first"), [(0, 1, 100), (-0.5, 1, 100), (0, 0, 100), (0, 1, 90)]
    )
    def test_a_minimum_where_a_factor_is_not_zero(
        self, lowest: float, start: float, first: float
    ) -> None:
        """Where it ended at zero, nothing that it scales shows how it may vary."""
        spec = workspace(
            data=[first, 150],
            signal=[50, 0],
            background=[100, 100],
            tilt=[1, 1],
            spread=None,
            bounds=[lowest, 10],
        )
        spec["measurements"][0]["config"]["parameters"][0]["inits"] = [start]
        signal, background = spec["channels"][0]["samples"]
        background["modifiers"].clear()
        shape = {"hi_data": [0, 50], "lo_data": [0, 50]}
        signal["modifiers"].append({"name": "a", "type": "histosys", "data": shape})
        likelihood = lk.build(spec)
        near, found = mn._exact(likelihood, lambda _: None), mn.minimise(likelihood)
        assert near.converged
        assert near.values[near.names.index("mu")] == pytest.approx(0, abs=1e-6)
        assert near.chi2 > 20
        assert found.chi2 < 2
        assert found.values[found.names.index("mu")] == pytest.approx(1, abs=0.2)

    def test_what_is_wrong_elsewhere_refuses_no_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another start may lead where nothing determines a parameter."""
        likelihood, exact = lk.build(alike()), mn._exact
        whole = mn.minimise(likelihood)
        seen: list[int] = []

        def first_only(*arguments: Any) -> mn.Minimum:
            seen.append(1)
            if len(seen) > 1:
                raise FitError("the data do not determine gen0")
            return exact(*arguments)

        monkeypatch.setattr(mn, "_exact", first_only)
        found = mn.minimise(likelihood)
        assert len(seen) > 1
        assert found.chi2 == pytest.approx(whole.chi2)

    def test_another_minimum_at_a_bound_is_told(self) -> None:
        spec = alike()
        settings = {"name": "gen0", "inits": [0.0], "bounds": [[-0.5, 0.5]]}
        spec["measurements"][0]["config"]["parameters"].append(settings)
        found = mn.minimise(lk.build(spec))
        assert found.values[found.names.index("gen0")] == 0.5
        assert any("another minimum is as good: gen0 = -0.5;" in note for note in found.notes)

    def test_without_jax(self, monkeypatch: pytest.MonkeyPatch) -> None:
        exact = mn.minimise(lk.build(alike()))
        monkeypatch.setitem(sys.modules, "jax", None)
        found = mn.minimise(lk.build(alike()))
        assert found.converged
        assert found.chi2 == pytest.approx(exact.chi2, abs=1e-3)
        index = found.names.index("gen0")
        assert abs(found.values[index]) == pytest.approx(abs(exact.values[index]), abs=2e-3)


def by_name(impacts: tuple[Impact, ...]) -> dict[str, tuple[float, ...]]:
    return {impact.parameter: impact.changes for impact in impacts}


class TestImpacts:
    def test_are_those_of_new_fits(self, small: lk.Likelihood) -> None:
        found = mn.minimise(small)
        poi = found.names.index("mu")
        impacts = by_name(ip.impacts(small, found))
        assert set(impacts) == {*found.names} - {"mu"}
        for name, values in impacts.items():
            index = found.names.index(name)
            prefit, postfit = small.prefit[index], found.uncertainties[index]
            for move, value in zip((prefit, -prefit, postfit, -postfit), values, strict=True):
                start, fixed = small.start.copy(), small.fixed.copy()
                start[index], fixed[index] = found.values[index] + move, True
                refitted = mn.minimise(replace(small, start=start, fixed=fixed))
                assert refitted.values[poi] - found.values[poi] == pytest.approx(value, abs=1e-6)

    def test_of_a_fixed_parameter_there_is_none(self) -> None:
        likelihood = lk.build(workspace(fixed=["tilt"], spread=None))
        assert "tilt" not in by_name(ip.impacts(likelihood, mn.minimise(likelihood)))

    def test_without_a_constraint_there_is_no_prefit_impact(self) -> None:
        other = {"name": "other", "type": "normfactor", "data": None}
        spec = workspace(spread=None)
        spec["channels"][0]["samples"][1]["modifiers"].append(other)
        likelihood = lk.build(spec)
        impact = by_name(ip.impacts(likelihood, mn.minimise(likelihood)))["other"]
        assert impact[:2] == (0, 0)
        assert impact[2] < 0 < impact[3]

    def test_far_moves_go_in_stages(self) -> None:
        # at once the tilt would empty the last bin, which has data
        spec = workspace(tilt=[1.0, 1.0, 0.2], signal=[40, 30, 20], data=[100, 90, 70])
        likelihood = lk.build(spec)
        found = mn.minimise(likelihood)
        index = found.names.index("tilt")
        assert likelihood.derivatives is not None
        _, _, hessian = likelihood.derivatives(found.values)
        poi = found.names.index("mu")
        change = ip._impact(likelihood, found, hessian, index=index, move=2.5)
        start, fixed = found.values.copy(), likelihood.fixed.copy()
        start[index] += 2.5
        fixed[index] = True
        assert likelihood.value(start) == np.inf
        start[found.names.index("mu")] = 8.0
        refitted = mn.minimise(replace(likelihood, start=start, fixed=fixed))
        poi = found.names.index("mu")
        assert change == pytest.approx(refitted.values[poi] - found.values[poi], abs=1e-5)

    def test_what_no_fit_can_follow_is_not_there(self) -> None:
        # only the background is in the last bin, and its tilt takes all of it away
        spec = workspace(
            tilt=[1, 1, 0.5], signal=[40, 30, 0], data=[100, 90, 50], spread=[1, 1, 30]
        )
        likelihood = lk.build(spec)
        found = mn.minimise(likelihood)
        index = found.names.index("tilt")
        assert likelihood.derivatives is not None
        _, _, hessian = likelihood.derivatives(found.values)
        assert ip._impact(likelihood, found, hessian, index=index, move=50) is None


class TestWithoutJax:
    @pytest.fixture(autouse=True)
    def _no_jax(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "jax", None)

    def test_minuit_comes_close_and_says_so(self, small: lk.Likelihood) -> None:
        exact = mn.minimise(small)
        likelihood = lk.build(workspace())
        assert likelihood.derivatives is None
        found = mn.minimise(likelihood)
        assert found.minimizer == "minuit"
        assert found.converged
        assert "approximate" in found.notes[0]
        assert "agc-ml[fit]" in found.notes[0]
        np.testing.assert_allclose(found.values, exact.values, atol=1e-3)
        np.testing.assert_allclose(found.uncertainties, exact.uncertainties, rtol=0.01)
        approximate = by_name(ip.impacts(likelihood, found))
        for name, values in by_name(ip.impacts(small, exact)).items():
            np.testing.assert_allclose(approximate[name], values, atol=0.05)

    def test_fixed_parameters_stay(self) -> None:
        found = mn.minimise(lk.build(workspace(fixed=["tilt"])))
        index = found.names.index("tilt")
        assert (found.values[index], found.uncertainties[index]) == (0, 0)

    def test_they_stay_out_of_bounds_too(self) -> None:
        spec = workspace()
        settings = {"name": "mu", "inits": [12.0], "fixed": True}
        spec["measurements"][0]["config"]["parameters"][0] = settings
        found = mn.minimise(lk.build(spec))
        assert found.values[found.names.index("mu")] == 12

    @pytest.mark.parametrize("data", [[58, 53, 33], [70, 70, 45], [60, 60, 40]])
    def test_what_is_not_determined_is_told(self, data: list[float]) -> None:
        """Minuit may say so itself; its rounding decides."""
        other = {"name": "other", "type": "normfactor", "data": None}
        signal = [5.0, 10, 5]
        spec = workspace(data=data, signal=signal, background=[50.0, 40, 30], spread=None)
        spec["channels"][0]["samples"][1]["modifiers"].clear()
        spec["channels"][0]["samples"].append(
            {"name": "same", "data": signal, "modifiers": [other]}
        )
        found = mn.minimise(lk.build(spec))
        doubts = [note for note in found.notes if note.startswith("the data hardly determine")]
        assert doubts or not found.converged

    def test_no_minimum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(iminuit.Minuit, "covariance", None)
        with pytest.raises(FitError, match="Minuit found no minimum with a covariance"):
            mn.minimise(lk.build(counting(20)))
