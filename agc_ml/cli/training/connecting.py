"""Options and functions that the commands of training share."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from agc_ml.cli import options
from agc_ml.errors import Interrupted, TrainingError, UsageError

if TYPE_CHECKING:
    from agc_ml.training.client import TrainingClient
    from agc_ml.training.service.database import Job

_EXTRA = ("mlflow", "optuna", "fastapi", "fastapi_offline", "uvicorn", "prometheus_client")

where_options = options.together(
    click.option(
        "--service",
        "where",
        metavar="WHERE",
        help="URL of a service, its client.yaml, or its folder [AGC_ML_TRAINING, or ./training].",
    ),
    click.option("--local", is_flag=True, help="Work in the folder WHERE, without a service."),
)


@contextlib.contextmanager
def connected(given: dict[str, Any]) -> Iterator[TrainingClient]:
    """Connect to the service or folder that the options name."""
    from agc_ml.training.client import connect_training  # noqa: PLC0415 - on demand

    if given.get("local"):
        require_extra()
    elif given.get("workers") is not None or given.get("site", "local") != "local":
        raise UsageError("--cluster and --workers are for --local: a service has its own workers")
    with connect_training(
        given["where"],
        local=given["local"],
        workers=given.get("workers"),
        site=given.get("site") or "local",
    ) as training:
        yield training


def require_extra() -> None:
    """Check that the libraries of the extra 'training' are installed.

    Raises
    ------
    UsageError
        One is missing.
    """
    for library in _EXTRA:
        if find_spec(library) is None:
            raise UsageError(f"{library} is not installed: pip install 'agc-ml[training]'")


def name_and_version(label: str) -> tuple[str, str]:
    """Split NAME@VERSION into its parts; a name alone is its champion.

    Raises
    ------
    UsageError
        The label has another form.
    """
    from agc_ml.models.naming import SPEC  # noqa: PLC0415 - heavy

    full = label if "@" in label else f"{label}@champion"
    if not SPEC.fullmatch(full):
        raise UsageError(f"{label!r}: NAME@VERSION or NAME@champion is needed")
    name, _, which = full.partition("@")
    return name, which


def model_name(name: str) -> str:
    """Return the name of a model, without a version.

    Raises
    ------
    UsageError
        It is not one.
    """
    from agc_ml.models.naming import NAME  # noqa: PLC0415 - heavy

    if not re.fullmatch(NAME, name):
        raise UsageError(f"{name!r}: the name of a model is needed, such as jet_assignment")
    return name


def location(given: dict[str, Any]) -> str:
    """Return the options with which another command finds the same service or folder."""
    service = f" --service {shlex.quote(given['where'])}" if given["where"] else ""
    return service + (" --local" if given["local"] else "")


def follow(
    training: TrainingClient, job: Job, given: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:
    """Show the progress of a job until it has ended; exit code 1 if it failed."""
    from agc_ml.execution import progress  # noqa: PLC0415 - on demand

    try:
        with progress.show_steps(quiet=quiet or as_json) as show:
            for now in training.follow(job.id):
                show(progress_line(now))
                job = now
    except KeyboardInterrupt as stop:
        resume = "is stopped, and resumes" if given["local"] else "continues; follow it"
        raise Interrupted(
            f"interrupted; the job {resume} with: agc-ml jobs follow {job.id}{location(given)}"
        ) from stop
    print_job(job, given, as_json=as_json)
    if job.state != "succeeded":
        sys.exit(1)


def progress_line(job: Job) -> str:
    """Return the state of a job in one line: ``state done/total: what it does``."""
    count = f" {job.progress.done}/{job.progress.total}" if job.progress.total else ""
    message = job.note or job.progress.message
    return f"{job.state}{count}: {message}" if message else f"{job.state}{count}"


def print_job(job: Job, given: dict[str, Any], *, as_json: bool) -> None:
    """Print the state of a job, and its result.

    Raises
    ------
    TrainingError
        It failed.
    """
    if as_json:
        click.echo(json.dumps(job.model_dump(mode="json"), indent=1))
        return
    if job.state == "failed":
        raise TrainingError(
            f"job {job.id} failed: {job.error}; its log: agc-ml jobs log {job.id}{location(given)}"
        )
    options.echo(f"job {job.id}: {job.state}{f' ({job.note})' if job.note else ''}")
    if job.result is None:
        return
    versions, quality = job.result["versions"], job.result["quality"]
    if quality is None:  # models that are not a bundle yet
        for parity in ("even", "odd"):
            if parity in versions:
                label = f"{job.spec.name}-{parity}@{versions[parity]}"
                options.echo(f"{label}: trained on {parity} events")
        return
    bundle = f"{job.spec.name}@{versions['bundle']}"
    verdict = "passes all gates" if job.result["passed"] else "does not pass all gates"
    options.echo(
        f"{bundle}: AUC {quality['auc']:.4f}, jet score {quality['jet_score']:.4f}; {verdict}"
    )
    options.echo(f"its validation report: agc-ml models report {bundle}{location(given)}")
