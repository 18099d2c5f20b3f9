"""Limits of a process that runs foreign code: memory, time, files, environment."""

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
PROCESSES: Final = 256  # more than the user has when a process begins

# Other variables stay in the endpoint: processes read files, and don't see other secrets.
_PASSED: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_\w+|TZ|PYTHONPATH|PYTHONHOME|VIRTUAL_ENV"
    r"|CONDA_PREFIX|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|NUMBA_CACHE_DIR|MALLOC_ARENA_MAX"
    r"|XRD_\w+|Xrd\w+|XROOTD\w*|X509_\w+|BEARER_TOKEN(_FILE)?|XDG_RUNTIME_DIR|KRB5\w+"
    r"|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(?i:https?|ftp|all|no)_proxy"
    r"|AGC_ML_(?!\w*TOKEN)\w+|PYTHONDONTWRITEBYTECODE|PYTHONPYCACHEPREFIX"
)
# Set before libraries load. One of dask-awkward's optimisations fails with today's Dask.
_SET: Final = {
    "DASK_SCHEDULER": "synchronous",
    "DASK_AWKWARD__OPTIMIZATION__WHICH": '["columns"]',
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def environment(endpoint: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a process in ``folder``, from that of the endpoint."""
    kept = {name: value for name, value in endpoint.items() if _PASSED.fullmatch(name)}
    if paths := kept.get("PYTHONPATH"):  # may be relative to the endpoint's folder
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    return {**xrootd.SETTINGS, **_SET, **kept, "TMPDIR": str(folder)}


def limit(memory: float, seconds: float) -> None:
    """Limit this process and each of its descendants: ``memory`` bytes, ``seconds`` of CPU.

    Memory is memory that a process writes to, without mapped files. The number of processes is
    that of the user, and root's is never limited.
    """
    limits = {
        resource.RLIMIT_DATA: int(memory),
        resource.RLIMIT_CPU: ceil(seconds),
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    with contextlib.suppress(OSError):  # no /proc: not on Linux
        limits[resource.RLIMIT_NPROC] = _n_processes() + PROCESSES
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _n_processes() -> int:
    """Return the number of processes and threads of the user."""
    count, user = 0, os.getuid()
    for folder in os.scandir("/proc"):
        with contextlib.suppress(OSError):  # it has ended
            if folder.name.isdecimal() and folder.stat().st_uid == user:
                count += sum(1 for _ in Path(folder.path, "task").iterdir())
    return count
