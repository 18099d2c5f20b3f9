"""Options and output that several commands share; each group of options is one decorator."""

from __future__ import annotations

import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agc_ml.errors import AgcError, Interrupted, ProcessorError, UsageError, WaitError, printable

if TYPE_CHECKING:
    from agc_ml.statistics.fit_result import FitResult

Command = TypeVar("Command", bound=Callable[..., Any])


def _set_level(context: click.Context, parameter: click.Parameter, value: int | bool) -> Any:
    """Send the log to standard error: warnings by default, more with -v, only errors with -q."""
    if context.resilient_parsing:
        return value
    quiet = parameter.name == "quiet"
    level = logging.ERROR if quiet and value else logging.DEBUG if value else None
    logger = logging.getLogger("agc_ml")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableLines("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    if level is not None:
        logger.setLevel(level)
    return value


def echo(line: object, *, err: bool = False) -> None:
    """Print a line without terminal control characters, which foreign files may contain."""
    click.echo(printable(str(line)), err=err)


def print_fit(result: FitResult) -> None:
    """Print the result of a fit and what was fitted; notes on the fit are in the log."""
    for line in (result, *result.facts):
        echo(line)


class _PrintableLines(logging.Formatter):
    """Log lines without terminal control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _parse_settings(
    _: click.Context, __: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair}: FIELD=VALUE is needed")
        if name in settings:
            raise UsageError(f"--set {name}: given twice, as {settings[name]} and as {value}")
        settings[name] = value
    return settings


def _in_seconds(_: click.Context, __: click.Parameter, minutes: float | None) -> float | None:
    if minutes is not None and math.isnan(minutes):
        raise click.BadParameter("a number of minutes is needed")
    return None if minutes is None else 60 * minutes


class Port(click.IntRange):
    """Optional port of an option; the next argument may be mistaken for it."""

    def __init__(self) -> None:
        super().__init__(0, 65535)

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Return the port number."""
        try:
            return super().convert(value, param, context)
        except click.BadParameter:
            self.fail(f"{value} is not a port; without a port, put the option last")


def together(*parts: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Combine decorators into one; ``--help`` lists their options in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(parts):
            command = option(command)
        return command

    return decorate


dataset_option = click.option(
    "--dataset",
    metavar="NAME",
    help="Dataset name for ROOT files given directly or in a list [file name].",
)
label_option = click.option(
    "--label",
    metavar="TEXT",
    help="Label above figures that says whose events these are [that of the fileset or files].",
)
choice_options = together(
    click.option(
        "--max-files",
        metavar="N",
        type=click.IntRange(1),
        help="Use only the first N files of each dataset [all].",
    ),
    click.option(
        "--datasets", metavar="A,B*", help="Use only datasets whose name matches a pattern [all]."
    ),
    dataset_option,
)
cluster_options = together(
    click.option(
        "--cluster",
        "site",
        default="local",
        show_default=True,
        metavar="SITE",
        help="Where to run: 'local' (Dask workers on this machine), 'inline' (in this process, for "
        "debugging), or a Dask scheduler, tcp://host:port.",
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(1),
        help="Number of local workers [one for each core].",
    ),
)
dashboard_option = click.option(
    "--dashboard",
    type=Port(),
    is_flag=False,
    flag_value="0",
    metavar="[PORT]",
    help="Serve Dask's dashboard of local workers on this port of this machine; its other users "
    "can read it [no dashboard; without PORT 8787, if free].",
)
patience_option = click.option(
    "--patience",
    type=click.FloatRange(0, min_open=True),
    callback=_in_seconds,
    metavar="MINUTES",
    help="Stop if for this long no chunk finishes and no responding worker is busy; --resume "
    "continues. inf: wait for ever [10; 5 until the first worker appears].",
)
via_option = click.option(
    "--via",
    metavar="ROUTE",
    help="Route to the files: local, https[=URL], xrootd[=URL], xcache=URL[,URL...], "
    "servicex[=ENDPOINT] [the replicas, in the order of the fileset].",
)
reading_options = together(
    via_option,
    click.option(
        "--token-host",
        "token_hosts",
        metavar="HOST",
        multiple=True,
        help="Host, or *.DOMAIN, that may receive your bearer token; may be repeated "
        "[AGC_ML_TOKEN_HOSTS].",
    ),
)
processor_options = together(
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="FIELD=VALUE",
        callback=_parse_settings,
        help="Set a parameter of the processor; may be repeated.",
    ),
    click.option(
        "--model",
        metavar="MODEL",
        help="Model for the processor: a file, a model card, a folder with one, NAME@VERSION or "
        "NAME@champion of a registry, or grpc://host:port/name?version=1.",
    ),
    click.option(
        "--schema",
        metavar="NAME",
        help="coffea schema of the events: NanoAOD, Base, PHYSLITE, TreeMaker, Delphes, ... [that "
        "of the processor, else NanoAOD].",
    ),
)
plan_options = together(
    choice_options,
    processor_options,
    click.option(
        "--chunk-size",
        metavar="N",
        type=click.IntRange(1),
        help="Largest number of events in a chunk [100000].",
    ),
    cluster_options,
    reading_options,
)
run_options = together(
    click.option("-o", "--output", metavar="DIR", help="Run directory [runs/PROCESSOR-TIME]."),
    click.option("--resume", is_flag=True, help="Continue the run in DIR."),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace the run in DIR when the new results are complete.",
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="With --resume: also read pickles that were not written by you on this machine; they "
        "can run any code.",
    ),
    click.option(
        "--allow-missing",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="Accept the run if at most this fraction of each dataset could not be read [0].",
    ),
    click.option(
        "--verify-checksums",
        is_flag=True,
        help="First read whole files and compare them with the adler32 checksums of the fileset.",
    ),
    label_option,
    plan_options,
    dashboard_option,
    patience_option,
)
logging_options = together(
    click.option(
        "-v", "--verbose", is_flag=True, callback=_set_level, help="Print more log messages."
    ),
    click.option("-q", "--quiet", is_flag=True, callback=_set_level, help="Print errors only."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
pseudodata_option = click.option(
    "--pseudodata",
    metavar="KIND",
    help="Pseudodata to fit, of a kind that the analysis declares; of ttbar: 'published' (AGC's, "
    "no single top) or 'complete' (single top too; closes at 1) [that of the run's last command, "
    "else the first].",
)


def resumable(output: Path, work: Callable[[], Any], *, kept: str) -> Any:
    """Do the work; if it stops half-way, tell the command that resumes it.

    ``kept`` is the folder of finished parts, in ``output`` or in a hidden folder of it.

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
        hint = "finished parts are kept; " if _is_kept(output, kept) else ""
        raise Interrupted(f"interrupted; {hint}resume with: {command}") from stop
    except AgcError as error:
        message = str(error)
        if isinstance(error, WaitError):
            message = f"{message}; --patience waits longer"
        is_futile = isinstance(error, ProcessorError | UsageError) or "--resume" in message
        if _is_kept(output, kept) and not is_futile:
            message = f"{message}; resume with: {command}"
        if message == str(error):
            raise
        raise type(error)(message) from error


def _is_kept(output: Path, kept: str) -> bool:
    return any(path.is_dir() for path in (output / kept, *output.glob(f".*/{kept}")))
