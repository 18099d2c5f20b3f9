"""The uncertainty of a model: from templates of other models to nuisance parameters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import REGIONS, YIELDS, ml_hists, shape, ttbar_hists

import agc_ml
from agc_ml.errors import FitError
from agc_ml.results.categories import flatten
from agc_ml.results.run_result import RunResult
from agc_ml.statistics import fit, model_uncertainty


def templates() -> dict[str, Any]:
    return flatten({**ttbar_hists(), **ml_hists(["mass_w1w2btophad"])})


def moved(by: dict[str, np.ndarray]) -> dict[str, Any]:
    """Templates with the nominal ones of a model's region moved, sample by sample."""
    found = templates()
    for sample, values in by.items():
        name = f"mass_w1w2btophad_{sample}"
        found[name] = found[name].copy()
        found[name].view(flow=True)["value"][1:-1] += values
    return found


SAMPLES = list(YIELDS)


def test_the_configuration_replaces_the_signal_region() -> None:
    config, usual = model_uncertainty.ml_config("ttbar"), fit.shipped_config("ttbar")
    assert [region["RegionPath"] for region in config["Regions"]] == ["4j1b", "mass_w1w2btophad"]
    assert {k: v for k, v in config.items() if k != "Regions"} == {
        k: v for k, v in usual.items() if k != "Regions"
    }
    with pytest.raises(FitError, match="ships no"):
        model_uncertainty.ml_config("dimuon")


def test_one_direction_of_scatter() -> None:
    """Models that differ along one shape, by +a, -b: one parameter of their root mean square."""
    direction = np.linspace(-1, 1, 25)
    config = model_uncertainty.ml_config("ttbar")
    others = [moved(dict.fromkeys(SAMPLES, size * direction)) for size in (3.0, -1.0)]
    found = model_uncertainty.with_model_uncertainty(templates(), config, others)
    up = found.templates["mass_w1w2btophad_ttbar_ml_model_1_up"].values()
    nominal = templates()["mass_w1w2btophad_ttbar"].values()
    expected = np.sqrt((9 + 1) / 2) * direction
    assert np.allclose(np.abs(up - nominal), np.abs(expected), atol=1e-6)
    added = found.config["Systematics"][-1]
    assert added["Name"] == "ML model 1"
    assert added["Regions"] == ["4j2b SR"]  # what no model moves needs no parameter there
    assert len(found.config["Systematics"]) == len(config["Systematics"]) + 1
    assert found.config["Systematics"][:-1] == config["Systematics"]
    assert "1 directions describe 100%" in found.note


def test_independent_directions() -> None:
    """Two shapes make two parameters, whatever the order of the models is."""
    first, second = np.linspace(-1, 1, 25), np.cos(np.linspace(0, 9, 25))
    config = model_uncertainty.ml_config("ttbar")
    others = [
        moved({"ttbar": 5 * first}),
        moved({"ttbar": -5 * first}),
        moved({"ttbar": 4 * second, "wjets": second}),
    ]
    found = model_uncertainty.with_model_uncertainty(templates(), config, others)
    again = model_uncertainty.with_model_uncertainty(templates(), config, others[::-1])
    names = [s["Name"] for s in found.config["Systematics"] if s["Name"].startswith("ML")]
    assert names == ["ML model 1", "ML model 2"]
    for name in ("mass_w1w2btophad_ttbar_ml_model_1_up", "mass_w1w2btophad_wjets_ml_model_2_up"):
        assert np.allclose(found.templates[name].values(), again.templates[name].values())


def test_nothing_to_tell() -> None:
    config = model_uncertainty.ml_config("ttbar")
    with pytest.raises(FitError, match="no template of the fit depends on the model"):
        model_uncertainty.with_model_uncertainty(templates(), config, [templates()])
    lacking = templates()
    del lacking["mass_w1w2btophad_wjets"]
    with pytest.raises(FitError, match="mass_w1w2btophad_wjets is missing"):
        model_uncertainty.with_model_uncertainty(templates(), config, [lacking])
    assert set(REGIONS) == {"4j1b", "4j2b"}
    assert shape("ttbar", "nominal").shape == (25,)


@pytest.fixture(scope="module")
def runs(own_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The embedded events with a model, and with two others."""
    folder = tmp_path_factory.mktemp("runs")
    found = []
    for number, model in enumerate(own_models):
        output = folder / str(number)
        agc_ml.run("ttbar", model=model, site="inline", output=output, quiet=True)
        found.append(output)
    return found


@pytest.fixture(scope="module")
def own_models(trained_job: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A trained bundle, and what it is with fewer of its trees."""
    import json  # noqa: PLC0415 - only here

    import xgboost  # noqa: PLC0415 - heavy

    found = [trained_job / "bundle"]
    for trees in (20, 8):
        folder = tmp_path_factory.mktemp("model") / "bundle"
        shutil.copytree(trained_job / "bundle", folder)
        card = json.loads((folder / "model.json").read_text())
        for entry in card["models"]:
            booster = xgboost.Booster()
            booster.load_model(folder / entry["file"])
            (folder / entry["file"]).write_bytes(bytes(booster[:trees].save_raw("json")))
            del entry["sha256"], entry["golden"]
        (folder / "model.json").write_text(json.dumps(card))
        found.append(folder)
    return found


def test_the_impact_of_the_model(runs: list[Path]) -> None:
    """A parameter of the fit, with its impact; the uncertainty of the result does not shrink."""
    alone = agc_ml.fit(runs[0], model_uncertainty.ml_config("ttbar"), pseudodata="complete")
    found = agc_ml.fit(runs[0], pseudodata="complete", ml_uncertainty=runs[1:])
    names = [parameter.name for parameter in found.parameters]
    assert "ML model 1" in names
    impact = next(one for one in found.impacts if one.parameter == "ML model 1")
    assert max(abs(impact.postfit_up), abs(impact.postfit_down)) > 0
    assert found.poi.uncertainty >= alone.poi.uncertainty * (1 - 1e-6)
    assert any("uncertainty of the model" in note for note in found.notes)


def test_runs_that_are_no_alternatives(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FitError, match="the same models as"):
        agc_ml.fit(runs[0], ml_uncertainty=[runs[0]])
    with pytest.raises(FitError, match="not a run directory"):
        agc_ml.fit(runs[0], ml_uncertainty=[runs[0] / "histograms.root"])
    with pytest.raises(FitError, match="not a run directory"):
        agc_ml.fit(runs[0] / "histograms.root", ml_uncertainty=runs[1:])
    first, other = (RunResult.load(run) for run in runs[:2])

    def changed(result: RunResult, **change: Any) -> RunResult:
        from dataclasses import replace  # noqa: PLC0415 - only here

        return replace(result, provenance=result.provenance.model_copy(update=change))

    for change, message in (
        ({"fileset": "another"}, "ran over other events"),
        ({"models": {}}, "it had no model"),
        ({"processor": other.provenance.processor.model_copy(update={"code": "x"})}, "other code"),
    ):
        with pytest.raises(FitError, match=message):
            model_uncertainty.check_alternatives(first, [changed(other, **change)])
    with pytest.raises(FitError, match="there is no uncertainty of one"):
        model_uncertainty.check_alternatives(changed(first, models={}), [other])
