"""``agc-ml generate``: parse, call, print."""

from __future__ import annotations

import shlex
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from agc_ml.cli import options
from agc_ml.errors import GenerateError, Interrupted, StoreError, UsageError

_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}
_ABSURD = Decimal(10) ** 40  # no number of events; longer ones can't even be told
_SEED = click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="The same seed gives the same events.",
)


def parse_events(text: str) -> int:
    """A number of events: ``30000``, ``30k``, ``1.5M``.

    Raises
    ------
    UsageError
        It is none.
    """
    digits, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 1)
    try:
        number = Decimal(digits) * factor
        is_whole = 1 <= number < _ABSURD and number == int(number)
    except (ArithmeticError, ValueError):  # no number, or none that is finite
        is_whole = False
    if not is_whole:
        raise UsageError(f"--events {text}: a number of events is needed, such as 5000, 30k or 1M")
    return int(number)


@click.group(
    invoke_without_command=True,
    epilog="Example: agc-ml generate --events 10k -o data/ --workers 2",
)
@click.option("--events", metavar="N", help="Events of the whole set: 5000, 30k, 1M.")
@click.option("--datasets", metavar="A,B*", help="Only datasets that match [all nine].")
@_SEED
@click.option("-o", "--output", metavar="DIR", help="Folder of the set.")
@click.option(
    "--content",
    type=click.Choice(["full", "slim"]),
    default="full",
    show_default=True,
    help="All branches, or those that the measurement and its training read.",
)
@click.option("--constituents", is_flag=True, help="Add particles of jets and vertices.")
@click.option(
    "--emulate-cms2015-muon-id",
    is_flag=True,
    help="All identification flags of muons zero, as in CMS's 2015 files.",
)
@click.option("--resume", is_flag=True, help="Go on where DIR stopped.")
@options.cluster_options
@options.dashboard_option
@options.patience_option
@options.json_option
@options.logging_options
@click.pass_context
def generate(context: click.Context, /, **given: Any) -> None:
    """Generate NanoAOD events of the datasets of the ttbar measurement.

    Pythia 8 with a parametrised detector; needs the extra 'generate'. The folder gets a
    fileset.json that every command takes, and a manifest.json that says what made it.
    """
    if context.invoked_subcommand is not None:
        _refuse_lost_options(context)
        return
    from agc_ml.simulation import production  # noqa: PLC0415 - heavy

    for name in ("events", "output"):
        if given[name] is None:
            raise UsageError(f"--{name} is missing (see agc-ml generate --help)")
    output = Path(given["output"])
    datasets = given["datasets"]
    names = ["seed", "content", "constituents", "emulate_cms2015_muon_id"]
    names += ["site", "workers", "dashboard", "patience", "resume", "quiet"]
    arguments = {
        "events": parse_events(given["events"]),
        "datasets": None if datasets is None else datasets.split(","),
        **{name: given[name] for name in names},
    }
    made = options.resumable(
        output,
        lambda: production.generate(output, **arguments),
        kept="units",
    )
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand

    tables.generated(made).print(as_json=given["as_json"])
    if not given["as_json"]:
        where = shlex.quote(str(output / "fileset.json"))
        options.echo(f"measure them with: agc-ml measure {where}")


def _refuse_lost_options(context: click.Context) -> None:
    """Options between ``generate`` and a subcommand would have no effect."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            name = context.invoked_subcommand
            raise UsageError(
                f"{parameter.opts[-1]} belongs behind {name}: agc-ml generate {name} ..."
            )


@generate.command(epilog="Example: agc-ml generate check data/")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Of the events, without DIR [3].")
@options.cluster_options
@options.json_option
@options.logging_options
def check(folder: Path | None, seed: int | None, as_json: bool, **given: Any) -> None:
    """Compare a generated set with the published histograms; exit code 1 if it is too far.

    Without DIR the events that it needs are made in check-SEED (half an hour on two cores). Table
    and figures are electrons only, as the published histograms are; figures go to DIR/check.
    """
    from agc_ml.cli import tables  # noqa: PLC0415 - on demand
    from agc_ml.simulation import validation as checking  # noqa: PLC0415 - heavy

    how = {key: given[key] for key in ("site", "workers", "quiet")}
    if folder is not None and seed is not None:
        raise UsageError(f"--seed is for events that the check makes itself; {folder} has its own")
    if folder is None:
        seed = 3 if seed is None else seed
        folder = Path(f"check-{seed}")
        try:
            checking.make_set(folder, seed, **how)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                "interrupted; what is finished is kept; the same command goes on"
            ) from stop
        except (GenerateError, StoreError) as error:
            raise type(error)(f"{error}; then the same command goes on") from error
    checked = checking.check(folder, **how)
    tables.comparison(checked).print(as_json=as_json)
    figures = checking.write(checked, folder)
    if not as_json:
        options.echo(f"figures: {figures}")
    checking.raise_if_bad(checked)


@generate.command(epilog="Example: agc-ml generate lookalike --events 600k -o large/")
@click.option("--events", metavar="N", required=True, help="Events: 5000, 200k, 1M.")
@_SEED
@click.option("-o", "--output", metavar="DIR", required=True, help="Folder of the files.")
@click.option("--dataset", default="ttbar__nominal", show_default=True, help="Which process.")
@click.option(
    "--cluster-size",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Events whose columns lie together.",
)
@options.logging_options
def lookalike(events: str, output: str, **given: Any) -> None:
    """Write files as large as the real ones, to measure speed with.

    All 947 branches of CMS's 2015 Open Data files, unfiltered events, about 2 kB each: a few
    thousand generated ones, measured again and again. Branches that the generator does not fill
    are random.
    """
    from agc_ml.simulation import lookalike as large  # noqa: PLC0415 - heavy

    how = {key: given[key] for key in ("seed", "dataset", "cluster_size")}
    made = large.generate(output, events=parse_events(events), **how)
    for file in made.datasets[0].files:
        size = file.size or 0
        options.echo(f"{file.lfn}: {file.entries:,} events, {size / 1e6:,.1f} MB")
    options.echo(f"fileset: {shlex.quote(str(Path(output) / 'fileset.json'))}")
