"""A trial of a search: a model with given parameters, cross-validated. Runs on a worker."""

from __future__ import annotations

import functools
import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
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

# Of the cross-validation, by the parts of the training set
N_FOLDS: Final = 2

# Parts of ten of the events that the learning curve is made of; the last one is all of them
CURVE: Final = (1, 2, 5, training_set.N_PARTS)

GOLDEN_ROWS: Final = 1200

TRAINERS: Final[Mapping[Kind, ModuleType]] = {"xgboost": xgboost, "keras": tensorflow}


@dataclass(frozen=True)
class Source:
    """Where a worker finds the events: content of a Parquet file that it was given, by sha256."""

    sha256: str
    digest: str
    variation: str
    parity: Parity


@dataclass(frozen=True)
class Trial:
    """What is to be tried. A trial whose jet score after a step is below ``limits`` stops there."""

    kind: Kind
    source: Source
    number: int
    params: Mapping[str, int | float]
    seed: int
    limits: Mapping[int, float]


@dataclass(frozen=True)
class Tried:
    """What came out: jet score after each step, mean of the folds; ``error`` if it failed."""

    number: int
    history: tuple[tuple[int, float], ...] = ()
    quality: Quality | None = None
    pruned: bool = False
    seconds: float = 0.0
    error: str = ""


def run(trial: Trial) -> Tried:
    """Try it. Never raises: what goes wrong is told."""
    start = time.perf_counter()
    try:
        return _run(trial, start)
    except AgcError as error:
        return Tried(trial.number, error=str(error))
    except Exception as error:  # noqa: BLE001 - of the libraries that train; it is told
        return Tried(trial.number, error=" ".join(f"{type(error).__name__}: {error}".split())[:300])


def _run(trial: Trial, start: float) -> Tried:
    trainer = TRAINERS[trial.kind]
    folds = [_fold(trial.kind, trial.source, number) for number in range(N_FOLDS)]
    learners = [trainer.Learner(data, trial.params, trial.seed) for data, _ in folds]
    watches = [
        learner.watch(_rows(validation))
        for learner, (_, validation) in zip(learners, folds, strict=True)
    ]
    history: list[tuple[int, float]] = []
    found: list[Array] = []
    pruned = False
    for step in trainer.steps(trial.params):
        for learner in learners:
            learner.grow(step)
        found = [
            watch().reshape(-1, validation.features.shape[1])
            for watch, (_, validation) in zip(watches, folds, strict=True)
        ]
        jets = [
            metrics.jet_scores(values, validation.right, validation.assignment).mean()
            for values, (_, validation) in zip(found, folds, strict=True)
        ]
        history.append((step, float(np.mean(jets))))
        if history[-1][1] < trial.limits.get(step, 0.0):
            pruned = True
            break
    qualities = [
        metrics.quality(values, validation.right, validation.assignment)
        for values, (_, validation) in zip(found, folds, strict=True)
    ]
    mean = Quality(*(float(np.mean(values)) for values in zip(*qualities, strict=True)))
    return Tried(trial.number, tuple(history), mean, pruned, time.perf_counter() - start)


@dataclass(frozen=True)
class Fit:
    """A model to be trained on all events of a parity."""

    kind: Kind
    source: Source
    params: Mapping[str, int | float]
    seed: int


@dataclass(frozen=True)
class CurvePoint:
    """How good a model is that learned from so many events; on the events of the other parity."""

    events: int
    quality: Quality


@dataclass(frozen=True)
class Fitted:
    """A trained model: its files, ``model`` among them, by what they are: name and content.

    ``golden`` are some rows, and what its own library scores them with.
    """

    files: Mapping[str, tuple[str, bytes]]
    curve: tuple[CurvePoint, ...]
    golden: tuple[Array, Array] | None
    error: str = ""


def fit(task: Fit) -> Fitted:
    """Train it, on parts of the events too. Never raises: what goes wrong is told."""
    try:
        return _fit(task)
    except AgcError as error:
        return Fitted({}, (), None, str(error))
    except Exception as error:  # noqa: BLE001 - of the libraries that train; it is told
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Fitted({}, (), None, text)


def _fit(task: Fit) -> Fitted:
    trainer, source = TRAINERS[task.kind], task.source
    data = events(source)
    others = whole(source.sha256, source.digest, source.variation).of_parity(
        "odd" if source.parity == "even" else "even"
    )
    curve = []
    for n_parts in CURVE:
        some = data.take(data.part < n_parts)
        learner = trainer.Learner(trainer.prepare(some), task.params, task.seed)
        learner.grow(trainer.steps(task.params)[-1])
        quality = metrics.quality(score(learner, others), others.right, others.assignment)
        curve.append(CurvePoint(len(some), quality))
    rows_of = data.features.reshape(-1, data.features.shape[2])[:GOLDEN_ROWS]
    with tempfile.TemporaryDirectory() as folder:
        paths = learner.save(Path(folder), source.parity)
        files = {what: (path.name, path.read_bytes()) for what, path in paths.items()}
    return Fitted(files, tuple(curve), (rows_of, learner.scores(rows_of)))


def score(learner: Any, data: TrainingSet) -> Array:
    """Scores of all permutations, shape (n_events, k)."""
    return np.asarray(learner.scores(_rows(data))).reshape(data.features.shape[:2])


def _rows(data: TrainingSet) -> Array:
    return data.features.reshape(-1, data.features.shape[2])


@functools.lru_cache(maxsize=2 * N_FOLDS)
def _fold(kind: Kind, source: Source, number: int) -> tuple[Any, TrainingSet]:
    """What is trained on, prepared, and what is validated with."""
    data = events(source)
    is_validation = data.part % N_FOLDS == number
    return TRAINERS[kind].prepare(data.take(~is_validation)), data.take(is_validation)


@functools.lru_cache(maxsize=4)
def events(source: Source) -> TrainingSet:
    """Events of one parity.

    Raises
    ------
    TrainingError
        The training set is not here, or not what it should be.
    """
    return whole(source.sha256, source.digest, source.variation).of_parity(source.parity)


def forget(sha256: str) -> None:
    """Let go of a training set: workers of a cluster live longer than a job."""
    content.forget(sha256)
    for kept in (_fold, events, whole):
        kept.cache_clear()


@functools.lru_cache(maxsize=2)
def whole(sha256: str, digest: str, variation: str) -> TrainingSet:
    """The whole training set, of one variation.

    Raises
    ------
    TrainingError
        As of `events`.
    """
    events = content.content_of(sha256)
    if events is None:
        raise TrainingError(f"training set {digest[:12]}: its content never came to this process")
    table = tables.read(io.BytesIO(events.data), TrainingError)
    if table.digest != digest:
        raise TrainingError(
            f"training set {digest[:12]}: its content has the digest {table.digest}"
        )
    return training_set.of_table(table, variation)
