"""Choosing among the combinations of an event's jets.

Momenta are Cartesian, in GeV, in the precision of which sums are to be; offsets as in `jagged`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agc_ml.columnar.compiled import kernel

Array = NDArray[Any]


@kernel
def signed_root(squared: Any) -> Any:
    """Root that keeps the sign."""
    return math.copysign(math.sqrt(abs(squared)), squared)


@kernel
def best_trijet_mass(
    offsets: Array, x: Array, y: Array, z: Array, t: Array, tagged: Array
) -> Array:
    """Mass of the three-jet system with the highest pt among those with a tagged jet.

    The first one, where two have the same pt; 0 where there is none. Shape ``(n_events,)``.
    """
    masses = np.zeros(len(offsets) - 1, x.dtype)
    for event in range(len(masses)):
        start, stop = offsets[event], offsets[event + 1]
        highest = -1.0
        for i in range(start, stop):
            for j in range(i + 1, stop):
                for k in range(j + 1, stop):
                    if not (tagged[i] or tagged[j] or tagged[k]):
                        continue
                    px, py = x[i] + x[j] + x[k], y[i] + y[j] + y[k]
                    transverse = px * px + py * py
                    pt = math.sqrt(transverse)
                    if pt > highest:
                        highest = pt
                        pz, energy = z[i] + z[j] + z[k], t[i] + t[j] + t[k]
                        masses[event] = signed_root(energy * energy - (transverse + pz * pz))
    return masses


@kernel
def distance(eta: Any, phi: Any, wraps: bool) -> Any:
    """Delta R of differences in eta and phi; phi as it is, unless ``wraps`` it to [-pi, pi]."""
    if wraps:
        around = (phi + math.pi) % (2 * math.pi) - math.pi
        return math.sqrt(eta * eta + around * around)
    return math.sqrt(eta * eta + phi * phi)


@kernel
def distances(eta: Array, phi: Array, wraps: bool) -> Array:
    """Delta R of differences in eta and phi, in their precision; as `distance`."""
    found = np.empty(len(eta), eta.dtype)
    for i in range(len(eta)):
        found[i] = distance(eta[i], phi[i], wraps)
    return found


@kernel
def highest(rows: Array, scores: Array) -> Array:
    """Row with the highest score of each event, the first one on ties, shape ``(n_events,)``."""
    best = np.empty(len(rows) - 1, np.int64)
    for event in range(len(best)):
        best[event] = rows[event]
        for row in range(rows[event] + 1, rows[event + 1]):
            if scores[row] > scores[best[event]]:
                best[event] = row
    return best
