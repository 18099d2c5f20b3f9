"""``agc-ml show``, ``plot``, ``fit``, ``report``, ``compare``, ``validate``: parse, call, print."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from agc_ml.cli import options


@click.command(epilog="Example: agc-ml show runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@options.json_option
@options.logging_options
def show(run: Path, as_json: bool, **_: Any) -> None:
    """Show fit, yields, cutflow, missing chunks, metrics and provenance of a run directory."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.results import run_record  # noqa: PLC0415 - on demand
    from agc_ml.statistics import fit_files  # noqa: PLC0415 - on demand

    record = run_record.load_record(run)
    fitted = fit_files.load(run / "fit") if (run / "fit" / "fit.json").exists() else None
    tables.print_page(tables.run(record, fitted), as_json=as_json)


@click.command(epilog="Example: agc-ml plot runs/first")
@click.argument("run", metavar="RUN_OR_HISTOGRAMS", type=click.Path(path_type=Path))
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write figures/ into this folder [the run directory].",
)
@options.pseudodata_option
@options.label_option
@options.logging_options
def plot(run: Path, config: Path | None, output: Path | None, **given: Any) -> None:
    """Draw stacked distributions and the effect of every variation, as PNG and PDF.

    RUN_OR_HISTOGRAMS is a run directory, a ROOT file with the histogram names of the Analysis Grand
    Challenge, or its published reference JSON.

    CONFIG is a fit configuration: its regions are drawn large, and for files it also names the
    processes [that of the processor, or of ttbar].
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    arguments = {key: given[key] for key in ("pseudodata", "label")}
    options.echo(measurement.plot(run, output, config=config, **arguments))


@click.command(epilog="Example: agc-ml fit histos_1_file_per_process.json -o fits/one")
@click.argument("run", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write the fit to this folder [RUN/fit].",
)
@click.option(
    "--ml-uncertainty",
    "other_runs",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Run over the same events with another model; may be repeated. The spread of these runs "
    "becomes a nuisance parameter.",
)
@click.option(
    "--patch",
    metavar="FILE[:NAME]",
    help="Add a signal to a pyhf workspace: a JSON patch, or one patch of a patch set.",
)
@options.pseudodata_option
@options.label_option
@options.json_option
@options.logging_options
def fit(run: Path, config: Path | None, output: Path | None, as_json: bool, **given: Any) -> None:
    """Fit templates by maximum likelihood: parameters, pulls, impacts, goodness of fit.

    RUN_OR_FILE is a run directory, a pyhf workspace, or a file of histograms: ROOT or zip, with the
    names of the Analysis Grand Challenge or those of CONFIG, or AGC's reference JSON.

    CONFIG is a configuration in cabinetry's format [the one of the processor]. If its InputPath
    names files, give the folder to which they are relative, or one of them, as RUN_OR_FILE.

    With --ml-uncertainty, the mass of the hadronic top candidate that the model selects is fitted
    in the signal region, and the fit is written to RUN/fit_ml.
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    other_runs = given["other_runs"]
    result = measurement.fit(
        run,
        output,
        config=config,
        ml_uncertainty=other_runs,
        quiet=given["quiet"] or as_json,
        **{key: given[key] for key in ("pseudodata", "patch", "label")},
    )
    folder = measurement.fit_folder(run, output, other_runs)
    if as_json:
        click.echo(json.dumps(json.loads((folder / "fit.json").read_text()), indent=1))
    else:
        options.print_fit(result)
        page = folder if other_runs else output or run
        options.echo(f"fit: {folder}; page: agc-ml report {shlex.quote(str(page))}")
    sys.exit(0 if result.converged else 1)


@click.command(epilog="Example: agc-ml report runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write report.html into this folder [RUN].",
)
@options.logging_options
def report(run: Path, output: Path | None, **_: Any) -> None:
    """Write one self-contained HTML page for a run directory or the folder of a fit."""
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    options.echo(measurement.report(run, output))


@click.command(epilog="Example: agc-ml compare runs/first runs/second --rtol 1e-6")
@click.argument("a")
@click.argument("b")
@click.option("--rtol", type=float, default=1e-9, show_default=True, help="Relative tolerance.")
@options.json_option
@options.logging_options
def compare(a: str, b: str, rtol: float, as_json: bool, **_: Any) -> None:
    """Compare two sets of histograms bin by bin; exit code 1 if they differ.

    A and B are run directories, ROOT files, zips of histograms, or the published reference JSON.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.results import templates  # noqa: PLC0415 - on demand

    first, second = templates.load(a), templates.load(b)
    differences = templates.compare(first, second, rtol)
    unknown = templates.unknown_in_both(first, second)
    shared = len(first.keys() & second.keys())
    tables.print_page(tables.differences(differences, shared, unknown), as_json=as_json)
    sys.exit(1 if differences else 0)


@click.command(epilog="Example: agc-ml validate fileset.yaml runs/first")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@options.json_option
@options.logging_options
def validate(paths: tuple[Path, ...], as_json: bool, **_: Any) -> None:
    """Recognise and check files and folders; exit code 1 if one is bad.

    These can be filesets, event files, generated sets, training sets, fit configurations, pyhf
    workspaces and patches, models and their cards, run directories, fits, and files of histograms.
    Local files of a fileset are opened; 'fileset check' also opens those on servers.
    """
    from agc_ml.cli import tables, validation  # noqa: PLC0415 - on demand

    verdicts = [validation.validate(path) for path in paths]
    tables.print_page(tables.verdicts(verdicts), as_json=as_json)
    sys.exit(0 if all(verdict.problem is None for verdict in verdicts) else 1)
