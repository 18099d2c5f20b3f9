"""Quarks that jets come from: the truth that models for jet assignment are trained on.

Source: the training of the CMS Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge,
version 2.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agc_ml.columnar.combinatorics import distances, highest
from agc_ml.columnar.jagged import Collection, offsets_of
from processors.ttbar import features

N_JETS: Final = 4
"""The leading selected jets of an event, whose assignment is learned."""

MATCHING_RADIUS: Final = 0.4
FROM_W: Final = 24
FROM_TOP: Final = 6
FROM_LEPTONIC_TOP: Final = -6
UNMATCHED: Final = 100
FULLY_MATCHED: Final = 48
"""Sum of the labels of two quarks of a W, the b of its top and the b of the other one."""

CORRECT: Final = (FROM_W, FROM_W, FROM_TOP, FROM_LEPTONIC_TOP)
PERMUTATIONS: Final = features.PERMUTATIONS[: features.FIRST[1]]
"""Places of (W1, W2, b of the hadronic top, b of the leptonic top); W1 and W2 are alike."""

COLUMNS: Final = tuple(
    f"GenPart_{field}" for field in ("pdgId", "genPartIdxMother", "statusFlags", "eta", "phi")
)

_CHARGED_LEPTONS: Final = (11, 13, 15, 17)
_NEUTRINOS: Final = (12, 14, 16, 18)
_LAST_COPY: Final = 1 << 13


def jet_labels(jets: Collection, particles: Collection) -> Any:
    """Label of each jet, by the nearest quark within Delta R < 0.4, shape ``(n_events, n_jets)``.

    24: from a W; 6: the b of a top; -6: the b of a top that decays to a lepton; 100: no quark.
    ``jets`` and generated ``particles`` of the same events; all events have as many jets.
    """
    code = np.abs(particles.pdgId)
    parent = _distinct_parents(particles)
    source = np.where(parent < 0, 0, code[parent])
    is_quark = (
        (code >= 1)
        & (code <= 6)
        & ((particles.statusFlags & _LAST_COPY) != 0)
        & ((source == FROM_W) | (source == FROM_TOP))
    )
    leptonic = _decay_to(parent, code, _CHARGED_LEPTONS) & _decay_to(parent, code, _NEUTRINOS)
    of_leptonic_top = (source == FROM_TOP) & leptonic[parent]
    label = np.where(of_leptonic_top, FROM_LEPTONIC_TOP, source)
    quarks = particles.replaced(label=label).take(np.arange(len(particles)), is_quark)
    return _nearest(jets, quarks).reshape(len(jets), -1)


def _distinct_parents(particles: Collection) -> Any:
    """Place of the first ancestor with another PDG id, among all events' particles; -1 for none."""
    mother = particles.genPartIdxMother.astype(np.int64)
    begin = np.repeat(particles.offsets[:-1], particles.counts)
    mother = np.where(mother < 0, -1, mother + begin)
    pdg, parent = particles.pdgId, mother.copy()
    while True:
        is_copy = (parent >= 0) & (pdg[parent] == pdg)
        if not is_copy.any():
            return parent
        parent[is_copy] = mother[parent[is_copy]]


def _decay_to(parent: Any, code: Any, kinds: tuple[int, ...]) -> Any:
    """Mask of the particles with one of these kinds among the children of their children."""
    decay_products = np.flatnonzero(np.isin(code, kinds) & (parent >= 0))
    grandparent = parent[parent[decay_products]]
    decays = np.zeros(len(parent), bool)
    decays[grandparent[grandparent >= 0]] = True
    return decays


def _nearest(jets: Collection, quarks: Collection) -> Any:
    """Label of the nearest quark of each jet, `UNMATCHED` if none is within the radius."""
    per_jet = np.repeat(quarks.counts, jets.counts)
    pairs = offsets_of(per_jet)
    jet = np.repeat(np.arange(len(per_jet)), per_jet)
    first = np.repeat(quarks.offsets[:-1], jets.counts)
    quark = np.arange(pairs[-1]) - np.repeat(pairs[:-1] - first, per_jet)
    away = distances(
        (jets.eta[jet] - quarks.eta[quark]).astype(np.float64),
        (jets.phi[jet] - quarks.phi[quark]).astype(np.float64),
        True,
    )
    labels = np.full(len(per_jet), UNMATCHED, np.int16)
    with_quarks = np.flatnonzero(per_jet)
    best = highest(offsets_of(per_jet[with_quarks]), -away)
    near = away[best] < MATCHING_RADIUS
    labels[with_quarks[near]] = quarks.label[quark[best[near]]]
    return labels


def targets(labels: Any) -> Any:
    """1 for the right one of the twelve permutations, 0 for the others; ``(n_events, 12)``.

    ``labels`` of the four leading jets, shape ``(n_events, 4)``.
    """
    return _right(labels).all(axis=2).astype(np.int8)


def reference_targets(labels: Any) -> Any:
    """`targets` as the reference writes them: wrong is -1, or 0 for the last all-wrong permutation.

    All-wrong is one in which no jet is given to a quark of its kind.
    """
    right = _right(labels)
    all_wrong = ~right.any(axis=2)
    last = all_wrong.shape[1] - 1 - all_wrong[:, ::-1].argmax(axis=1)
    labelled = np.where(right.all(axis=2), 1, -1).astype(np.int8)
    event = np.flatnonzero(all_wrong.any(axis=1))
    labelled[event, last[event]] = 0
    return labelled


def _right(labels: Any) -> Any:
    """Mask of the places of each permutation with a jet of their kind; (n_events, 12, 4)."""
    return np.asarray(labels)[:, PERMUTATIONS] == np.array(CORRECT)
