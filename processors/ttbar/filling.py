"""From a block of events to filled histograms: selection, variations, observables, weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from agc_ml.inputs.variations import NOMINAL
from agc_ml.models.model import Bundle
from agc_ml.results.histograms import DenseHist
from processors.ttbar import assignment, selection, systematics
from processors.ttbar.observables import OBSERVABLES
from processors.ttbar.varied import select


class Filling:
    """The histograms and counts of a chunk, while its blocks are added."""

    def __init__(
        self,
        metadata: Mapping[str, Any],
        model: Bundle | None,
        *,
        compat: bool,
        muons: bool,
        seed: int,
    ) -> None:
        self._metadata = metadata
        self._file = metadata.get("lfn", metadata["filename"])
        self._compat = compat
        self._with_muons = muons
        self._variation, process = metadata["variation"], metadata["process"]
        self._precision = np.float32 if compat else np.float64
        self._kinematic = systematics.kinematic(self._variation, seed if compat else None)
        self._factors = systematics.weights(process, self._variation)
        names = [*self._kinematic, *self._factors]
        self._hists = {
            region: DenseHist(
                *observable.bins,
                label=observable.label,
                process=process,
                variations=names,
                counts="Events",
            )
            for region, observable in OBSERVABLES.items()
        }
        self._assigned: dict[str, DenseHist] = {}
        self._best: assignment.BestPermutation | None = None
        if model is not None:
            self._assigned = assignment.book(process, names)
            self._best = assignment.BestPermutation(model, self._assigned)
        self._cuts = Counter(dict.fromkeys(("all events", "one lepton", "four jets"), 0))
        self._muons: Counter[str] = Counter()
        self._sumw = 0.0

    def add(self, events: Any) -> None:
        """Select and fill a block of events."""
        weight = self.count(events)
        leptons = selection.leptons(events, with_muons=self._with_muons)
        one_lepton = selection.one_lepton(leptons)
        for varied in select(events, one_lepton, self._kinematic, self._precision):
            name = varied.variation
            for region in varied.regions:
                jets, rows = varied.selected(region)
                weights = self._weights(name, jets, weight[rows])
                self._fill(region, jets, weights)
                if self._best is not None and region == assignment.REGION:
                    lepton = selection.lepton(leptons, rows, self._precision)
                    candidates = assignment.Candidates(jets, lepton, events.event[rows])
                    self._best.add(name, candidates, weights)
            if name == self._variation:
                self._cuts["four jets"] += int(np.sum(varied.n_jets >= selection.N_JETS))
                self._cuts.update({r: int(mask.sum()) for r, mask in varied.regions.items()})
        self._cuts["one lepton"] += int(one_lepton.sum())

    def count(self, events: Any) -> Any:
        """Count what all events count for, selected or not; returns the weights of the block's."""
        weight = self._generator_weight(events)
        self._cuts["all events"] += len(events)
        has_id = events.Muon.tightId
        self._muons.update({"muons": len(has_id), "tight": int(has_id.sum())})
        self._sumw += float(np.sum(weight))
        return weight

    def _generator_weight(self, events: Any) -> Any:
        """Weight of each event before normalisation, float64, shape ``(n_events,)``."""
        if self._compat or self._metadata.get("is_data"):
            return np.ones(len(events))
        return events.genWeight.astype(np.float64)

    def _weights(self, name: str, jets: Any, weight: Any) -> dict[str, Any]:
        """Weights of selected events in each variation that a kinematic one fills."""
        if name != NOMINAL:
            return {name: weight}
        varied = {variation: weight * factor(jets) for variation, factor in self._factors.items()}
        return {name: weight, **varied}

    def _fill(self, region: str, jets: Any, weights: Mapping[str, Any]) -> None:
        values = OBSERVABLES[region].values(jets)
        for variation, weight in weights.items():
            self._hists[region].fill(variation, values, weight)

    def output(self) -> dict[str, Any]:
        """What a processor returns."""
        inputs: dict[str, Any] = {}
        if self._best is not None:
            self._best.finish()
            inputs = {"inputs": {self._metadata["process"]: self._best.inputs}}
        return {
            **self._hists,
            **self._assigned,
            "cutflow": {self._metadata["dataset"]: dict(self._cuts)},
            "sumw": self._sumw,
            "muon_ids": {self._file: dict(self._muons)},
            **(inputs if self._variation == NOMINAL else {}),
        }
