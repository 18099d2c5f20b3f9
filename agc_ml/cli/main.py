"""The command line: parse, call, print. What it calls is imported when it is called."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from agc_ml._version import __version__
from agc_ml.cli import options
from agc_ml.cli.inputs import from_sources as sources
from agc_ml.cli.services.servicex import servicex
from agc_ml.cli.simulation.generate import generate
from agc_ml.cli.training.models import models
from agc_ml.cli.training.service import service as training_service
from agc_ml.cli.training.service import token
from agc_ml.cli.training.train import jobs, train
from agc_ml.errors import AgcError, Interrupted, UsageError, printable

_LONGEST: Final = 10_000
"""So many characters of an error are shown."""

_NOT_FROM_HERE: Final = {"NUMBA_CACHE_DIR": "", "NUMBA_CACHE_LOCATOR_CLASSES": ""}
"""Settings that a foreign ``.numba_config.yaml`` in the working directory would make otherwise: the
place of numba's cache, which holds pickles."""


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 failed or incomplete, 2 wrong usage."""
    stops = _noted_stops()
    os.environ.update({**_NOT_FROM_HERE, **os.environ})
    try:
        code = cli.main(prog_name="agc-ml", standalone_mode=False)
    except AgcError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "agc-ml"
        _fail(f"{error.format_message()} (see {command} --help)", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", Interrupted.exit_code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; check the path and its permissions", 1)
    except Exception as error:  # a fault of ours: still one line, and the traceback for a report
        logging.getLogger("agc_ml").debug("", exc_info=True)
        what = f"unexpected {type(error).__name__}: {error} (a fault of agc-ml; see it with -v)"
        # compiled modules that are just imported make an ImportError of a Ctrl-C
        _fail(*(("interrupted", Interrupted.exit_code) if stops else (what, 1)))
    sys.exit(code if isinstance(code, int) else 0)


def _noted_stops() -> list[int]:
    """Let SIGINT and SIGTERM interrupt, also when started with & in a script, and note them."""
    stops: list[int] = []

    def stop(number: int, _: object) -> NoReturn:
        stops.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stops


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    shown = printable(line[:_LONGEST])
    click.echo(f"agc-ml: {shown}{' ...' * (len(line) > _LONGEST)}", err=True)
    sys.exit(code)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: agc-ml run dimuon FILE.root --cluster inline",
)
@click.version_option(__version__, prog_name="agc-ml")
def cli() -> None:
    """From NanoAOD files to histograms, fits and reports, on a laptop or a Dask cluster.

    A run directory passes between the commands: 'run' makes one; 'show', 'plot', 'fit' and 'report'
    take it further; 'measure' does it all for the ttbar cross-section.
    """


def _settings(pairs: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: FIELD=VALUE is needed")
        if name in settings:
            raise UsageError(f"--set {name}: given twice, as {settings[name]} and as {value}")
        settings[name] = value
    return settings


def _fileset(
    source: str | None, dataset: str | None, datasets: str | None, max_files: int | None
) -> Any:
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand
    from agc_ml.inputs.fileset import Fileset  # noqa: PLC0415 - on demand

    fileset = Fileset.load(loading.DEMO if source is None else source, dataset=dataset)
    if datasets is not None:
        fileset = fileset.select(name.strip() for name in datasets.split(","))
    return fileset if max_files is None else fileset.limit(files=max_files)


def _run_arguments(given: dict[str, Any], name: str) -> dict[str, Any]:
    from agc_ml import files  # noqa: PLC0415 - on demand
    from agc_ml.results import run_directories  # noqa: PLC0415 - on demand

    if given["output"]:
        output = Path(given["output"])
    else:
        output = run_directories.new_folder(name)
        click.get_current_context().call_on_close(lambda: files.drop_if_empty(output))
    if not given["quiet"]:
        options.echo(f"run directory: {output}", err=True)
    kept = (
        *("site", "workers", "model", "schema", "via", "chunk_size", "resume", "overwrite"),
        *("allow_missing", "verify_checksums", "trust", "dashboard", "patience", "quiet"),
    )
    return {
        **{key: given[key] for key in kept},
        "output": output,
        "settings": _settings(given["settings"]),
        "command": ("agc-ml", *sys.argv[1:]),
    }


def _chosen(given: dict[str, Any]) -> Any:
    """The fileset that was chosen; tokens may go to the hosts that were named with it."""
    from agc_ml.transports import credentials  # noqa: PLC0415 - on demand

    credentials.allow(given["token_hosts"])
    keys = ("dataset", "datasets", "max_files")
    chosen = _fileset(given["fileset"], *(given[key] for key in keys))
    label = given.get("label")
    return chosen if label is None else replace(chosen, label=label)


def _three_lines(result: Any) -> None:
    metrics = result.metrics
    options.echo(
        f"{result.status}: {metrics.events:,} events in {metrics.chunks:,} chunks, "
        f"{metrics.wall_s:.1f} s, {metrics.events_per_s:,.0f} events/s"
    )
    missing = len(result.ledger.missing)
    made = [f"{name}.parquet: {len(table):,} rows" for name, table in result.tables.items()]
    if result.templates or not made:
        made.insert(0, f"{len(result.templates)} histograms")
    whole = f"{missing} chunks missing" if missing else "nothing is missing, nothing counted twice"
    options.echo("; ".join([*made, whole]))


@cli.command(epilog="Example: agc-ml run dimuon 'data/*.root' --dataset DYJets -o runs/dimuon")
@click.argument("processor")
@click.argument("fileset", required=False)
@options.run_options
@options.logging_options
def run(**given: Any) -> None:
    """Run a coffea processor over a fileset, into a run directory.

    PROCESSOR is a registered name (ttbar, dimuon), module:Class, or path/to/file.py:Class. FILESET
    is a JSON or YAML file (also .gz), a ROOT file (file.root:Tree for another tree than Events), a
    folder, a glob, or a .txt (also .gz) with ROOT files or URLs, one a line; without it, the
    embedded demo set.
    """
    from agc_ml.execution import run as running  # noqa: PLC0415 - on demand

    fileset = _chosen(given)
    arguments = _run_arguments(given, given["processor"])
    output = arguments["output"]
    result = options.resumable(
        output, lambda: running.run(given["processor"], fileset, **arguments), kept="chunks"
    )
    _three_lines(result)
    options.echo(f"look at it with: agc-ml show {shlex.quote(str(output))}")


@cli.command(epilog="Example: agc-ml measure nanoaod_inputs.json --max-files 1 -o runs/first")
@click.argument("fileset", required=False)
@options.run_options
@options.pseudodata_option
@options.logging_options
def measure(**given: Any) -> None:
    """Measure the ttbar cross-section: run, figures, fit and report in one go.

    FILESET is a JSON or YAML file with the ttbar datasets and their variations, single top and
    W+jets; the input list of the Analysis Grand Challenge is one. Without it: the embedded demo
    set.
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    fileset = _chosen(given)
    arguments = _run_arguments(given, measurement.PROCESSOR)
    done = options.resumable(
        arguments["output"],
        lambda: measurement.measure(fileset, pseudodata=given["pseudodata"], **arguments),
        kept="chunks",
    )
    _three_lines(done.run)
    _show_fit(done.fit)
    options.echo(f"report: {done.report}")
    sys.exit(0 if done.fit.converged else 1)


