"""Objects and regions. All inequalities are strict; energies, momenta and masses in GeV."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agc_ml.columnar.jagged import Collection, count

JET_PT: Final = 30
B_TAG: Final = 0.5
N_JETS: Final = 4
TIGHT_LEPTON_VETO: Final = 4

LEPTON_PT: Final = 30
TIGHT_ELECTRON: Final = 4
PRESELECTION: Final = (
    f"any((Electron_pt > {LEPTON_PT}) & (Electron_cutBased == {TIGHT_ELECTRON}), axis=1)"
    f" | any((Muon_pt > {LEPTON_PT}) & Muon_tightId, axis=1)"
)
"""Cut that all events with a selected lepton pass, as services of columns are asked for it."""
LEPTON: Final = ("pt", "eta", "sip3d")
COLUMNS: Final = (
    "run",
    "luminosityBlock",
    "event",
    *(f"Electron_{field}" for field in (*LEPTON, "cutBased")),
    *(f"Muon_{field}" for field in (*LEPTON, "tightId", "pfRelIso04_all")),
    *(f"Jet_{field}" for field in ("pt", "eta", "phi", "mass", "btagCSVV2", "jetId")),
)


def electrons(electron: Any) -> Any:
    """Mask of the tight, isolated and prompt electrons."""
    return (
        (electron.pt > LEPTON_PT)
        & (abs(electron.eta) < 2.1)
        & (electron.cutBased == TIGHT_ELECTRON)
        & (electron.sip3d < 4)
    )


def muons(muon: Any) -> Any:
    """Mask of the tight, isolated and prompt muons."""
    return (
        (muon.pt > LEPTON_PT)
        & (abs(muon.eta) < 2.1)
        & muon.tightId
        & (muon.sip3d < 4)
        & (muon.pfRelIso04_all < 0.15)
    )


def leptons(events: Any, *, with_muons: bool) -> list[tuple[Any, Any]]:
    """Electrons, and muons if they are wanted, each with the mask of the selected ones."""
    selected = [(events.Electron, electrons(events.Electron))]
    if with_muons:
        selected.append((events.Muon, muons(events.Muon)))
    return selected


def one_lepton(leptons: list[tuple[Any, Any]]) -> Any:
    """Mask of the events with exactly one of the `leptons`, shape ``(n_events,)``."""
    return sum(count(kind.offsets, selected) for kind, selected in leptons) == 1


def jets(jet: Any) -> Any:
    """Mask of the central jets that pass the tight lepton veto, whatever their pt."""
    return (abs(jet.eta) < 2.4) & ((jet.jetId & TIGHT_LEPTON_VETO) > 0)


def hard(jet: Any) -> Any:
    """Mask of the jets above the pt threshold."""
    return jet.pt > JET_PT


def b_tagged(jet: Any) -> Any:
    """Mask of the jets with a b-tag."""
    return jet.btagCSVV2 > B_TAG


def regions(n_jets: Any, n_btags: Any) -> dict[str, Any]:
    """Masks of the control region 4j1b and the signal region 4j2b, shape ``(n_events,)``."""
    four_jets = n_jets >= N_JETS
    return {"4j1b": four_jets & (n_btags == 1), "4j2b": four_jets & (n_btags >= 2)}


def candidates(events: Any, one_lepton: Any, precision: type) -> tuple[Any, Collection]:
    """Events with one lepton and four jets whatever their pt, and their jets in a precision.

    A variation may lift jets above the threshold. Returns the places of the events in the block.
    """
    good = jets(events.Jet)
    rows = np.flatnonzero(one_lepton & (count(events.Jet.offsets, good) >= N_JETS))
    return rows, events.Jet.take(rows, good).converted(precision, "pt", "eta", "phi", "mass")


def cut_on_jets(jets: Collection) -> tuple[Any, Any, dict[str, Any]]:
    """Masks of the hard jets, of the events with four of them, and of those in each region."""
    passed = hard(jets)
    n_jets = count(jets.offsets, passed)
    n_btags = count(jets.offsets, passed & b_tagged(jets))
    return passed, n_jets >= N_JETS, regions(n_jets, n_btags)
