"""Features of jet assignment: four of an event's jets given to quarks, in every possible way.

Source of features, order and ranges: the CMS Open Data ttbar analysis of the IRIS-HEP Analysis
Grand Challenge, version 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.columnar.combinatorics import distance, signed_root
from agc_ml.columnar.compiled import kernel
from agc_ml.columnar.histogram_filling import fill

Array = NDArray[Any]

N_BINS: Final = 25


class Feature(NamedTuple):
    """Range of a feature's histogram, and its label with its unit."""

    start: float
    stop: float
    label: str


FEATURES: Final = {
    "deltar_leptonbtoplep": Feature(0, 6, r"$\Delta R(\ell, b_{lep})$"),
    "deltar_w1w2": Feature(0, 6, r"$\Delta R(W_1, W_2)$"),
    "deltar_w1btophad": Feature(0, 6, r"$\Delta R(W_1, b_{had})$"),
    "deltar_w2btophad": Feature(0, 6, r"$\Delta R(W_2, b_{had})$"),
    "mass_leptonbtoplep": Feature(50, 300, r"$m(\ell, b_{lep})$ [GeV]"),
    "mass_w1w2": Feature(50, 300, "$m(W_1, W_2)$ [GeV]"),
    "mass_w1w2btophad": Feature(50, 550, "$m(W_1, W_2, b_{had})$ [GeV]"),
    "pt_w1w2btophad": Feature(50, 550, "$p_T(W_1, W_2, b_{had})$ [GeV]"),
    "pt_w1": Feature(25, 300, "$p_T(W_1)$ [GeV]"),
    "pt_w2": Feature(25, 300, "$p_T(W_2)$ [GeV]"),
    "pt_btophad": Feature(25, 300, "$p_T(b_{had})$ [GeV]"),
    "pt_btoplep": Feature(25, 300, "$p_T(b_{lep})$ [GeV]"),
    "btag_w1": Feature(0, 1, "b-tag of $W_1$"),
    "btag_w2": Feature(0, 1, "b-tag of $W_2$"),
    "btag_btophad": Feature(0, 1, "b-tag of $b_{had}$"),
    "btag_btoplep": Feature(0, 1, "b-tag of $b_{lep}$"),
    "qgl_w1": Feature(-1, 1, "quark-gluon likelihood of $W_1$"),
    "qgl_w2": Feature(-1, 1, "quark-gluon likelihood of $W_2$"),
    "qgl_btophad": Feature(-1, 1, "quark-gluon likelihood of $b_{had}$"),
    "qgl_btoplep": Feature(-1, 1, "quark-gluon likelihood of $b_{lep}$"),
}

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


def spectra(features: Any) -> Any:
    """Numbers of events in the bins of each feature's histogram, with flow; shape ``(20, 27)``.

    ``features`` of one permutation an event, the first one: inputs of a model, whatever it answers.
    """
    counts = np.zeros((len(FEATURES), N_BINS + 2, 2))
    one = np.ones(len(features))
    for bins, feature, values in zip(counts, FEATURES.values(), features.T, strict=True):
        fill(bins, feature.start, feature.stop, values, one)
    return counts[:, :, 0].astype(np.int64)


def named_spectra(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`spectra` of each process, fit for JSON: ``process -> feature -> 27 numbers``."""
    if not inputs:
        return {}
    return {
        "inputs": {
            process: dict(zip(FEATURES, counts.tolist(), strict=True))
            for process, counts in inputs.items()
        }
    }
