"""Systematic variations: their names, and which of them a dataset has.

A variation is called ``nominal``, ``<source>_up`` or ``<source>_down``. A kinematic variation
changes the objects, so selection and observables run again for it; a weight variation only
multiplies the weights of events that are selected already. Both are made of nominal datasets; a
dataset that *is* a variation (another generator, another scale) is filled once, under its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

NOMINAL: Final = "nominal"

Direction = Literal["up", "down"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("up", "down")


def variation_name(source: str, direction: Direction) -> str:
    """Name of a variation: ``<source>_<direction>``."""
    return f"{source}_{direction}"


def source_of(name: str) -> tuple[str, Direction | None]:
    """Source and direction of a variation's name; no direction when the name states none.

    The inverse of `variation_name`, for histograms that come from outside with names only.
    The published datasets ``scaleup`` and ``scaledown`` are the two sides of one source too.
    """
    for direction in DIRECTIONS:
        if name.endswith(direction) and name != direction:
            return name.removesuffix(direction).removesuffix("_"), direction
    return name, None


@dataclass(frozen=True, slots=True)
class WeightVariation:
    """A change of the event weights, from nominal jets.

    ``factor(jets, direction)`` gives the factor on the weight of each event, shape ``(n_events,)``.
    ``processes`` are the ones it applies to; None means all.
    """

    source: str
    factor: Callable[[Any, Direction], Any]
    processes: frozenset[str] | None = None

    def along(self, direction: Direction) -> Callable[[Any], Any]:
        """The factor in one direction, as a function of the jets."""
        return lambda jets: self.factor(jets, direction)

    def applies_to(self, process: str) -> bool:
        """Return whether this source of uncertainty exists for ``process``."""
        return self.processes is None or process in self.processes