@cli.command(epilog="Example: agc-ml plan ttbar nanoaod_inputs.json --max-files 1")
@click.argument("processor")
@click.argument("fileset", required=False)
@options.plan_options
@options.json_option
@options.logging_options
def plan(**given: Any) -> None:
    """Say what 'run' would do: files, events, chunks, branches and bytes. Processes nothing.

    Exit code 1 if a file can't be opened.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.execution import plan as planning  # noqa: PLC0415 - on demand

    found = planning.plan(
        given["processor"],
        _chosen(given),
        settings=_settings(given["settings"]),
        model=given["model"],
        schema=given["schema"],
        via=given["via"],
        chunk_size=given["chunk_size"],
        site=given["site"],
        workers=given["workers"],
    )
    tables.plan(found).print(as_json=given["as_json"])
    sys.exit(1 if found.unreadable else 0)


@cli.command(epilog="Example: agc-ml show runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@options.json_option
@options.logging_options
def show(run: Path, as_json: bool, **_: Any) -> None:
    """Show the fit, yields, cutflow, gaps, metrics and provenance of a run directory."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.results import run_result  # noqa: PLC0415 - on demand
    from agc_ml.statistics import fit_files  # noqa: PLC0415 - on demand

    record = run_result.load_record(run)
    fitted = fit_files.load(run / "fit") if (run / "fit" / "fit.json").exists() else None
    tables.run(record, fitted).print(as_json=as_json)


