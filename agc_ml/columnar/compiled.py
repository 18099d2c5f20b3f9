"""Kernels compiled by numba, cached on disk until their code changes."""

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
    """Compile a function for its argument types, without the interpreter's lock.

    Arithmetic is what the source says, in its order and precision.
    """
    digest = _digest(function.__code__.co_filename)
    return compile_cached(function, digest, nogil=True, error_model="numpy")


def compile_cached(function: Callable[..., Any], digest: str, **options: Any) -> Any:
    """Compile a function with numba's ``options``; reuse the cache as long as ``digest`` is equal.

    numba's own cache watches the file of a function only, but kernels call each other across files,
    and what they call is compiled into them.
    """
    compiled = njit(function, **options)
    try:
        compiled.enable_caching()
    except RuntimeError:
        _warn_uncached()
    else:
        compiled._cache._cache_file._source_stamp = digest  # noqa: SLF001 - numba has no option
    return compiled


@cache
def _warn_uncached() -> None:
    logger.warning(
        "kernels are compiled again in each process, which takes seconds: neither the package's "
        "folder nor the home is writable; set NUMBA_CACHE_DIR to a writable folder"
    )


@cache
def _digest(file: str) -> str:
    """Sha256 of a kernel's file and of the files here, whose kernels it may call."""
    digest = hashlib.sha256()
    for path in sorted({Path(file), *Path(__file__).parent.glob("*.py")}):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
