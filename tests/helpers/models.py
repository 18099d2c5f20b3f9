"""Small models, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def linear_onnx(weights: Sequence[float], columns: int = 1, **changes: Any) -> bytes:
    """An ONNX model: a weighted sum of the features; once, twice... that in so many columns."""
    from onnx import TensorProto, helper  # noqa: PLC0415 - heavy

    kind = changes.get("kind", TensorProto.FLOAT)
    k = changes.get("k", len(weights))
    matrix = np.outer(np.asarray(weights, np.float32), np.arange(1, columns + 1, dtype=np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, [changes.get("rows"), k])],
        [helper.make_tensor_value_info("y", kind, [None, columns])],
        [helper.make_tensor("w", kind, matrix.shape, matrix.flatten().tolist())],
    )
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def forest(path: Path, n_features: int = 3, **parameters: Any) -> Path:
    """Train a small forest of xgboost, and save it."""
    import xgboost  # noqa: PLC0415 - heavy

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, n_features)).astype(np.float32)
    target = (rows.sum(axis=1) + rng.normal(size=400) > 0).astype(int)
    settings = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1, **parameters}
    settings = {name: value for name, value in settings.items() if value is not None}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, target), num_boost_round=10)
    booster.save_model(path)
    return path
