"""What a process may use that runs what others sent: memory, time, files, environment."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Final

from agc_ml.transports import xrootd

GB: Final = 10**9
FILE_BYTES: Final = 16 * GB
OPEN_FILES: Final = 1024
PROCESSES: Final = 256  # more than the user has when a transformation begins

# What is not here stays with the endpoint: transformations read files, and no secrets of others.
_HANDED_ON: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|PYTHONPATH|PYTHONHOME|VIRTUAL_ENV"
    r"|CONDA_PREFIX|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|NUMBA_CACHE_DIR|MALLOC_ARENA_MAX"
    r"|XRD_\w+|Xrd\w+|XROOTD\w*|X509_\w+|BEARER_TOKEN(_FILE)?|XDG_RUNTIME_DIR|KRB5\w+"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(?i:https?|ftp|all|no)_proxy"
    r"|AGC_ML_(?!\w*TOKEN)\w+|PYTHONDONTWRITEBYTECODE|PYTHONPYCACHEPREFIX"
)
# Before libraries are loaded. Of dask-awkward's optimisations one does not know today's Dask.
_SET: Final = {
    "DASK_SCHEDULER": "synchronous",
    "DASK_AWKWARD__OPTIMIZATION__WHICH": '["columns"]',
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The variables of a process that works in ``folder``, out of those of the endpoint."""
    kept = {name: value for name, value in given.items() if _HANDED_ON.fullmatch(name)}
    if paths := kept.get("PYTHONPATH"):  # may be relative to where the endpoint was started
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    return {**xrootd.SETTINGS, **_SET, **kept, "TMPDIR": str(folder)}


def limit(memory: float, seconds: float) -> None:
    """Limit this process and what it starts, each of them: ``memory`` bytes, ``seconds`` of CPU.

    Memory is what a process writes to; files that it maps don't count. The number of processes is
    the user's, and root's is never limited.
    """
    wanted = {
        resource.RLIMIT_DATA: int(memory),
        resource.RLIMIT_CPU: ceil(seconds),
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    with contextlib.suppress(OSError):  # no /proc: not on Linux
        wanted[resource.RLIMIT_NPROC] = _processes() + PROCESSES
    for what, most in wanted.items():
        hard = resource.getrlimit(what)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def _processes() -> int:
    """Number of processes and threads of the user."""
    count, user = 0, os.getuid()
    for folder in os.scandir("/proc"):
        with contextlib.suppress(OSError):  # it has ended
            if folder.name.isdecimal() and folder.stat().st_uid == user:
                count += sum(1 for _ in Path(folder.path, "task").iterdir())
    return count
