"""A log that a flood of requests can't fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

LINES_PER_SECOND: Final = 20
_LIBRARIES: Final = ("tornado", "asyncio")


class RateLimit(logging.Filter):
    """Pass so many lines a second; the first one after dropped lines says how many."""

    def __init__(self, lines_per_second: int = LINES_PER_SECOND) -> None:
        super().__init__()
        self._limit = lines_per_second
        self._second = self._count = self._n_dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > self._limit:
            self._n_dropped += 1
            return False
        if self._n_dropped:
            record.msg = (
                f"{record.getMessage()} (after {self._n_dropped:,} lines that are left out)"
            )
            record.args = None
            self._n_dropped = 0
        return True


@contextmanager
def rate_limited() -> Iterator[None]:
    """Limit the log of the endpoint and of its libraries."""
    handlers, limit = list(logging.getLogger("agc_ml").handlers), RateLimit()
    with ExitStack() as undo:
        for handler in handlers:
            handler.addFilter(limit)
            undo.callback(handler.removeFilter, limit)
        for logger in map(logging.getLogger, _LIBRARIES):
            logger.propagate = False
            undo.callback(setattr, logger, "propagate", True)
            undo.callback(logger.handlers.clear)
            for handler in handlers or [logging.NullHandler()]:
                logger.addHandler(handler)
        yield
