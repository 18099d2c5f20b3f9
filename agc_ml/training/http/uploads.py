"""Validation of an uploaded training set, in a child process that may crash.

The sizes in a file are checked before it is unpacked, but they may be wrong, or the library may
crash: so the process has limits of memory and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import TrainingError

logger = logging.getLogger(__name__)

_LABEL: Final = "the training set"
_MAGIC: Final = b"PAR1"
# Bytes of the length of the footer
_LENGTH: Final = 4

# Threads need address space, which is limited, and there may be hundreds of cores
_FEW_THREADS: Final = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_IO_THREADS"), "1"),
    "MALLOC_ARENA_MAX": "1",
}

_SECONDS: Final = 600.0
_BASE: Final = 2 << 30
_LEAST: Final = 32_000_000
# Largest ratio of a table to its file, beyond `_LEAST` bytes: measured numbers compress less
_RATIO: Final = 100

# Copies of a table in memory: Arrow's, numpy's, features, and those of sorting
_COPIES: Final = 6


async def check(path: Path, digest: str, most_bytes: int) -> None:
    """Check that a file is the training set of a digest, and fits into memory.

    Raises
    ------
    TrainingError
        It is not, or it is not a valid training set.
    """
    if not _may_be_parquet(path):
        raise TrainingError(f"{_LABEL}: can't be read as Parquet (it is none); extract it again")
    # a new session: signals to the service do not reach it
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "agc_ml.training.http.uploads",
        str(path),
        digest,
        str(most_bytes),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **_FEW_THREADS},
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), _SECONDS)
    except TimeoutError as error:
        raise TrainingError(
            f"{_LABEL}: not read after {_SECONDS:g} s; extract fewer events into it"
        ) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    # it crashed: memory, time, or a bug of the library
    if process.returncode:
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        logger.warning("reader of a training set: %s: %s", how, errors[-500:].decode("latin-1"))
        raise TrainingError(
            f"{_LABEL}: can't be read as Parquet (its reader ended: {how}); extract it again"
        )
    answer: dict[str, str] = json.loads(output)
    if "error" in answer:
        raise TrainingError(answer["error"])


def _may_be_parquet(path: Path) -> bool:
    """Return whether a file begins and ends like Parquet; no process is started otherwise."""
    with path.open("rb") as file:
        begin = file.read(len(_MAGIC))
        size = file.seek(0, os.SEEK_END)
        if size < 2 * len(_MAGIC) + _LENGTH:
            return False
        file.seek(-len(_MAGIC) - _LENGTH, os.SEEK_END)
        length, end = int.from_bytes(file.read(_LENGTH), "little"), file.read()
    return begin == end == _MAGIC and length <= size - 2 * len(_MAGIC) - _LENGTH


def main(path: str, digest: str, most_bytes: str) -> dict[str, Any]:
    """Validate a file; return the error, if there is one."""
    # limit the address space before a library reads the file
    size = Path(path).stat().st_size
    most = min(int(most_bytes), max(_LEAST, _RATIO * size))
    label = _LABEL if most == int(most_bytes) else f"{_LABEL} (a file of {size:,} bytes)"
    with contextlib.suppress(ValueError, OSError):  # not every system has it
        resource.setrlimit(resource.RLIMIT_AS, (_BASE + _COPIES * most,) * 2)
    os.nice(5)
    from agc_ml.results import tables  # noqa: PLC0415 - within the limits

    try:
        with Path(path).open("rb") as file:
            table = tables.read(file, TrainingError, most, label)
        from agc_ml.training import training_set  # noqa: PLC0415 - likewise, and takes a second

        training_set.of_table(table)
    except MemoryError:
        return {
            "error": f"{label}: takes too much memory; at most {most / 1e6:,.0f} MB are taken: "
            "extract fewer events into it, or start the service with a larger --max-upload"
        }
    except TrainingError as error:
        return {"error": str(error)}
    if table.digest != digest:
        return {
            "error": f"{_LABEL} has the digest {table.digest}, not {digest}; name the right one"
        }
    return {}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))  # noqa: T201 - it is read by `check`
