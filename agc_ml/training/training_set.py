"""Training set in memory: validated, for one variation, and split by events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from agc_ml.analysis import TrainingTask, training_task
from agc_ml.errors import TrainingError
from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.model import DeltaPhi, Parity
from agc_ml.results import tables
from agc_ml.results.tables import StoredTable

Array = NDArray[Any]

# Least number of events of each parity; with fewer, the quality of a model is too uncertain
MIN_EVENTS: Final = 50

N_PARTS: Final = 10
_INPUTS: Final = TypeAdapter(dict[str, dict[str, list[int]]])
IDENTITY: Final = ("run", "lumi", "event")
_COLUMNS: Final = (*IDENTITY, "variation", "njet", "weight", "label")


@dataclass(frozen=True)
class TrainingSet:
    """Events with k rows each, one of them right.

    Attributes
    ----------
    features
        float32, shape ``(n_events, k, n_features)``.
    right
        Index of the right row of each event, shape ``(n_events,)``.
    is_even
        True if the event number is even, shape ``(n_events,)``.
    part
        0 to 9, by a hash of run, luminosity block and event: how events are split.
    njet
        Number of selected jets.
    variation
        The kinematic variation of the jets.
    inputs
        Histograms of the features in all selected events: process, feature, counts.
    events_of
        Label of the events, None if unknown.
    assignment
        Kinds that the rows assign objects to, None where no analysis declares the task.
    """

    digest: str
    task: str
    names: tuple[str, ...]
    delta_phi: DeltaPhi
    features: Array
    right: Array
    is_even: Array
    part: Array
    njet: Array
    variation: str
    inputs: Mapping[str, Mapping[str, list[int]]]
    events_of: str | None = None
    assignment: TrainingTask | None = None

    def __len__(self) -> int:
        return len(self.right)

    @property
    def labels(self) -> Array:
        """Mask of the right rows, shape ``(n_events, k)``."""
        return np.asarray(np.arange(self.features.shape[1]) == self.right[:, None])

    def take(self, mask: Array) -> TrainingSet:
        """Return the events of a mask."""
        fields = ("features", "right", "is_even", "part", "njet")
        return replace(self, **{name: getattr(self, name)[mask] for name in fields})

    def of_parity(self, parity: Parity) -> TrainingSet:
        """Return the events with even or odd numbers."""
        return self.take(self.is_even == (parity == "even"))


def of_table(table: StoredTable, variation: str = NOMINAL) -> TrainingSet:
    """Validate a table, and return the events of one variation.

    Raises
    ------
    TrainingError
        Columns are missing, numbers are not finite, an event has no right permutation or several,
        or there are too few events.
    """
    about = table.about
    try:
        names, k = tuple(map(str, about["features"])), int(about["rows_an_event"])
        task, delta_phi = str(about["task"]), about["delta_phi"]
        inputs = _INPUTS.validate_python(about.get("inputs", {}))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TrainingError(
            f"training set {table.digest[:12]}: its task, features and rows of an event are "
            "not stated; extract it again"
        ) from error
    if delta_phi not in get_args(DeltaPhi) or not names or len(set(names)) < len(names):
        raise TrainingError(
            f"training set {table.digest[:12]}: its features are none, or named twice, or its "
            f"delta_phi ({delta_phi!r}) is not one of {', '.join(get_args(DeltaPhi))}; extract it "
            "again"
        )
    assignment = training_task(task)
    if k != len(assignment.rows) if assignment else k < 2:  # noqa: PLR2004 - to choose from
        needed = len(assignment.rows) if assignment else "two or more"
        raise TrainingError(
            f"training set {table.digest[:12]}: {k} rows an event; {needed} are needed, to choose "
            f"from in the task {task!r}"
        )
    _check_columns(table, names)
    # select the variation
    chosen = table.columns["variation"] == variation.encode()
    columns = {name: values[chosen] for name, values in table.columns.items()}
    n = len(columns["label"])
    if not n:
        there = ", ".join(sorted({v.decode() for v in table.columns["variation"]})) or "none"
        raise TrainingError(
            f"training set {table.digest[:12]}: no events of the variation {variation!r}; there "
            f"are: {there}"
        )
    _check_events(table, columns, k)
    # one entry for each event, from the first of its rows
    is_right = columns["label"].reshape(-1, k)
    event = columns["event"][::k]
    events = TrainingSet(
        digest=table.digest,
        task=task,
        names=names,
        delta_phi=delta_phi,
        features=np.stack([columns[name] for name in names], axis=1).reshape(n // k, k, -1),
        right=is_right.argmax(axis=1),
        is_even=event % 2 == 0,
        part=_parts(*(columns[name][::k] for name in IDENTITY)),
        njet=columns["njet"][::k],
        variation=variation,
        inputs=inputs,
        events_of=None if (label := table.provenance.get("label")) is None else str(label),
        assignment=assignment,
    )
    _check_size(events)
    return events


def load(path: Path, digest: str | None = None, variation: str = NOMINAL) -> TrainingSet:
    """Read and validate a training set.

    Raises
    ------
    TrainingError
        It can't be read, has another digest, or is not valid.
    """
    table = tables.read(path, TrainingError)
    if digest is not None and table.digest != digest:
        raise TrainingError(
            f"{path}: its digest is {table.digest[:12]}, not {digest[:12]}; name the right one"
        )
    return of_table(table, variation)


def _check_columns(table: StoredTable, names: tuple[str, ...]) -> None:
    lacking = [name for name in (*_COLUMNS, *names) if name not in table.columns]
    if lacking:
        raise TrainingError(
            f"training set {table.digest[:12]}: it lacks {', '.join(lacking)}; extract it again"
        )
    for name in (*_COLUMNS, *names):
        if (table.columns[name].dtype.kind == "S") != (name == "variation"):
            raise TrainingError(
                f"training set {table.digest[:12]}: column {name} is of a wrong type, "
                f"{table.columns[name].dtype}; extract it again"
            )
    # features must not replace columns of the event
    if set(names) & set(_COLUMNS):
        raise TrainingError(
            f"training set {table.digest[:12]}: its features name {', '.join(_COLUMNS)} too; "
            "extract it again"
        )
    for name in (*names, "weight"):
        with np.errstate(over="ignore"):  # models take single precision
            wrong = np.flatnonzero(~np.isfinite(table.columns[name].astype(np.float32)))
        if len(wrong):
            raise TrainingError(
                f"training set {table.digest[:12]}: column {name} is "
                f"{table.columns[name][wrong[0]]} in row {wrong[0]}, and {len(wrong)} rows like "
                "that; leave those events out where it is extracted"
            )


def _check_events(table: StoredTable, columns: Mapping[str, Array], k: int) -> None:
    n = len(columns["label"])
    whole = n % k == 0 and all(
        (columns[name].reshape(-1, k) == columns[name].reshape(-1, k)[:, :1]).all()
        for name in IDENTITY
    )
    if not whole:
        raise TrainingError(
            f"training set {table.digest[:12]}: the {k} rows of each event must be consecutive; "
            "extract it again"
        )
    # exactly one right row in each event
    positive = (columns["label"].reshape(-1, k) > 0).sum(axis=1)
    if not positive.any():
        raise TrainingError(
            f"training set {table.digest[:12]}: all its labels are of one class, so there is "
            "nothing to tell apart"
        )
    if (positive != 1).any():
        first = int(np.flatnonzero(positive != 1)[0])
        event = columns["event"][first * k]
        raise TrainingError(
            f"training set {table.digest[:12]}: event {event} has {positive[first]} right "
            "rows; one is needed"
        )
    # no event twice
    _, counts = np.unique(
        np.stack([columns[name][::k].astype(np.uint64) for name in IDENTITY]),
        axis=1,
        return_counts=True,
    )
    if (counts > 1).any():
        raise TrainingError(
            f"training set {table.digest[:12]}: {int((counts > 1).sum())} events are in it twice; "
            "extract it from each file once"
        )


def _check_size(events: TrainingSet) -> None:
    numbers = {"even": int(events.is_even.sum()), "odd": int((~events.is_even).sum())}
    for parity, number in numbers.items():
        if number < MIN_EVENTS:
            raise TrainingError(
                f"training set {events.digest[:12]}, variation {events.variation!r}: {number} "
                f"fully matched {parity} events; at least {MIN_EVENTS} are needed: extract it from "
                "more files"
            )


def _parts(run: Array, lumi: Array, event: Array) -> Array:
    """Return the part of each event, 0 to 9, by a hash (the finaliser of splitmix64) of its id."""
    mixed = np.zeros(len(run), np.uint64)
    with np.errstate(over="ignore"):
        for values in (run, lumi, event):
            mixed ^= values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(N_PARTS)).astype(np.int8)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
