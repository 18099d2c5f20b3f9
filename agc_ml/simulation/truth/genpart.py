"""GenPart: the particles of the generator's record that NanoAOD keeps, with CMS's status flags.

The bits are those of NanoAOD's ``GenPart_statusFlags``, documented in the branch itself.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.simulation.events import Array, Collection
from agc_ml.simulation.kernel_cache import kernel
from agc_ml.simulation.truth.record import Record, heaviest_quark, is_neutrino

(
    PROMPT,
    DECAYED_LEPTON_HADRON,
    TAU_PRODUCT,
    PROMPT_TAU_PRODUCT,
    DIRECT_TAU_PRODUCT,
    DIRECT_PROMPT_TAU_PRODUCT,
    DIRECT_HADRON_PRODUCT,
    HARD_PROCESS,
    FROM_HARD_PROCESS,
    HARD_TAU_PRODUCT,
    DIRECT_HARD_TAU_PRODUCT,
    FROM_HARD_PROCESS_BEFORE_FSR,
    FIRST_COPY,
    LAST_COPY,
    LAST_COPY_BEFORE_FSR,
) = (1 << bit for bit in range(15))
"""Bits of ``GenPart_statusFlags``."""

_TAU, _PHOTON, _GLUON, _TOP, _W, _BOTTOM = 15, 22, 21, 6, 24, 5
_HEAVY_BOSONS: Final = (23, 24, 25)
# Particles with well-known masses, which NanoAOD leaves out.
_WITHOUT_MASS: Final = (*range(1, 6), *range(11, 17), 21, 111, 211, 411, 421)
_GEV_LEPTON, _GEV_NEUTRINO, _GEV_PHOTON, _GEV_HADRON = 3.0, 5.0, 10.0, 5.0


class Ancestry(NamedTuple):
    """Status ``flags`` of particles, and a mask of those from a top, W, Z or H."""

    flags: Array
    from_resonance: Array


class GenParts(NamedTuple):
    """The kept particles, and for each particle of the record its place among them, or -1."""

    collection: Collection
    place: Array


@kernel
def ancestry(record: Any) -> Ancestry:
    """Status flags of all particles of a record, and a mask of those from a resonance."""
    pdg, status, mother = record.pdg, record.status, record.mother
    n = len(pdg)
    # A copy is a daughter with the same id; radiation is a photon or gluon beside it.
    has_copy, radiates = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    for i in range(n):
        m = mother[i]
        if m < 0:
            continue
        if pdg[m] == pdg[i]:
            has_copy[m] = True
        elif pdg[i] == _PHOTON or pdg[i] == _GLUON:
            radiates[m] = True
    flags, from_resonance = np.zeros(n, np.int32), np.zeros(n, np.bool_)
    from_hadron, from_tau, after_radiation = (
        np.zeros(n, np.bool_),
        np.zeros(n, np.bool_),
        np.zeros(n, np.bool_),
    )
    # Flags that daughters inherit, and those that only copies inherit.
    inherited = PROMPT_TAU_PRODUCT | HARD_TAU_PRODUCT
    direct = (
        DIRECT_TAU_PRODUCT
        | DIRECT_PROMPT_TAU_PRODUCT
        | DIRECT_HARD_TAU_PRODUCT
        | DIRECT_HADRON_PRODUCT
    )
    # Mothers precede their daughters, so one pass passes everything down the decay chains.
    for i in range(n):
        m, code = mother[i], abs(pdg[i])
        flag = 0
        is_copy = False
        if m >= 0:
            is_copy = pdg[m] == pdg[i]
            mother_is_hadron = heaviest_quark(pdg[m]) > 0
            mother_is_tau = abs(pdg[m]) == _TAU and not is_copy and not has_copy[m]
            from_hadron[i] = from_hadron[m] or mother_is_hadron
            from_tau[i] = from_tau[m] or mother_is_tau
            from_resonance[i] = not from_hadron[i] and (
                from_resonance[m] or abs(pdg[m]) == _TOP or abs(pdg[m]) in _HEAVY_BOSONS
            )
            after_radiation[i] = is_copy and (after_radiation[m] or radiates[m])
            flag |= flags[m] & inherited
            if is_copy:
                flag |= flags[m] & direct
                flag |= flags[m] & FROM_HARD_PROCESS
            if mother_is_hadron and not is_copy:
                flag |= DIRECT_HADRON_PRODUCT
            if mother_is_tau:
                flag |= DIRECT_TAU_PRODUCT
                if flags[m] & PROMPT:
                    flag |= PROMPT_TAU_PRODUCT | DIRECT_PROMPT_TAU_PRODUCT
                if flags[m] & FROM_HARD_PROCESS:
                    flag |= HARD_TAU_PRODUCT | DIRECT_HARD_TAU_PRODUCT
        # Flags of the particle itself: origin, hard process, first and last copies.
        if not from_hadron[i] and not from_tau[i]:
            flag |= PROMPT
        if from_tau[i]:
            flag |= TAU_PRODUCT
        if 21 <= abs(status[i]) <= 29:  # Pythia: particles of the hard process
            flag |= HARD_PROCESS | FROM_HARD_PROCESS
        if not is_copy:
            flag |= FIRST_COPY
        if not has_copy[i]:
            flag |= LAST_COPY
            if status[i] < 0 and (code == _TAU or heaviest_quark(code) > 0):
                flag |= DECAYED_LEPTON_HADRON
        if not after_radiation[i] and (radiates[i] or not has_copy[i]):
            flag |= LAST_COPY_BEFORE_FSR
            if flag & FROM_HARD_PROCESS:
                flag |= FROM_HARD_PROCESS_BEFORE_FSR
        flags[i] = flag
    return Ancestry(flags, from_resonance)


@kernel
def _worth_keeping(record: Any, lineage: Any) -> Array:
    """Mask of particles that NanoAOD keeps: hard process, resonances, leptons, heavy flavour."""
    keep = np.zeros(len(record.pdg), np.bool_)
    for event in range(len(record.offsets) - 1):
        for i in range(record.offsets[event] + 3, record.offsets[event + 1]):
            code, pt, flag = abs(record.pdg[i]), record.pt[i], lineage.flags[i]
            final, last = record.status[i] > 0, (flag & LAST_COPY) > 0
            from_hadron = (flag & (PROMPT | TAU_PRODUCT)) == 0
            if flag & HARD_PROCESS:
                keep[i] = True
            elif code == _TOP or code in _HEAVY_BOSONS:
                keep[i] = (flag & (FIRST_COPY | LAST_COPY)) > 0
            elif code <= _BOTTOM:
                keep[i] = last and (flag & FROM_HARD_PROCESS) > 0
            elif code == _TAU:
                keep[i] = last
            elif final and is_neutrino(code):
                keep[i] = not from_hadron or pt > _GEV_NEUTRINO
            elif final and (code == 11 or code == 13):
                keep[i] = not from_hadron or pt > _GEV_LEPTON
            elif final and code == _PHOTON:
                keep[i] = pt > _GEV_PHOTON and not from_hadron
            elif heaviest_quark(code) >= 4:
                keep[i] = last and pt > _GEV_HADRON and not final
    return keep


@kernel
def _used_by_matching(record: Any, lineage: Any) -> Array:
    """Mask of last copies of tops and Ws, and of the quarks and leptons that they decay to."""
    keep = np.zeros(len(record.pdg), np.bool_)
    for event in range(len(record.offsets) - 1):
        for i in range(record.offsets[event] + 3, record.offsets[event + 1]):
            code, last = abs(record.pdg[i]), (lineage.flags[i] & LAST_COPY) > 0
            from_hard = (lineage.flags[i] & FROM_HARD_PROCESS) > 0
            if code in (_TOP, _W):
                keep[i] = last
            elif code <= _BOTTOM or 11 <= code <= 16:
                keep[i] = last and from_hard and lineage.from_resonance[i]
    return keep


@kernel
def _pruned(record: Any, keep: Array) -> tuple[Array, Array, Array, Array]:
    """Indices of kept particles, numbers an event, nearest kept mothers, places of all."""
    place = np.full(len(keep), -1, np.int32)
    counts = np.zeros(len(record.offsets) - 1, np.int64)
    index, mothers = np.empty(keep.sum(), np.int64), np.empty(keep.sum(), np.int32)
    k = 0
    for event in range(len(record.offsets) - 1):
        for i in range(record.offsets[event], record.offsets[event + 1]):
            if not keep[i]:
                continue
            place[i] = counts[event]
            # Skip dropped generations.
            mother = record.mother[i]
            while mother >= 0 and not keep[mother]:
                mother = record.mother[mother]
            mothers[k] = place[mother] if mother >= 0 else -1
            index[k] = i
            counts[event] += 1
            k += 1
    return index, counts, mothers, place


def gen_parts(record: Record, lineage: Ancestry, *, only_matching: bool) -> GenParts:
    """Prune a record to the particles of NanoAOD, or only to those for jet-parton matching."""
    keep = (_used_by_matching if only_matching else _worth_keeping)(record, lineage)
    index, counts, mothers, place = _pruned(record, keep)
    status, pdg = record.status[index], record.pdg[index]
    decayed = (lineage.flags[index] & DECAYED_LEPTON_HADRON) > 0
    mass = record.mass[index]
    has_none = np.isin(np.abs(pdg), _WITHOUT_MASS) | ((pdg == _PHOTON) & (mass < 1))
    fields = {
        "pt": record.pt[index],
        "eta": record.eta[index],
        "phi": record.phi[index],
        "mass": np.where(has_none, 0.0, mass),
        "pdgId": pdg.astype(np.int32),
        "status": np.where(status > 0, 1, np.where(decayed, 2, np.abs(status))).astype(np.int32),
        "statusFlags": lineage.flags[index],
        "genPartIdxMother": mothers,
    }
    return GenParts(Collection(counts, fields), place)
