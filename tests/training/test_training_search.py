"""Searches: what is tried depends on nothing but the seed; spaces that make no sense."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from agc_ml.errors import TrainingError, UsageError
from agc_ml.models.content import Content, provide
from agc_ml.models.model import Parity
from agc_ml.results import tables
from agc_ml.training import metrics, search, search_spaces
from agc_ml.training.metrics import Quality
from agc_ml.training.search import Plan
from agc_ml.training.search_spaces import PRESETS, space_of
from agc_ml.training.trainers import trials
from agc_ml.training.trainers import xgboost as boosting
from agc_ml.training.trainers.trials import FinalTraining, Source, Trial, TrialResult

SOURCES: dict[Parity, Source] = {
    "even": Source("a", "b", "nominal", "even"),
    "odd": Source("a", "b", "nominal", "odd"),
}
SPACE: dict[str, Any] = {
    "n_estimators": {"low": 50, "high": 300, "step": 50},
    "max_depth": {"low": 2, "high": 9},
    "learning_rate": {"low": 0.01, "high": 1.0, "log": True},
    "reg_alpha": [0, 0.5, 1],
    "gamma": 0.25,
}


def plan(n_trials: int = 14, seed: int = 3) -> Plan:
    return Plan("xgboost", space_of("xgboost", SPACE), n_trials, seed, SOURCES)


class DiedError(Exception):
    """The process, in the middle of a search."""


def pretended(trial: Trial) -> TrialResult:
    """What a trial gives: a smooth function of its parameters, at each step."""
    params = trial.params
    depth, rate = params["max_depth"], np.log(params["learning_rate"] / 0.1)
    best = 0.9 - 0.01 * (depth - 5) ** 2 - 0.02 * rate**2 + 0.001 * (trial.source.parity == "odd")
    history: list[tuple[int, float]] = []
    for step in boosting.steps(params):
        history.append((step, best * (1 - np.exp(-step / 100))))
        if history[-1][1] < trial.limits.get(step, 0):
            return TrialResult(
                trial.number, tuple(history), Quality(0.9, history[-1][1], 0.5), True
            )
    return TrialResult(trial.number, tuple(history), Quality(0.9, history[-1][1], 0.5))


def searched(folder: Path, seed: int, deaths: int) -> dict[Parity, list[TrialResult]]:
    """A search on workers that finish in any order, that dies so often and is started again."""
    dice = random.Random(seed)
    left = [deaths]

    def evaluate(waiting: Mapping[str, Trial]) -> Iterator[tuple[str, TrialResult]]:
        keys = list(waiting)
        dice.shuffle(keys)
        for key in keys:
            if left[0] and dice.random() < 0.2:
                left[0] -= 1
                raise DiedError
            yield key, pretended(waiting[key])

    while True:
        try:
            return search.search(plan(), evaluate, folder / "study.db", lambda *_: None)
        except DiedError:
            continue


def simplified(found: dict[Parity, list[TrialResult]]) -> Any:
    return {
        parity: [(one.number, dict(one.params), one.history, one.pruned) for one in attempts]
        for parity, attempts in found.items()
    }


def test_the_same_trials_whatever_happens(tmp_path: Path) -> None:
    """Order, workers and deaths change neither parameters nor what is stopped early."""
    expected = None
    for seed, deaths in ((0, 0), (1, 3), (2, 6)):
        (tmp_path / str(seed)).mkdir()
        found = simplified(searched(tmp_path / str(seed), seed, deaths))
        assert [len(attempts) for attempts in found.values()] == [14, 14]
        assert any(one[3] for one in found["even"])
        assert all(one[1]["gamma"] == 0.25 for one in found["even"])
        expected = expected or found
        assert found == expected
    assert expected["even"][0][1] != expected["odd"][0][1]


def test_a_search_learns(tmp_path: Path) -> None:
    found = searched(tmp_path, 0, 0)["odd"]
    best = search.best(found)
    assert not best.pruned
    assert best.quality.jet_score == max(one.quality.jet_score for one in found if not one.pruned)
    trees = [one.params["n_estimators"] for one in found]  # what matters most
    assert np.mean(trees[8:]) > np.mean(trees[:8])


def test_the_study_is_one_of_optuna(tmp_path: Path) -> None:
    """With its own tools people can look at it."""
    searched(tmp_path, 0, 0)
    study = optuna.load_study(study_name="even", storage=f"sqlite:///{tmp_path / 'study.db'}")
    states = {trial.state for trial in study.trials}
    assert states == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    assert study.best_value > 0.7
    assert study.trials[0].intermediate_values


def test_trials_that_fail(tmp_path: Path) -> None:
    def some_fail(waiting: Mapping[str, Trial]) -> Iterator[tuple[str, TrialResult]]:
        for index, (key, trial) in enumerate(waiting.items()):
            yield (
                key,
                TrialResult(trial.number, error="no memory") if index == 1 else pretended(trial),
            )

    told: list[tuple[Parity, TrialResult]] = []
    for _ in range(2):  # the second time all is there
        told.clear()
        found = search.search(
            plan(), some_fail, tmp_path / "some.db", lambda *one: told.append(one)
        )
        failed = {(p, one.number): one.error for p, one in told if one.error}
        assert set(failed.values()) == {"no memory"}
        assert len(told) == 28
        assert sum(len(attempts) for attempts in found.values()) == 28 - len(failed)

    def all_fail(waiting: Mapping[str, Trial]) -> Iterator[tuple[str, TrialResult]]:
        yield from (
            (key, TrialResult(trial.number, error="no GPU")) for key, trial in waiting.items()
        )

    with pytest.raises(TrainingError, match="no trial of a whole generation worked: no GPU"):
        search.search(plan(), all_fail, tmp_path / "all.db", lambda *_: None)
    with pytest.raises(TrainingError, match="no trial ran to its end"):
        search.best([])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"max_dept": 3}, "'max_dept' is no parameter of xgboost; there are n_estimators"),
        ({"max_depth": {"low": 5, "high": 3}}, "max_depth"),
        ({"max_depth": {"low": 1.5, "high": 3}}, "whole numbers"),
        ({"max_depth": [0, 3]}, "from 1 to 100"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "learning_rate"),
        ({"learning_rate": {"low": 0.1, "high": 1, "lgo": True}}, "learning_rate"),
        ({"subsample": []}, "the list is empty"),
        ({"gamma": [0] * 101, "reg_alpha": [0] * 100}, "201 values in its lists; at most 200"),
        ({"gamma": "much"}, "gamma"),
        ({"gamma": True}, "gamma: a number, a list of them"),
        ({"gamma": {"low": False, "high": "3"}}, "gamma: a number, a list of them"),
        ({"gamma": {"low": 0, "high": 1, "step": 2}}, "0.5 steps of the range"),
        ({"gamma": {"low": 0, "high": 1, "step": 1e-300}}, "1e.300 steps of the range"),
        ({"gamma": [[[[[[1]]]]]]}, "gamma"),
        ({}, "it has no parameters; there are n_estimators"),
        ({"gamma": float("nan")}, "gamma"),
        ("referenz", "space 'referenz': for xgboost there are xgboost, reference"),
        ("keras", "for xgboost there are"),
    ],
)
def test_spaces_that_make_no_sense(space: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        space_of("xgboost", space)


def test_steps_of_a_range() -> None:
    """Those of fractions are fractions, also where both ends are whole."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    space = space_of("xgboost", {"gamma": {"low": 0, "high": 2, "step": 0.5}, "max_depth": [3]})
    seen = {search_spaces.suggest(study.ask(), space)["gamma"] for _ in range(60)}
    assert seen == {0, 0.5, 1, 1.5, 2}


