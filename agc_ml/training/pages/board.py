"""What the service shows of itself: pages for people, numbers for Prometheus."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agc_ml._version import __version__
from agc_ml.training.service.database import Job
from agc_ml.training.service.job_manager import Training

MOST: Final = 50
"""Jobs on the page."""

LAST_LINES: Final = 40
"""Of a job's log, on its page."""

_LONGEST: Final = 500


def page(jobs: Sequence[Job], models: Sequence[Any] | None, mlflow_url: str, *, is_up: bool) -> str:
    """The page of a service: its models, None if they can't be read, and its newest jobs."""
    text: str = _template("board.html.j2").render(
        jobs=list(reversed(jobs)),
        models=list(reversed(models or ())),
        is_open=models is not None,
        mlflow=mlflow_url,
        is_up=is_up,
        version=__version__,
    )
    return text


def page_of_job(job: Job, log: Sequence[str]) -> str:
    """The page of a job: how far it is, what it was asked for, and the end of its log."""
    asked = job.spec.model_dump(exclude_none=True, exclude_defaults=True, mode="json")
    text: str = _template("job.html.j2").render(
        job=job,
        asked={name: _as_given(value) for name, value in asked.items()},
        result={name: told for name, value in (job.result or {}).items() if (told := _told(value))},
        log=log,
        version=__version__,
    )
    return text


def _as_given(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _told(value: Any) -> str:
    """Numbers by name, in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        inner = any(isinstance(one, Mapping) for one in value.values())
        between, is_ = ("; ", ": ") if inner else (", ", " ")
        return between.join(f"{name}{is_}{_told(one)}" for name, one in value.items())
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


def metrics(training: Training, requests: Mapping[tuple[str, int], int], *, mlflow_up: bool) -> str:
    """Numbers in Prometheus' format."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # noqa: PLC0415 - heavy

    registry = CollectorRegistry()
    jobs = Gauge("agc_ml_jobs", "Jobs by state", ["state"], registry=registry)
    for state, number in training.table.counts().items():
        jobs.labels(state).set(number)
    answered = Gauge(
        "agc_ml_requests", "Requests since the start", ["method", "status"], registry=registry
    )
    for (method, status), number in requests.items():
        answered.labels(method, str(status)).set(number)
    Gauge("agc_ml_mlflow_up", "Whether MLflow answers", registry=registry).set(mlflow_up)
    Gauge("agc_ml_slots", "Jobs that run at once", registry=registry).set(training.settings.slots)
    text: bytes = generate_latest(registry)
    return text.decode()
