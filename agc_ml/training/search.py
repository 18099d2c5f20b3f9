"""Searches for the best parameters: trials side by side, the same ones however many workers run.

Trials are asked for in generations of a fixed size, each from a sampler that is seeded by the
trial's number, and judged against those of earlier generations only. So neither the number of
workers, nor the order in which they finish, nor being killed and resumed changes what is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agc_ml.errors import TrainingError, UsageError
from agc_ml.models.model import Parity
from agc_ml.training.metrics import Quality
from agc_ml.training.search_spaces import Kind, Space, suggest
from agc_ml.training.trainers.trials import Source, Trial, Tried

# Trials of each parity that are asked for at once
GENERATION: Final = 4

# Finished trials before one may be stopped for being worse than their median
ENOUGH_TO_PRUNE: Final = 4

Params = Mapping[str, int | float]
Evaluate = Callable[[Mapping[str, Trial]], Iterator[tuple[str, Tried]]]


@dataclass(frozen=True)
class Plan:
    """What is searched for, for which parities."""

    kind: Kind
    space: Space
    n_trials: int
    seed: int
    sources: Mapping[Parity, Source]


@dataclass(frozen=True)
class Attempt:
    """A finished trial."""

    number: int
    params: Params
    history: tuple[tuple[int, float], ...]
    quality: Quality
    pruned: bool
    seconds: float

    def described(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "number": self.number,
            "params": dict(self.params),
            "history": [list(point) for point in self.history],
            **self.quality._asdict(),
            "pruned": self.pruned,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class FailedTrial:
    """A trial of which nothing came, and why."""

    number: int
    error: str


def search(
    plan: Plan,
    evaluate: Evaluate,
    storage: Path,
    on_trial: Callable[[Parity, Attempt | FailedTrial], None],
) -> dict[Parity, list[Attempt]]:
    """Try parameters; goes on where ``storage``, an SQLite file, ends.

    ``on_trial`` is told of each trial that finishes or fails, and of those that had before.

    Raises
    ------
    TrainingError
        All trials of a generation failed.
    """
    studies = {parity: _study(parity, storage) for parity in plan.sources}
    for parity, study in studies.items():
        earlier: list[Attempt | FailedTrial] = [*_finished(study), *_failed(study)]
        for done in earlier:
            on_trial(parity, done)
    while waiting := _ask(plan, studies):
        failures = []
        for key, tried in evaluate({key: trial for key, (_, trial) in waiting.items()}):
            parity, trial = waiting[key]
            attempt = _tell(studies[parity], trial, tried)
            on_trial(parity, attempt)
            if isinstance(attempt, FailedTrial):
                failures.append(attempt.error)
        if len(failures) == len(waiting):
            raise TrainingError(f"no trial of a whole generation worked: {failures[0]}")
    return {parity: _finished(study) for parity, study in studies.items()}


def best(attempts: list[Attempt]) -> Attempt:
    """The one with the highest jet score, of several the one with the highest AUC.

    Raises
    ------
    TrainingError
        There is none that ran to its end.
    """
    whole = [one for one in attempts if not one.pruned]
    if not whole:
        raise TrainingError("no trial ran to its end; see the job's log")
    return max(whole, key=lambda one: (one.quality.jet_score, one.quality.auc, -one.number))


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
    """The next generation of each parity: what a killed job left unfinished is a part of it."""
    states = _optuna().trial.TrialState
    found = {}
    for parity, study in studies.items():
        trials = study.get_trials(deepcopy=False)
        # those of a generation are asked for before the first of them is told
        first = len(trials) // GENERATION * GENERATION
        if first == len(trials) and any(not one.state.is_finished() for one in trials):
            first -= GENERATION
        limits = _limits(_finished(study, before=first))
        until = min(first + GENERATION, plan.n_trials)
        for number in range(first, until):
            if number >= len(trials):
                params = _asked(plan, parity, number, study, trials[:first])
            elif trials[number].state == states.RUNNING:
                params = _complete(plan.space, trials[number].params)
            else:
                continue
            trial = Trial(plan.kind, plan.sources[parity], number, params, plan.seed, limits)
            found[f"{parity}-{number}"] = (parity, trial)
    return found


def _asked(
    plan: Plan, parity: Parity, number: int, study: Any, before: list[Any]
) -> dict[str, int | float]:
    """Parameters of a new trial: the same answer whoever asks, and whenever.

    They are found in memory and stored together, so that a trial is never there by half.
    """
    optuna = _optuna()
    seed = np.random.SeedSequence([plan.seed, parity == "even", number]).generate_state(1)[0]
    sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=2 * GENERATION)
    memory = optuna.create_study(sampler=sampler, direction="maximize")
    memory.add_trials(before)
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
    """Parameters of a trial that was asked for already, with those that are always the same."""
    fixed = {name: value for name, value in space.items() if isinstance(value, int | float)}
    return {name: params.get(name, fixed.get(name)) for name in space}


def _limits(attempts: list[Attempt]) -> dict[int, float]:
    """Median jet score at each step, of the trials that came so far."""
    at: dict[int, list[float]] = {}
    for attempt in attempts:
        for step, value in attempt.history:
            at.setdefault(step, []).append(value)
    return {
        step: float(np.median(values))
        for step, values in at.items()
        if len(values) >= ENOUGH_TO_PRUNE
    }


def _tell(study: Any, trial: Trial, tried: Tried) -> Attempt | FailedTrial:
    states = _optuna().trial.TrialState
    # before the trial is finished: then nothing of it may change
    storage, key = study._storage, study.get_trials(deepcopy=False)[trial.number]._trial_id  # noqa: SLF001 - a trial that another process asked for has no public handle
    if tried.error or tried.quality is None:
        storage.set_trial_user_attr(key, "error", tried.error)
        study.tell(trial.number, state=states.FAIL)
        return FailedTrial(trial.number, tried.error)
    attempt = Attempt(
        trial.number, trial.params, tried.history, tried.quality, tried.pruned, tried.seconds
    )
    storage.set_trial_user_attr(key, "attempt", attempt.described())
    for step, value in tried.history:
        storage.set_trial_intermediate_value(key, step, value)
    if tried.pruned:
        study.tell(trial.number, state=states.PRUNED)
    else:
        study.tell(trial.number, tried.quality.jet_score)
    return attempt


def _failed(study: Any) -> list[FailedTrial]:
    trials = study.get_trials(deepcopy=False)
    return [
        FailedTrial(one.number, one.user_attrs["error"])
        for one in trials
        if one.state.is_finished() and "error" in one.user_attrs
    ]


def _finished(study: Any, before: int | None = None) -> list[Attempt]:
    trials = study.get_trials(deepcopy=False)[:before]
    told = [one.user_attrs["attempt"] for one in trials if one.state.is_finished()
            and "attempt" in one.user_attrs]  # fmt: skip
    return [
        Attempt(
            number=one["number"],
            params=one["params"],
            history=tuple((int(step), float(value)) for step, value in one["history"]),
            quality=Quality(one["auc"], one["jet_score"], one["fully_right"]),
            pruned=one["pruned"],
            seconds=one["seconds"],
        )
        for one in told
    ]
