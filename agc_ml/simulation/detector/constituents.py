"""Inputs of jet-tagging models: particles of jets with impact parameters, secondary vertices."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agc_ml.simulation.detector.parameters import ConstituentParameters
from agc_ml.simulation.events import Array, Collection, collect
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth.genjets import GenJets
from agc_ml.simulation.truth.record import Record, charge, is_charged

MIN_PT: Final = 0.7  # GeV, of a candidate
_VERTEX_TRACK_PT, _VERTEX_TRACK_ETA = 0.5, 2.5
_PION, _MUON, _PHOTON, _NEUTRAL_HADRON = 211, 13, 22, 130
_PION_MASS: Final = 0.1396


def candidates(
    record: Record, jets: GenJets, kept: Array, seeds: Array, p: ConstituentParameters
) -> Collection:
    """Particle-flow candidates in jets; ``kept`` is the place of each jet in GenJet, or -1."""
    index, jet, values = _candidates(record, jets, seeds, p)
    code = np.abs(record.pdg[index])
    charges = _charges(record.pdg[index])
    charged = charges != 0
    as_charged = np.where(code <= _MUON, record.pdg[index], _PION * charges)
    as_neutral = np.where(code == _PHOTON, _PHOTON, _NEUTRAL_HADRON)
    # Particle flow tells charged particles, photons and neutral hadrons apart, and only leptons
    # among the charged ones.
    fields = {
        "pt": values[:, 0],
        "eta": record.eta[index],
        "phi": record.phi[index],
        "mass": np.where(charged, _PION_MASS, 0.0),
        "pdgId": np.where(charged, as_charged, as_neutral).astype(np.int32),
        "charge": charges,
        "d0": np.where(charged, values[:, 1], 0.0),
        "d0Err": np.where(charged, values[:, 2], 0.0),
        "dz": np.where(charged, values[:, 3], 0.0),
        "genJetIdx": kept[jet].astype(np.int32),
    }
    return collect(fields, jets.event[jet], record.n_events, np.ones(len(index), bool))


@kernel
def _charges(pdg: Array) -> Array:
    charges = np.empty(len(pdg), np.int32)
    for i in range(len(pdg)):
        charges[i] = charge(pdg[i])
    return charges


@kernel
def _candidates(
    record: Any, jets: Any, seeds: Array, p: ConstituentParameters
) -> tuple[Array, Array, Array]:
    """Index in the record and of the jet, and measured pt [GeV], d0, its error and dz [cm]."""
    members, first_member, first_jet = jets.members, jets.member_offsets, jets.offsets
    pdg, pt, px, py, pz = record.pdg, record.pt, record.px, record.py, record.pz
    vx, vy, vz = record.vx, record.vy, record.vz
    n = np.sum(pt[members] > MIN_PT)
    index, jet, values = np.empty(n, np.int64), np.empty(n, np.int64), np.empty((n, 4))
    k = 0
    for event in range(len(seeds)):
        np.random.seed(seeds[event])
        for j in range(first_jet[event], first_jet[event + 1]):
            for i in members[first_member[j] : first_member[j + 1]]:
                if pt[i] <= MIN_PT:
                    continue
                index[k], jet[k] = i, j
                # Relative resolution of pt: tracks, photons, neutral hadrons.
                if is_charged(pdg[i]):
                    spread = p.charged
                elif pdg[i] == _PHOTON:
                    spread = p.photon + p.photon_stochastic / np.sqrt(pt[i])
                else:
                    spread = p.neutral + p.neutral_stochastic / np.sqrt(pt[i])
                factor = 1 + spread * np.random.standard_normal()
                values[k, 0] = pt[i] * min(max(factor, 0.2), 3.0)
                error = p.transverse * np.sqrt(1 + (5.0 / pt[i]) ** 2)
                # Impact parameters of a straight line: curvature is negligible near the vertex.
                d0 = (vx[i] * py[i] - vy[i] * px[i]) / pt[i]
                dz = vz[i] - (vx[i] * px[i] + vy[i] * py[i]) / pt[i] * pz[i] / pt[i]
                values[k, 1] = d0 + error * np.random.standard_normal()
                values[k, 2] = error
                values[k, 3] = dz + 2 * error * np.random.standard_normal()
                k += 1
    return index, jet, values


def vertices(record: Record, hadrons: Array, seeds: Array, p: ConstituentParameters) -> Collection:
    """Secondary vertices of bottom and charm hadrons with two tracks or more.

    ``hadrons`` are from `record.heavy_hadrons`; positions in cm.
    """
    event, sums, drawn = _vertices(record, hadrons, seeds, p)
    # The position is the mean of the tracks' origins; its resolution improves with their number.
    n_tracks = sums[:, 4]
    spread = 1 + 2 / n_tracks
    resolution = np.array([p.vertex_transverse, p.vertex_transverse, p.vertex_longitudinal])
    position = sums[:, 5:8] / n_tracks[:, None] + drawn[:, :3] * resolution * spread[:, None]
    momentum, energy = sums[:, :3], sums[:, 3]
    length, transverse = np.sqrt((position**2).sum(1)), np.hypot(position[:, 0], position[:, 1])
    pt, total = np.hypot(momentum[:, 0], momentum[:, 1]), np.sqrt((momentum**2).sum(1))
    error = p.vertex_error * spread
    cosine = (momentum * position).sum(1) / np.maximum(total * length, 1e-9)
    fields = {
        "pt": pt,
        "eta": np.arcsinh(momentum[:, 2] / pt),
        "phi": np.arctan2(momentum[:, 1], momentum[:, 0]),
        "mass": np.sqrt(np.maximum(energy**2 - total**2, 0)),
        "x": position[:, 0],
        "y": position[:, 1],
        "z": position[:, 2],
        "dlen": length,
        "dlenSig": length / error,
        "dxy": transverse,
        "dxySig": transverse / error,
        "ntracks": n_tracks.astype(np.uint8),
        "charge": sums[:, 8].astype(np.int32),
        "chi2": drawn[:, 3],
        "ndof": 2 * n_tracks - 3,
        "pAngle": np.arccos(np.clip(cosine, -1, 1)),
    }
    keep = (length / error > p.min_significance) & (drawn[:, 4] < p.vertex_efficiency)
    return collect(fields, event, record.n_events, keep)


@kernel
def _vertices(
    record: Any, hadrons: Array, seeds: Array, p: ConstituentParameters
) -> tuple[Array, Array, Array]:
    """Event of each vertex, sums over its tracks (p, E, number, position, charge), random numbers.

    Tracks are assigned to the first heavy hadron of their decay chain.
    """
    offsets, mother, pdg, status = record.offsets, record.mother, record.pdg, record.status
    pt, eta, px, py, pz = record.pt, record.eta, record.px, record.py, record.pz
    vx, vy, vz = record.vx, record.vy, record.vz
    sums = np.zeros((len(pdg), 9))
    for event in range(len(seeds)):
        np.random.seed(seeds[event])
        for i in range(offsets[event], offsets[event + 1]):
            if status[i] <= 0 or not is_charged(pdg[i]):
                continue
            if pt[i] < _VERTEX_TRACK_PT or abs(eta[i]) > _VERTEX_TRACK_ETA:
                continue
            if np.random.random() > p.track_efficiency:
                continue
            # The topmost heavy hadron among the ancestors.
            m, top = mother[i], -1
            while m >= 0:
                if hadrons[m] > 0:
                    top = m
                m = mother[m]
            if top < 0:
                continue
            sums[top, 0] += px[i]
            sums[top, 1] += py[i]
            sums[top, 2] += pz[i]
            sums[top, 3] += np.sqrt(px[i] ** 2 + py[i] ** 2 + pz[i] ** 2 + _PION_MASS**2)
            sums[top, 4] += 1
            sums[top, 5] += vx[i]
            sums[top, 6] += vy[i]
            sums[top, 7] += vz[i]
            sums[top, 8] += charge(pdg[i])
    # Random numbers of each vertex, from a second seed of its event.
    chosen = np.flatnonzero(sums[:, 4] >= 2)
    events, drawn = np.empty(len(chosen), np.int64), np.empty((len(chosen), 5))
    event = -1
    for k in range(len(chosen)):
        while event < 0 or offsets[event + 1] <= chosen[k]:
            event += 1
            np.random.seed(seeds[event] ^ np.uint32(1))
        events[k] = event
        for axis in range(3):
            drawn[k, axis] = np.random.standard_normal()
        drawn[k, 3] = np.random.gamma(1.0, 1.0)
        drawn[k, 4] = np.random.random()
    return events, sums[chosen], drawn
