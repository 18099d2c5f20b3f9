"""The log: lines of JSON on stderr, not too many a second; log files that do not grow for ever."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Of a kind, in a second; of what is left out, there is a line with the number
MOST_LINES: Final = 20

# Of a log file; there is one older one of each
MOST_BYTES: Final = 16_000_000


class JsonLines(logging.Formatter):
    """Each record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """A line."""
        content = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content)


def _time(seconds: float) -> str:
    whole, parts = divmod(round(1000 * seconds), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{parts:03d}Z"


@dataclass
class _Kind:
    """Lines of a kind in the present second; ``last`` is the last one that was left out."""

    second: int
    lines: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class RateLimitedHandler(logging.StreamHandler[Any]):
    """Writes at most `MOST_LINES` of a kind a second, and then how many were left out.

    A kind is a level of a logger; of requests, one sort of answer to one sort of method. So a
    flood of one kind hides no other.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        facts = getattr(record, "facts", {})
        key = (record.name, record.levelno, facts.get("method"), int(facts.get("status", 0)) // 100)
        second = int(record.created)
        kind = self._kinds.get(key)
        if kind is None or kind.second != second:
            self._tell(kind)
            kind = self._kinds[key] = _Kind(second)
        kind.lines += 1
        if kind.lines > MOST_LINES:
            kind.left_out += 1
            kind.last = record
        else:
            super().emit(record)

    def flush(self) -> None:
        """Say what was left out in seconds that are over."""
        second = int(time.time())
        for kind in list(getattr(self, "_kinds", {}).values()):  # also called when Python ends
            if kind.second != second:
                self._tell(kind)
        super().flush()

    def _tell(self, kind: _Kind | None) -> None:
        if kind is None or kind.last is None:
            return
        last, number = kind.last, kind.left_out
        kind.last, kind.left_out = None, 0
        facts = getattr(last, "facts", {})
        line = {
            "time": _time(last.created),
            "level": last.levelname.lower(),
            "logger": last.name,
            "message": f"{number} more lines like this were left out",
            **{name: facts[name] for name in ("method", "status") if name in facts},
            "left_out": number,
        }
        self.stream.write(json.dumps(line) + self.terminator)


def log_as_json(level: int) -> None:
    """Have all that is logged written to stderr, a line of JSON each."""
    logging.basicConfig(level=level, handlers=[RateLimitedHandler()], force=True)
    ours = logging.getLogger("agc_ml")
    ours.handlers.clear()  # that of the command line
    ours.setLevel(level)
    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # its warnings are of requests that make no sense
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def log_omitted() -> None:
    """Have lines that were left out counted in the log, also when no other one follows."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def rotate(path: Path) -> None:
    """Put a log file aside that is too large: what writes it, at its end, goes on in an empty one.

    It is copied, as its writer keeps it open; what is written meanwhile is lost.
    """
    try:
        if path.stat().st_size <= MOST_BYTES:
            return
        older = path.with_name(f"{path.name}.1")
        shutil.copyfile(path, older)
        os.truncate(path, 0)
    except FileNotFoundError:  # nothing has been written yet
        return
    except OSError as error:
        logging.getLogger(__name__).warning("%s: can't be put aside: %s", path, error)


def last_lines(path: Path, number: int) -> list[str]:
    """The last lines of a log file, of which it reads a megabyte at most."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(size - (1 << 20), 0)
            file.seek(begin)
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    whole = lines[1:] if begin and len(lines) > 1 else lines
    return whole[-number:]
