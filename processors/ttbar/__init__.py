"""The ttbar cross-section measurement of the Analysis Grand Challenge, in CMS 2015 Open Data.

One isolated electron or muon and at least four jets; exactly one b-tag makes the control region,
two or more the signal region. `selection` holds the cuts, `observables` the filled quantities,
`systematics` their variations, `assignment` the model that assigns jets to quarks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml import NOMINAL, Bundle, blocks, materialised
from processors.ttbar import assignment, observables, selection, systematics
from processors.ttbar.features import named_spectra
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
    counted_columns: ClassVar = ("genWeight", "Muon_tightId")

    def __post_init__(self) -> None:
        """Refuse a model of another kind."""
        if self.model is not None:
            assignment.check(self.model)

    @property
    def columns(self) -> tuple[str, ...]:
        """Branches that it reads."""
        return selection.COLUMNS + (assignment.COLUMNS if self.model is not None else ())

    @property
    def normalised_to(self) -> str:
        """Number that ``sumw`` is extended to: the reference takes the fileset's ``nevts``."""
        return "nevts" if self.compat else "sumw"

    @property
    def preselection(self) -> str:
        """Cut that services may apply; none where the generator has to draw for all events."""
        return "" if self.compat else selection.PRESELECTION

    def process(self, events: Any) -> dict[str, Any]:
        """Select and fill one chunk.

        Gives the histograms, the cutflow, the sum of generator weights ``sumw`` (which asks for
        normalisation to cross-section and luminosity), the numbers of muons with an ID, and, with
        a model, the spectra of its ``inputs``.
        """
        metadata = events.metadata
        process, variation = metadata["process"], metadata["variation"]
        precision = np.float32 if self.compat else np.float64
        kinematic = systematics.kinematic(variation, self.seed if self.compat else None)
        factors = systematics.weights(process, variation)
        names = [*kinematic, *factors]
        hists = observables.book(process, names)
        best = assignment.BestPermutation(self.model, process, names) if self.model else None
        cuts = Counter(dict.fromkeys(("all events", "one lepton", "four jets"), 0))
        muon_ids: Counter[str] = Counter()
        sumw = 0.0

        for block in blocks(events):
            # all events count for the normalisation, selected or not
            weight = self._generator_weight(block, metadata)
            sumw += float(np.sum(weight))
            cuts["all events"] += len(block)
            muon_ids.update(muons=len(block.Muon.tightId), tight=int(block.Muon.tightId.sum()))
            if not block.is_selected:
                continue

            # objects and lepton
            leptons = selection.leptons(block, with_muons=self.muons)
            one_lepton = selection.one_lepton(leptons)
            cuts["one lepton"] += int(one_lepton.sum())
            rows, jets = selection.candidates(block, one_lepton, precision)

            # jets, regions, observables and weights, for each variation of the jets
            for name, vary in kinematic.items():
                varied = vary(block, rows, jets)
                passed, four_jets, regions = selection.cut_on_jets(varied)
                if name == variation:
                    cuts["four jets"] += int(four_jets.sum())
                    cuts.update({region: int(mask.sum()) for region, mask in regions.items()})
                for region, mask in regions.items():
                    selected, chosen = varied.take(mask, passed), rows[mask]
                    weights = {name: weight[chosen]}
                    if name == NOMINAL:
                        weights |= systematics.reweighted(weight[chosen], selected, factors)
                    values = OBSERVABLES[region].values(selected)
                    for filled, its_weight in weights.items():
                        hists[region].fill(filled, values, its_weight)
                    if best is not None and region == assignment.REGION:
                        lepton = assignment.lepton_of(leptons, chosen, precision)
                        candidates = assignment.Candidates(selected, lepton, block.event[chosen])
                        best.add(name, candidates, weights)

        inputs: dict[str, Any] = {}
        if best is not None:
            best.finish()
            hists |= best.hists
            inputs = {"inputs": {process: best.inputs}} if variation == NOMINAL else {}
        return {
            **hists,
            "cutflow": {metadata["dataset"]: dict(cuts)},
            "sumw": sumw,
            "muon_ids": {metadata.get("lfn", metadata["filename"]): dict(muon_ids)},
            **inputs,
        }

    def _generator_weight(self, block: Any, metadata: Any) -> Any:
        """Weight of each event before normalisation, float64, shape ``(n_events,)``."""
        if self.compat or metadata.get("is_data"):
            return np.ones(len(block))
        return block.genWeight.astype(np.float64)

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Turn files in which no muon has an ID into warnings."""
        warnings = [
            MUON_IDS_FALSE.format(file=file, muons=count["muons"])
            for file, count in accumulator.pop("muon_ids").items()
            if count["muons"] and not count["tight"]
        ]
        inputs = named_spectra(accumulator.pop("inputs", {}))
        return {**materialised(accumulator), **inputs, "warnings": warnings}
