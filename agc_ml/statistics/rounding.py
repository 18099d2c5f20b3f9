"""Rounding of results as the Particle Data Group does it.

The three highest digits of an uncertainty decide: up to 354 two digits are kept, up to 949 one, and
from 950 it is rounded to 1000 and keeps two. The value is rounded to the same place. Source: R. L.
Workman et al., Review of Particle Physics, introduction, section 5.3 (Rounding).
"""

from __future__ import annotations

import math
from typing import Final

TWO_DIGITS: Final = 355
"""First three digits of an uncertainty from which one digit is kept."""
ROUNDED_UP: Final = 950
"""First three digits of an uncertainty that is rounded up to 1000."""


def pdg(value: float, uncertainty: float) -> tuple[str, str]:
    """Round a value and its uncertainty, both as text without an exponent.

    An uncertainty that is zero or not finite says nothing; six digits of the value are kept then.

    >>> pdg(730.02, 118.83)
    ('730', '120')
    >>> pdg(0.9608, 0.0988)
    ('0.96', '0.10')
    """
    if not (math.isfinite(value) and math.isfinite(uncertainty) and uncertainty > 0):
        return f"{value + 0.0:.6g}", f"{uncertainty:.3g}"
    place = math.floor(math.log10(uncertainty))
    digits = round(uncertainty / 10.0 ** (place - 2))
    if digits >= ROUNDED_UP:
        place, uncertainty = place + 1, 10.0 ** (place + 1)
    decimals = (1 if digits < TWO_DIGITS or digits >= ROUNDED_UP else 0) - place
    shown = max(decimals, 0)
    # adding 0.0 makes 0 of -0
    rounded = (f"{round(one, decimals) + 0.0:.{shown}f}" for one in (value, uncertainty))
    return tuple(rounded)  # type: ignore[return-value]


def with_uncertainty(value: float, uncertainty: float) -> str:
    """Write ``value ± uncertainty``, rounded by `pdg`."""
    return " ± ".join(pdg(value, uncertainty))
