"""The ttbar cross-section measurement of the Analysis Grand Challenge, in CMS 2015 Open Data.

One isolated electron or muon and at least four jets; exactly one b-tag makes the control region,
two or more the signal region. `selection` holds the cuts, `observables` what is filled,
`systematics` how it varies, `assignment` what a model says of the jets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.hists import DenseHist, materialised
from agc_ml.kernels.flat import blocks
from agc_ml.kernels.jagged import count
from agc_ml.ml.hook import Bundle
from agc_ml.variations import NOMINAL
from processors.ttbar import assignment, selection, systematics
from processors.ttbar.observables import OBSERVABLES

MUON_IDS_FALSE = (
    "{file}: Muon_tightId is false for all {muons} muons, so no muon is selected and the result "
    "rests on electrons alone (in the CMS 2015 Open Data NanoAOD the muon ID flags are all zero)"
)


@dataclass(frozen=True)
class TtbarProcessor(ProcessorABC):  # type: ignore[misc]
    """Fill H_T (4j1b) and m_bjj (4j2b), in GeV, for every systematic variation.

    Parameters
    ----------
    compat
        Do as the reference implementation does: ignore genWeight, keep the files' single-precision
        arithmetic, and draw the resolution smearing from one global generator.
    muons
        Select muons too. Without them other files compare with the published histograms, which rest
        on electrons alone: the muon ID flags of their files are all zero.
    seed
        Seed of that generator (with ``compat`` only). Its draw is defined for a file that is one
        chunk: other chunk sizes give another smearing.
    model
        Assigns jets to quarks in 4j2b; the twenty features of the best assignment are filled too.
    """

    compat: bool = False
    muons: bool = True
    seed: int = 42
    model: Bundle | None = None

    flat: ClassVar = True
    simulation_columns: ClassVar = ("genWeight",)

    def __post_init__(self) -> None:
        """Refuse a model of another kind."""
        if self.model is not None:
            assignment.check(self.model)

    @property
    def columns(self) -> tuple[str, ...]:
        """Branches that it reads."""
        return selection.COLUMNS + (assignment.COLUMNS if self.model is not None else ())

    def process(self, events: Any) -> dict[str, Any]:
        """Select and fill one chunk.

        Gives the histograms, the cutflow, the sum of generator weights ``sumw`` (which asks for
        normalisation to cross-section and luminosity), and the numbers of muons with an ID.
        """
        filling = _Filling(self, events.metadata)
        for block in blocks(events):
            filling.add(block)
        return filling.output()

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Turn files in which no muon has an ID into warnings."""
        warnings = [
            MUON_IDS_FALSE.format(file=file, muons=count["muons"])
            for file, count in accumulator.pop("muon_ids").items()
            if count["muons"] and not count["tight"]
        ]
        return {**materialised(accumulator), "warnings": warnings}


class _Filling:
    """The histograms and counts of a chunk, while its blocks are added."""

    def __init__(self, settings: TtbarProcessor, metadata: Any) -> None:
        self._settings = settings
        self._metadata = metadata
        self._variation = metadata["variation"]
        self._kinematic = systematics.kinematic(
            self._variation, settings.seed if settings.compat else None
        )
        self._weights = systematics.weights(metadata["process"], self._variation)
        names = [*self._kinematic, *self._weights]
        self._hists = {
            region: DenseHist(
                *(25, 50, 550), label=observable.label, process=metadata["process"], variations=names
            )
            for region, observable in OBSERVABLES.items()
        }
        self._assigned = {}
        self._best = None
        if settings.model is not None:
            self._assigned = assignment.book(metadata["process"], names)
            self._best = assignment.BestPermutation(settings.model, self._assigned)
        self._cuts = Counter(dict.fromkeys(("all events", "one lepton", "four jets"), 0))
        self._muons: Counter[str] = Counter()
        self._sumw = 0.0

    def add(self, events: Any) -> None:
        """Select and fill a block of events."""
        weight = self._generator_weight(events)
        electron, muon, jet = events.Electron, events.Muon, events.Jet
        leptons = [(electron, selection.electrons(electron))]
        if self._settings.muons:
            leptons.append((muon, selection.muons(muon)))
        one_lepton = sum(count(lepton.offsets, good) for lepton, good in leptons) == 1
        good = selection.jets(jet)
        # whatever their pt is: a variation may lift it
        rows = np.flatnonzero(one_lepton & (count(jet.offsets, good) >= selection.N_JETS))
        jets = jet.take(rows, good)
        precision = np.float32 if self._settings.compat else np.float64
        jets = jets.converted(precision, "pt", "eta", "phi", "mass")
        for name, vary in self._kinematic.items():
            varied = vary(events, rows, jets)
            passed = varied.pt > selection.JET_PT
            n_jets = count(jets.offsets, passed)
            n_btags = count(jets.offsets, passed & (jets.btagCSVV2 > selection.B_TAG))
            regions = selection.regions(n_jets, n_btags)
            for region, mask in regions.items():
                selected, rows_in = varied.take(mask, passed), rows[mask]
                weights = self._varied(name, selected, weight[rows_in])
                values = OBSERVABLES[region].values(selected)
                for variation, w in weights.items():
                    self._hists[region].fill(variation, values, w)
                if self._best is not None and region == assignment.REGION:
                    lepton = selection.lepton(leptons, rows_in, precision)
                    candidates = assignment.Candidates(selected, lepton, events.event[rows_in])
                    self._best.add(candidates, weights)
            if name == self._variation:
                self._cuts["four jets"] += int(np.sum(n_jets >= selection.N_JETS))
                self._cuts.update({region: int(mask.sum()) for region, mask in regions.items()})
        self._cuts.update({"all events": len(events), "one lepton": int(one_lepton.sum())})
        self._muons.update({"muons": len(muon.tightId), "tight": int(muon.tightId.sum())})
        self._sumw += float(np.sum(weight))

    def _generator_weight(self, events: Any) -> Any:
        """Weight of each event before normalisation, float64, shape ``(n_events,)``."""
        if self._settings.compat or self._metadata.get("is_data"):
            return np.ones(len(events))
        return events.genWeight.astype(np.float64)

    def _varied(self, name: str, selected: Any, weight: Any) -> dict[str, Any]:
        """Weights of selected events in each variation that they fill."""
        if name != NOMINAL:
            return {name: weight}
        factors = {source: factor(selected) for source, factor in self._weights.items()}
        return {name: weight, **{source: weight * factor for source, factor in factors.items()}}

    def output(self) -> dict[str, Any]:
        """What a processor returns."""
        if self._best is not None:
            self._best.finish()
        return {
            **self._hists,
            **self._assigned,
            "cutflow": {self._metadata["dataset"]: dict(self._cuts)},
            "sumw": self._sumw,
            "muon_ids": {self._metadata["filename"]: dict(self._muons)},
        }
