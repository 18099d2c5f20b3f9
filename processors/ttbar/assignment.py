"""Which jet comes from which quark: what a model is given, and what is filled of its best answer.

A permutation assigns four of the leading six selected jets to the two quarks of the hadronic W, the
b of the hadronic top and the b of the leptonic top. Source of features, order and ranges: the CMS
Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge, version 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.columnar import combinatorics
from agc_ml.columnar.histogram_filling import fill
from agc_ml.columnar.jagged import Collection, offsets_of
from agc_ml.columnar.kinematics import cartesian, pair_mass
from agc_ml.errors import ModelError
from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.model import PARITIES, Batches, Bundle, Parity
from agc_ml.results.histograms import DenseHist

TASK: Final = "jet_assignment"
REGION: Final = "4j2b"
COLUMNS: Final = (
    "Jet_qgl",
    *(f"{lepton}_{field}" for lepton in ("Electron", "Muon") for field in ("phi", "mass")),
)

ROWS_AT_ONCE: Final = 16_384
EVENTS_AT_ONCE: Final = 500
"""Fewer wait for those of the next block: a call costs more than they do."""


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


def check(model: Bundle) -> None:
    """Make sure that a model assigns jets, and has one part for events of each parity.

    Raises
    ------
    ModelError
        It is of another kind.
    """
    needs = f"jet assignment needs two models of {len(FEATURES)} features, trained on even and odd"
    if not isinstance(model, Bundle):
        raise ModelError(
            f"{model}: {needs} events: one that scores events it was trained on would flatter "
            "itself; describe both in a card (docs/models.md)"
        )
    for member in model.members:
        if member.task not in {"", TASK}:
            raise ModelError(f"{member}: made for the task {member.task!r}, not for {TASK!r}")
        if member.n_features != len(FEATURES) or member.features not in {(), tuple(FEATURES)}:
            raise ModelError(
                f"{member}: other features than those of {TASK}: {', '.join(FEATURES)}"
            )


class Candidates(NamedTuple):
    """Events of the signal region: selected jets, lepton (pt, eta, phi, mass) and event number."""

    jets: Collection
    lepton: tuple[Any, ...]
    event: Any

    @classmethod
    def joined(cls, parts: Sequence[Candidates]) -> Candidates:
        """Events behind each other, with fields of their own: their blocks may go."""
        fields = {
            field: np.concatenate([getattr(part.jets, field) for part in parts])
            for field in ("pt", "eta", "phi", "mass", "btagCSVV2", "qgl")
        }
        counts = np.concatenate([part.jets.counts for part in parts])
        return cls(
            Collection(offsets_of(counts), fields.__getitem__),
            tuple(
                np.concatenate(values) for values in zip(*(p.lepton for p in parts), strict=True)
            ),
            np.concatenate([part.event for part in parts]),
        )

    def take(self, chosen: Any) -> Candidates:
        """Some of the events, by a mask."""
        every_jet = np.ones(self.jets.offsets[-1], dtype=bool)
        return Candidates(
            self.jets.take(chosen, every_jet),
            tuple(values[chosen] for values in self.lepton),
            self.event[chosen],
        )

    def part(self, first: int, until: int) -> Candidates:
        """The events [first, until)."""
        return Candidates(
            self.jets.part(first, until),
            tuple(values[first:until] for values in self.lepton),
            self.event[first:until],
        )


def permutations(candidates: Candidates, *, wraps: bool) -> tuple[Any, Any]:
    """Features of each permutation, float32, shape ``(n_rows, 20)``, and where events begin in it.

    ``wraps``: Delta R with phi wrapped to [-pi, pi], which the published models were not given.
    """
    jets, lepton = candidates.jets, candidates.lepton
    rows = offsets_of(combinatorics.n_permutations(jets.counts))
    pt, eta, phi, mass = (np.repeat(values, jets.counts) for values in lepton)
    polar = (jets.pt, jets.eta, jets.phi, jets.mass)
    with_lepton = (
        combinatorics.distances(eta - jets.eta, phi - jets.phi, wraps),
        pair_mass((pt, eta, phi, mass), polar),
    )
    features = combinatorics.assignment_features(
        jets.offsets,
        (*cartesian(*polar), jets.pt, jets.eta, jets.phi, jets.btagCSVV2, jets.qgl),
        with_lepton,
        wraps,
        combinatorics.FIRST,
        combinatorics.PERMUTATIONS,
        rows,
    )
    return features, rows


def spectra(features: Any) -> Any:
    """Numbers of events in the bins of each feature's histogram, with flow; shape ``(20, 27)``.

    ``features`` of one permutation an event, the first one: so they say what a model is given,
    whatever it makes of it.
    """
    counts = np.zeros((len(FEATURES), N_BINS + 2, 2))
    one = np.ones(len(features))
    for bins, feature, values in zip(counts, FEATURES.values(), features.T, strict=True):
        fill(bins, feature.start, feature.stop, values, one)
    return counts[:, :, 0].astype(np.int64)


def named(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`spectra` of each process as JSON can hold them: ``process -> feature -> 27 numbers``."""
    if not inputs:
        return {}
    return {
        "inputs": {
            process: dict(zip(FEATURES, counts.tolist(), strict=True))
            for process, counts in inputs.items()
        }
    }


