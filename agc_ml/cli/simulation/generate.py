"""``agc-ml generate``: generate events, validate them, write large files."""

from __future__ import annotations

import shlex
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from agc_ml.cli import options
from agc_ml.errors import GenerateError, Interrupted, StoreError, UsageError

_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_ABSURD = Decimal(10) ** 40  # larger numbers are not converted to int, which could take for ever
_SEED = click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="The same seed gives the same events.",
)


def parse_events(text: str) -> int:
    """Parse a number of events: ``30000``, ``30k``, ``1.5M``.

    Raises
    ------
    UsageError
        The text is not such a number.
    """
    digits, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 1)
    try:
        number = Decimal(digits) * factor
        is_whole = 1 <= number < _ABSURD and number == int(number)
    except (ArithmeticError, ValueError):  # not a finite number
        is_whole = False
    if not is_whole:
        raise UsageError(f"--events {text}: a number of events is needed, such as 5000, 30k or 1M")
    return int(number)


@click.group(
    invoke_without_command=True,
    epilog="Example: agc-ml generate --events 10k -o data/ --workers 2",
)
@click.option("--events", metavar="N", help="Number of events of the whole set: 5000, 30k, 1M.")
@click.option(
    "--datasets",
    metavar="A,B*",
    help="Only datasets that match these names or patterns [all nine].",
)
@_SEED
@click.option("-o", "--output", metavar="DIR", help="Folder of the set.")
@click.option(
    "--content",
    type=click.Choice(["full", "slim"]),
    default="full",
    show_default=True,
    help="All branches, or only those of the measurement and its training.",
)
@click.option("--constituents", is_flag=True, help="Add particles of jets and secondary vertices.")
@click.option(
    "--emulate-cms2015-muon-id",
    is_flag=True,
    help="Set all identification flags of muons to zero, as in CMS's 2015 files.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted set in DIR.")
@options.cluster_options
@options.dashboard_option
@options.patience_option
@options.json_option
@options.logging_options
@click.pass_context
def generate(context: click.Context, /, **given: Any) -> None:
    """Generate NanoAOD events of the datasets of the ttbar measurement.

    Pythia 8 with a parametrised detector; needs the extra 'generate'. Writes a fileset.json for
    other commands and a manifest.json with the origin of the events.
    """
    if context.invoked_subcommand is not None:
        _refuse_lost_options(context)
        return
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.simulation import production  # noqa: PLC0415 - heavy

    for name in ("events", "output"):
        if given[name] is None:
            raise UsageError(f"--{name} is missing (see agc-ml generate --help)")
    output, datasets = Path(given["output"]), given["datasets"]
    names = ["seed", "content", "constituents", "emulate_cms2015_muon_id"]
    names += ["site", "workers", "dashboard", "patience", "resume", "quiet"]
    arguments = {name: given[name] for name in names}
    arguments["events"] = parse_events(given["events"])
    arguments["datasets"] = None if datasets is None else datasets.split(",")
    made = options.resumable(output, lambda: production.generate(output, **arguments), kept="units")
    tables.print_page(tables.generated(made), as_json=given["as_json"])
    if not given["as_json"]:
        where = shlex.quote(str(output / "fileset.json"))
        options.echo(f"measure them with: agc-ml measure {where}")


def _refuse_lost_options(context: click.Context) -> None:
    """Reject options between ``generate`` and a subcommand: they would have no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            name = context.invoked_subcommand
            raise UsageError(
                f"{parameter.opts[-1]} belongs after {name}: agc-ml generate {name} ..."
            )


@generate.command(epilog="Example: agc-ml generate check data/")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Seed of the events, without DIR [3].")
@options.cluster_options
@options.json_option
@options.logging_options
def check(folder: Path | None, seed: int | None, as_json: bool, **given: Any) -> None:
    """Compare a generated set with the published histograms; exit code 1 beyond the limits.

    Without DIR, generates the necessary events in check-SEED (half an hour on two cores). Table
    and figures are for electrons only, as the published histograms; figures go to DIR/check.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.simulation import figures, validation  # noqa: PLC0415 - heavy

    cluster = {key: given[key] for key in ("site", "workers", "quiet")}
    if folder is not None and seed is not None:
        raise UsageError(
            f"--seed is for events that the check generates itself; {folder} has its own"
        )
    if folder is None:
        seed = 3 if seed is None else seed
        folder = Path(f"check-{seed}")
        try:
            validation.make_set(folder, seed, **cluster)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                "interrupted; finished units are kept; run the same command to continue"
            ) from stop
        except (GenerateError, StoreError) as error:
            raise type(error)(f"{error}; then run the same command to continue") from error
    checked = validation.check(folder, **cluster)
    tables.print_page(tables.comparison(checked), as_json=as_json)
    directory = folder / validation.FOLDER
    figures.draw(checked.comparisons, directory)
    validation.save(checked, directory)
    if not as_json:
        options.echo(f"figures: {directory}")
    validation.raise_if_bad(checked)


@generate.command(epilog="Example: agc-ml generate lookalike --events 600k -o large/")
@click.option("--events", metavar="N", required=True, help="Number of events: 5000, 200k, 1M.")
@_SEED
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder of the files.")
@click.option("--dataset", default="ttbar__nominal", show_default=True, help="Dataset to generate.")
@click.option(
    "--cluster-size",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Number of events in a cluster of the file.",
)
@options.logging_options
def lookalike(events: str, output: str, **given: Any) -> None:
    """Write files as large as the real ones, for speed measurements.

    All 947 branches of CMS's 2015 Open Data files, unfiltered events of about 2 kB: a few thousand
    generated ones, measured repeatedly. Branches that the generator does not fill are random.
    """
    from agc_ml.simulation import lookalike as large_files  # noqa: PLC0415 - heavy

    arguments = {key: given[key] for key in ("seed", "dataset", "cluster_size")}
    made = large_files.generate(output, events=parse_events(events), **arguments)
    for file in made.datasets[0].files:
        size = file.size or 0
        options.echo(f"{file.lfn}: {file.entries:,} events, {size / 1e6:,.1f} MB")
    options.echo(f"fileset: {shlex.quote(str(Path(output) / 'fileset.json'))}")
