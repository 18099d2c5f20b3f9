"""Boosted trees of xgboost on one thread: the same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import UsageError
from agc_ml.training.training_set import TrainingSet

Array = NDArray[Any]
Params = Mapping[str, int | float]

DEFAULTS: Final[Params] = {"n_estimators": 150, "max_depth": 6, "learning_rate": 0.3}
# Trees between two validations
STEP: Final = 50


def _library() -> Any:
    try:
        import xgboost  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise UsageError(f"xgboost is not installed ({error}): pip install 'agc-ml[ml]'") from error
    return xgboost


def prepare(data: TrainingSet) -> Any:
    """Return binned rows, for all trials that train on the same events."""
    rows = data.features.reshape(-1, data.features.shape[2])
    return _library().QuantileDMatrix(rows, data.labels.ravel(), nthread=1, max_bin=256)


def steps(params: Params) -> list[int]:
    """Return the numbers of trees after which the model is validated, with the last one."""
    last = int({**DEFAULTS, **params}["n_estimators"])
    return [*range(STEP, last, STEP), last]


class Learner:
    """Training of a forest on ``rows`` of `prepare`."""

    def __init__(self, rows: Any, params: Params, seed: int) -> None:
        settings = {**DEFAULTS, **params}
        del settings["n_estimators"]
        fixed = {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "base_score": 0.5,
            "nthread": 1,
            "seed": seed,
        }
        self._rows = rows
        self._booster = _library().Booster({**settings, **fixed}, cache=[rows])
        self._done = 0

    def train(self, until: int) -> None:
        """Train until the forest has so many trees."""
        for number in range(self._done, until):
            self._booster.update(self._rows, number)
        self._done = until

    def scores(self, features: Array) -> Array:
        """Return the scores of rows, float32, shape (n,)."""
        return np.asarray(self._booster.inplace_predict(features))

    def scorer(self, features: Array) -> Callable[[], Array]:
        """Return a function that scores these rows with the current trees, each tree once."""
        margins = np.zeros(len(features), np.float32)
        n_scored = 0

        def scores() -> Array:
            nonlocal n_scored
            if self._done > n_scored:
                new = (n_scored, self._done)
                # the base score is a margin of zero, so that parts add up
                margins[:] += self._booster.inplace_predict(
                    features, iteration_range=new, predict_type="margin"
                )
                n_scored = self._done
            return np.asarray(1 / (1 + np.exp(-margins)))

        return scores

    def save(self, folder: Path, stem: str) -> dict[str, Path]:
        """Write the model; return the files by kind, ``model`` is the one that scores."""
        path = folder / f"{stem}.json"
        path.write_bytes(bytes(self._booster.save_raw("json")))
        return {"model": path}
