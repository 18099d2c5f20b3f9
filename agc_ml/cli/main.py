"""``agc-ml``: its commands, and one line for every error.

Commands parse, call and print; they import what they call when they run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Final, NoReturn

import click

from agc_ml._version import __version__
from agc_ml.cli.analysis.commands import measure, plan, run
from agc_ml.cli.inputs.commands import fileset
from agc_ml.cli.results.commands import compare, fit, plot, report, show, validate
from agc_ml.cli.services.servicex import servicex
from agc_ml.cli.simulation.generate import generate
from agc_ml.cli.training.models import models
from agc_ml.cli.training.service import service as training_service
from agc_ml.cli.training.service import token
from agc_ml.cli.training.train import jobs, train
from agc_ml.errors import AgcError, Interrupted, printable

_MAX_SHOWN: Final = 10_000
"""Longest error that is shown, in characters."""

_NUMBA_DEFAULTS: Final = {"NUMBA_CACHE_DIR": "", "NUMBA_CACHE_LOCATOR_CLASSES": ""}
"""Settings that keep a foreign ``.numba_config.yaml`` in the working directory from choosing the
folder of numba's cache, which holds pickles."""


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 failed or incomplete, 2 wrong usage."""
    stops = _record_signals()
    os.environ.update({**_NUMBA_DEFAULTS, **os.environ})
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
    except BrokenPipeError:  # the reader of our output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(f"{place}{error.strerror or error}; check the path and its permissions", 1)
    except Exception as error:  # a bug: still one line, and the traceback with -v
        logging.getLogger("agc_ml").debug("", exc_info=True)
        bug = f"unexpected {type(error).__name__}: {error} (a bug in agc-ml; see it with -v)"
        # compiled modules turn a Ctrl-C during their import into an ImportError
        message, code = ("interrupted", Interrupted.exit_code) if stops else (bug, 1)
        _fail(message, code)
    sys.exit(code if isinstance(code, int) else 0)


def _record_signals() -> list[int]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM, also in the background, and record them."""
    stops: list[int] = []

    def stop(number: int, _: object) -> NoReturn:
        stops.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stops


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    shown = printable(line[:_MAX_SHOWN])
    click.echo(f"agc-ml: {shown}{' ...' * (len(line) > _MAX_SHOWN)}", err=True)
    sys.exit(code)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: agc-ml run dimuon FILE.root --cluster inline",
)
@click.version_option(__version__, prog_name="agc-ml")
def cli() -> None:
    """From NanoAOD files to histograms, fits and reports, on a laptop or a Dask cluster.

    'run' makes a run directory, and 'show', 'plot', 'fit' and 'report' work on it; 'measure' does
    all of this for the ttbar cross-section.
    """


@cli.group(epilog="Example: agc-ml service training")
def service() -> None:
    """Run services for analyses on this machine."""


_COMMANDS: Final[dict[click.Group, tuple[click.Command, ...]]] = {
    cli: (
        run,
        measure,
        plan,
        show,
        plot,
        fit,
        report,
        compare,
        validate,
        fileset,
        generate,
        train,
        jobs,
        models,
    ),
    service: (servicex, training_service, token),
}
for _group, _commands in _COMMANDS.items():
    for _command in _commands:
        _group.add_command(_command)
