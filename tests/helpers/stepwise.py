"""A processor at whose work something can happen: between blocks of a chunk, or at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from coffea.processor import ProcessorABC

from agc_ml.columnar.events import blocks
from agc_ml.results.histograms import book

EVENTS: list[Callable[[], object] | None] = []
"""What happens before each block, in order; None: nothing."""


def happen() -> None:
    action = EVENTS.pop(0) if EVENTS else None
    if action is not None:
        action()


@dataclass(frozen=True)
class Records(ProcessorABC):
    """Jet pt of records, as coffea gives them."""

    columns: ClassVar = (
        *("Jet_pt", "Jet_eta", "Jet_phi", "Jet_mass", "Jet_btagCSVV2"),
        *("Muon_pt", "Muon_eta", "Muon_phi", "Muon_mass", "Muon_charge"),
    )
    simulation_columns: ClassVar = ("genWeight",)

    def process(self, events: Any) -> dict[str, Any]:
        meta = events.metadata
        names = {"process": meta["process"], "variations": ["nominal"]}
        spectrum = book(40, 0, 400, label="pt [GeV]", **names)
        muons = book(40, 0, 400, label="pt [GeV]", **names)
        sumw, n_events = 0.0, 0
        for block in blocks(events):
            happen()
            weight = np.asarray(block.genWeight).astype(np.float64)
            for histogram, objects in ((spectrum, block.Jet), (muons, block.Muon)):
                histogram.fill(
                    observable=np.asarray(objects.pt),
                    process=meta["process"],
                    variation="nominal",
                    weight=np.repeat(weight, np.diff(objects.offsets)),
                )
            sumw += float(weight.sum())
            n_events += len(block)
        cutflow = {meta["dataset"]: {"all": n_events}}
        return {"jets": spectrum, "muons": muons, "cutflow": cutflow, "sumw": sumw}


@dataclass(frozen=True)
class Flat(Records):
    """The same of flat columns."""

    flat: ClassVar = True
