"""How kernels are compiled: once, cached on disk, without the interpreter's lock."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

logger = logging.getLogger(__name__)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function for the types it is called with, cached until any of the kernels changes.

    Arithmetic is what the source says, in its order and precision. numba's own cache looks at the
    file of a function only, but kernels call each other across files.
    """
    compiled = njit(function, nogil=True, error_model="numpy")
    try:
        compiled.enable_caching()
    except RuntimeError:
        _say_uncached()
    else:
        stamp = _digest(function.__code__.co_filename)
        compiled._cache._cache_file._source_stamp = stamp  # noqa: SLF001 - numba has no option
    return compiled


@cache
def _say_uncached() -> None:
    logger.warning(
        "kernels are compiled anew in each process, which takes seconds: neither the package's "
        "folder nor the home is writable; name a folder that is in NUMBA_CACHE_DIR"
    )


@cache
def _digest(file: str) -> str:
    """Sha256 of a kernel's file and of those here, whose kernels it may call."""
    digest = hashlib.sha256()
    for path in sorted({Path(file), *Path(__file__).parent.glob("*.py")}):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
