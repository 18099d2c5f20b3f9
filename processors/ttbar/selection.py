"""Objects and regions. All inequalities are strict; energies, momenta and masses in GeV."""

from __future__ import annotations

from typing import Any, Final

import awkward as ak
import numpy as np

B_TAG: Final = 0.5
TIGHT_LEPTON_VETO: Final = 4

LEPTON: Final = ("pt", "eta", "phi", "mass", "charge", "sip3d")
COLUMNS: Final = (
    *("run", "luminosityBlock", "event"),
    *(f"Electron_{field}" for field in (*LEPTON, "cutBased")),
    *(f"Muon_{field}" for field in (*LEPTON, "tightId", "pfRelIso04_all")),
    *(f"Jet_{field}" for field in ("pt", "eta", "phi", "mass", "btagCSVV2", "jetId")),
)


def electrons(electron: Any) -> Any:
    """Tight, isolated, prompt electrons."""
    return electron[
        (electron.pt > 30)
        & (abs(electron.eta) < 2.1)
        & (electron.cutBased == 4)
        & (electron.sip3d < 4)
    ]


def muons(muon: Any) -> Any:
    """Tight, isolated, prompt muons."""
    return muon[
        (muon.pt > 30)
        & (abs(muon.eta) < 2.1)
        & muon.tightId
        & (muon.sip3d < 4)
        & (muon.pfRelIso04_all < 0.15)
    ]


def jets(jet: Any, factor: Any | None, *, single_precision: bool = False) -> Any:
    """Jets with tight lepton veto, in file order, their pt times ``factor`` (None: as measured).

    Only pt is scaled, not the mass. ``nominal_pt`` is the pt before scaling. Four-momenta are
    float64 unless ``single_precision``, which keeps float32 where the file has it.
    """
    dtype = np.float32 if single_precision else np.float64
    pt = jet.pt if factor is None else ak.values_astype(jet.pt, np.float64) * factor
    scaled = ak.zip(
        {
            "pt": pt if single_precision else ak.values_astype(pt, np.float64),
            "eta": ak.values_astype(jet.eta, dtype),
            "phi": ak.values_astype(jet.phi, dtype),
            "mass": ak.values_astype(jet.mass, dtype),
            "nominal_pt": jet.pt,
            "btag": jet.btagCSVV2,
        },
        with_name="PtEtaPhiMLorentzVector",
        behavior=jet.behavior,
    )
    passed = (pt > 30) & (abs(jet.eta) < 2.4) & ((jet.jetId & TIGHT_LEPTON_VETO) > 0)
    return scaled[passed]


def regions(one_lepton: Any, jet: Any) -> dict[str, Any]:
    """Masks of the control region 4j1b and the signal region 4j2b, shape ``(n_events,)``."""
    four_jets = one_lepton & (ak.num(jet) >= 4)
    n_btags = ak.sum(jet.btag > B_TAG, axis=1)
    return {"4j1b": four_jets & (n_btags == 1), "4j2b": four_jets & (n_btags >= 2)}
