"""What scores the rows of a model: chosen by the format of its content."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import ModelError
from agc_ml.ml.hook import Content, Format, Golden, Model

Array = NDArray[Any]
Backend = Callable[[Array], Any]
Note = Callable[[str], Any]

GOLDEN_ROWS: Final = 256
SECOND_COLUMN: Final = "of its output's two columns the second is the score, as of the second class"


def open_model(model: Model, content: Content, note: Note) -> Backend:
    """Make what scores rows, ``(n, k) float32 -> (n,)``; n is never zero.

    ``note`` is told what a user should know.

    Raises
    ------
    ModelError
        The content is not what the model says, or a library or server is missing.
    """
    return _OPENERS[model.format](model, content, note)


def _open_xgboost(model: Model, content: Content, note: Note) -> Backend:
    """Our forest kernel where it gives the very margins of xgboost, else xgboost itself."""
    from agc_ml.kernels import forest  # noqa: PLC0415 - heavy
    from agc_ml.ml.trees import read_xgboost  # noqa: PLC0415 - heavy

    _note_early_stop(model, content.data, note)
    try:
        trees = read_xgboost(content.data)
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
    booster = _booster(content.data, str(model))
    note(f"{model}: scored by xgboost, not by the faster forest kernel: {reason}")
    predict: Backend = booster.inplace_predict
    return predict


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
    found = re.search(name.encode() + rb'(?:": *"|S[iUIlL][^0-9]*)(\d+)', data)
    return int(found[1]) if found else None


def _booster(data: bytes, name: str) -> Any:
    try:
        import xgboost  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ModelError(f"{name}: xgboost is needed for it: pip install 'agc-ml[ml]'") from error
    booster = xgboost.Booster()
    if not data:  # which makes xgboost abort the whole process
        raise ModelError(f"{name}: it is empty; train or copy it anew")
    try:
        booster.load_model(bytearray(data))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as error:
        raise ModelError(
            f"{name}: xgboost can't read it ({_short(error)}); train or copy it anew"
        ) from error
    booster.set_param({"nthread": 1})
    learner = json.loads(booster.save_config())["learner"]
    if int(learner["learner_model_param"]["num_class"]) > 1:
        raise ModelError(f"{name}: it tells several classes apart; one score a row is needed")
    if learner["gradient_booster"]["name"] == "gblinear":
        raise ModelError(f"{name}: a linear model (gblinear), which xgboost can't score in place")
    return booster


def _open_onnx(model: Model, content: Content, note: Note) -> Backend:
    session, name, output = _session(content.data, str(model))

    def score(rows: Array) -> Array:
        try:
            (scores,) = session.run([output], {name: rows})
        except _onnx_errors() as error:
            raise ModelError(
                f"{model}: ONNX Runtime can't score with it ({_short(error)})"
            ) from error
        if scores.ndim == 2:  # noqa: PLR2004 - one column, or those of two classes
            scores = scores[:, -1]
        return np.asarray(scores)

    if has_two_columns(session):
        note(f"{model}: {SECOND_COLUMN}")
    return score


def has_two_columns(session: Any) -> bool:
    """Return whether the output of an ONNX session has the scores of two classes."""
    return any(one.shape[1:] == [2] for one in session.get_outputs())


def external_data(data: bytes) -> str | None:
    """The first other file that an ONNX model takes weights from, None if there is none.

    Raises
    ------
    ModelError
        The package onnx is not installed, or it is no ONNX model.
    """
    try:
        import onnx  # noqa: PLC0415 - heavy
        from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx
    except ImportError as error:
        raise ModelError("onnx is needed to check it: pip install 'agc-ml[ml]'") from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError("it is not an ONNX model, or cut off; export it anew") from error
    for tensor in _messages(model, onnx.TensorProto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            return str(where.get("location", "a file without a name"))
    return None


def _messages(message: Any, kind: type) -> Iterator[Any]:
    """All messages of a kind inside of a protobuf message, at any depth."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "add") else [value]:  # several, or one
                yield from _messages(inner, kind)


