"""Models of xgboost: scored by the forest kernel if it gives xgboost's bits, else by xgboost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.backends import isolated_loading, xgboost_structure
from agc_ml.models.backends.probing import import_library, library_message, probe_rows
from agc_ml.models.backends.xgboost_nodes import InvalidModelError
from agc_ml.models.backends.xgboost_structure import ParsedModel
from agc_ml.models.content import Array, Content, Golden

Backend = Callable[[Array], Any]
Note = Callable[[str], Any]

GOLDEN_ROWS: Final = 256
GOLDEN_CELLS: Final = 1 << 24
"""Most numbers in golden rows: fewer rows for very many features."""


class Description(NamedTuple):
    """Number of features of a model and their names, () if unknown.

    ``parsed`` is the content of an xgboost JSON file, kept to parse it only once.
    """

    n_features: int
    names: tuple[str, ...] = ()
    parsed: ParsedModel | None = None


def open_model(
    content: Content, label: str, note: Note, parsed: ParsedModel | None = None
) -> Backend:
    """Open a model: the forest kernel if it reproduces xgboost's margins, else xgboost."""
    from agc_ml.models.backends import forest  # noqa: PLC0415 - heavy
    from agc_ml.models.backends.xgboost_file import forest_of  # noqa: PLC0415 - heavy

    parsed = parsed or _parsed(content.data, label)
    _note_early_stop(content.data, label, note)
    # The kernel is trusted only after it gave the very bits of xgboost for the golden rows.
    trees, reason = None, "it is not JSON"
    if parsed is not None:
        try:
            trees = forest_of(parsed)
        except ValueError as error:
            reason = str(error)
    if trees is not None and content.golden is None:
        reason = "there are no golden rows to check it with"
    elif trees is not None and content.golden is not None:
        if np.array_equal(forest.margins(trees, content.golden.rows), content.golden.values):
            return lambda rows: forest.scores(trees, rows)
        reason = "it gives other margins for the golden rows"
    booster = _booster(content.data, parsed, label)
    note(f"{label}: scored by xgboost, not by the faster forest kernel: {reason}")
    return lambda rows: _predicted(booster, rows, label)


def _note_early_stop(data: bytes, label: str, note: Note) -> None:
    best, n_trees, per_round = (
        _stored_number(data, name) for name in ("best_iteration", "num_trees", "num_parallel_tree")
    )
    if best is not None and n_trees is not None and best + 1 < n_trees // (per_round or 1):
        note(
            f"{label}: all its trees count, also those after its best iteration ({best}), as in "
            "xgboost's Booster.predict and unlike in its scikit-learn classes; to have only the "
            f"best ones, save booster[:{best + 1}]"
        )


def _stored_number(data: bytes, name: str) -> int | None:
    """Number that xgboost stored under a name: JSON's `"name":"7"`, or UBJ's with lengths."""
    match = re.search(name.encode() + rb'(?:": *"|S[iUIlL][^0-9]{0,8})(\d{1,18})', data)
    return int(match[1]) if match else None


def _parsed(data: bytes, label: str) -> ParsedModel | None:
    """Parse and check a model; None if it is not JSON."""
    if not data:  # an empty model makes xgboost abort the whole process
        raise ModelError(f"{label}: it is empty; train or copy it again")
    if not xgboost_structure.is_json(data):
        return None
    try:
        return xgboost_structure.read(data)
    except InvalidModelError as error:
        raise ModelError(f"{label}: {error}; train or copy it again") from error
    except xgboost_structure.UnsupportedModelError as error:
        raise ModelError(f"{label}: {error}") from error


def _booster(data: bytes, parsed: ParsedModel | None, label: str) -> Any:
    """The model as xgboost's Booster, tried in isolation first unless it is fully checked."""
    if parsed is None or not parsed.is_fully_checked:
        isolated_loading.ensure_safe(data, "xgboost", label)
    with _xgboost_errors(label, "read it"):
        booster = import_library("xgboost", label).Booster()
        booster.load_model(bytearray(data))
        booster.set_param({"nthread": 1})
        booster.num_features()  # only this reads the objective's parameters
    return booster


def _predicted(booster: Any, rows: Array, label: str, kind: str = "value") -> Array:
    """Scores of xgboost for rows: ``value``, or ``margin``."""
    with _xgboost_errors(label, "score with it"):
        return np.asarray(booster.inplace_predict(rows, predict_type=kind))


@contextmanager
def _xgboost_errors(label: str, action: str) -> Iterator[None]:
    """Turn errors of xgboost into one line."""
    try:
        yield
    except (import_library("xgboost", label).core.XGBoostError, ValueError, TypeError) as error:
        raise ModelError(
            f"{label}: xgboost can't {action} ({library_message(error)}); train or copy it again"
        ) from error


def describe(data: bytes, label: str) -> Description:
    """Features of a model; names that only number them (f0, f1, ...) are left out."""
    parsed = _parsed(data, label)
    if parsed is None:
        booster = _booster(data, None, label)
        number, names = int(booster.num_features()), tuple(booster.feature_names or ())
    else:
        number, names = parsed.n_features, tuple(parsed.learner.get("feature_names", ()))
    if names == tuple(f"f{index}" for index in range(len(names))):
        names = ()
    return Description(number, names, parsed)


def golden_rows(data: bytes, label: str, parsed: ParsedModel | None = None) -> Golden | None:
    """Rows on both sides of a forest's thresholds, and xgboost's margins for them.

    None for models that xgboost itself scores.

    Raises
    ------
    ModelError
        xgboost is not installed, or can't read the model.
    """
    parsed = parsed or _parsed(data, label)
    if parsed is None or not parsed.is_fully_checked or not parsed.model["trees"]:
        return None
    trees = parsed.model["trees"]
    feature, value, left = (
        np.concatenate([tree[name] for tree in trees])
        for name in ("split_indices", "split_conditions", "left_children")
    )
    # Thresholds of each feature, from the inner nodes of all trees.
    inner = np.flatnonzero(left >= 0)
    inner = inner[np.argsort(feature[inner], kind="stable")]
    columns, counts = np.unique(feature[inner], return_counts=True)
    thresholds = np.split(value[inner], np.cumsum(counts))
    booster = _booster(data, parsed, label)
    rng = np.random.default_rng(len(data))
    n_rows = max(1, min(GOLDEN_ROWS, GOLDEN_CELLS // parsed.n_features))
    rows = np.full((n_rows, parsed.n_features), -1, np.float32)
    # Draw each feature from its thresholds, the numbers just below them, and one below all.
    for column, of_column in zip(columns, thresholds, strict=False):  # np.split adds an empty one
        at = np.unique(of_column.astype(np.float32))
        below = np.nextafter(at, np.float32(-np.inf))
        values = np.concatenate([at, below, [at.min(initial=0) - 1]])
        rows[:, column] = rng.choice(values, n_rows)
    return Golden(rows, _predicted(booster, rows, label, "margin"))


def try_out(data: bytes, label: str) -> None:
    """Open a model that may crash this process, and score a few rows."""
    booster = _booster(data, None, label)
    with _xgboost_errors(label, "read it"):
        json_content = bytes(booster.save_raw("json"))
    parsed = _parsed(json_content, label)
    if parsed is not None:
        _predicted(booster, probe_rows(parsed.n_features), label)
