"""Gates: what a bundle has to pass before it may score for everyone, each with its number."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from agc_ml.errors import ModelError
from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.content import BATCH_ROWS
from agc_ml.models.loading import load_model
from agc_ml.models.model import PARITIES, Bundle, Model, Parity
from agc_ml.training import bundles, metrics
from agc_ml.training.job_spec import Limits
from agc_ml.training.metrics import Quality
from agc_ml.training.training_set import TrainingSet

Array = NDArray[Any]

MULTIPLICITIES: Final = {"4": (4, 4), "5": (5, 5), "6 or more": (6, 999)}
FEW: Final = 30
"""Events below which a number of jets is shown, but not judged."""


class Gate(BaseModel):
    """One question, its answer, and the number it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    passed: bool
    value: float
    limit: float
    detail: str


class Judged(BaseModel):
    """The content of ``gates.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(1, alias="schema")
    passed: bool
    dataset: str = Field(description="digest of the training set that it was judged on")
    events: int
    against: str = Field(description="version of the champion at that time, '' if there was none")
    quality: dict[str, float]
    champion: dict[str, float] = Field(description="quality of the champion on the same events")
    gates: tuple[Gate, ...]


class Seen(BaseModel):
    """What figures are drawn of: shapes as of `agc_ml.training.metrics`."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    roc: dict[str, tuple[Any, Any]]
    calibration: metrics.Calibration
    multiplicity: dict[str, tuple[float, float, int]]
    variations: dict[str, Quality]
    confusion: Any
    kinds: tuple[str, ...]
    importance: dict[str, tuple[float, float]]
    events_of: str | None = None


def score(bundle: Bundle, data: TrainingSet) -> Array:
    """Score each event by the model that never saw it, shape (n_events, k)."""
    n, k, n_features = data.features.shape
    event = np.repeat(np.where(data.is_even, 0, 1), k)
    return bundle(data.features.reshape(n * k, n_features), event).reshape(n, k)


def judge(
    folder: Path,
    sets: Mapping[str, TrainingSet],
    *,
    champion: tuple[str, Bundle] | None,
    limits: Limits,
    remote: Mapping[Parity, str] | None = None,
) -> tuple[Judged, Seen]:
    """Judge the bundle in a folder.

    Parameters
    ----------
    sets
        The training set by variation, nominal among them: each event is scored by the model of
        the other parity.
    champion
        Version and bundle to compare with.
    remote
        Where the two models are served, to compare with what scores here.

    Raises
    ------
    ModelError
        It can't be loaded, or needs other features.
    """
    bundle = bundles.read_bundle(folder)
    nominal = sets[NOMINAL]
    _check_features(bundle, nominal)
    mine = score(bundle, nominal)
    quality = metrics.quality(mine, nominal.right, nominal.assignment)
    roc = {"this bundle": metrics.roc(mine, nominal.right)}
    its_quality: dict[str, float] = {}
    gates = [_least_auc(mine, nominal, limits)]
    if champion is not None:
        version, other = champion
        if all(_fits(model, nominal) for model in other.members):
            its = score(other, nominal)
            its_quality = metrics.quality(its, nominal.right, nominal.assignment)._asdict()
            roc[f"champion, version {version}"] = metrics.roc(its, nominal.right)
            gates += _against(mine, its, nominal, limits)
        else:
            gates.append(_not_compared(version, limits))
    by_variation = {
        name: metrics.quality(score(bundle, data), data.right, data.assignment)
        for name, data in sets.items()
    }
    calibration = metrics.calibration(mine, nominal.right)
    multiplicity = _by_multiplicity(mine, nominal)
    gates += [
        _gap(folder, bundle, nominal, limits),
        _calibration(calibration, limits),
        _multiplicity(multiplicity, quality, limits),
        _variations(by_variation, limits),
        *_same_scores(folder, bundle, remote or {}, limits),
        _latency(bundle, nominal, limits),
    ]
    judged = Judged(
        schema=1,
        passed=all(gate.passed for gate in gates),
        dataset=nominal.digest,
        events=len(nominal),
        against=champion[0] if champion is not None else "",
        quality=quality._asdict(),
        champion=its_quality,
        gates=tuple(gates),
    )
    return judged, Seen(
        roc=roc,
        calibration=calibration,
        multiplicity=multiplicity,
        variations=by_variation,
        confusion=metrics.confusion(mine, nominal.right, nominal.assignment),
        kinds=metrics.names_of_kinds(nominal.assignment, mine.shape[1]),
        importance=_importance(bundle, nominal, quality.auc),
        events_of=nominal.events_of,
    )


