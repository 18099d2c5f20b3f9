"""Environment of a worker that reads files: limits of the XRootD client, and credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from agc_ml.transports import credentials, xrootd


def collect(*, is_private: bool) -> dict[str, str]:
    """Return the variables to set on workers; secrets only over an ``is_private`` connection."""
    access = credentials.environment()
    if not is_private:
        access.pop("BEARER_TOKEN", None)
    limits = {name: os.environ.get(name, value) for name, value in xrootd.SETTINGS.items()}
    return {**limits, **access}


def apply(environment: Mapping[str, str]) -> None:
    """Set variables in this process: files only if they exist, limits only where none is set."""
    for name, value in environment.items():
        if name in xrootd.SETTINGS:
            os.environ.setdefault(name, value)
        elif name not in credentials.FILE_VARIABLES or Path(value).exists():
            os.environ[name] = value
