"""Systematic variations: names, sources and directions.

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
    """Return the name of a variation: ``<source>_<direction>``."""
    return f"{source}_{direction}"


def source_of(name: str) -> tuple[str, Direction | None]:
    """Return source and direction of a variation's name; no direction if the name has none.

    The inverse of `variation_name`, for histograms of other programs.
    The published datasets ``scaleup`` and ``scaledown`` are the two sides of one source too.
    """
    for direction in DIRECTIONS:
        if name.endswith(direction) and name != direction:
            return name.removesuffix(direction).removesuffix("_"), direction
    return name, None


@dataclass(frozen=True, slots=True)
class WeightVariation:
    """Change of the event weights, from nominal jets.

    ``factor(jets, direction)`` returns the factor on each event weight, shape ``(n_events,)``.
    ``processes`` are those it applies to, None means all.
    """

    source: str
    factor: Callable[[Any, Direction], Any]
    processes: frozenset[str] | None = None

    def along(self, direction: Direction) -> Callable[[Any], Any]:
        """Return the factor in one direction, as a function of the jets."""
        return lambda jets: self.factor(jets, direction)

    def applies_to(self, process: str) -> bool:
        """Return whether this source of uncertainty exists for ``process``."""
        return self.processes is None or process in self.processes
