"""Commands ``agc-ml train`` and ``agc-ml jobs``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from agc_ml.cli import options
from agc_ml.cli.training.connecting import connected, follow, print_job, where_options
from agc_ml.errors import UsageError


@click.command(epilog="Example: agc-ml train runs/features --trials 20")
@click.argument("dataset", metavar="RUN_OR_PARQUET")
@click.option(
    "--name",
    metavar="NAME",
    default="jet_assignment",
    show_default=True,
    help="Name of the model in the registry.",
)
@click.option(
    "--kind",
    type=click.Choice(["xgboost", "keras"]),
    default="xgboost",
    show_default=True,
    help="Library that trains the models.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Number of trials of the search, for each of the two models.",
)
@click.option(
    "--space",
    metavar="SPACE",
    help="Search space: xgboost, reference, keras, or a YAML file [that of the kind].",
)
@click.option(
    "--fold",
    type=click.Choice(["both", "even", "odd"]),
    default="both",
    show_default=True,
    help="Parity of the events to train on.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=1,
    show_default=True,
    help="Seed of the search and of the training.",
)
@click.option(
    "--variation",
    default="nominal",
    show_default=True,
    help="Jets to train with: nominal, or a variation such as pt_scale_up.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="Idempotency key: submitting again with the same key returns the first job.",
)
@click.option("--detach", is_flag=True, help="Submit the job and return at once.")
@where_options
@options.cluster_options
@options.json_option
@options.logging_options
def train(dataset: str, *, detach: bool, as_json: bool, quiet: bool, **given: Any) -> None:
    """Train a bundle of models on a training set, and validate it.

    RUN_OR_PARQUET is a run of the processor jet_assignment, or its training.parquet. A search finds
    the best parameters. The two models of a bundle are trained on even and on odd events, and
    validated on the others. Runs use the bundle only after 'agc-ml models promote'.

    With --local, --cluster and --workers set where trials run; a service has its own workers.
    """
    from agc_ml.training.client import training_set_file  # noqa: PLC0415 - on demand
    from agc_ml.training.search_spaces import load_space, space_as_json  # noqa: PLC0415 - on demand

    if detach and given["local"]:
        raise UsageError(
            "--detach: with --local there is nobody to run the job; leave one of them out"
        )
    spec = {key: given[key] for key in ("name", "kind", "trials", "fold", "seed", "variation")}
    space = load_space(given["kind"], given["space"])
    path = training_set_file(dataset)
    with connected(given) as training:
        digest = training.upload(path)
        job = training.submit(
            **spec, dataset=digest, space=space_as_json(space), idempotency_key=given["key"]
        )
        if not quiet:
            options.echo(f"job {job.id}: training set {digest[:12]}", err=True)
        if detach:
            print_job(job, given, as_json=as_json)
            return
        follow(training, job, given, as_json=as_json, quiet=quiet)


@click.group(epilog="Example: agc-ml jobs follow 1a2b3c4d5e6f")
def jobs() -> None:
    """List, follow and cancel training jobs."""


@jobs.command("list", epilog="Example: agc-ml jobs list")
@where_options
@options.json_option
@options.logging_options
def jobs_list(*, as_json: bool, **given: Any) -> None:
    """List jobs, the oldest first."""
    from agc_ml.cli.tables import print_page  # noqa: PLC0415 - on demand
    from agc_ml.presentation.page import Page, Table  # noqa: PLC0415 - on demand

    with connected(given) as training:
        listed = training.jobs()
    rows = [
        (
            job.id,
            job.spec.name,
            job.spec.kind,
            job.state,
            f"{job.progress.done}/{job.progress.total}" if job.progress.total else "",
            job.error or job.note or job.progress.message,
        )
        for job in listed
    ]
    header = ("job", "model", "kind", "state", "done", "")
    facts = [job.model_dump(mode="json") for job in listed]
    page = Page(tables=[Table("jobs", header, rows)]) if rows else Page(lines=["no jobs yet"])
    print_page(replace(page, data=facts), as_json=as_json)


@jobs.command("show", epilog="Example: agc-ml jobs show 1a2b3c4d5e6f")
@click.argument("job_id", metavar="JOB")
@where_options
@options.logging_options
def jobs_show(job_id: str, **given: Any) -> None:
    """Print a job as JSON: specification, state, progress and result."""
    with connected(given) as training:
        print_job(training.job(job_id), given, as_json=True)


@jobs.command("follow", epilog="Example: agc-ml jobs follow 1a2b3c4d5e6f")
@click.argument("job_id", metavar="JOB")
@where_options
@options.cluster_options
@options.json_option
@options.logging_options
def jobs_follow(job_id: str, *, as_json: bool, quiet: bool, **given: Any) -> None:
    """Follow a job until it has ended; with --local, run it."""
    with connected(given) as training:
        follow(training, training.job(job_id), given, as_json=as_json, quiet=quiet)


@jobs.command("log", epilog="Example: agc-ml jobs log 1a2b3c4d5e6f")
@click.argument("job_id", metavar="JOB")
@where_options
@options.logging_options
def jobs_log(job_id: str, **given: Any) -> None:
    """Print the log of a job."""
    with connected(given) as training:
        for line in training.log(job_id):
            options.echo(line)


@jobs.command("cancel", epilog="Example: agc-ml jobs cancel 1a2b3c4d5e6f")
@click.argument("job_id", metavar="JOB")
@where_options
@options.logging_options
def jobs_cancel(job_id: str, **given: Any) -> None:
    """Cancel a queued or running job; its results are discarded."""
    with connected(given) as training:
        job = training.cancel(job_id)
    options.echo(f"job {job.id}: {'cancelled' if job.is_over else 'stopping'}")
