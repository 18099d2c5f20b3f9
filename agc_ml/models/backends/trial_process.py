"""Program of an isolated process: opens one model within limits of time and memory.

``python -m agc_ml.models.backends.trial_process FORMAT CPU_S`` reads the model from standard input
and writes ``{"reason": ...}``, the reason why it can't be opened, "" if it can.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import sys
from pathlib import Path
from typing import Final

from agc_ml.errors import ModelError
from agc_ml.models import content
from agc_ml.models.backends import onnx_graph, xgboost_backend
from agc_ml.models.backends.probing import import_library

MEMORY: Final = 2_000_000_000
"""Bytes to open a model, besides its libraries; more for large ones."""

COPIES: Final = 8
"""Copies of a model's bytes that its library may hold at once."""

LABEL: Final = "the model"
"""Label of the model in this process, which does not know its name."""

_TRIALS: Final = {
    "onnx": ("onnxruntime", onnx_graph.try_out),
    "xgboost": ("xgboost", xgboost_backend.try_out),
}
_UNNEEDED: Final = ("sklearn", "pandas", "pyarrow")
"""Optional imports of xgboost: two seconds."""

_NO_MEMORY: Final = re.compile("bad.?alloc|allocat|Available memory", re.IGNORECASE)


def main() -> None:
    """Open the model on standard input, and report why it can't be opened."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open("w") as nowhere:  # libraries may print
        os.dup2(nowhere.fileno(), 1)
    for name in _UNNEEDED:
        sys.modules[name] = None  # type: ignore[assignment]
    data = sys.stdin.buffer.read()
    content.mark_safe(hashlib.sha256(data).hexdigest())  # this process may crash
    json.dump({"reason": _failure(data, sys.argv[1], int(sys.argv[2]))}, answer)
    answer.close()
    os._exit(0)  # a library misled by the model may crash at exit


def _failure(data: bytes, format: str, most_cpu: int) -> str:  # noqa: A002 - as in Model
    library, try_out = _TRIALS[format]
    most = MEMORY + COPIES * len(data)
    try:
        import_library(library, LABEL)
        _limit(most, most_cpu)
        try_out(data, LABEL)
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
        "damaged perhaps; train or export it again"
    )


def _limit(memory: int, cpu: int) -> None:
    """Limit memory and CPU time of this process, from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = cpu + int(used.ru_utime + used.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with contextlib.suppress(FileNotFoundError):  # without /proc, memory is not limited
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = memory + pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
