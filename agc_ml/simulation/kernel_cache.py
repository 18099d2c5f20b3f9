"""Kernels of the simulation, and the digest of all code that decides an event."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from agc_ml.columnar.compiled import compile_cached
from agc_ml.simulation.samples import COMMON

PACKAGES: Final = ("pythia8mc", "fastjet", "numpy", "numba", "awkward")
"""Libraries whose version may decide an event."""

_NOT_DECIDING: Final = {
    "figures.py",
    "lookalike.py",
    "manifest.py",
    "plan.py",
    "production.py",
    "samples.py",
    "validation.py",
}
"""Files that decide no event, and `samples`, whose settings travel with each unit."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function; the cache is valid until any code of the simulation changes."""
    return compile_cached(function, code_digest())


@cache
def code_digest() -> str:
    """Sha256 of all that decides events in this process, except what a unit carries."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        if path.name not in _NOT_DECIDING:
            digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    for setting in COMMON:
        digest.update(f"{setting.line}\0".encode())
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # `make` reports a missing library
            digest.update(f"{name} {version(name)}\0".encode())
    return digest.hexdigest()
