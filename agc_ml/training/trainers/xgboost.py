"""Boosted trees of xgboost, on one thread: the same seed gives the same bytes."""

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
# Trees between two looks at how good it is
EVERY: Final = 50


def _library() -> Any:
    try:
        import xgboost  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise UsageError(f"xgboost is not installed ({error}): pip install 'agc-ml[ml]'") from error
    return xgboost


def prepare(data: TrainingSet) -> Any:
    """Rows in bins: made once for all trials that train on the same events."""
    rows = data.features.reshape(-1, data.features.shape[2])
    return _library().QuantileDMatrix(rows, data.labels.ravel(), nthread=1, max_bin=256)


def steps(params: Params) -> list[int]:
    """Numbers of trees at which it is looked at how good it is; the last one is all of them."""
    last = int({**DEFAULTS, **params}["n_estimators"])
    return [*range(EVERY, last, EVERY), last]


class Learner:
    """A forest while it grows on ``rows``, which `prepare` made."""

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

    def grow(self, until: int) -> None:
        """Go on until it has so many trees."""
        for number in range(self._done, until):
            self._booster.update(self._rows, number)
        self._done = until

    def scores(self, features: Array) -> Array:
        """Scores of rows, float32, shape (n,)."""
        return np.asarray(self._booster.inplace_predict(features))

    def watch(self, features: Array) -> Callable[[], Array]:
        """Give what scores these rows with the trees of now: each tree is asked once."""
        margins = np.zeros(len(features), np.float32)
        asked = 0

        def scores() -> Array:
            nonlocal asked
            if self._done > asked:
                new = (asked, self._done)
                # the base score is a margin of zero, so that parts add up
                margins[:] += self._booster.inplace_predict(
                    features, iteration_range=new, predict_type="margin"
                )
                asked = self._done
            return np.asarray(1 / (1 + np.exp(-margins)))

        return scores

    def save(self, folder: Path, stem: str) -> dict[str, Path]:
        """Write it; files by what they are, of which ``model`` is the one that scores."""
        path = folder / f"{stem}.json"
        path.write_bytes(bytes(self._booster.save_raw("json")))
        return {"model": path}