def test_spaces_in_files(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("max_depth: {low: 3, high: 5}\nreg_alpha: [0, 1]\ngamma: 0\n")
    space = search_spaces.load_space("xgboost", str(path))
    assert space_of("xgboost", search_spaces.space_as_json(space)) == space
    path.write_text("max_depth: {low: 3\n")
    with pytest.raises(UsageError, match="can't be read"):
        search_spaces.load_space("xgboost", str(path))
    path.write_text("gamma: " + "[" * 5000)
    with pytest.raises(UsageError, match="can't be read"):
        search_spaces.load_space("xgboost", str(path))
    path.write_text("- 3\n")
    with pytest.raises(UsageError, match="parameters by name"):
        search_spaces.load_space("xgboost", str(path))
    for name, (kind, preset) in PRESETS.items():
        assert space_of(kind, name) == space_of(kind, search_spaces.space_as_json(preset)) == preset


def test_the_space_of_the_reference() -> None:
    space = PRESETS["reference"][1]
    depth = space["max_depth"]
    assert (depth.low, depth.high, depth.step) == (1, 71, 10)
    assert space["learning_rate"] == pytest.approx(np.linspace(0.01, 1, 10))
    assert space["min_child_weight"] == pytest.approx(np.logspace(-1, 3, 20))
    assert space["gamma"] == pytest.approx(np.logspace(-4, 1, 20))
    assert space["reg_alpha"] == (0, 0.25, 0.5, 0.75, 1)


@pytest.fixture
def source(training_run: Path) -> Source:
    content = (training_run / "training.parquet").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    provide({sha256: Content(content)})
    digest = tables.digest_of(training_run / "training.parquet")
    return Source(sha256, digest, "nominal", "even")


def test_a_trial_is_stock_xgboost(source: Source) -> None:
    """Its scores are those of xgboost's own `train`, on the same parts of the events."""
    import xgboost  # noqa: PLC0415 - heavy

    params = {"n_estimators": 60, "max_depth": 5, "learning_rate": 0.2}
    tried = trials.run(Trial("xgboost", source, 0, params, 7, {}))
    assert tried.error == ""
    assert [step for step, _ in tried.history] == [50, 60]
    data = trials.events(source)
    jet_scores = []
    for fold in range(2):
        train, validation = (data.take((data.part % 2 != fold) == flag) for flag in (True, False))
        matrix = xgboost.DMatrix(train.features.reshape(-1, 20), train.labels.ravel(), nthread=1)
        stock = {"objective": "binary:logistic", "base_score": 0.5, "nthread": 1, "seed": 7,
                 "tree_method": "hist", "max_depth": 5, "learning_rate": 0.2}  # fmt: skip
        booster = xgboost.train(stock, matrix, 60)
        found = booster.inplace_predict(validation.features.reshape(-1, 20)).reshape(-1, 12)
        jet_scores.append(metrics.quality(found, validation.right, validation.assignment).jet_score)
    assert tried.history[-1][1] == pytest.approx(np.mean(jet_scores), abs=0.01)


def test_a_trial_stops_below_the_limit(source: Source) -> None:
    params = {"n_estimators": 200, "max_depth": 3}
    tried = trials.run(Trial("xgboost", source, 0, params, 7, {100: 0.999}))
    assert tried.pruned
    assert [step for step, _ in tried.history] == [50, 100]


def test_what_goes_wrong_in_a_trial_is_told(source: Source) -> None:
    params = {"n_estimators": 10, "max_depth": -3}
    tried = trials.run(Trial("xgboost", source, 4, params, 7, {}))
    assert "max_depth" in tried.error
    elsewhere = Source("0" * 64, source.digest, "nominal", "even")
    tried = trials.run(Trial("xgboost", elsewhere, 4, {"n_estimators": 10}, 7, {}))
    assert "its content never came to this process" in tried.error
    assert "never came" in trials.train(FinalTraining("xgboost", elsewhere, {}, 7)).error


def test_the_same_seed_gives_the_same_bytes(source: Source) -> None:
    params = {"n_estimators": 40, "max_depth": 4, "subsample": 0.7, "colsample_bytree": 0.6}
    one, two, other = (
        trials.train(FinalTraining("xgboost", source, params, seed)).files["model"]
        for seed in (5, 5, 6)
    )
    assert one == two
    assert one != other


def test_the_learning_curve(source: Source) -> None:
    fitted = trials.train(FinalTraining("xgboost", source, {"n_estimators": 50, "max_depth": 4}, 1))
    events = [point.events for point in fitted.curve]
    assert events == sorted(events)
    assert events[-1] == len(trials.events(source))
    assert fitted.curve[-1].quality.auc > fitted.curve[0].quality.auc
    assert fitted.golden is not None
