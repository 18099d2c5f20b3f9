"""Pythia's event record as flat arrays, with mothers."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import awkward as ak
import numpy as np

from agc_ml.simulation.events import Array
from agc_ml.simulation.kernel_cache import kernel

SYSTEM: Final = 3
"""First entries of each event: the system and the two beams."""

NEUTRINOS: Final = (12, 14, 16)

_NO_MOTHER: Final = -1


class Record(NamedTuple):
    """Particles of many events, flat; those of event i stand at ``offsets[i]:offsets[i + 1]``.

    ``status`` is Pythia's (negative: decayed or branched), ``mother`` the index of the first mother
    in these arrays, -1 for none. Momenta, energies and masses in GeV, production vertices in cm.
    """

    offsets: Array
    pdg: Array
    status: Array
    mother: Array
    px: Array
    py: Array
    pz: Array
    energy: Array
    mass: Array
    pt: Array
    eta: Array
    phi: Array
    vx: Array
    vy: Array
    vz: Array

    @property
    def n_events(self) -> int:
        """Number of events."""
        return len(self.offsets) - 1

    @property
    def event(self) -> Array:
        """Index of each particle's event."""
        return np.repeat(np.arange(self.n_events), np.diff(self.offsets))


def flatten(particles: Any, *, vertices: bool = False) -> Record:
    """Record of the particles of ``Pythia.nextBatch``, shape ``(n_events, var)``.

    Without ``vertices`` all particles start at the origin, which saves time.
    """
    counts = ak.to_numpy(ak.num(particles))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = ak.flatten(particles)

    def column(values: Any, kind: type = np.float64) -> Array:
        return np.ascontiguousarray(ak.to_numpy(values), dtype=kind)

    def vertex(axis: str) -> Array:
        millimetre = 0.1
        if not vertices:
            return np.zeros(len(flat))
        return column(ak.fill_none(flat.vProd[axis], 0.0)) * millimetre

    px, py, pz = (column(flat.p[axis]) for axis in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    return Record(
        offsets=offsets,
        pdg=column(flat.id, np.int64),
        status=column(flat.status, np.int64),
        mother=_global_mothers(offsets, column(flat.mother1, np.int64)),
        px=px,
        py=py,
        pz=pz,
        energy=column(flat.p.e),
        mass=column(flat.m),
        pt=pt,
        eta=np.arcsinh(pz / np.maximum(pt, 1e-9)),
        phi=np.arctan2(py, px),
        vx=vertex("px"),
        vy=vertex("py"),
        vz=vertex("pz"),
    )


@kernel
def _global_mothers(offsets: Array, mother: Array) -> Array:
    """Indices of mothers in the whole arrays, of mothers that precede their daughters.

    Other mothers are incoming partons, which initial-state showers add backwards.
    """
    mothers = np.full(len(mother), _NO_MOTHER)
    for event in range(len(offsets) - 1):
        first = offsets[event]
        for i in range(first + SYSTEM, offsets[event + 1]):
            if SYSTEM <= mother[i] < i - first:
                mothers[i] = first + mother[i]
    return mothers


@kernel
def heaviest_quark(pdg: Any) -> Any:
    """Heaviest quark in a hadron with that PDG id; 0 for other particles.

    The numbering scheme is in the Review of Particle Physics, "Monte Carlo particle numbering".
    """
    code = abs(pdg)
    if code < 100 or code > 9_999_999 or (code // 10) % 10 == 0:
        return 0  # lepton, quark, boson; nucleus; diquark
    # The digits of a hadron's code are its quarks: three of a baryon, two of a meson.
    code %= 10_000
    baryon = code // 1000
    return baryon if baryon > 0 else (code // 100) % 10


@kernel
def is_neutrino(pdg: Any) -> Any:
    """Return True for particles that leave the detector unseen."""
    code = abs(pdg)
    return code in NEUTRINOS


@kernel
def is_charged(pdg: Any) -> Any:
    """Return True for stable particles that leave a track: e, mu, pi, K, p and hyperons."""
    code = abs(pdg)
    return (
        code == 11
        or code == 13
        or code == 211
        or code == 321
        or code == 2212
        or code == 3112
        or code == 3222
        or code == 3312
        or code == 3334
    )


@kernel
def charge(pdg: Any) -> Any:
    """Charge of a stable particle that leaves a track, 0 for others."""
    if not is_charged(pdg):
        return 0
    code = abs(pdg)
    # Leptons and these hyperons are negative for positive PDG ids.
    is_negative = code == 11 or code == 13 or code == 3112 or code == 3312 or code == 3334
    return -1 if is_negative == (pdg > 0) else 1


@kernel
def delta_phi(a: Any, b: Any) -> Any:
    """Difference of two azimuths, from -pi to pi."""
    difference = a - b
    if difference > np.pi:
        return difference - 2 * np.pi
    if difference < -np.pi:
        return difference + 2 * np.pi
    return difference


@kernel
def distance2(eta: Any, phi: Any, other_eta: Any, other_phi: Any) -> Any:
    """Squared distance in eta and phi."""
    d_eta, d_phi = eta - other_eta, delta_phi(phi, other_phi)
    return d_eta * d_eta + d_phi * d_phi


@kernel
def heavy_hadrons(record: Any) -> Array:
    """Flavour of weakly decaying heavy hadrons, 4 or 5, 0 for other particles; shape of ``pdg``."""
    flavour = np.zeros(len(record.pdg), np.int32)
    decayed = 80  # Pythia's statuses of decayed hadrons are -81 and below
    for i in range(len(record.pdg)):
        quark = heaviest_quark(record.pdg[i])
        if quark >= 4 and record.status[i] < -decayed:
            flavour[i] = quark
    # Excited hadrons decay to another one of the same flavour first: only the last one counts.
    for i in range(len(record.pdg)):
        mother = record.mother[i]
        if flavour[i] > 0 and mother >= 0 and flavour[mother] == flavour[i]:
            flavour[mother] = 0
    return flavour
