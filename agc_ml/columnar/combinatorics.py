"""Choosing among the combinations of an event's jets.

Momenta are Cartesian, in GeV, in the precision of which sums are to be; offsets as in `jagged`.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.columnar.compiled import kernel

Array = NDArray[Any]

FEW: Final = 4
MANY: Final = 6
"""Least and largest number of jets that are permuted."""

_TABLES: Final = tuple(
    np.array([p for p in permutations(range(n), 4) if p[0] > p[1]], np.int64)
    for n in range(FEW, MANY + 1)
)
PERMUTATIONS: Final = np.concatenate(_TABLES)
"""Places (W1, W2, b of hadronic top, b of leptonic top) for 4, 5 and 6 jets: 12, 60 and 180."""

FIRST: Final = np.cumsum([0, *map(len, _TABLES)])
"""Where the permutations of 4, 5 and 6 jets begin in `PERMUTATIONS`, and where they end."""


def n_permutations(n_jets: Array) -> Array:
    """Number of permutations of the leading six of so many jets, four at least."""
    numbers: Array = np.diff(FIRST)[np.minimum(n_jets, MANY) - FEW]
    return numbers


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
def _of_four(f: Array, values: Array, w1: int, w2: int, had: int, lep: int) -> None:
    f[0] = values[w1]
    f[1] = values[w2]
    f[2] = values[had]
    f[3] = values[lep]


@kernel
def assignment_features(
    offsets: Array,
    jets: tuple[Array, Array, Array, Array, Array, Array, Array, Array, Array],
    with_lepton: tuple[Array, Array],
    wraps: bool,
    first: Array,
    table: Array,
    rows: Array,
) -> Array:
    """Features of every permutation of the leading jets of each event, float32, ``(n_rows, 20)``.

    ``jets`` are x, y, z, t, pt, eta, phi, b-tag and quark-gluon likelihood; ``with_lepton`` Delta R
    and mass of each jet with the event's lepton; ``first`` and ``table`` are `FIRST` and
    `PERMUTATIONS`, ``rows`` the offsets of the events' rows.
    """
    x, y, z, t, pt, eta, phi, btag, qgl = jets
    delta_r, mass = with_lepton
    features = np.empty((rows[-1], 20), np.float32)
    for event in range(len(offsets) - 1):
        start = offsets[event]
        n = min(offsets[event + 1] - start, MANY)
        row = rows[event]
        for place in range(first[n - FEW], first[n - FEW + 1]):
            w1, w2 = start + table[place, 0], start + table[place, 1]
            had, lep = start + table[place, 2], start + table[place, 3]
            f = features[row]
            f[0] = delta_r[lep]
            f[1] = distance(eta[w1] - eta[w2], phi[w1] - phi[w2], wraps)
            f[2] = distance(eta[w1] - eta[had], phi[w1] - phi[had], wraps)
            f[3] = distance(eta[w2] - eta[had], phi[w2] - phi[had], wraps)
            f[4] = mass[lep]
            px, py, pz, energy = x[w1] + x[w2], y[w1] + y[w2], z[w1] + z[w2], t[w1] + t[w2]
            f[5] = signed_root(energy * energy - (px * px + py * py + pz * pz))
            px, py, pz, energy = px + x[had], py + y[had], pz + z[had], energy + t[had]
            f[6] = signed_root(energy * energy - (px * px + py * py + pz * pz))
            f[7] = math.sqrt(px * px + py * py)
            _of_four(f[8:12], pt, w1, w2, had, lep)
            _of_four(f[12:16], btag, w1, w2, had, lep)
            _of_four(f[16:20], qgl, w1, w2, had, lep)
            row += 1
    return features


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
