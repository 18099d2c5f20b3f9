"""Which quark each jet comes from: the truth that jet-assignment models are trained on.

Source: the training of the CMS Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge,
version 2.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any, Final

import awkward as ak
import numpy as np

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
PERMUTATIONS: Final = tuple(p for p in permutations(range(N_JETS)) if p[0] > p[1])
"""Places of (W1, W2, b of the hadronic top, b of the leptonic top); W1 and W2 are alike."""

_CHARGED_LEPTONS: Final = (11, 13, 15, 17)
_NEUTRINOS: Final = (12, 14, 16, 18)


def quarks(gen_part: Any) -> Any:
    """Last copies of the quarks from W bosons and tops."""
    code = abs(gen_part.pdgId)
    parent = gen_part.distinctParent
    source = abs(ak.fill_none(parent.pdgId, 0))
    from_decay = (source == FROM_W) | (source == FROM_TOP)
    return gen_part[(code >= 1) & (code <= 6) & gen_part.hasFlags(["isLastCopy"]) & from_decay]


def jet_labels(jets: Any, gen_part: Any) -> Any:
    """Label of each jet, by the nearest quark within Delta R < 0.4, shape ``(n_events, n_jets)``.

    24: from a W; 6: the b of a top; -6: the b of a top that decays to a lepton; 100: no quark.
    """
    candidates = quarks(gen_part)
    pairs = ak.cartesian([jets, candidates], nested=True)
    jet, quark = ak.unzip(pairs)
    distance = np.hypot(jet.eta - quark.eta, _wrapped(jet.phi - quark.phi))
    nearest = ak.argmin(distance, axis=2, keepdims=True)
    is_near = ak.fill_none(ak.firsts(distance[nearest], axis=2) < MATCHING_RADIUS, False)
    parent = candidates.distinctParent
    label = abs(parent.pdgId)
    is_leptonic = (label == FROM_TOP) & _decays_to_lepton(parent)
    label = ak.where(is_leptonic, FROM_LEPTONIC_TOP, label)
    place = ak.fill_none(ak.firsts(nearest, axis=2), 0)
    some = ak.num(candidates) > 0
    found = ak.where(some, label[ak.mask(place, some)], UNMATCHED)
    return ak.fill_none(ak.where(is_near, found, UNMATCHED), UNMATCHED)


def _decays_to_lepton(particle: Any) -> Any:
    """Whether a charged lepton and a neutrino are among the children of its children."""
    grandchildren = ak.flatten(particle.distinctChildren.distinctChildren.pdgId, axis=3)
    code = abs(ak.fill_none(grandchildren, 0))

    def has(kinds: tuple[int, ...]) -> Any:
        return ak.any(ak.any([code == kind for kind in kinds], axis=0), axis=-1)

    return has(_CHARGED_LEPTONS) & has(_NEUTRINOS)


def _wrapped(angle: Any) -> Any:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def targets(labels: Any) -> Any:
    """1 for the right one of the twelve permutations, 0 for the others; ``(n_events, 12)``.

    ``labels`` of the four leading jets, shape ``(n_events, 4)``.
    """
    of_permutation = np.asarray(labels)[:, np.array(PERMUTATIONS)]
    return np.all(of_permutation == np.array(CORRECT), axis=2).astype(np.int32)
