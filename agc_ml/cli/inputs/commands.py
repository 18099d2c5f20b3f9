"""``agc-ml fileset``: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agc_ml.cli import options
from agc_ml.cli.inputs.from_sources import from_glob, from_record, from_rucio
from agc_ml.cli.inputs.selection import load_fileset, selected_fileset


@click.group(epilog="Example: agc-ml fileset check fileset.yaml")
def fileset() -> None:
    """Make, list, show, check and convert filesets."""


@fileset.command("list", epilog="Example: agc-ml fileset list data/")
@click.argument("folder", default=".", type=click.Path(path_type=Path, file_okay=False))
@options.json_option
@options.logging_options
def fileset_list(folder: Path, as_json: bool, **_: Any) -> None:
    """List the embedded demo set and the filesets in FOLDER [the working directory]."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.inputs.fileset import Fileset  # noqa: PLC0415 - on demand
    from agc_ml.inputs.loading import DEMO  # noqa: PLC0415 - on demand

    embedded = (Path(DEMO), load_fileset(None))
    tables.print_page(tables.filesets([embedded, *Fileset.find(folder)]), as_json=as_json)


@fileset.command("show", epilog="Example: agc-ml fileset show nanoaod_inputs.json")
@click.argument("source", metavar="[FILESET]", required=False)
@options.dataset_option
@options.json_option
@options.logging_options
def fileset_show(source: str | None, dataset: str | None, as_json: bool, **_: Any) -> None:
    """Show the datasets of a fileset: process, variation, cross-section, files, events."""
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand

    tables.print_page(tables.fileset(load_fileset(source, dataset)), as_json=as_json)


@fileset.command("check", epilog="Example: agc-ml fileset check fileset.yaml --workers 4")
@click.argument("fileset", required=False)
@click.option("--processor", help="Check also for the branches that this processor needs.")
@options.processor_options
@click.option(
    "--write",
    "target",
    metavar="TARGET",
    type=click.Path(path_type=Path),
    help="Write the checked fileset with UUIDs, entries and sizes, if all files are good.",
)
@click.option("--checksums", is_flag=True, help="Read whole files and compute their adler32.")
@options.choice_options
@options.cluster_options
@options.reading_options
@options.json_option
@options.logging_options
def fileset_check(
    processor: str | None, target: Path | None, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Open every replica of every file and compare it with the fileset.

    Exit code 1 if a replica is bad.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.execution import file_check  # noqa: PLC0415 - on demand
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    if target is not None:
        loading.check_target(target)
    chosen = selected_fileset(given)
    keys = ("settings", "model", "schema", "via", "checksums", "site", "workers")
    arguments = {key: given[key] for key in keys}
    checked = file_check.check(chosen, processor, quiet=quiet or as_json, **arguments)
    tables.print_page(tables.checked_files(checked), as_json=as_json)
    if any(file.problem for file in checked):
        sys.exit(1)
    if target is not None:
        loading.save(file_check.written_back(chosen, checked), target)
        if not quiet:
            options.echo(f"written: {target}", err=True)


@fileset.command("convert", epilog="Example: agc-ml fileset convert nanoaod_inputs.json agc.yaml")
@click.argument("source", metavar="FILESET")
@click.argument("target", type=click.Path(path_type=Path))
@options.dataset_option
@options.logging_options
def fileset_convert(source: str, target: Path, dataset: str | None, **_: Any) -> None:
    """Write a fileset in our own format to TARGET, which ends in .json or .yaml."""
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    loading.save(load_fileset(source, dataset), target)
    options.echo(target)


for _command in (from_record, from_rucio, from_glob):
    fileset.add_command(_command)