@cli.command(epilog="Example: agc-ml plot runs/first")
@click.argument("run", metavar="RUN_OR_HISTOGRAMS", type=click.Path(path_type=Path))
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for figures/.")
@options.pseudodata_option
@options.label_option
@options.logging_options
def plot(run: Path, config: Path | None, output: Path | None, **given: Any) -> None:
    """Draw stacked distributions and the shape of every variation, as PNG and PDF.

    RUN_OR_HISTOGRAMS is a run directory, a ROOT file with the names of the Analysis Grand
    Challenge, or its published reference JSON. CONFIG (a fit configuration) names the regions that
    are shown large, and of files the processes, too; by default those of the processor, or ttbar.
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    how = {key: given[key] for key in ("pseudodata", "label")}
    options.echo(measurement.plot(run, output, config=config, **how))


@cli.command(epilog="Example: agc-ml fit histos_1_file_per_process.json -o fits/one")
@click.argument("run", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the fit.")
@click.option(
    "--ml-uncertainty",
    "others",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="A run of the same events with another model; repeat it. How they scatter becomes a "
    "nuisance parameter.",
)
@click.option(
    "--patch",
    metavar="FILE[:NAME]",
    help="Add a signal to a pyhf workspace: a JSON patch, or one of a patch set.",
)
@options.pseudodata_option
@options.label_option
@options.json_option
@options.logging_options
def fit(run: Path, config: Path | None, output: Path | None, as_json: bool, **given: Any) -> None:
    """Fit templates: workspace, maximum likelihood, pulls, impacts, goodness of fit.

    RUN_OR_FILE is a run directory, a pyhf workspace, or a file of histograms: ROOT or zip, with the
    names of the Analysis Grand Challenge or those that CONFIG asks for, or AGC's reference JSON.
    CONFIG is in cabinetry's format; by default the one that ships with the processor. If its
    InputPath names the files, give the folder that they are relative to, or one of them.

    With --ml-uncertainty the mass of the hadronic top that the model finds is fitted in the signal
    region, and the fit goes to RUN/fit_ml.
    """
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    others = given["others"]
    how = {key: given[key] for key in ("pseudodata", "patch", "label")}
    how["quiet"] = given["quiet"] or as_json
    result = measurement.fit(run, output, config=config, ml_uncertainty=others, **how)
    where = measurement.fit_folder(run, output, others)
    if as_json:
        click.echo(json.dumps(json.loads((where / "fit.json").read_text()), indent=1))
    else:
        _show_fit(result)
        page = where if others else output or run
        options.echo(f"fit: {where}; page: agc-ml report {shlex.quote(str(page))}")
    sys.exit(0 if result.converged else 1)


def _show_fit(result: Any) -> None:
    """Print a result and what was fitted; what a reader must know of it is in the log."""
    for line in (result, *result.facts):
        options.echo(line)


@cli.command(epilog="Example: agc-ml report runs/first")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for report.html.")
@options.logging_options
def report(run: Path, output: Path | None, **_: Any) -> None:
    """Write one self-contained HTML page of a run directory, or of the folder of a fit."""
    from agc_ml import measurement  # noqa: PLC0415 - on demand

    options.echo(measurement.report(run, output))


@cli.command(epilog="Example: agc-ml compare runs/first runs/second --rtol 1e-6")
@click.argument("a")
@click.argument("b")
@click.option("--rtol", type=float, default=1e-9, show_default=True, help="Relative tolerance.")
@options.json_option
@options.logging_options
def compare(a: str, b: str, rtol: float, as_json: bool, **_: Any) -> None:
    """Compare two sources of histograms bin by bin; exit code 1 when they differ.

    A and B are run directories, ROOT files, zips of histograms, or published reference JSON.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.results import templates  # noqa: PLC0415 - on demand

    first, second = templates.load(a), templates.load(b)
    differences = templates.compare(first, second, rtol)
    unknown = templates.unknown_in_both(first, second)
    shared = len(first.keys() & second.keys())
    tables.differences(differences, shared, unknown).print(as_json=as_json)
    sys.exit(1 if differences else 0)


