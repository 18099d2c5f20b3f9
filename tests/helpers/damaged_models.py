"""Damaged models, loaded and scored: each is refused in a line, or gives what its library gives.

    python tests/helpers/damaged_models.py KIND N SEED < MODEL

Prints a line of JSON for each variant. If this process ends early, a variant has ended it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from models import forest, linear_onnx
from variants import variants

from agc_ml.errors import ModelError
from agc_ml.models.loading import load_model
from agc_ml.models.model import Model

ENDINGS = {"json": ".json", "ubj": ".ubj", "protobuf": ".onnx"}
MOST_S = 10.0


def sound(kind: str, folder: Path) -> bytes:
    """A model of three features that is as it should be."""
    if kind == "protobuf":
        return linear_onnx([0.5, -1, 2])
    return forest(folder / f"m.{kind}", n_features=3, max_depth=3).read_bytes()


def outcome(path: Path) -> tuple[str, str]:
    """What becomes of a model: refused, scored as its library does, or WRONG; and its line."""
    try:
        model = load_model(path)
        assert isinstance(model, Model)
        rows = np.random.default_rng(7).normal(size=(200, model.n_features)).astype(np.float32)
        mine = model(rows)
    except ModelError as error:
        line = str(error)
        is_one = "\n" not in line and line.startswith("model ") and path.stem in line
        return ("refused" if is_one else "WRONG"), line
    theirs = np.asarray(_library(path)(rows))
    theirs = theirs[:, -1] if theirs.ndim > 1 else theirs
    return ("scored" if np.array_equal(mine, theirs) else "WRONG"), f"{mine[:3]} {theirs[:3]}"


def _library(path: Path) -> Callable[[Any], Any]:
    data = path.read_bytes()
    if path.suffix == ".onnx":
        import onnxruntime  # noqa: PLC0415 - heavy

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(data, options)
        (score,) = [one for one in session.get_outputs() if one.type == "tensor(float)"]
        return lambda rows: session.run([score.name], {session.get_inputs()[0].name: rows})[0]
    import xgboost  # noqa: PLC0415 - heavy

    booster = xgboost.Booster()
    booster.load_model(bytearray(data))
    booster.set_param({"nthread": 1})
    predict: Callable[[Any], Any] = booster.inplace_predict
    return predict


def main() -> None:
    """Try variants of the model on standard input."""
    kind, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    content = sys.stdin.buffer.read()
    warnings.simplefilter("ignore")  # of xgboost, on the variants themselves
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / f"sound{ENDINGS[kind]}"
        original.write_bytes(content)
        assert outcome(original)[0] == "scored"  # and all is imported and compiled
        for number, data in enumerate(variants(content, kind, seed, n)):
            path = Path(folder) / f"{number}{ENDINGS[kind]}"
            path.write_bytes(data)
            faulthandler.dump_traceback_later(60, exit=True)
            start = time.monotonic()
            what, line = outcome(path)
            seconds = time.monotonic() - start
            told = {
                "number": number,
                "outcome": what,
                "seconds": round(seconds, 2),
                "sha256": hashlib.sha256(data).hexdigest(),
                "line": line,
            }
            print(json.dumps(told), flush=True)  # noqa: T201 - what it is for
            path.unlink()


if __name__ == "__main__":
    main()
