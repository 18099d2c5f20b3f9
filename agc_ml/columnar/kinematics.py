"""Four-momenta as plain arrays; energies, momenta and masses in GeV, angles in radians.

The arithmetic equals that of vector's and coffea's records to the last bit: in the precision of
the input, in the order of these formulas. A negative mass stands for a negative squared mass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any


class Momenta(NamedTuple):
    """Cartesian components, all of one shape."""

    x: Array
    y: Array
    z: Array
    t: Array


def cartesian(pt: Array, eta: Array, phi: Array, mass: Array) -> Momenta:
    """Components of momenta given by pt, eta, phi and mass."""
    return Momenta(pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy(pt, eta, mass))


def energy(pt: Array, eta: Array, mass: Array) -> Array:
    """Energy of momenta given by pt, eta and mass."""
    return np.sqrt(np.maximum(_signed_square(mass) + pt**2 * _over_sine(eta) ** 2, 0))


def pair_mass(
    first: tuple[Array, Array, Array, Array], second: tuple[Array, Array, Array, Array]
) -> Array:
    """Mass of pairs, each member given by (pt, eta, phi, mass), added in polar coordinates."""
    (pt, eta, phi, mass), (other_pt, other_eta, other_phi, other_mass) = first, second
    # Transverse components of the sum, along and across the first member.
    along = pt + other_pt * np.cos(other_phi - phi)
    across = other_pt * np.sin(other_phi - phi)
    sum_pt = np.sqrt(along**2 + across**2)
    sum_eta = np.arcsinh((pt * np.sinh(eta) + other_pt * np.sinh(other_eta)) / sum_pt)
    sum_t = energy(pt, eta, mass) + energy(other_pt, other_eta, other_mass)
    squared = sum_t**2 - sum_pt**2 * _over_sine(sum_eta) ** 2
    return np.copysign(np.sqrt(np.abs(squared)), squared)


def _signed_square(mass: Array) -> Array:
    return np.copysign(mass**2, mass)


def _over_sine(eta: Array) -> Array:
    """One over the sine of the polar angle."""
    e = np.exp(-eta)
    return 0.5 * (1 + e**2) / e
