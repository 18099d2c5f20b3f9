"""Calling the command line, inside the test's process or as a process."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from agc_ml.cli import main

# Not ``python -m agc_ml``: an interrupt in the middle of an ``exec``, of which importing does many,
# makes CPython end that with the signal in place of the exit code.
PROGRAM = str(Path(sys.executable).with_name("agc-ml"))


class Called(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("agc-ml: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("agc-ml: ")


def agc(*arguments: object) -> Called:
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logger = logging.getLogger("agc_ml")
    path = list(sys.path)
    with (
        mock.patch.object(sys, "argv", ["agc-ml", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            sys.path[:] = path
            logger.handlers.clear()
            logger.setLevel(logging.NOTSET)
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Called(code, out.getvalue(), err.getvalue())
