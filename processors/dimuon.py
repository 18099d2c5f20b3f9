"""The dimuon mass spectrum: the smallest complete analysis."""

from __future__ import annotations

from typing import Any, ClassVar

import awkward as ak
from coffea.processor import ProcessorABC

from agc_ml import book


class DimuonProcessor(ProcessorABC):  # type: ignore[misc]
    """Fill the mass of each opposite-charge pair of muons with pt > 5 GeV and |eta| < 2.4."""

    columns: ClassVar = tuple(f"Muon_{field}" for field in ("pt", "eta", "phi", "mass", "charge"))

    def process(self, events: Any) -> dict[str, Any]:
        """Histogram of the pair mass in GeV, 240 bins from 0 to 120, and the number of pairs."""
        process, variation = events.metadata["process"], events.metadata["variation"]
        muons = events.Muon[(events.Muon.pt > 5) & (abs(events.Muon.eta) < 2.4)]
        first, second = ak.unzip(ak.combinations(muons, 2))
        mass = ak.flatten((first + second)[first.charge * second.charge < 0].mass)
        spectrum = book(
            240,
            0,
            120,
            label=r"$m_{\mu\mu}$ [GeV]",
            process=process,
            variations=[variation],
            counts="Muon pairs",
        )
        spectrum.fill(observable=mass, process=process, variation=variation)
        return {"dimuon_mass": spectrum}
