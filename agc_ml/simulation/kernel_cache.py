"""Compiled kernels, cached on disk, and what tells one version of their code from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from numba import njit

from agc_ml.simulation.samples import COMMON

PACKAGES: Final = ("pythia8mc", "fastjet", "numpy", "numba", "awkward")
"""Libraries whose version may decide an event."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function, and cache the outcome on disk until any of the kernels changes.

    numba's own cache looks at the file of a function only. Kernels call each other across files,
    and what they call is compiled into them.
    """
    compiled = njit(function)
    compiled.enable_caching()
    compiled._cache._cache_file._source_stamp = code_digest()  # noqa: SLF001 - numba has no option
    return compiled


@cache
def code_digest() -> str:
    """Sha256 of all that decides events in this process, but for what a unit brings along."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.name not in _NOT_DECIDING:
            digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    for setting in COMMON:
        digest.update(f"{setting.line}\0".encode())
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # it is told of where it is needed
            digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()


_NOT_DECIDING: Final = {
    *("figures.py", "lookalike.py", "manifest.py", "plan.py"),
    *("production.py", "samples.py", "validation.py"),
}
"""Files that decide no event, and `samples`: its settings travel with each unit."""
