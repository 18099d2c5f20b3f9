"""Models whose libraries may crash on them are opened in a process of their own first.

A process that ends by a signal, or takes more than its time or memory, is a line for the user. Only
a model that one survived is opened where others would suffer. This module is what it runs, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import ModelError
from agc_ml.models import model
from agc_ml.models.model import Format

CPU_S: Final = 10
"""Seconds of a processor, to open a model and to score a few rows; more for large ones."""

BYTES_A_SECOND: Final = 10_000_000
MEMORY: Final = 2_000_000_000
"""Bytes, beside those of its libraries; more for large ones."""

COPIES: Final = 8
"""Of a model's bytes, that its library may have at once."""

START_S: Final = 120
"""Seconds to begin: file systems that Python is on may be slow."""

PATIENCE: Final = 6
"""Seconds by the clock for one of a processor, where others want it, too."""

LABEL: Final = "the model"
"""What it is called in the process of its own, which does not know its name."""

_PASSED_ON: Final = (
    *("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "SYSTEMROOT"),
    *("PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "TMPDIR", "TZ"),
)
_UNNEEDED: Final = ("sklearn", "pandas", "pyarrow")
"""What xgboost imports where it is there: two seconds."""

_NO_MEMORY: Final = re.compile("bad.?alloc|allocat|Available memory", re.IGNORECASE)


def ensure(data: bytes, format: Format, label: str) -> None:  # noqa: A002 - as in Model
    """See that a model can be opened: once a content, in a process of its own.

    Raises
    ------
    ModelError
        It can't, crashes its library, or takes more time or memory than is allowed.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if not model.is_vouched(sha256):
        reason = _tried(data, format)
        if reason:
            raise ModelError(f"{label}: {reason}")
        model.vouch(sha256)


def _tried(data: bytes, format: Format) -> str:  # noqa: A002 - as in Model
    """Open a model in a process of its own; why it can't be, "" if it can."""
    most_cpu = CPU_S + len(data) // BYTES_A_SECOND
    deadline = START_S + PATIENCE * most_cpu
    paths = [str(Path(place or ".").absolute()) for place in sys.path]
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            # -P: nothing is imported from where the user happens to be
            [sys.executable, "-P", "-m", __name__, format, str(most_cpu)],
            env={**given, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"no process can be started to open it first ({error.strerror}); try again"
    try:
        told, _ = process.communicate(data, timeout=deadline)
    except subprocess.TimeoutExpired:
        _kill(process)
        return f"reading it takes more than {deadline} s; train or export it anew"
    except BaseException:
        _kill(process)
        raise
    if process.returncode < 0:
        return _of_signal(-process.returncode, most_cpu)
    try:
        return str(json.loads(told)["reason"])
    except (ValueError, KeyError, TypeError):
        return "reading it ended the reader without a word; train or export it anew"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _of_signal(number: int, most_cpu: int) -> str:
    if number == signal.SIGXCPU:
        return (
            f"reading it and scoring a few rows takes more than {most_cpu} s; train or export it "
            "anew"
        )
    try:
        name = signal.Signals(number).name
    except ValueError:  # one of those without a name
        name = f"signal {number}"
    return f"reading it crashed the reader ({name}); train or export it anew"


def main() -> None:
    """Open the model that comes on standard input, and tell why it can't be, if so."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("w") as nowhere:  # libraries may print
        os.dup2(nowhere.fileno(), 1)
    format: Any = sys.argv[1]  # noqa: A001 - as in Model
    for name in _UNNEEDED:
        sys.modules[name] = None  # type: ignore[assignment]
    data = sys.stdin.buffer.read()
    model.vouch(hashlib.sha256(data).hexdigest())  # here it may crash
    json.dump({"reason": _reason(data, format, int(sys.argv[2]))}, told)
    told.close()
    os._exit(0)  # a library that was misled may crash while it goes


def _reason(data: bytes, format: Format, most_cpu: int) -> str:  # noqa: A002 - as in Model
    from agc_ml.models.backends import backends  # noqa: PLC0415 - it builds on this module

    most = MEMORY + COPIES * len(data)
    try:
        backends.import_library(format)
        _limit(most, most_cpu)
        backends.try_out(data, format)
    except ModelError as error:
        reason = str(error).removeprefix(f"{LABEL}: ")
        if not _NO_MEMORY.search(reason):
            return reason
    except MemoryError:
        pass
    else:
        return ""
    return (
        f"reading it and scoring a few rows takes more than {most / 1e9:.1f} GB of memory, "
        "damaged perhaps; train or export it anew"
    )


def _limit(memory: int, cpu: int) -> None:
    """Limit what this process may take from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = cpu + int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with contextlib.suppress(FileNotFoundError):  # where there is no /proc, memory is not limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = memory + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
