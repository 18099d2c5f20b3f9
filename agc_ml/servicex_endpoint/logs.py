"""A log that a flood of requests can't fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LINES_A_SECOND: Final = 20
_OTHERS: Final = ("tornado", "asyncio")


class Rate(logging.Filter):
    """Let so many lines a second pass; the first after others that did not says how many."""

    def __init__(self, lines_a_second: int = LINES_A_SECOND) -> None:
        super().__init__()
        self._most = lines_a_second
        self._second = 0
        self._count = 0
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > self._most:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"{record.getMessage()} (after {self._left_out:,} lines that are left out)"
            record.args = None
            self._left_out = 0
        return True


@contextmanager
def limited() -> Iterator[None]:
    """Limit what is logged meanwhile, also by libraries."""
    ours, rate = logging.getLogger("agc_ml"), Rate()
    others = [logging.getLogger(name) for name in _OTHERS]
    handlers = list(ours.handlers)
    for handler in handlers:
        handler.addFilter(rate)
    for logger in others:
        logger.propagate = False
        for handler in handlers or [logging.NullHandler()]:
            logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(rate)
        for logger in others:
            logger.propagate = True
            logger.handlers.clear()