@cli.command(epilog="Example: agc-ml validate fileset.yaml runs/first")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.json_option
@options.logging_options
def validate(paths: tuple[Path, ...], as_json: bool, **_: Any) -> None:
    """Say what files and folders are, and what is wrong with them.

    Knows filesets and event files, generated sets, training sets, fit configurations, pyhf
    workspaces and patches, models and their cards, run directories, fits and files of histograms.
    Files of a fileset that are on disks are opened; 'fileset check' opens those on servers, too.
    """
    from agc_ml.cli import tables, validation  # noqa: PLC0415 - on demand

    verdicts = [validation.validate(path) for path in paths]
    tables.verdicts(verdicts).print(as_json=as_json)
    sys.exit(0 if all(verdict.problem is None for verdict in verdicts) else 1)


cli.add_command(generate)
for command in (train, jobs, models):
    cli.add_command(command)


@cli.group(epilog="Example: agc-ml service training")
def service() -> None:
    """Run services that analyses use, on this machine."""


for command in (servicex, training_service, token):
    service.add_command(command)


@cli.group()
def fileset() -> None:
    """Make, list, show, check and convert filesets."""


@fileset.command("list", epilog="Example: agc-ml fileset list data/")
@click.argument("folder", default=".", type=click.Path(path_type=Path, file_okay=False))
@options.json_option
@options.logging_options
def fileset_list(folder: Path, as_json: bool, **_: Any) -> None:
    """List the embedded demo set and the filesets in a folder (default: this one)."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand
    from agc_ml.inputs.fileset import Fileset  # noqa: PLC0415 - on demand

    embedded = (Path(loading.DEMO), Fileset.load(loading.DEMO))
    tables.filesets([embedded, *Fileset.find(folder)]).print(as_json=as_json)


@fileset.command("show", epilog="Example: agc-ml fileset show nanoaod_inputs.json")
@click.argument("source", metavar="FILESET", required=False)
@options.dataset_option
@options.json_option
@options.logging_options
def fileset_show(source: str | None, dataset: str | None, as_json: bool, **_: Any) -> None:
    """Show the datasets of a fileset: process, variation, cross-section, files, events."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand

    tables.fileset(_fileset(source, dataset, None, None)).print(as_json=as_json)


@fileset.command("check", epilog="Example: agc-ml fileset check fileset.yaml --workers 4")
@click.argument("source", metavar="FILESET", required=False)
@click.option("--processor", help="Check also for the branches that it needs.")
@options.processor_options
@click.option(
    "--write",
    "target",
    metavar="TARGET",
    type=click.Path(path_type=Path),
    help="Write what was checked, with UUIDs, entries and sizes, if all is good.",
)
@click.option("--checksums", is_flag=True, help="Read files whole, for their adler32.")
@options.choice_options
@options.cluster_options
@options.reading_options
@options.json_option
@options.logging_options
def fileset_check(
    processor: str | None, target: Path | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Open every replica of every file, and compare with the fileset; exit code 1 if one is bad."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.execution import file_check  # noqa: PLC0415 - on demand
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    if target is not None:
        loading.check_target(target)
    given["fileset"] = given.pop("source")
    chosen = _chosen(given)
    how = {key: given[key] for key in ("model", "schema", "via", "checksums", "site", "workers")}
    how["settings"] = _settings(given["settings"])
    found = file_check.check(chosen, processor, quiet=quiet or as_json, **how)
    tables.checked(found).print(as_json=as_json)
    if any(file.problem for file in found):
        sys.exit(1)
    if target is not None:
        loading.save(file_check.written_back(chosen, found), target)
        if not quiet:
            options.echo(f"written: {target}", err=True)


@fileset.command("convert", epilog="Example: agc-ml fileset convert nanoaod_inputs.json agc.yaml")
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path))
@options.dataset_option
@options.logging_options
def fileset_convert(source: str, target: Path, dataset: str | None, **_: Any) -> None:
    """Write a fileset in our own format, JSON or YAML by the ending of TARGET."""
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    loading.save(_fileset(source, dataset, None, None), target)
    options.echo(target)


for _command in (sources.from_record, sources.from_rucio, sources.from_glob):
    fileset.add_command(_command)
