"""Small trainings, all alike: parameters that are quickly trained, and what a job is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agc_ml.results import tables
from agc_ml.training.job_process import SETUP
from agc_ml.training.job_spec import JobSpec, Limits, Setup

SPACE: dict[str, Any] = {
    "n_estimators": [60, 120],
    "max_depth": {"low": 3, "high": 5},
    "learning_rate": 0.15,
    "min_child_weight": 2,
}
SPEC: dict[str, Any] = {"kind": "xgboost", "name": "jet_assignment", "trials": 2, "space": SPACE}


def setup_of(folder: Path, run: Path, **change: Any) -> None:
    """Write what a job in ``folder`` is given, to train on what ``run`` extracted."""
    path = run / "training.parquet"
    given = {key: change.pop(key) for key in ("members", "champion", "site") if key in change}
    spec = JobSpec(**{**SPEC, "dataset": tables.digest_of(path), **change})
    setup = Setup(
        **{
            "job": "0123456789ab",
            "spec": spec,
            "dataset": str(path),
            "site": "local",
            "workers": 1,
            "limits": Limits(),
            "champion": None,
            **given,
        }
    )
    (folder / SETUP).write_text(setup.model_dump_json())
