"""Drift: whether what a model is given in a run is distributed as when it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import TrainingError
from agc_ml.results.run_record import RunRecord

if TYPE_CHECKING:
    from agc_ml.training.client import TrainingClient
    from agc_ml.training.service.database import Job

Array = NDArray[Any]

MAX_PSI: Final = 0.2
"""Population stability index above which a distribution counts as another one.

The usual rule: below 0.1 it is stable, above 0.25 it has changed (N. Siddiqi, Credit Risk
Scorecards, 2006).
"""

MIN_EVENTS: Final = 100
P_VALUE: Final = 1e-3
_GROUPS: Final = 10
_COEFFICIENT: Final = 1.95
"""Of the Kolmogorov-Smirnov distance at a p-value of 0.001, for large numbers of events."""


class Drift(NamedTuple):
    """Of a feature: both measures, and whether they say that it drifted."""

    process: str
    feature: str
    psi: float
    ks: float
    ks_limit: float
    drifted: bool


def compare(
    trained: Mapping[str, Mapping[str, Sequence[int]]],
    seen: Mapping[str, Mapping[str, Sequence[int]]],
    max_psi: float = MAX_PSI,
) -> list[Drift]:
    """Compare histograms of features, the most drifted ones first.

    A feature drifted if its population stability index is above ``max_psi`` and its
    Kolmogorov-Smirnov distance is not chance (p < 0.001): of few events the first one alone is
    large by chance, of many the second one is.

    Raises
    ------
    TrainingError
        There is no process that both know, or there are too few events.
    """
    processes = [process for process in trained if process in seen]
    if not processes:
        raise TrainingError(
            f"no process in common: the model was trained on {', '.join(trained) or 'none'}, the "
            f"run has {', '.join(seen) or 'none'}; run its processor with --model on such"
        )
    found = []
    for process in processes:
        for feature, counts in trained[process].items():
            if feature not in seen[process]:
                raise TrainingError(f"the run has no feature {feature}; run it anew")
            expected, observed = (
                np.asarray(values, float) for values in (counts, seen[process][feature])
            )
            if min(expected.sum(), observed.sum()) < MIN_EVENTS:
                raise TrainingError(
                    f"{process}: {int(min(expected.sum(), observed.sum()))} events; at least "
                    f"{MIN_EVENTS} are needed to speak of drift"
                )
            distance, limit = ks(expected, observed)
            index = psi(expected, observed)
            is_drift = index > max_psi and distance > limit
            found.append(Drift(process, feature, index, distance, limit, is_drift))
    return sorted(found, key=lambda one: -one.psi)


def psi(expected: Array, observed: Array) -> float:
    """Population stability index, in ten groups of bins that hold about as many expected events.

    Half an event is added to each group, for empty ones.
    """
    cumulative = np.cumsum(expected) / expected.sum()
    group = np.minimum((np.append(0, cumulative[:-1]) * _GROUPS).astype(int), _GROUPS - 1)
    fractions = []
    for counts in (expected, observed):
        grouped = np.bincount(group, counts)[np.unique(group)] + 0.5
        fractions.append(grouped / grouped.sum())
    first, second = fractions
    return float(((second - first) * np.log(second / first)).sum())


def ks(expected: Array, observed: Array) -> tuple[float, float]:
    """Largest distance of the cumulative distributions, and what it may be by chance."""
    cumulative = [np.cumsum(counts) / counts.sum() for counts in (expected, observed)]
    n, m = expected.sum(), observed.sum()
    distance = float(np.abs(cumulative[0] - cumulative[1]).max())
    return distance, float(_COEFFICIENT * np.sqrt((n + m) / (n * m)))


def inputs_of(record: RunRecord) -> dict[str, dict[str, list[int]]]:
    """Histograms of the features that a run's model was given.

    Raises
    ------
    TrainingError
        The run has none: it had no model.
    """
    found = record.outputs.get("inputs")
    if not isinstance(found, dict):
        raise TrainingError(
            "the run holds no distributions of a model's inputs; run the processor with --model"
        )
    return found


def check_same(record: RunRecord, files: Mapping[str, str]) -> None:
    """Make sure that a version, of which these are the files' sha256, is what a run used.

    Raises
    ------
    TrainingError
        It is another one of the same name: the run had another registry.
    """
    if not set(record.provenance.models.values()) <= set(files.values()):
        name, version = model_of(record)
        raise TrainingError(
            f"{name}@{version} here is not the {name}@{version} of the run, which came from "
            "another registry; name that with --service"
        )


def model_of(record: RunRecord) -> tuple[str, str]:
    """Name and version of the bundle that a run used.

    Raises
    ------
    TrainingError
        It used none of a registry.
    """
    for label in record.provenance.models:
        member, _, version = label.partition("@")
        name, separator, parity = member.rpartition("-")
        if separator and parity in {"even", "odd"} and version.isdigit():
            return name, version
    raise TrainingError("the run used no bundle of a registry; name one with --model NAME@VERSION")


def challenge(
    training: TrainingClient, name: str, trained: Mapping[str, Any], source: str | Path
) -> Job:
    """File a job that trains on new events as a model was trained; once for these events.

    ``trained`` is the content of that model's ``training.json``, ``source`` a training set as of
    `agc_ml.training.client.training_set_file`.
    """
    digest = training.upload(source)
    first = trained["models"]["even"]
    return training.submit(
        name=name,
        kind=trained["kind"],
        dataset=digest,
        trials=first["trials"] + first["failed"],
        space=first["space"],
        seed=first["seed"],
        variation=trained["variation"],
        idempotency_key=f"drift of {trained['job']} on {digest[:32]}",
    )
