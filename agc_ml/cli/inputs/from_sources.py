"""``agc-ml fileset from-...``: parse, call, print."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agc_ml.cli import options

if TYPE_CHECKING:
    from agc_ml.inputs.fileset import Fileset

logger = logging.getLogger(__name__)

_TARGET = click.argument("target", type=click.Path(path_type=Path))


@click.command(
    "from-record", epilog="Example: agc-ml fileset from-record ttbar__nominal=19980 agc.yaml"
)
@click.argument("wanted", metavar="NAME=RECORD...", nargs=-1, required=True)
@_TARGET
@click.option("--server", metavar="URL", help="The portal [https://opendata.cern.ch].")
@options.logging_options
def from_record(wanted: tuple[str, ...], target: Path, server: str | None, **_: Any) -> None:
    """Write a fileset of CERN Open Data records, JSON or YAML by the ending of TARGET.

    RECORD is a record's number, which needs the extra 'opendata'; or a file: the record's JSON, an
    index of files, or the output of 'cernopendata-client get-file-locations --verbose'. Indexes
    that the record only names are read from the portal. NAME is that of the dataset,
    process__variation; a NAME that comes again adds files.
    """
    from agc_ml.inputs.sources import opendata  # noqa: PLC0415 - on demand

    _check(target)
    _write(opendata.from_records(wanted, server=server or opendata.PORTAL), target)


@click.command(
    "from-rucio",
    epilog="Example: agc-ml fileset from-rucio ttbar=cms:/TT_Tune/Run2/NANOAODSIM tt.yaml",
)
@click.argument("wanted", metavar="NAME=SCOPE:DID...", nargs=-1, required=True)
@_TARGET
@options.logging_options
def from_rucio(wanted: tuple[str, ...], target: Path, **_: Any) -> None:
    """Write a fileset of Rucio's data identifiers, JSON or YAML by the ending of TARGET.

    Needs the extra 'rucio', and a rucio.cfg. All replicas of a file that can be read over root or
    https are listed, nearest first; what is left out is counted in a note.
    NAME is that of the dataset, process__variation; a NAME that comes again adds files.
    """
    from agc_ml.inputs.sources import rucio  # noqa: PLC0415 - on demand

    _check(target)
    _write(rucio.from_dids(wanted), target)


@click.command(
    "from-glob", epilog="Example: agc-ml fileset from-glob 'tt=root://host//data/*.root' tt.yaml"
)
@click.argument("wanted", metavar="NAME=PATTERN...", nargs=-1, required=True)
@_TARGET
@options.logging_options
def from_glob(wanted: tuple[str, ...], target: Path, **_: Any) -> None:
    """Write a fileset of files that match, JSON or YAML by the ending of TARGET.

    PATTERN is a path or a URL (root, with the extra 'xrootd'; http; https) with *, [abc] and ** in
    it, or a folder on a disk. Only files called *.root are taken, also *.root.1. NAME is that of
    the dataset, process__variation; a NAME that comes again adds files.
    """
    from agc_ml.inputs.sources import globs  # noqa: PLC0415 - on demand

    _check(target)
    _write(globs.from_patterns(wanted), target)


def _check(target: Path) -> None:
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    loading.check_target(target)


def _write(made: Fileset, target: Path) -> None:
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    loading.save(made, target)
    for note in made.notes:
        logger.info("note: %s", note)
    options.echo(target)
