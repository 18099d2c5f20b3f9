"""Logs: lines of JSON on stderr at a limited rate; rotation of log files."""

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

# Lines of a kind in a second; a line says how many were omitted
MAX_LINES: Final = 20

# Size of a log file; one older file is kept
MAX_BYTES: Final = 16_000_000


class JsonLines(logging.Formatter):
    """Formatter of records as lines of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
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
    """Lines of a kind in the current second; ``last`` is the last omitted one."""

    second: int
    lines: int = 0
    omitted: int = 0
    last: logging.LogRecord | None = None


class RateLimitedHandler(logging.StreamHandler[Any]):
    """Handler that writes at most `MAX_LINES` of a kind a second, then how many it omitted.

    A kind is a level of a logger; for requests also the method and the class of the status. So a
    flood of one kind hides no other.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())
        self._kinds: dict[tuple[Any, ...], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as omitted."""
        facts = getattr(record, "facts", {})
        key = (record.name, record.levelno, facts.get("method"), int(facts.get("status", 0)) // 100)
        second = int(record.created)
        kind = self._kinds.get(key)
        if kind is None or kind.second != second:
            self._log_omitted(kind)
            kind = self._kinds[key] = _Kind(second)
        kind.lines += 1
        if kind.lines > MAX_LINES:
            kind.omitted += 1
            kind.last = record
        else:
            super().emit(record)

    def flush(self) -> None:
        """Write how many lines were omitted in past seconds."""
        second = int(time.time())
        for kind in list(getattr(self, "_kinds", {}).values()):  # also called when Python ends
            if kind.second != second:
                self._log_omitted(kind)
        super().flush()

    def _log_omitted(self, kind: _Kind | None) -> None:
        if kind is None or kind.last is None:
            return
        last, number = kind.last, kind.omitted
        kind.last, kind.omitted = None, 0
        facts = getattr(last, "facts", {})
        line = {
            "time": _time(last.created),
            "level": last.levelname.lower(),
            "logger": last.name,
            "message": f"{number} more lines like this were omitted",
            **{name: facts[name] for name in ("method", "status") if name in facts},
            "left_out": number,
        }
        self.stream.write(json.dumps(line) + self.terminator)


def log_as_json(level: int) -> None:
    """Write the whole log to stderr, as lines of JSON."""
    logging.basicConfig(level=level, handlers=[RateLimitedHandler()], force=True)
    ours = logging.getLogger("agc_ml")
    ours.handlers.clear()  # the command line's
    ours.setLevel(level)
    for chatty in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # it warns of every invalid request
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def log_omitted() -> None:
    """Write how many lines were omitted, also when no other line follows."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def rotate(path: Path) -> None:
    """Rotate a log file that is too large, while its writer keeps it open for appending.

    The file is copied and truncated; lines written in between are lost.
    """
    try:
        if path.stat().st_size <= MAX_BYTES:
            return
        older = path.with_name(f"{path.name}.1")
        shutil.copyfile(path, older)
        os.truncate(path, 0)
    except FileNotFoundError:  # nothing has been written yet
        return
    except OSError as error:
        logging.getLogger(__name__).warning("%s: can't be rotated: %s", path, error)


def last_lines(path: Path, number: int) -> list[str]:
    """Return the last lines of a log file, from its last megabyte."""
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
