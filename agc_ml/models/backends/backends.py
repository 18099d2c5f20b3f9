"""What scores the rows of a model: chosen by the format of its content."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import ModelError
from agc_ml.models.backends import isolated_loading, onnx_graph, xgboost_structure
from agc_ml.models.backends.xgboost_nodes import UnsoundError
from agc_ml.models.backends.xgboost_structure import Learner
from agc_ml.models.model import Content, Format, Golden, Model

Array = NDArray[Any]
Backend = Callable[[Array], Any]
Note = Callable[[str], Any]

GOLDEN_ROWS: Final = 256
GOLDEN_CELLS: Final = 1 << 24
"""Of golden rows: fewer rows where there are very many features."""


class Described(NamedTuple):
    """What a model's content says of itself: how many features it takes, their names if any.

    ``learner`` is what was read to know it, of xgboost's JSON: so that it need not be read again.
    """

    n_features: int
    names: tuple[str, ...]
    learner: Learner | None = None


def open_model(
    model: Model, content: Content, note: Note, learner: Learner | None = None
) -> Backend:
    """Make what scores rows, ``(n, k) float32 -> (n,)``; n is never zero.

    ``note`` is told what a user should know; ``learner`` is what `described` found, if it is known.

    Raises
    ------
    ModelError
        The content is not what the model says, or a library or server is missing.
    """
    if model.format == "xgboost":
        return _open_xgboost(model, content, note, learner or _learner(content.data, str(model)))
    return _OPENERS[model.format](model, content, note)


def _open_xgboost(model: Model, content: Content, note: Note, learner: Learner | None) -> Backend:
    """Our forest kernel where it gives the very margins of xgboost, else xgboost itself."""
    from agc_ml.models.backends import forest  # noqa: PLC0415 - heavy
    from agc_ml.models.backends.xgboost_file import forest_of  # noqa: PLC0415 - heavy

    _note_early_stop(model, content.data, note)
    try:
        if learner is None:
            raise ValueError("it is not JSON")  # noqa: TRY301 - a reason as others
        trees = forest_of(learner)
    except ValueError as error:
        reason = str(error)
    else:
        golden = content.golden
        if golden is None:
            reason = "there are no golden rows to check it with"
        elif np.array_equal(forest.margins(trees, golden.rows), golden.values):
            return lambda rows: forest.scores(trees, rows)
        else:
            reason = "it gives other margins for the golden rows"
    booster = _booster(content.data, learner, str(model))
    note(f"{model}: scored by xgboost, not by the faster forest kernel: {reason}")
    return lambda rows: _predicted(booster, rows, str(model))


def _note_early_stop(model: Model, data: bytes, note: Note) -> None:
    best, n_trees, a_round = (
        _number(data, name) for name in ("best_iteration", "num_trees", "num_parallel_tree")
    )
    if best is not None and n_trees is not None and best + 1 < n_trees // (a_round or 1):
        note(
            f"{model}: all its trees count, also those after its best iteration ({best}), as in "
            "xgboost's Booster.predict and unlike in its scikit-learn classes; to have only the "
            f"best ones, save booster[:{best + 1}]"
        )


def _number(data: bytes, name: str) -> int | None:
    """What xgboost wrote under a name: JSON's `"name":"7"`, or binary JSON's with lengths."""
    found = re.search(name.encode() + rb'(?:": *"|S[iUIlL][^0-9]{0,8})(\d{1,18})', data)
    return int(found[1]) if found else None


def _learner(data: bytes, label: str) -> Learner | None:
    """Read and check a model of xgboost; None if it is not JSON."""
    if not data:  # which makes xgboost abort the whole process
        raise ModelError(f"{label}: it is empty; train or copy it anew")
    if not xgboost_structure.is_json(data):
        return None
    try:
        return xgboost_structure.read(data)
    except UnsoundError as error:
        raise ModelError(f"{label}: {error}; train or copy it anew") from error
    except xgboost_structure.OtherKindError as error:
        raise ModelError(f"{label}: {error}") from error


def _booster(data: bytes, learner: Learner | None, label: str) -> Any:
    """The model as xgboost has it; what is not known through and through is tried apart first."""
    if learner is None or not learner.is_plain:
        isolated_loading.ensure(data, "xgboost", label)
    with _told(label, "read it"):
        booster = _import_xgboost(label).Booster()
        booster.load_model(bytearray(data))
        booster.set_param({"nthread": 1})
        booster.num_features()  # only now it looks at the objective's parameters
    return booster


def _predicted(booster: Any, rows: Array, label: str, kind: str = "value") -> Array:
    """Scores of xgboost for rows: ``value``, or ``margin``."""
    with _told(label, "score with it"):
        return np.asarray(booster.inplace_predict(rows, predict_type=kind))


@contextmanager
def _told(label: str, what: str) -> Iterator[None]:
    """Turn errors of xgboost into one line."""
    try:
        yield
    except (_import_xgboost(label).core.XGBoostError, ValueError, TypeError) as error:
        raise ModelError(
            f"{label}: xgboost can't {what} ({onnx_graph.short(error)}); train or copy it anew"
        ) from error


def _import_xgboost(label: str) -> Any:
    try:
        import xgboost  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ModelError(f"{label}: xgboost is needed for it: pip install 'agc-ml[ml]'") from error
    return xgboost


def _open_onnx(model: Model, content: Content, note: Note) -> Backend:
    graph = onnx_graph.Graph(content.data, str(model))
    if graph.has_two_columns:
        note(f"{model}: {onnx_graph.SECOND_COLUMN}")
    return graph


def _open_kserve(model: Model, content: Content, note: Note) -> Backend:  # noqa: ARG001 - as others
    from agc_ml.models.backends.kserve import Remote  # noqa: PLC0415 - on demand
    from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

    remote: Backend = Remote(Endpoint.parse(content.data.decode()), model.n_features)
    return remote


_OPENERS: Final[dict[Format, Callable[[Model, Content, Note], Backend]]] = {
    "onnx": _open_onnx,
    "kserve": _open_kserve,
}


def described(data: bytes, format: Format, label: str) -> Described:  # noqa: A002 - as in Model
    """Inputs of a model.

    Names are those that a file of xgboost carries, but for those that only number the features
    (f0, f1, ...).

    Raises
    ------
    ModelError
        The content can't be read.
    """
    if format == "onnx":
        return Described(onnx_graph.Graph(data, label).n_features, ())
    if format == "kserve":
        from agc_ml.models.backends.kserve import n_features_of  # noqa: PLC0415 - on demand
        from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

        return Described(int(n_features_of(Endpoint.parse(data.decode()))), ())
    learner = _learner(data, label)
    if learner is None:
        booster = _booster(data, None, label)
        number, names = int(booster.num_features()), tuple(booster.feature_names or ())
    else:
        number, names = learner.n_features, tuple(learner.content.get("feature_names", ()))
    if names == tuple(f"f{index}" for index in range(len(names))):
        names = ()
    return Described(number, names, learner)


def probe(model: Model, content: Content, learner: Learner | None = None) -> None:
    """See that a model scores: two rows of zeros. ``learner`` is as of `open_model`.

    Raises
    ------
    ModelError
        It does not, or gives something else than a score a row.
    """
    score = open_model(model, content, lambda _: None, learner)
    scores = score(np.zeros((2, model.n_features), np.float32))
    if np.shape(scores) != (2,):
        raise ModelError(
            f"{model}: gave scores of shape {np.shape(scores)} for two rows; one a row is needed"
        )


def golden(data: bytes, label: str, learner: Learner | None = None) -> Golden | None:
    """Rows on both sides of a forest's thresholds, and xgboost's margins for them.

    None for models that xgboost itself scores. ``learner`` is as of `open_model`.

    Raises
    ------
    ModelError
        xgboost is not installed, or can't read the model.
    """
    learner = learner or _learner(data, label)
    if learner is None or not learner.is_plain or not learner.model["trees"]:
        return None
    trees = learner.model["trees"]
    feature, value, left = (
        np.concatenate([tree[name] for tree in trees])
        for name in ("split_indices", "split_conditions", "left_children")
    )
    inner = np.flatnonzero(left >= 0)
    inner = inner[np.argsort(feature[inner], kind="stable")]
    columns, counts = np.unique(feature[inner], return_counts=True)
    values = np.split(value[inner], np.cumsum(counts))
    booster = _booster(data, learner, label)
    rng = np.random.default_rng(len(data))
    n_rows = max(1, min(GOLDEN_ROWS, GOLDEN_CELLS // learner.n_features))
    rows = np.full((n_rows, learner.n_features), -1, np.float32)
    for column, of_column in zip(columns, values, strict=False):  # after them is an empty one
        at = np.unique(of_column.astype(np.float32))
        places = np.concatenate(
            [at, np.nextafter(at, np.float32(-np.inf)), [at.min(initial=0) - 1]]
        )
        rows[:, column] = rng.choice(places, n_rows)
    return Golden(rows, _predicted(booster, rows, label, "margin"))


def import_library(format: Format) -> None:  # noqa: A002 - as in Model
    """Import what reads models of a format.

    Raises
    ------
    ModelError
        It is not installed.
    """
    if format == "onnx":
        onnx_graph.import_runtime(isolated_loading.LABEL)
    else:
        _import_xgboost(isolated_loading.LABEL)


def try_out(data: bytes, format: Format) -> None:  # noqa: A002 - as in Model
    """Open a model that may crash this process, and score a few rows.

    Raises
    ------
    ModelError
        It can't be read, or is not what it says.
    """
    label = isolated_loading.LABEL
    if format == "onnx":
        onnx_graph.check_alone(data, label)
        graph = onnx_graph.Graph(data, label)
        rows = onnx_graph.probe_rows(graph.n_features)
        if not np.array_equal(graph(rows), graph(rows), equal_nan=True):
            raise ModelError(
                f"{label}: it scores the same rows otherwise each time; export it anew"
            )
        return
    booster = _booster(data, None, label)
    with _told(label, "read it"):
        content = bytes(booster.save_raw("json"))
    learner = _learner(content, label)
    if learner is not None:
        _predicted(booster, onnx_graph.probe_rows(learner.n_features), label)
