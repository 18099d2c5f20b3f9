"""Trials of a search and the final training; they run on workers."""

from __future__ import annotations

import functools
import io
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import AgcError, TrainingError
from agc_ml.models import content
from agc_ml.models.model import Parity
from agc_ml.results import tables
from agc_ml.training import metrics, training_set
from agc_ml.training.metrics import Quality
from agc_ml.training.search_spaces import Kind
from agc_ml.training.trainers import tensorflow, xgboost
from agc_ml.training.training_set import TrainingSet

Array = NDArray[Any]
Params = Mapping[str, int | float]

# Folds of the cross-validation, by the parts of the training set
N_FOLDS: Final = 2

# Tenths of the events at the points of the learning curve; the last point has all of them
CURVE: Final = (1, 2, 5, training_set.N_PARTS)

GOLDEN_ROWS: Final = 1200
NO_QUALITY: Final = Quality(math.nan, math.nan, math.nan)

TRAINERS: Final[Mapping[Kind, ModuleType]] = {"xgboost": xgboost, "keras": tensorflow}


@dataclass(frozen=True)
class Source:
    """Training data of a trial: a Parquet file's content by its sha256, a variation, a parity."""

    sha256: str
    digest: str
    variation: str
    parity: Parity


@dataclass(frozen=True)
class Trial:
    """Parameters to try; stopped at a step where the jet score is below that of ``limits``."""

    kind: Kind
    source: Source
    number: int
    params: Params
    seed: int
    limits: Mapping[int, float]


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial; ``history`` is the jet score after each step, as mean of the folds.

    A trial that failed has an ``error``.
    """

    number: int
    history: tuple[tuple[int, float], ...] = ()
    quality: Quality = NO_QUALITY
    pruned: bool = False
    seconds: float = 0.0
    error: str = ""
    params: Params = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the result of a trial that did not fail, for JSON."""
        return {
            "number": self.number,
            "params": dict(self.params),
            "history": [list(point) for point in self.history],
            **self.quality._asdict(),
            "pruned": self.pruned,
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrialResult:
        """Return the result of `as_json`."""
        return cls(
            number=content["number"],
            params=content["params"],
            history=tuple((int(step), float(value)) for step, value in content["history"]),
            quality=Quality(content["auc"], content["jet_score"], content["fully_right"]),
            pruned=content["pruned"],
            seconds=content["seconds"],
        )


def run(trial: Trial) -> TrialResult:
    """Run a trial; errors are returned, not raised."""
    try:
        return _run(trial)
    except Exception as error:  # noqa: BLE001 - the libraries that train raise anything
        return TrialResult(trial.number, error=_one_line(error))


def _one_line(error: Exception) -> str:
    if isinstance(error, AgcError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _run(trial: Trial) -> TrialResult:
    start = time.perf_counter()
    trainer = TRAINERS[trial.kind]
    folds = [_fold(trial.kind, trial.source, number) for number in range(N_FOLDS)]
    validations = [validation for _, validation in folds]
    learners = [trainer.Learner(data, trial.params, trial.seed) for data, _ in folds]
    scorers = [
        learner.scorer(_rows(validation))
        for learner, validation in zip(learners, validations, strict=True)
    ]
    history: list[tuple[int, float]] = []
    scores: list[Array] = []
    pruned = False
    # train step by step, and stop where the jet score is below the limit of the step
    for step in trainer.steps(trial.params):
        for learner in learners:
            learner.train(step)
        scores = [
            scorer().reshape(-1, validation.features.shape[1])
            for scorer, validation in zip(scorers, validations, strict=True)
        ]
        jets = [
            metrics.jet_scores(values, validation.right, validation.assignment).mean()
            for values, validation in zip(scores, validations, strict=True)
        ]
        history.append((step, float(np.mean(jets))))
        if history[-1][1] < trial.limits.get(step, 0.0):
            pruned = True
            break
    # mean quality of the folds
    qualities = [
        metrics.quality(values, validation.right, validation.assignment)
        for values, validation in zip(scores, validations, strict=True)
    ]
    mean = Quality(*(float(np.mean(values)) for values in zip(*qualities, strict=True)))
    seconds = time.perf_counter() - start
    return TrialResult(trial.number, tuple(history), mean, pruned, seconds, params=trial.params)


@dataclass(frozen=True)
class FinalTraining:
    """A model to train on all events of a parity."""

    kind: Kind
    source: Source
    params: Params
    seed: int


@dataclass(frozen=True)
class CurvePoint:
    """Quality of a model trained on so many events, on the events of the other parity."""

    events: int
    quality: Quality


@dataclass(frozen=True)
class TrainedModel:
    """Trained model: names and contents of its files by kind; the kind ``model`` scores.

    ``golden`` are some rows with the scores of the library that trained.
    """

    files: Mapping[str, tuple[str, bytes]]
    curve: tuple[CurvePoint, ...]
    golden: tuple[Array, Array] | None
    error: str = ""


def train(task: FinalTraining) -> TrainedModel:
    """Train a model, also on parts of the events; errors are returned, not raised."""
    try:
        return _train(task)
    except Exception as error:  # noqa: BLE001 - the libraries that train raise anything
        return TrainedModel({}, (), None, _one_line(error))


def _train(task: FinalTraining) -> TrainedModel:
    trainer, source = TRAINERS[task.kind], task.source
    data = events(source)
    others = all_events(source.sha256, source.digest, source.variation).of_parity(
        "odd" if source.parity == "even" else "even"
    )
    # learning curve; its last model is trained on all events
    curve = []
    for n_parts in CURVE:
        subset = data.take(data.part < n_parts)
        learner = trainer.Learner(trainer.prepare(subset), task.params, task.seed)
        learner.train(trainer.steps(task.params)[-1])
        quality = metrics.quality(score(learner, others), others.right, others.assignment)
        curve.append(CurvePoint(len(subset), quality))
    golden_rows = _rows(data)[:GOLDEN_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        paths = learner.save(Path(folder), source.parity)
        files = {kind: (path.name, path.read_bytes()) for kind, path in paths.items()}
    return TrainedModel(files, tuple(curve), (golden_rows, learner.scores(golden_rows)))


def score(learner: Any, data: TrainingSet) -> Array:
    """Return the scores of all permutations, shape (n_events, k)."""
    return np.asarray(learner.scores(_rows(data))).reshape(data.features.shape[:2])


def _rows(data: TrainingSet) -> Array:
    return data.features.reshape(-1, data.features.shape[2])


@functools.lru_cache(maxsize=2 * N_FOLDS)
def _fold(kind: Kind, source: Source, number: int) -> tuple[Any, TrainingSet]:
    """Return the prepared training data and the validation data of a fold."""
    data = events(source)
    is_validation = data.part % N_FOLDS == number
    return TRAINERS[kind].prepare(data.take(~is_validation)), data.take(is_validation)


@functools.lru_cache(maxsize=4)
def events(source: Source) -> TrainingSet:
    """Return the events of one parity.

    Raises
    ------
    TrainingError
        The worker has no such training set, or it is not valid.
    """
    return all_events(source.sha256, source.digest, source.variation).of_parity(source.parity)


def forget(sha256: str) -> None:
    """Free a training set: workers of a cluster live longer than a job."""
    content.forget(sha256)
    for cached in (_fold, events, all_events):
        cached.cache_clear()


@functools.lru_cache(maxsize=2)
def all_events(sha256: str, digest: str, variation: str) -> TrainingSet:
    """Return all events of one variation of a training set.

    Raises
    ------
    TrainingError
        As of `events`.
    """
    file = content.content_of(sha256)
    if file is None:
        raise TrainingError(f"training set {digest[:12]}: its content never came to this process")
    table = tables.read(io.BytesIO(file.data), TrainingError)
    if table.digest != digest:
        raise TrainingError(
            f"training set {digest[:12]}: its content has the digest {table.digest}"
        )
    return training_set.of_table(table, variation)