def _fits(model: Model, data: TrainingSet) -> bool:
    """Return whether a training set has the features that a model takes."""
    return (
        model.n_features == data.features.shape[2]
        and model.features in {(), data.names}
        and model.delta_phi == data.delta_phi
    )


def _check_features(bundle: Bundle, data: TrainingSet) -> None:
    for model in bundle.members:
        if not _fits(model, data):
            raise ModelError(
                f"{model}: other features than those of the training set "
                f"{data.digest[:12]} (Delta R {data.delta_phi}); judge it on one that was "
                "extracted for it"
            )


def _not_compared(version: str, limits: Limits) -> Gate:
    return Gate(
        name="auc_against_champion",
        title="AUC is not below the champion's",
        passed=False,
        value=0.0,
        limit=-limits.max_loss,
        detail=f"version {version} takes other features than this training set has, so they can't "
        "be compared",
    )


def _least_auc(mine: Array, data: TrainingSet, limits: Limits) -> Gate:
    found = metrics.bootstrap(mine, data.right, task=data.assignment)
    auc, jet = found["auc"], found["jet_score"]
    return Gate(
        name="auc",
        title="It tells right from wrong",
        passed=auc.value >= limits.min_auc,
        value=auc.value,
        limit=limits.min_auc,
        detail=f"AUC {auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}], jet score {jet.value:.4f} "
        f"[{jet.low:.4f}, {jet.high:.4f}] at 95 %",
    )


def _against(mine: Array, its: Array, data: TrainingSet, limits: Limits) -> list[Gate]:
    """Not worse: neither by more than is allowed, nor by what can't be chance."""
    titles = {"auc": "AUC is not below the champion's", "jet_score": "Nor is the jet score"}
    return [
        Gate(
            name=f"{name}_against_champion",
            title=titles[name],
            passed=found.value >= -limits.max_loss and found.high >= 0,
            value=found.value,
            limit=-limits.max_loss,
            detail=f"difference {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}] at 95 %; "
            "the interval must reach zero",
        )
        for name, found in metrics.bootstrap(mine, data.right, its, task=data.assignment).items()
    ]


def _gap(folder: Path, bundle: Bundle, data: TrainingSet, limits: Limits) -> Gate:
    learned = bundles.read_record(folder).models
    gaps = {}
    for parity, model in zip(PARITIES, bundle.members, strict=True):
        others = data.of_parity("odd" if parity == "even" else "even")
        n, k, n_features = others.features.shape
        found = model(others.features.reshape(n * k, n_features)).reshape(n, k)
        test = metrics.quality(found, others.right, others.assignment)
        gaps[parity] = learned[parity].validation["auc"] - test.auc
    worst = max(gaps.values())
    return Gate(
        name="gap",
        title="It is as good on events that it never saw",
        passed=worst <= limits.max_gap,
        value=worst,
        limit=limits.max_gap,
        detail="AUC of validation less that of the other parity: "
        + ", ".join(f"trained on {parity} {gap:+.4f}" for parity, gap in gaps.items()),
    )


def _calibration(found: metrics.Calibration, limits: Limits) -> Gate:
    worst = found.worst
    return Gate(
        name="calibration",
        title="Scores are probabilities",
        passed=found.error <= limits.max_calibration,
        value=found.error,
        limit=limits.max_calibration,
        detail=f"worst of ten parts of the scores: of {found.number[worst]:,} permutations with "
        f"{found.score[worst]:.3f} in the mean {found.fraction[worst]:.1%} are right; the number "
        "is their distance beyond two standard errors",
    )


def _by_multiplicity(mine: Array, data: TrainingSet) -> dict[str, tuple[float, float, int]]:
    """Jet score, its standard error, and number of events, by number of jets."""
    per_event = metrics.jet_scores(mine, data.right, data.assignment)
    found = {}
    for name, (low, high) in MULTIPLICITIES.items():
        some = per_event[(data.njet >= low) & (data.njet <= high)]
        if len(some) > 1:
            error = float(some.std(ddof=1) / np.sqrt(len(some)))
            found[name] = float(some.mean()), error, len(some)
    return found


