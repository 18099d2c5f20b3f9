"""``agc-ml run``, ``agc-ml measure`` and ``agc-ml plan``: parse, call, print."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agc_ml.cli import options
from agc_ml.cli.inputs.selection import selected_fileset

if TYPE_CHECKING:
    from agc_ml.results.run_result import RunResult

_PASSED_ON = (
    "site",
    "workers",
    "model",
    "schema",
    "via",
    "chunk_size",
    "resume",
    "overwrite",
    "allow_missing",
    "verify_checksums",
    "trust",
    "dashboard",
    "patience",
    "quiet",
    "settings",
)
"""Options that are arguments of `agc_ml.run` of the same name."""


@click.command(epilog="Example: agc-ml run dimuon 'data/*.root' --dataset DYJets -o runs/dimuon")
@click.argument("processor")
@click.argument("fileset", required=False)
@options.run_options
@options.logging_options
def run(**given: Any) -> None:
    """Run a coffea processor over a fileset and write a run directory.

    PROCESSOR is a registered name (ttbar, dimuon), module:Class, or path/to/file.py:Class.

    FILESET is a JSON or YAML file (also .gz), a ROOT file (file.root:Tree if the tree is not
    Events), a folder, a glob, or a .txt file (also .gz) that lists ROOT files or URLs, one a line
    [the embedded demo set].
    """
    from agc_ml.execution.run import run as run_processor  # noqa: PLC0415 - on demand

    fileset = _labelled_fileset(given)
    arguments = _run_arguments(given, given["processor"])
    output = arguments["output"]
    result = options.resumable(
        output, lambda: run_processor(given["processor"], fileset, **arguments), kept="chunks"
    )
    _print_run(result)
    options.echo(f"look at it with: agc-ml show {shlex.quote(str(output))}")


@click.command(epilog="Example: agc-ml measure nanoaod_inputs.json --max-files 1 -o runs/first")
@click.argument("fileset", required=False)
@options.run_options
@options.pseudodata_option
@options.logging_options
def measure(**given: Any) -> None:
    """Measure the ttbar cross-section: run, figures, fit and report in one command.

    FILESET is a JSON or YAML file with the ttbar datasets and their variations, single top and
    W+jets, such as the input list of the Analysis Grand Challenge [the embedded demo set].
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand
    from agc_ml.analysis import DEFAULT  # noqa: PLC0415 - on demand

    fileset = _labelled_fileset(given)
    arguments = _run_arguments(given, DEFAULT)
    measured = options.resumable(
        arguments["output"],
        lambda: measurement.measure(fileset, pseudodata=given["pseudodata"], **arguments),
        kept="chunks",
    )
    _print_run(measured.run)
    options.print_fit(measured.fit)
    options.echo(f"report: {measured.report}")
    sys.exit(0 if measured.fit.converged else 1)


@click.command(epilog="Example: agc-ml plan ttbar nanoaod_inputs.json --max-files 1")
@click.argument("processor")
@click.argument("fileset", required=False)
@options.plan_options
@options.json_option
@options.logging_options
def plan(**given: Any) -> None:
    """Show the files, events, chunks, branches and bytes of a run, without processing.

    PROCESSOR and FILESET are as for 'run'. Exit code 1 if a file can't be opened.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.execution.plan import plan as plan_run  # noqa: PLC0415 - on demand

    keys = ("settings", "model", "schema", "via", "chunk_size", "site", "workers")
    planned = plan_run(
        given["processor"], selected_fileset(given), **{key: given[key] for key in keys}
    )
    tables.print_page(tables.plan(planned), as_json=given["as_json"])
    sys.exit(1 if planned.unreadable else 0)


def _labelled_fileset(given: dict[str, Any]) -> Any:
    fileset = selected_fileset(given)
    return fileset if given["label"] is None else replace(fileset, label=given["label"])


def _run_arguments(given: dict[str, Any], processor: str) -> dict[str, Any]:
    """Return the arguments of `agc_ml.run`, with a new run directory unless one is named."""
    from agc_ml import files  # noqa: PLC0415 - on demand
    from agc_ml.results import run_directories  # noqa: PLC0415 - on demand

    if given["output"]:
        output = Path(given["output"])
    else:
        output = run_directories.new_folder(processor)
        click.get_current_context().call_on_close(lambda: files.drop_if_empty(output))
    if not given["quiet"]:
        options.echo(f"run directory: {output}", err=True)
    arguments = {key: given[key] for key in _PASSED_ON}
    return {**arguments, "output": output, "command": ("agc-ml", *sys.argv[1:])}


def _print_run(result: RunResult) -> None:
    metrics = result.metrics
    options.echo(
        f"{result.status}: {metrics.events:,} events in {metrics.chunks:,} chunks, "
        f"{metrics.wall_s:.1f} s, {metrics.events_per_s:,.0f} events/s"
    )
    missing = len(result.ledger.missing)
    outputs = [f"{name}.parquet: {len(table):,} rows" for name, table in result.tables.items()]
    if result.templates or not outputs:
        outputs.insert(0, f"{len(result.templates)} histograms")
    account = (
        f"{missing} chunks missing" if missing else "nothing is missing, nothing counted twice"
    )
    options.echo("; ".join([*outputs, account]))
