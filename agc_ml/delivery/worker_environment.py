"""What a worker needs before it reads anything: limits of the XRootD client, and credentials."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from agc_ml.transports import credentials, xrootd

_TOKEN: Final = "BEARER_TOKEN"  # noqa: S105 - the name of a variable


def collect(*, is_private: bool) -> dict[str, str]:
    """The variables to set on workers; secrets only if what carries them ``is_private``."""
    found = credentials.environment()
    if not is_private:
        found.pop(_TOKEN, None)
    own = {name: os.environ[name] for name in xrootd.SETTINGS if name in os.environ}
    return {**xrootd.SETTINGS, **own, **found}


def equip(environment: Mapping[str, str]) -> None:
    """Set the variables in this process; files only where they are, limits where nobody did."""
    for name, value in environment.items():
        if name in xrootd.SETTINGS:
            os.environ.setdefault(name, value)
        elif name not in credentials.FILES or Path(value).exists():
            os.environ[name] = value
