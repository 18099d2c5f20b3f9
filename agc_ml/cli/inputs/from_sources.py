"""``agc-ml fileset from-...``: parse, call, print."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
@click.option("--server", metavar="URL", help="Portal to ask [https://opendata.cern.ch].")
@options.logging_options
def from_record(wanted: tuple[str, ...], target: Path, server: str | None, **_: Any) -> None:
    """Write a fileset of CERN Open Data records to TARGET, which ends in .json or .yaml.

    NAME is the dataset, process__variation; a repeated NAME adds files to its dataset.

    RECORD is the number of a record, which needs the extra 'opendata', or a file: the record's
    JSON, an index of files, or the output of 'cernopendata-client get-file-locations --verbose'.
    Indexes that a record only names are read from the portal.
    """
    from agc_ml.inputs.sources import opendata  # noqa: PLC0415 - on demand

    _write(lambda: opendata.from_records(wanted, server=server or opendata.PORTAL), target)


@click.command(
    "from-rucio",
    epilog="Example: agc-ml fileset from-rucio ttbar=cms:/TT_Tune/Run2/NANOAODSIM tt.yaml",
)
@click.argument("wanted", metavar="NAME=SCOPE:DID...", nargs=-1, required=True)
@_TARGET
@options.logging_options
def from_rucio(wanted: tuple[str, ...], target: Path, **_: Any) -> None:
    """Write a fileset of Rucio datasets to TARGET, which ends in .json or .yaml.

    NAME is the dataset, process__variation; a repeated NAME adds files to its dataset.

    SCOPE:DID is a data identifier. Needs the extra 'rucio' and a rucio.cfg. The fileset lists all
    replicas of a file that can be read over root or https, nearest first; a note counts the others.
    """
    from agc_ml.inputs.sources import rucio  # noqa: PLC0415 - on demand

    _write(lambda: rucio.from_dids(wanted), target)


@click.command(
    "from-glob", epilog="Example: agc-ml fileset from-glob 'tt=root://host//data/*.root' tt.yaml"
)
@click.argument("wanted", metavar="NAME=PATTERN...", nargs=-1, required=True)
@_TARGET
@options.logging_options
def from_glob(wanted: tuple[str, ...], target: Path, **_: Any) -> None:
    """Write a fileset of files that match patterns to TARGET, which ends in .json or .yaml.

    NAME is the dataset, process__variation; a repeated NAME adds files to its dataset.

    PATTERN is a path or a URL (root, with the extra 'xrootd'; http; https) with *, [abc] and ** in
    it, or a local folder. Only files named *.root or *.root.N are taken.
    """
    from agc_ml.inputs.sources import globs  # noqa: PLC0415 - on demand

    _write(lambda: globs.from_patterns(wanted), target)


def _write(make: Callable[[], Fileset], target: Path) -> None:
    from agc_ml.inputs import loading  # noqa: PLC0415 - on demand

    loading.check_target(target)  # before a server is asked
    fileset = make()
    loading.save(fileset, target)
    for note in fileset.notes:
        logger.info("note: %s", note)
    options.echo(target)
