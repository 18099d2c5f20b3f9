"""The ttbar cross-section measurement of the Analysis Grand Challenge, in CMS 2015 Open Data.

One isolated electron or muon and at least four jets; exactly one b-tag makes the control region,
two or more the signal region. `selection` holds the cuts, `observables` what is filled,
`systematics` how it varies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import awkward as ak
import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.hists import book
from agc_ml.variations import DIRECTIONS, NOMINAL, variation_name
from processors.ttbar import selection, systematics
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
    """

    compat: bool = False
    muons: bool = True
    seed: int = 42

    columns: ClassVar = selection.COLUMNS
    simulation_columns: ClassVar = ("genWeight",)

    def process(self, events: Any) -> dict[str, Any]:
        """Select and fill one chunk.

        Gives the two histograms, the cutflow, the sum of generator weights ``sumw`` (which asks for
        normalisation to cross-section and luminosity), and the numbers of muons with an ID.
        """
        process, variation = events.metadata["process"], events.metadata["variation"]
        weight = self._generator_weight(events)
        n_leptons = ak.num(selection.electrons(events.Electron))
        if self.muons:
            n_leptons = n_leptons + ak.num(selection.muons(events.Muon))
        one_lepton = n_leptons == 1
        kinematic = systematics.kinematic(events, variation, self.seed if self.compat else None)
        weights = systematics.weights(process, variation)
        names = [name for name, _ in kinematic] + [
            variation_name(w.source, direction) for w in weights for direction in DIRECTIONS
        ]
        hists = {
            region: book(25, 50, 550, label=observable.label, process=process, variations=names)
            for region, observable in OBSERVABLES.items()
        }
        cutflow = {"all events": len(events), "one lepton": int(ak.sum(one_lepton))}
        for name, factor in kinematic:
            jets = selection.jets(events.Jet, factor, single_precision=self.compat)
            regions = selection.regions(one_lepton, jets)
            if name == variation:
                cutflow["four jets"] = int(ak.sum(one_lepton & (ak.num(jets) >= 4)))
                cutflow |= {region: int(ak.sum(mask)) for region, mask in regions.items()}
            for region, mask in regions.items():
                selected, w = jets[mask], weight[mask]
                values = OBSERVABLES[region].values(selected)
                fill = {"observable": values, "process": process}
                hists[region].fill(**fill, variation=name, weight=w)
                if name != NOMINAL:
                    continue
                for source in weights:
                    for direction in DIRECTIONS:
                        hists[region].fill(
                            **fill,
                            variation=variation_name(source.source, direction),
                            weight=w * source.factor(selected, direction),
                        )
        return {
            **hists,
            "cutflow": {events.metadata["dataset"]: cutflow},
            "sumw": float(np.sum(weight)),
            "muon_ids": {
                events.metadata["filename"]: {
                    "muons": int(ak.sum(ak.num(events.Muon))),
                    "tight": int(ak.sum(events.Muon.tightId)),
                }
            },
        }

    def _generator_weight(self, events: Any) -> Any:
        """Weight of each event before normalisation, float64, shape ``(n_events,)``."""
        if self.compat or events.metadata.get("is_data"):
            return np.ones(len(events))
        return np.asarray(events.genWeight, dtype=np.float64)

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Turn files in which no muon has an ID into warnings."""
        warnings = [
            MUON_IDS_FALSE.format(file=file, muons=count["muons"])
            for file, count in accumulator.pop("muon_ids").items()
            if count["muons"] and not count["tight"]
        ]
        return {**accumulator, "warnings": warnings}