def book(process: str, variations: list[str]) -> dict[str, DenseHist]:
    """Histogram of each feature of the best permutation."""
    return {
        name: DenseHist(
            *(N_BINS, feature.start, feature.stop),
            label=feature.label,
            process=process,
            variations=variations,
            counts="Events",
        )
        for name, feature in FEATURES.items()
    }


class BestPermutation:
    """Fills the features of each event's permutation with the highest score.

    Events of all variations and blocks are scored together; `finish` scores the last ones, and
    fills. ``inputs`` are then the `spectra` of nominal events.
    """

    def __init__(self, model: Bundle, hists: dict[str, DenseHist]) -> None:
        self.inputs = spectra(np.empty((0, len(FEATURES)), np.float32))
        self._hists = hists
        self._wraps = model.delta_phi == "wrapped"
        self._batches = {parity: Batches(model.scorer(parity)) for parity in PARITIES}
        self._waiting: dict[str, list[tuple[Candidates, dict[str, Any]]]] = {}
        self._found: dict[str, list[tuple[Any, Any]]] = {}
        self._first: list[Any] = []

    def add(self, variation: str, candidates: Candidates, weights: dict[str, Any]) -> None:
        """Take events of a kinematic variation, and their weights in each one that they fill."""
        waiting = self._waiting.setdefault(variation, [])
        waiting.append((Candidates.joined([candidates]), weights))
        if sum(len(some.event) for some, _ in waiting) >= EVENTS_AT_ONCE:
            self._part(self._waiting.pop(variation))

    def _part(self, waiting: list[tuple[Candidates, dict[str, Any]]]) -> None:
        candidates = Candidates.joined([some for some, _ in waiting])
        weights = {
            name: np.concatenate([some[name] for _, some in waiting]) for name in waiting[0][1]
        }
        for remainder, parity in enumerate(PARITIES):
            chosen = candidates.event % 2 == remainder
            own = {name: values[chosen] for name, values in weights.items()}
            self._add(parity, candidates.take(chosen), own)

    def _add(self, parity: Parity, candidates: Candidates, weights: dict[str, Any]) -> None:
        rows = offsets_of(combinatorics.n_permutations(candidates.jets.counts))
        first = 0
        while first < len(rows) - 1:
            until = np.searchsorted(rows, rows[first] + ROWS_AT_ONCE, "right") - 1
            until = max(int(until), first + 1)
            features, of_event = permutations(candidates.part(first, until), wraps=self._wraps)
            own = {name: values[first:until] for name, values in weights.items()}
            if NOMINAL in weights:
                self._first.append(features[of_event[:-1]])
            self._batches[parity].add(features, partial(self._keep, features, of_event, own))
            first = until

    def _keep(self, features: Any, rows: Any, weights: dict[str, Any], scores: Any) -> None:
        best = features[combinatorics.highest(rows, scores)]
        for name, values in weights.items():
            self._found.setdefault(name, []).append((best, values))

    def finish(self) -> None:
        """Score what is waiting, and fill: all at once, as a call costs more than a few events."""
        for waiting in self._waiting.values():
            self._part(waiting)
        for batches in self._batches.values():
            batches.flush()
        for name, parts in self._found.items():
            best, weights = (np.concatenate(some) for some in zip(*parts, strict=True))
            for histogram, values in zip(self._hists.values(), best.T, strict=True):
                histogram.fill(name, values, weights)
        if self._first:
            self.inputs += spectra(np.concatenate(self._first))
