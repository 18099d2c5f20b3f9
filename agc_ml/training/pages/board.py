"""Web pages of the service, and metrics for Prometheus."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agc_ml._version import __version__
from agc_ml.training.service.database import Job
from agc_ml.training.service.job_manager import JobManager

# Jobs on the page
MAX_JOBS: Final = 50

# Lines of a job's log on its page
LAST_LINES: Final = 40

_MAX_LENGTH: Final = 500


def page(jobs: Sequence[Job], models: Sequence[Any] | None, mlflow_url: str, *, is_up: bool) -> str:
    """Return the main page: models (None if the registry can't be read) and the newest jobs."""
    text: str = _template("board.html.j2").render(
        jobs=list(reversed(jobs)),
        models=list(reversed(models or ())),
        is_open=models is not None,
        mlflow=mlflow_url,
        is_up=is_up,
        version=__version__,
    )
    return text


def job_page(job: Job, log: Sequence[str]) -> str:
    """Return the page of a job: progress, specification, result, end of its log."""
    spec = job.spec.model_dump(exclude_none=True, exclude_defaults=True, mode="json")
    text: str = _template("job.html.j2").render(
        job=job,
        spec={name: _shortened(value) for name, value in spec.items()},
        result={name: line for name, value in (job.result or {}).items() if (line := _text(value))},
        log=log,
        version=__version__,
    )
    return text


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} ..."


def _text(value: Any) -> str:
    """Return a value as text; mappings as names and values."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        inner = any(isinstance(one, Mapping) for one in value.values())
        between, is_ = ("; ", ": ") if inner else (", ", " ")
        return between.join(f"{name}{is_}{_text(one)}" for name, one in value.items())
    return str(value)


@functools.cache
def _template(name: str) -> Any:
    import jinja2  # noqa: PLC0415 - only here

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("agc_ml.training.pages", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["time"] = _time
    return environment.get_template(name)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def metrics(
    manager: JobManager, requests: Mapping[tuple[str, int], int], *, mlflow_up: bool
) -> str:
    """Return the metrics in the format of Prometheus."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # noqa: PLC0415 - heavy

    registry = CollectorRegistry()
    jobs = Gauge("agc_ml_jobs", "Jobs by state", ["state"], registry=registry)
    for state, number in manager.database.counts().items():
        jobs.labels(state).set(number)
    answered = Gauge(
        "agc_ml_requests", "Requests since the start", ["method", "status"], registry=registry
    )
    for (method, status), number in requests.items():
        answered.labels(method, str(status)).set(number)
    Gauge("agc_ml_mlflow_up", "1 if MLflow answers", registry=registry).set(mlflow_up)
    Gauge("agc_ml_slots", "Jobs that may run at once", registry=registry).set(
        manager.settings.slots
    )
    text: bytes = generate_latest(registry)
    return text.decode()
