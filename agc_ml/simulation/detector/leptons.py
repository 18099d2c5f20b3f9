"""Detector response to electrons and muons: momentum, isolation, identification."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.simulation.detector.parameters import (
    ElectronParameters,
    EventParameters,
    ImpactParameters,
    MuonParameters,
)
from agc_ml.simulation.events import Array
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth.genpart import PROMPT, PROMPT_TAU_PRODUCT
from agc_ml.simulation.truth.record import distance2, heaviest_quark, is_charged, is_neutrino

ELECTRON: Final = 11
MUON: Final = 13
TIGHT, MEDIUM, LOOSE, VETO, FAIL = 4, 3, 2, 1, 0
"""Values of ``Electron_cutBased``."""

FROM_PROMPT, FROM_TAU, FROM_BOTTOM, FROM_CHARM, FROM_LIGHT = 1, 15, 5, 4, 3
"""Values of ``genPartFlav``."""

_PHOTON: Final = 22


class GenLeptons(NamedTuple):
    """Generated leptons: index in the record, event, pt with radiated photons, pt around them.

    ``around`` and ``charged_around`` [GeV] are sums of pt of other visible particles in the
    isolation cone; ``origin`` is as in ``genPartFlav``.
    """

    particle: Array
    event: Array
    pt: Array
    around: Array
    charged_around: Array
    origin: Array


class Track(NamedTuple):
    """Isolation, relative to pt, and impact parameters [cm] of leptons."""

    isolation: Array
    charged_isolation: Array
    dxy: Array
    dxy_error: Array
    dz: Array
    dz_error: Array
    ip3d: Array
    sip3d: Array


@kernel
def find(
    record: Any, flags: Array, kind: Any, min_pt: Any, max_eta: Any, cone: Any, fsr_cone: Any
) -> GenLeptons:
    """All stable electrons or muons above ``min_pt`` [GeV] and within ``max_eta``."""
    # Local names: for each access to a tuple, numba counts references of all its arrays.
    offsets, pdg, status = record.offsets, record.pdg, record.status
    pt, eta, phi, mother = record.pt, record.eta, record.phi, record.mother
    candidate = np.zeros(len(pdg), np.bool_)
    for i in range(len(pdg)):
        is_kind = status[i] > 0 and abs(pdg[i]) == kind
        candidate[i] = is_kind and pt[i] > min_pt and abs(eta[i]) < max_eta
    index = np.flatnonzero(candidate)
    n = len(index)
    event, origin = np.empty(n, np.int64), np.empty(n, np.uint8)
    dressed, around, charged = pt[index], np.zeros(n), np.zeros(n)
    e = 0
    for k in range(n):
        i = index[k]
        while offsets[e + 1] <= i:
            e += 1
        event[k] = e
        # Isolation and final-state radiation: visible particles in the cones.
        for other in range(offsets[e], offsets[e + 1]):
            if other == i or status[other] <= 0 or abs(eta[other] - eta[i]) > cone:
                continue
            near = distance2(eta[other], phi[other], eta[i], phi[i])
            if near > cone**2 or is_neutrino(pdg[other]):
                continue
            if near < fsr_cone**2 and pdg[other] == _PHOTON:
                dressed[k] += pt[other]
            else:
                around[k] += pt[other]
                if is_charged(pdg[other]):
                    charged[k] += pt[other]
        # Origin: prompt, from a tau, or from a hadron.
        if flags[i] & PROMPT:
            origin[k] = FROM_PROMPT
        elif flags[i] & PROMPT_TAU_PRODUCT:
            origin[k] = FROM_TAU
        else:
            origin[k] = _flavour(i, mother, pdg)
    return GenLeptons(index, event, dressed, around, charged, origin)


@kernel
def _flavour(i: Any, mother: Array, pdg: Array) -> Any:
    """Heaviest quark of a lepton's ancestors, as in ``genPartFlav``."""
    heaviest = FROM_LIGHT
    while i >= 0:
        heaviest = max(heaviest, min(heaviest_quark(pdg[i]), FROM_BOTTOM))
        i = mother[i]
    return heaviest


