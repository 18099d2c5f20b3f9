"""Search for the best parameters: parallel trials, the same ones on any number of workers.

Trials come in generations of a fixed size, each from a sampler that is seeded by the trial's
number, and are compared with earlier generations only. So neither the number of workers, nor the
order in which they finish, nor kills and restarts change the parameters that are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from agc_ml.errors import TrainingError, UsageError
from agc_ml.models.model import Parity
from agc_ml.training.search_spaces import Kind, Space, suggest
from agc_ml.training.trainers.trials import Source, Trial, TrialResult

# Trials of each parity in a generation
GENERATION: Final = 4

# Finished trials that are needed before others are stopped below their median
ENOUGH_TO_PRUNE: Final = 4

Evaluate = Callable[[Mapping[str, Trial]], Iterator[tuple[str, TrialResult]]]


@dataclass(frozen=True)
class Plan:
    """Parameters of a search: model, space, and the training data of each parity."""

    kind: Kind
    space: Space
    n_trials: int
    seed: int
    sources: Mapping[Parity, Source]


def search(
    plan: Plan,
    evaluate: Evaluate,
    storage: Path,
    on_trial: Callable[[Parity, TrialResult], None],
) -> dict[Parity, list[TrialResult]]:
    """Run the trials of a search; resume the one in ``storage``, an SQLite file.

    ``on_trial`` is called with each trial that finishes or fails, and with those of earlier runs.

    Raises
    ------
    TrainingError
        All trials of a generation failed.
    """
    studies = {parity: _study(parity, storage) for parity in plan.sources}
    # trials of an earlier run count as done
    for parity, study in studies.items():
        for result in _results(study):
            on_trial(parity, result)
    # one generation after the other, for all parities
    while waiting := _ask(plan, studies):
        failures = []
        for key, outcome in evaluate({key: trial for key, (_, trial) in waiting.items()}):
            parity, trial = waiting[key]
            result = replace(outcome, number=trial.number, params=trial.params)
            _tell(studies[parity], result)
            on_trial(parity, result)
            if result.error:
                failures.append(result.error)
        if len(failures) == len(waiting):
            raise TrainingError(f"no trial of a whole generation worked: {failures[0]}")
    return {parity: _finished(study) for parity, study in studies.items()}


def best(results: list[TrialResult]) -> TrialResult:
    """Return the trial with the highest jet score, then the highest AUC.

    Raises
    ------
    TrainingError
        No trial was run to its end.
    """
    complete = [one for one in results if not one.pruned]
    if not complete:
        raise TrainingError("no trial ran to its end; see the job's log")
    return max(complete, key=lambda one: (one.quality.jet_score, one.quality.auc, -one.number))


def _optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise UsageError(
            f"Optuna is not installed ({error}): pip install 'agc-ml[training]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(parity: Parity, storage: Path) -> Any:
    optuna = _optuna()
    return optuna.create_study(
        study_name=parity,
        storage=optuna.storages.RDBStorage(
            f"sqlite:///{storage}", engine_kwargs={"connect_args": {"timeout": 60}}
        ),
        direction="maximize",
        load_if_exists=True,
    )


def _ask(plan: Plan, studies: Mapping[Parity, Any]) -> dict[str, tuple[Parity, Trial]]:
    """Return the trials of the next generation of each parity, or those that a kill interrupted."""
    states = _optuna().trial.TrialState
    waiting = {}
    for parity, study in studies.items():
        trials = study.get_trials(deepcopy=False)
        # a generation is complete before its first trial is told
        first = len(trials) // GENERATION * GENERATION
        if first == len(trials) and any(not one.state.is_finished() for one in trials):
            first -= GENERATION
        limits = _limits(_finished(study, before=first))
        for number in range(first, min(first + GENERATION, plan.n_trials)):
            if number >= len(trials):
                params = _new_params(plan, parity, number, study, trials[:first])
            elif trials[number].state == states.RUNNING:
                params = _complete(plan.space, trials[number].params)
            else:
                continue
            trial = Trial(plan.kind, plan.sources[parity], number, params, plan.seed, limits)
            waiting[f"{parity}-{number}"] = (parity, trial)
    return waiting


def _new_params(
    plan: Plan, parity: Parity, number: int, study: Any, earlier: list[Any]
) -> dict[str, int | float]:
    """Return the parameters of a new trial; they depend on its number and earlier generations.

    They are sampled in memory and stored together, so that no trial is stored incompletely.
    """
    optuna = _optuna()
    seed = np.random.SeedSequence([plan.seed, parity == "even", number]).generate_state(1)[0]
    sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=2 * GENERATION)
    memory = optuna.create_study(sampler=sampler, direction="maximize")
    memory.add_trials(earlier)
    trial = memory.ask()
    params = suggest(trial, plan.space)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
        )
    )
    return params


def _complete(space: Space, params: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the parameters of a stored trial, with those that are fixed."""
    fixed = {name: value for name, value in space.items() if isinstance(value, int | float)}
    return {name: params.get(name, fixed.get(name)) for name in space}


def _limits(results: list[TrialResult]) -> dict[int, float]:
    """Return the median jet score at each step."""
    values: dict[int, list[float]] = {}
    for result in results:
        for step, value in result.history:
            values.setdefault(step, []).append(value)
    return {
        step: float(np.median(scores))
        for step, scores in values.items()
        if len(scores) >= ENOUGH_TO_PRUNE
    }


def _tell(study: Any, result: TrialResult) -> None:
    """Store the result of a trial; its attributes first, as a finished trial may not change."""
    states = _optuna().trial.TrialState
    storage = study._storage  # noqa: SLF001 - a trial of another process has no public handle
    key = study.get_trials(deepcopy=False)[result.number]._trial_id  # noqa: SLF001 - likewise
    if result.error:
        storage.set_trial_user_attr(key, "error", result.error)
        study.tell(result.number, state=states.FAIL)
        return
    storage.set_trial_user_attr(key, "attempt", result.as_json())
    for step, value in result.history:
        storage.set_trial_intermediate_value(key, step, value)
    if result.pruned:
        study.tell(result.number, state=states.PRUNED)
    else:
        study.tell(result.number, result.quality.jet_score)


def _results(study: Any, before: int | None = None) -> list[TrialResult]:
    """Return the stored results of a study, also of trials that failed."""
    results = []
    for trial in study.get_trials(deepcopy=False)[:before]:
        attributes = trial.user_attrs if trial.state.is_finished() else {}
        if "error" in attributes:
            results.append(TrialResult(trial.number, error=attributes["error"]))
        elif "attempt" in attributes:
            results.append(TrialResult.from_json(attributes["attempt"]))
    return results


def _finished(study: Any, before: int | None = None) -> list[TrialResult]:
    return [result for result in _results(study, before) if not result.error]
