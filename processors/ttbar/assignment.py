"""Assignment of jets to quarks by a model, and histograms of its best answer.

A permutation gives four of the leading six selected jets to the two quarks of the hadronic W, the b
of the hadronic top and the b of the leptonic top. `features` describe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml import NOMINAL, Batches, Bundle, DenseHist
from agc_ml.columnar.combinatorics import distances, highest
from agc_ml.columnar.jagged import Collection, offsets_of
from agc_ml.columnar.kinematics import cartesian, pair_mass
from agc_ml.errors import ModelError
from agc_ml.models.model import PARITIES, Parity
from processors.ttbar.features import (
    FEATURES,
    FIRST,
    N_BINS,
    PERMUTATIONS,
    assignment_features,
    n_permutations,
    spectra,
)

TASK: Final = "jet_assignment"
REGION: Final = "4j2b"
COLUMNS: Final = (
    "Jet_qgl",
    *(f"{lepton}_{field}" for lepton in ("Electron", "Muon") for field in ("phi", "mass")),
)
JET_FIELDS: Final = ("pt", "eta", "phi", "mass", "btagCSVV2", "qgl")

ROWS_AT_ONCE: Final = 16_384
EVENTS_AT_ONCE: Final = 500
"""Fewer events wait for those of the next block: a call costs more than they do."""


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
        """Concatenated events, with fields of their own, so that their blocks can be freed."""
        fields = {
            field: np.concatenate([getattr(part.jets, field) for part in parts])
            for field in JET_FIELDS
        }
        counts = np.concatenate([part.jets.counts for part in parts])
        lepton = zip(*(part.lepton for part in parts), strict=True)
        return cls(
            Collection(offsets_of(counts), fields.__getitem__),
            tuple(np.concatenate(values) for values in lepton),
            np.concatenate([part.event for part in parts]),
        )

    def take(self, chosen: Any) -> Candidates:
        """Events that a mask chooses."""
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


def lepton_of(leptons: list[tuple[Any, Any]], rows: Any, dtype: type) -> tuple[Any, ...]:
    """Pt, eta, phi and mass of the only lepton of the given events, each of shape ``(n_rows,)``.

    ``leptons``: electrons and muons, each with the mask of the selected ones.
    """
    fields: tuple[Any, ...] = tuple(np.full(len(rows), np.nan, dtype) for _ in range(4))
    for kind, selected in leptons:
        chosen = kind.take(rows, selected)
        has_one = chosen.counts == 1
        for values, field in zip(fields, ("pt", "eta", "phi", "mass"), strict=True):
            values[has_one] = getattr(chosen, field)
    return fields


def permutations(candidates: Candidates, *, wraps: bool) -> tuple[Any, Any]:
    """Features of each permutation, float32, shape ``(n_rows, 20)``, and offsets of the events.

    ``wraps``: Delta R with phi wrapped to [-pi, pi], unlike the inputs of the published models.
    """
    jets, lepton = candidates.jets, candidates.lepton
    rows = offsets_of(n_permutations(jets.counts))
    pt, eta, phi, mass = (np.repeat(values, jets.counts) for values in lepton)
    polar = (jets.pt, jets.eta, jets.phi, jets.mass)
    with_lepton = (
        distances(eta - jets.eta, phi - jets.phi, wraps),
        pair_mass((pt, eta, phi, mass), polar),
    )
    fields = (*cartesian(*polar), jets.pt, jets.eta, jets.phi, jets.btagCSVV2, jets.qgl)
    features = assignment_features(
        jets.offsets, fields, with_lepton, wraps, FIRST, PERMUTATIONS, rows
    )
    return features, rows


def book_features(process: str, variations: list[str]) -> dict[str, DenseHist]:
    """Histogram of each feature of the best permutation."""
    return {
        name: DenseHist(
            N_BINS,
            feature.start,
            feature.stop,
            label=feature.label,
            process=process,
            variations=variations,
            counts="Events",
        )
        for name, feature in FEATURES.items()
    }


class BestPermutation:
    """Histograms ``hists`` of the features of each event's permutation with the highest score.

    Events of all variations and blocks are scored together; `finish` scores the last ones and
    fills. ``inputs`` are then the `spectra` of nominal events.
    """

    def __init__(self, model: Bundle, process: str, variations: list[str]) -> None:
        self.hists = book_features(process, variations)
        self.inputs = spectra(np.empty((0, len(FEATURES)), np.float32))
        self._wraps = model.delta_phi == "wrapped"
        self._batches = {parity: Batches(model.scorer(parity)) for parity in PARITIES}
        self._waiting: dict[str, list[tuple[Candidates, dict[str, Any]]]] = {}
        self._best: dict[str, list[tuple[Any, Any]]] = {}
        self._first: list[Any] = []

    def add(self, variation: str, candidates: Candidates, weights: dict[str, Any]) -> None:
        """Take events of a kinematic variation, and their weights in each one that they fill."""
        waiting = self._waiting.setdefault(variation, [])
        waiting.append((Candidates.joined([candidates]), weights))
        if sum(len(part.event) for part, _ in waiting) >= EVENTS_AT_ONCE:
            self._split_by_parity(self._waiting.pop(variation))

    def _split_by_parity(self, waiting: list[tuple[Candidates, dict[str, Any]]]) -> None:
        candidates = Candidates.joined([part for part, _ in waiting])
        weights = {
            name: np.concatenate([values[name] for _, values in waiting]) for name in waiting[0][1]
        }
        for remainder, parity in enumerate(PARITIES):
            chosen = candidates.event % 2 == remainder
            own = {name: values[chosen] for name, values in weights.items()}
            self._score(parity, candidates.take(chosen), own)

    def _score(self, parity: Parity, candidates: Candidates, weights: dict[str, Any]) -> None:
        """Hand events to the model, in parts of a bounded number of permutations."""
        rows = offsets_of(n_permutations(candidates.jets.counts))
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
        best = features[highest(rows, scores)]
        for name, values in weights.items():
            self._best.setdefault(name, []).append((best, values))

    def finish(self) -> None:
        """Score the events that wait, and fill: all at once, as calls cost more than few events."""
        for waiting in self._waiting.values():
            self._split_by_parity(waiting)
        for batches in self._batches.values():
            batches.flush()
        for name, parts in self._best.items():
            best, weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            for histogram, values in zip(self.hists.values(), best.T, strict=True):
                histogram.fill(name, values, weights)
        if self._first:
            self.inputs += spectra(np.concatenate(self._first))