@kernel
def measure_electrons(
    gen: GenLeptons, eta: Array, seeds: Array, p: ElectronParameters, t: ImpactParameters,
    e: EventParameters,
) -> tuple[Array, Array, Array, Track]:  # fmt: skip
    """Measured pt [GeV], mask of reconstructed electrons, ``cutBased``, and tracks."""
    n = len(gen.pt)
    pt, cut_based = np.empty(n), np.empty(n, np.int32)
    seen, track = np.zeros(n, np.bool_), _empty_track(n)
    last = -1
    for k in range(n):
        if gen.event[k] != last:
            last = gen.event[k]
            np.random.seed(seeds[last])
        # Calorimeter resolution sqrt((N / pt)^2 + S^2 / pt + C^2), worse in the endcaps.
        true, endcap = gen.pt[k], abs(eta[k]) > p.barrel_eta
        resolution = np.sqrt((p.noise / true) ** 2 + p.stochastic**2 / true + p.constant**2)
        if endcap:
            resolution *= p.endcap_resolution
        pt[k] = true * (1 + resolution * np.random.standard_normal())
        efficiency = p.efficiency if true > 20 else p.soft_efficiency
        seen[k] = np.random.random() < efficiency and pt[k] > p.min_pt
        _measure_track(gen, k, t, e, track)
        cut_based[k] = _identified(true, abs(eta[k]), endcap, track.isolation[k], p)
    return pt, seen, cut_based, track


@kernel
def _identified(pt: Any, eta: Any, endcap: Any, isolation: Any, p: ElectronParameters) -> Any:
    # Efficiencies of nested working points, then cuts on isolation and the crack.
    tight = p.tight_plateau * (1 - np.exp(-pt / p.tight_turn_on)) * (p.endcap if endcap else 1.0)
    u = np.random.random()
    if u < tight:
        level = TIGHT
    elif u < tight + p.medium:
        level = MEDIUM
    elif u < tight + p.loose:
        level = LOOSE
    else:
        level = VETO if u < tight + p.veto else FAIL
    if isolation > p.loosest_isolation:
        return FAIL
    if isolation > (p.endcap_isolation if endcap else p.barrel_isolation):
        return min(level, LOOSE)
    in_crack = p.crack[0] < eta < p.crack[1]
    return min(level, MEDIUM) if in_crack else level


@kernel
def measure_muons(
    gen: GenLeptons, eta: Array, seeds: Array, p: MuonParameters, t: ImpactParameters,
    e: EventParameters,
) -> tuple[Array, Array, Array, Array, Array, Track]:  # fmt: skip
    """Measured pt [GeV], masks of reconstructed, tight and medium muons, layers, tracks."""
    n = len(gen.pt)
    pt, layers = np.empty(n), np.empty(n, np.int32)
    seen, tight, medium = np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    track = _empty_track(n)
    last = -1
    for k in range(n):
        if gen.event[k] != last:
            last = gen.event[k]
            np.random.seed(seeds[last])
        # Tracker resolution: multiple scattering, and curvature at high pt.
        resolution = np.sqrt(p.constant**2 + (p.per_gev * gen.pt[k]) ** 2)
        if abs(eta[k]) > 1.2:
            resolution *= p.endcap_resolution
        pt[k] = gen.pt[k] * (1 + resolution * np.random.standard_normal())
        seen[k] = np.random.random() < p.efficiency and pt[k] > p.min_pt
        _measure_track(gen, k, t, e, track)
        tight[k] = np.random.random() < p.tight
        medium[k] = np.random.random() < p.medium or tight[k]
        layers[k] = np.random.randint(9, 16)
    return pt, seen, tight, medium, layers, track


@kernel
def _empty_track(n: Any) -> Track:
    return Track(
        np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n),
        np.empty(n),
    )  # fmt: skip


@kernel
def _measure_track(
    gen: GenLeptons, k: Any, t: ImpactParameters, e: EventParameters, track: Track
) -> None:
    """Draw isolation noise and impact parameters of lepton ``k``."""
    # Isolation: generated activity, and noise of pile-up.
    pt = gen.pt[k]
    noise = max(np.random.exponential(e.isolation) - e.isolation_offset, 0.0)
    track.isolation[k] = (gen.around[k] + noise) / pt
    drawn = np.random.exponential(e.charged_isolation)
    charged_noise = max(drawn - e.charged_isolation_offset, 0.0)
    track.charged_isolation[k] = (gen.charged_around[k] + charged_noise) / pt
    # Leptons of hadrons and taus start away from the primary vertex.
    displaced = 0.0
    if gen.origin[k] != FROM_PROMPT:
        mean = t.from_tau if gen.origin[k] == FROM_TAU else t.from_hadron
        displaced = np.random.exponential(mean)
    error = t.transverse + t.transverse_per_gev / pt
    dxy = error * np.random.standard_normal() + displaced * _sign()
    dz = t.longitudinal * np.random.standard_normal() + displaced * _sign()
    track.dxy[k], track.dxy_error[k] = dxy, error
    track.dz[k], track.dz_error[k] = dz, t.longitudinal
    track.ip3d[k] = np.sqrt(dxy**2 + dz**2)
    track.sip3d[k] = np.sqrt(0.6 * (dxy / error) ** 2 + 0.4 * (dz / t.longitudinal) ** 2)


@kernel
def _sign() -> Any:
    return 1.0 if np.random.random() < 0.5 else -1.0
