"""Options that several commands share, each group as one decorator."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from agc_ml.errors import AgcError, Interrupted, ProcessorError, UsageError, WaitError, printable

Command = TypeVar("Command", bound=Callable[..., Any])


def _set_level(context: click.Context, parameter: click.Parameter, value: int | bool) -> Any:
    """Send the log to standard error: warnings always, more with -v, only errors with -q."""
    if context.resilient_parsing:
        return value
    quiet = parameter.name == "quiet"
    level = logging.ERROR if quiet and value else logging.DEBUG if value else None
    logger = logging.getLogger("agc_ml")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Lines("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    if level is not None:
        logger.setLevel(level)
    return value


def echo(line: object, *, err: bool = False) -> None:
    """Print a line, as a terminal may have it: the names in it may come from files of others."""
    click.echo(printable(str(line)), err=err)


class _Lines(logging.Formatter):
    """Lines that a terminal takes for nothing else."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _in_seconds(_: click.Context, __: click.Parameter, minutes: float | None) -> float | None:
    if minutes is not None and math.isnan(minutes):
        raise click.BadParameter("a number of minutes is needed")
    return None if minutes is None else 60 * minutes


class Port(click.IntRange):
    """A port that may be left out, so that what follows may be taken for it."""

    def __init__(self) -> None:
        super().__init__(0, 65535)

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Return the number."""
        try:
            return super().convert(value, param, context)
        except click.BadParameter:
            self.fail(f"{value} is no port; where none is meant, put the option last")


def together(*parts: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make one decorator of several; ``--help`` lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(parts):
            command = option(command)
        return command

    return decorate


dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="Dataset name for ROOT files given directly or in a list [name of the file].",
)
label_option = click.option(
    "--label",
    metavar="TEXT",
    help="Whose events they are, on figures [as the fileset or the files say].",
)
choice_options = together(
    click.option("--max-files", type=click.IntRange(1), help="Files of each dataset."),
    click.option("--datasets", metavar="A,B*", help="Only datasets that match."),
    dataset_option,
)
cluster_options = together(
    click.option(
        "--cluster",
        "site",
        default="local",
        show_default=True,
        metavar="SITE",
        help="local, inline (this process, for a debugger), or tcp://host:port.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Local workers [all cores]."),
)
dashboard_option = click.option(
    "--dashboard",
    type=Port(),
    is_flag=False,
    flag_value="0",
    metavar="[PORT]",
    help="Open the dashboard of local workers on this machine, where its other users can read it "
    "[8787 where free].",
)
patience_option = click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    callback=_in_seconds,
    metavar="MINUTES",
    help="Stop, to go on later, if nothing finishes for so long and no worker that answers is at "
    "work; inf: never [10; without any worker yet 5].",
)
via_option = click.option(
    "--via",
    metavar="WAY",
    help="How to reach the files: local, https[=URL], xrootd[=URL], xcache=URL[,URL...], "
    "servicex[=ENDPOINT] "
    "[replicas as they are listed].",
)
reading_options = together(
    via_option,
    click.option(
        "--token-host",
        "token_hosts",
        metavar="HOST",
        multiple=True,
        help="Host, or *.DOMAIN, that may have your bearer token; may be repeated "
        "[those in AGC_ML_TOKEN_HOSTS].",
    ),
)
processor_options = together(
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        help="A parameter of the processor; may be repeated.",
    ),
    click.option(
        "--model",
        metavar="MODEL",
        help="What the processor scores with: a file, a card, a folder with one, or "
        "grpc://host:port/name?version=1.",
    ),
    click.option(
        "--schema",
        metavar="NAME",
        help="Schema of coffea's that makes records of events: NanoAOD, Base, PHYSLITE, TreeMaker, "
        "Delphes ... [the processor's, else NanoAOD].",
    ),
)
plan_options = together(
    choice_options,
    processor_options,
    click.option("--chunk-size", type=click.IntRange(1), help="Most events of a chunk [100000]."),
    cluster_options,
    reading_options,
)
run_options = together(
    click.option("-o", "--output", metavar="DIR", help="Run directory [runs/...]."),
    click.option("--resume", is_flag=True, help="Go on where DIR stopped."),
    click.option(
        "--overwrite", is_flag=True, help="Replace the run in DIR, once the new results stand."
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="With --resume: read pickles that you did not write on this machine; they can run any "
        "code.",
    ),
    click.option(
        "--allow-missing",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="Events of each dataset that may be missing [0].",
    ),
    click.option(
        "--verify-checksums",
        is_flag=True,
        help="Read files whole first, and compare them with the adler32 that the fileset states.",
    ),
    label_option,
    plan_options,
    dashboard_option,
    patience_option,
)
logging_options = together(
    click.option("-v", "--verbose", is_flag=True, callback=_set_level, help="Tell more."),
    click.option("-q", "--quiet", is_flag=True, callback=_set_level, help="Show errors only."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
pseudodata_option = click.option(
    "--pseudodata",
    type=click.Choice(["published", "complete"]),
    help="What to fit: 'published' (AGC's pseudodata, no single top) or 'complete' (single top "
    "too; closes at 1) [as before in this run, else published].",
)


def resumable(output: Path, work: Callable[[], Any], *, kept: str) -> Any:
    """Do the work; if it stops half-way, say which command goes on.

    ``kept`` is the folder where finished parts are, in ``output`` or in one that is in it.

    Raises
    ------
    AgcError
        As of ``work``; `Interrupted` for Ctrl-C.
    """
    words = [word for word in sys.argv[1:] if word not in {"--resume", "--overwrite"}]
    if not any(word.startswith(("-o", "--output")) for word in words):
        words += ["-o", str(output)]
    command = shlex.join(["agc-ml", *words, "--resume"])
    try:
        return work()
    except KeyboardInterrupt as stop:
        hint = "what is finished is kept; " if _is_kept(output, kept) else ""
        raise Interrupted(f"interrupted; {hint}go on with: {command}") from stop
    except AgcError as error:
        told = f"{error}; --patience waits longer" if isinstance(error, WaitError) else str(error)
        would_not_help = isinstance(error, ProcessorError | UsageError) or "--resume" in told
        if _is_kept(output, kept) and not would_not_help:
            told = f"{told}; go on with: {command}"
        if told == str(error):
            raise
        raise type(error)(told) from error


def _is_kept(output: Path, kept: str) -> bool:
    return any(path.is_dir() for path in (output / kept, *output.glob(f".*/{kept}")))