def _multiplicity(
    found: Mapping[str, tuple[float, float, int]], quality: Quality, limits: Limits
) -> Gate:
    judged = {name: one for name, one in found.items() if one[2] >= FEW}
    # beyond two standard errors: few events must not decide by chance
    drops = [quality.jet_score - value - 2 * error for value, error, _ in judged.values()]
    worst = max(drops, default=0.0)
    return Gate(
        name="multiplicity",
        title="It works for any number of jets",
        passed=worst <= limits.max_multiplicity,
        value=worst,
        limit=limits.max_multiplicity,
        detail="jet score "
        + ", ".join(
            f"{value:.3f} ± {error:.3f} ({name} jets)" for name, (value, error, _) in found.items()
        ),
    )


def _variations(found: Mapping[str, Quality], limits: Limits) -> Gate:
    nominal = found[NOMINAL]
    shifts = {
        name: (one.auc - nominal.auc, one.jet_score - nominal.jet_score)
        for name, one in found.items()
        if name != NOMINAL
    }
    worst = max((abs(change) for pair in shifts.values() for change in pair), default=0.0)
    return Gate(
        name="variations",
        title="Systematic variations do not change it much",
        passed=worst <= limits.max_variation,
        value=worst,
        limit=limits.max_variation,
        detail=", ".join(
            f"{name}: AUC {auc:+.4f}, jet score {jet:+.4f}" for name, (auc, jet) in shifts.items()
        )
        or "the training set has no variations",
    )


def _same_scores(
    folder: Path, bundle: Bundle, remote: Mapping[Parity, str], limits: Limits
) -> list[Gate]:
    """What scores in runs gives what the library that trained gives; so does a server."""
    found: dict[str, list[float]] = {}
    titles = {
        "here": "Workers score as the library that trained it",
        "remote": "So does the server",
    }
    for parity, model in zip(PARITIES, bundle.members, strict=True):
        golden = bundles.read_golden(folder, parity)
        if golden is None:
            raise ModelError(f"{folder}: no golden rows of the {parity} model; train it anew")
        rows, expected = golden
        ways: dict[str, Model] = {"here": model}
        if parity in remote:
            served = load_model(remote[parity])
            if not isinstance(served, Model):
                raise ModelError(f"{remote[parity]}: not the address of one model")
            ways["remote"] = served
        for way, one in ways.items():
            found.setdefault(way, []).append(float(np.abs(one(rows) - expected).max()))
    return [
        Gate(
            name=f"same_scores_{way}",
            title=titles[way],
            passed=max(differences) <= limits.max_parity,
            value=max(differences),
            limit=limits.max_parity,
            detail=f"largest difference of {len(differences)} models on golden rows",
        )
        for way, differences in found.items()
    ]


def _latency(bundle: Bundle, data: TrainingSet, limits: Limits) -> Gate:
    rows = data.features.reshape(-1, data.features.shape[2])
    rows = np.resize(rows, (BATCH_ROWS, rows.shape[1]))
    slowest = 0.0
    for model in bundle.members:
        seconds = []
        for _ in range(3):  # the machine may be busy: the least counts
            start = time.perf_counter()
            model(rows)
            seconds.append(time.perf_counter() - start)
        slowest = max(slowest, min(seconds))
    per_row = 1e6 * slowest / len(rows)
    return Gate(
        name="latency",
        title="It is fast enough",
        passed=per_row <= limits.max_latency,
        value=per_row,
        limit=limits.max_latency,
        detail=f"microseconds a row of the slower model, in batches of {BATCH_ROWS}, here",
    )


def _importance(bundle: Bundle, data: TrainingSet, auc: float) -> dict[str, tuple[float, float]]:
    """Loss of AUC when a feature is shuffled among all permutations; value and spread of three."""
    found = {}
    rng = np.random.default_rng(0)
    n, k, n_features = data.features.shape
    event = np.repeat(np.where(data.is_even, 0, 1), k)
    for column, name in enumerate(data.names):
        losses = []
        for _ in range(3):
            rows = data.features.reshape(n * k, n_features).copy()
            rng.shuffle(rows[:, column])
            shuffled = bundle(rows, event).reshape(n, k)
            losses.append(auc - metrics.quality(shuffled, data.right).auc)
        found[name] = float(np.mean(losses)), float(np.std(losses))
    return found
