"""Back ends that score the rows of a model, chosen by the format of its content."""

from __future__ import annotations

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.backends import onnx_graph, xgboost_backend
from agc_ml.models.backends.xgboost_backend import Backend, Description, Note
from agc_ml.models.backends.xgboost_structure import ParsedModel
from agc_ml.models.content import Content, Format


def open_model(
    content: Content,
    format: Format,  # noqa: A002 - as in Model
    n_features: int,
    label: str,
    note: Note,
    parsed: ParsedModel | None = None,
) -> Backend:
    """Open a model to score rows, ``(n, k) float32 -> (n,)``; n is never zero.

    ``label`` names the model in errors, ``note`` takes notes for the user, and ``parsed`` is what
    `describe` parsed, if anything.

    Raises
    ------
    ModelError
        The content is not a model of that format, or a library or server is missing.
    """
    if format == "xgboost":
        return xgboost_backend.open_model(content, label, note, parsed)
    if format == "onnx":
        graph = onnx_graph.Graph(content.data, label)
        if graph.has_two_columns:
            note(f"{label}: {onnx_graph.SECOND_COLUMN}")
        return graph
    from agc_ml.models.backends.kserve import Remote  # noqa: PLC0415 - on demand
    from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

    return Remote(Endpoint.parse(content.data.decode()), n_features)


def describe(data: bytes, format: Format, label: str) -> Description:  # noqa: A002 - as in Model
    """Number of features of a model, and the names that an xgboost file carries.

    Raises
    ------
    ModelError
        The content can't be read.
    """
    if format == "xgboost":
        return xgboost_backend.describe(data, label)
    if format == "onnx":
        return Description(onnx_graph.Graph(data, label).n_features)
    from agc_ml.models.backends.kserve import n_features_of  # noqa: PLC0415 - on demand
    from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

    return Description(int(n_features_of(Endpoint.parse(data.decode()))))


def probe(
    content: Content,
    format: Format,  # noqa: A002 - as in Model
    label: str,
    description: Description,
) -> None:
    """Score two rows of zeros.

    Raises
    ------
    ModelError
        The model can't, or does not give one score a row.
    """
    n_features = description.n_features
    score = open_model(content, format, n_features, label, lambda _: None, description.parsed)
    scores = score(np.zeros((2, n_features), np.float32))
    if np.shape(scores) != (2,):
        raise ModelError(
            f"{label}: gave scores of shape {np.shape(scores)} for two rows; one a row is needed"
        )
