"""A trial of a search, ours or with stock xgboost: prints its seconds of CPU, imports not counted.

python benchmarks/loop_trial.py training.parquet ours|stock '{"max_depth": 31, ...}'
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import xgboost

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agc_ml.models.content import Content, provide  # noqa: E402
from agc_ml.results import tables  # noqa: E402
from agc_ml.training import metrics  # noqa: E402
from agc_ml.training.trainers import trials  # noqa: E402
from agc_ml.training.trainers.trials import Source, Trial  # noqa: E402


def main() -> None:
    """Load, warm up with a small one, time one."""
    path, way, params = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    provide({sha256: Content(content)})
    source = Source(sha256, tables.digest_of(path), "nominal", "even")
    trials.events(source)
    run = ours if way == "ours" else stock
    run(source, {"max_depth": 2, "n_estimators": 2})
    start = time.process_time()
    run(source, params)
    print(time.process_time() - start)


def ours(source: Source, params: dict[str, float]) -> float:
    """As the search does it: with bins that are made once, and a look at the score on the way."""
    tried = trials.run(Trial("xgboost", source, 0, params, 1, {}))
    if tried.error:
        raise SystemExit(tried.error)
    return tried.history[-1][1]


def stock(source: Source, params: dict[str, float]) -> float:
    """`xgboost.train` on each fold, and the score at the end."""
    data = trials.events(source)
    found = []
    for fold in range(trials.N_FOLDS):
        train, validation = data.take(data.part % 2 != fold), data.take(data.part % 2 == fold)
        n, k, n_features = train.features.shape
        matrix = xgboost.DMatrix(
            train.features.reshape(n * k, n_features), train.labels.ravel(), nthread=1
        )
        settings = {key: value for key, value in params.items() if key != "n_estimators"}
        fixed = {"objective": "binary:logistic", "nthread": 1, "tree_method": "hist"}
        booster = xgboost.train({**settings, **fixed}, matrix, int(params["n_estimators"]))
        rows_of = xgboost.DMatrix(validation.features.reshape(-1, n_features), nthread=1)
        scored = booster.predict(rows_of).reshape(-1, k)
        found.append(metrics.quality(scored, validation.right, validation.assignment).jet_score)
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