def _session(data: bytes, label: str) -> tuple[Any, str, str]:
    """Session of one thread, and the names of its input and of the output with the scores."""
    try:
        import onnxruntime  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ModelError(
            f"{label}: ONNX Runtime is needed for it: pip install 'agc-ml[ml]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _onnx_errors() as error:
        raise ModelError(
            f"{label}: ONNX Runtime can't read it ({_short(error)}); export it anew"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    scores = [one for one in outputs if one.type == "tensor(float)"]
    shapes = [one.shape for one in (*inputs, *scores)]
    if len(inputs) != 1 or len(scores) != 1 or inputs[0].type != "tensor(float)":
        raise ModelError(
            f"{label}: one input and one output of float32 are needed, it has "
            f"{_described(inputs)} -> {_described(outputs)}; export it with those"
        )
    if isinstance(shapes[0][0], int):
        raise ModelError(
            f"{label}: it takes {shapes[0][0]} rows at a time, not any number; export it with a "
            "free first dimension"
        )
    columns = shapes[1][1:]
    if len(shapes[0]) != 2 or columns not in ([], [1], [2]):  # noqa: PLR2004
        raise ModelError(
            f"{label}: input (n, k) and output (n,), (n, 1) or (n, 2) are needed, it has "
            f"{_described(inputs)} -> {_described(scores)}; export it with those"
        )
    return session, inputs[0].name, scores[0].name


def _onnx_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its errors share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native  # noqa: PLC0415 - heavy

    found = (getattr(native, name) for name in dir(native))
    own = (one for one in found if isinstance(one, type) and issubclass(one, Exception))
    return (*own, RuntimeError, ValueError)


def _short(error: Exception) -> str:
    text = " ".join(str(error).partition("Stack trace")[0].split())
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)[:200]  # xgboost begins with time and source


def _described(tensors: list[Any]) -> str:
    return ", ".join(f"{one.name} {one.type} {one.shape}" for one in tensors)


def _open_kserve(model: Model, content: Content, note: Note) -> Backend:  # noqa: ARG001 - as others
    from agc_ml.ml.endpoint import Endpoint  # noqa: PLC0415 - on demand
    from agc_ml.ml.kserve import Remote  # noqa: PLC0415 - on demand

    remote: Backend = Remote(Endpoint.parse(content.data.decode()), model.n_features)
    return remote


_OPENERS: Final[dict[Format, Callable[[Model, Content, Note], Backend]]] = {
    "xgboost": _open_xgboost,
    "onnx": _open_onnx,
    "kserve": _open_kserve,
}


def n_features(data: bytes, format: Format, label: str) -> int:  # noqa: A002 - as in Model
    """Number of features that a model takes.

    Raises
    ------
    ModelError
        The content can't be read.
    """
    if format == "onnx":
        _check_alone(data, label)
        session, name, _ = _session(data, label)
        size = next(one.shape[1] for one in session.get_inputs() if one.name == name)
        if not isinstance(size, int):
            raise ModelError(f"{label}: its number of features is not fixed; export it with one")
        return int(size)
    if format == "kserve":
        from agc_ml.ml.endpoint import Endpoint  # noqa: PLC0415 - on demand
        from agc_ml.ml.kserve import n_features_of  # noqa: PLC0415 - on demand

        return int(n_features_of(Endpoint.parse(data.decode())))
    try:
        number = int(json.loads(data)["learner"]["learner_model_param"]["num_feature"])
    except (ValueError, KeyError, TypeError):  # binary JSON, or not whole: xgboost says which
        number = int(_booster(data, label).num_features())
    if number < 1:
        raise ModelError(f"{label}: it takes {number} features; train or copy it anew")
    return number


def _check_alone(data: bytes, label: str) -> None:
    """Make sure that an ONNX model has its weights in itself, and not in the working directory."""
    try:
        other = external_data(data)
    except ModelError as error:
        raise ModelError(f"{label}: {error}") from error
    if other is not None:
        raise ModelError(
            f"{label}: it takes weights from another file ({other}), which its sha256 does not "
            "cover; save it whole: onnx.save(onnx.load(FILE), FILE, save_as_external_data=False)"
        )


def feature_names(data: bytes, format: Format, label: str) -> tuple[str, ...]:  # noqa: A002
    """Names of the features that a file of xgboost carries, in order; none of other formats.

    Those that only number them (f0, f1, ...) are no names.

    Raises
    ------
    ModelError
        The content can't be read.
    """
    if format != "xgboost":
        return ()
    try:
        names = json.loads(data)["learner"].get("feature_names") or ()
    except (ValueError, KeyError, TypeError, AttributeError):  # binary JSON
        names = _booster(data, label).feature_names or ()
    found = tuple(map(str, names))
    return () if found == tuple(f"f{index}" for index in range(len(found))) else found


def probe(model: Model, content: Content) -> None:
    """See that a model scores: two rows of zeros.

    Raises
    ------
    ModelError
        It does not, or gives something else than a score a row.
    """
    scores = open_model(model, content, lambda _: None)(np.zeros((2, model.n_features), np.float32))
    if np.shape(scores) != (2,):
        raise ModelError(
            f"{model}: gave scores of shape {np.shape(scores)} for two rows; one a row is needed"
        )


def golden(data: bytes, label: str) -> Golden | None:
    """Rows on both sides of a forest's thresholds, and xgboost's margins for them.

    None for models that are not JSON: they are scored by xgboost anyway.

    Raises
    ------
    ModelError
        xgboost is not installed, or can't read the model.
    """
    try:
        trees = json.loads(data)["learner"]["gradient_booster"]["model"]["trees"]
        feature = np.concatenate([tree["split_indices"] for tree in trees])
        value = np.concatenate([tree["split_conditions"] for tree in trees])
        is_split = np.concatenate([tree["left_children"] for tree in trees]) >= 0
    except (ValueError, KeyError, TypeError):
        return None
    booster = _booster(data, label)
    rng = np.random.default_rng(len(data))
    rows = np.empty((GOLDEN_ROWS, booster.num_features()), np.float32)
    for column in range(rows.shape[1]):
        at = np.unique(value[is_split & (feature == column)].astype(np.float32))
        places = np.concatenate(
            [at, np.nextafter(at, np.float32(-np.inf)), [at.min(initial=0) - 1]]
        )
        rows[:, column] = rng.choice(places, GOLDEN_ROWS)
    return Golden(rows, booster.inplace_predict(rows, predict_type="margin"))
