"""A processor that freezes, hangs or holds the interpreter; it needs little to get going."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from agc_ml.columnar.events import blocks


@dataclass(frozen=True)
class Count:
    """Counts events, and adds up their numbers.

    ``fault`` happens in the chunk of the file whose name contains ``where`` and that holds entry
    ``entry``: "freeze" once, as long as there is no file ``marker``; "hold N" and "wait N" seconds.
    """

    sleep: float = 0.0
    fault: str = ""
    where: str = "03"
    entry: int = 150
    marker: str = ""

    columns: ClassVar = ("event",)
    flat: ClassVar = True

    def process(self, events: Any) -> dict[str, Any]:
        """Number of events, and sum of theirs."""
        meta = events.metadata
        time.sleep(self.sleep)
        is_in_file = self.where in meta["filename"].rsplit("/", 1)[-1]
        if is_in_file and meta["entrystart"] <= self.entry < meta["entrystop"]:
            self._fail()
        numbers = [block.event for block in blocks(events)]
        return {"n": sum(map(len, numbers)), "sum": sum(int(some.sum()) for some in numbers)}

    def _fail(self) -> None:
        kind, _, seconds = self.fault.partition(" ")
        if kind == "freeze" and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "hold":
            with Path(self.marker).open("a") as marker:
                marker.write("x")
            ctypes.PyDLL(None).sleep(int(seconds))  # without letting go of the interpreter
        if kind == "wait":
            time.sleep(int(seconds))
