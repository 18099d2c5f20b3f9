"""Models whose libraries may crash on them: opened in an isolated process first.

A signal, or too much time or memory, becomes one line for the user. Only a model that such a
process survived is opened elsewhere; `trial_process` is the program that it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from agc_ml.errors import ModelError
from agc_ml.models import content
from agc_ml.models.content import Format

CPU_S: Final = 10
"""CPU seconds to open a model and score a few rows; more for large ones."""

BYTES_A_SECOND: Final = 10_000_000

START_S: Final = 120
"""Seconds to start Python, perhaps from a slow file system."""

PATIENCE: Final = 6
"""Wall-clock seconds per CPU second, on a busy machine."""

_TRIAL: Final = "agc_ml.models.backends.trial_process"
_ENVIRONMENT: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "PATH",
    "SYSTEMROOT",
    "PYTHONHOME",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "TMPDIR",
    "TZ",
)
"""Variables that the process inherits: no secrets."""


def ensure_safe(data: bytes, format: Format, label: str) -> None:  # noqa: A002 - as in Model
    """Try a model in an isolated process, once for each content.

    Raises
    ------
    ModelError
        It can't be opened, crashes its library, or takes too much time or memory.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if not content.is_safe(sha256):
        reason = _trial_failure(data, format)
        if reason:
            raise ModelError(f"{label}: {reason}")
        content.mark_safe(sha256)


def _trial_failure(data: bytes, format: Format) -> str:  # noqa: A002 - as in Model
    """Open a model in an isolated process; the reason why it can't be opened, "" if it can."""
    most_cpu = CPU_S + len(data) // BYTES_A_SECOND
    deadline = START_S + PATIENCE * most_cpu
    paths = [str(Path(place or ".").absolute()) for place in sys.path]
    inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        process = subprocess.Popen(  # noqa: S603 - our own module
            # -P: import nothing from the user's working directory
            [sys.executable, "-P", "-m", _TRIAL, format, str(most_cpu)],
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"no process can be started to open it first ({error.strerror}); try again"
    try:
        answer, _ = process.communicate(data, timeout=deadline)
    except subprocess.TimeoutExpired:
        _kill(process)
        return f"reading it takes more than {deadline} s; train or export it again"
    except BaseException:
        _kill(process)
        raise
    if process.returncode < 0:
        return _signal_message(-process.returncode, most_cpu)
    try:
        return str(json.loads(answer)["reason"])
    except (ValueError, KeyError, TypeError):
        return "reading it ended the reader without a message; train or export it again"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _signal_message(number: int, most_cpu: int) -> str:
    if number == signal.SIGXCPU:
        return (
            f"reading it and scoring a few rows takes more than {most_cpu} s; train or export it "
            "again"
        )
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        name = f"signal {number}"
    return f"reading it crashed the reader ({name}); train or export it again"
