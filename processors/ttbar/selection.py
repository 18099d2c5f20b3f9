"""Objects and regions. All inequalities are strict; energies, momenta and masses in GeV."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from agc_ml.columnar.jagged import count

B_TAG: Final = 0.5
JET_PT: Final = 30
N_JETS: Final = 4
TIGHT_LEPTON_VETO: Final = 4

LEPTON_PT: Final = 30
PRESELECTION: Final = (
    f"any((Electron_pt > {LEPTON_PT}) & (Electron_cutBased == 4), axis=1)"
    f" | any((Muon_pt > {LEPTON_PT}) & Muon_tightId, axis=1)"
)
"""What all events with a lepton fulfil, as services of columns are asked for it."""
LEPTON: Final = ("pt", "eta", "sip3d")
COLUMNS: Final = (
    *("run", "luminosityBlock", "event"),
    *(f"Electron_{field}" for field in (*LEPTON, "cutBased")),
    *(f"Muon_{field}" for field in (*LEPTON, "tightId", "pfRelIso04_all")),
    *(f"Jet_{field}" for field in ("pt", "eta", "phi", "mass", "btagCSVV2", "jetId")),
)


def electrons(electron: Any) -> Any:
    """Whether each electron is tight, isolated and prompt."""
    return (
        (electron.pt > LEPTON_PT)
        & (abs(electron.eta) < 2.1)
        & (electron.cutBased == 4)
        & (electron.sip3d < 4)
    )


def muons(muon: Any) -> Any:
    """Whether each muon is tight, isolated and prompt."""
    return (
        (muon.pt > LEPTON_PT)
        & (abs(muon.eta) < 2.1)
        & muon.tightId
        & (muon.sip3d < 4)
        & (muon.pfRelIso04_all < 0.15)
    )


def leptons(events: Any, *, with_muons: bool) -> list[tuple[Any, Any]]:
    """Electrons, and muons if they are wanted, each with which of them are selected."""
    found = [(events.Electron, electrons(events.Electron))]
    if with_muons:
        found.append((events.Muon, muons(events.Muon)))
    return found


def one_lepton(leptons: list[tuple[Any, Any]]) -> Any:
    """Mask of the events with exactly one of the `leptons`, shape ``(n_events,)``."""
    return sum(count(kind.offsets, selected) for kind, selected in leptons) == 1


def jets(jet: Any) -> Any:
    """Whether each jet is central and passes the tight lepton veto, whatever its pt."""
    return (abs(jet.eta) < 2.4) & ((jet.jetId & TIGHT_LEPTON_VETO) > 0)


def hard(jet: Any) -> Any:
    """Whether each jet passes the pt threshold."""
    return jet.pt > JET_PT


def b_tagged(jet: Any) -> Any:
    """Whether each jet has a b-tag."""
    return jet.btagCSVV2 > B_TAG


def regions(n_jets: Any, n_btags: Any) -> dict[str, Any]:
    """Masks of the control region 4j1b and the signal region 4j2b, shape ``(n_events,)``."""
    four_jets = n_jets >= N_JETS
    return {"4j1b": four_jets & (n_btags == 1), "4j2b": four_jets & (n_btags >= 2)}


def lepton(leptons: list[tuple[Any, Any]], rows: Any, dtype: type) -> tuple[Any, ...]:
    """Pt, eta, phi and mass of the only lepton of the given events, each of shape ``(n_rows,)``.

    ``leptons``: electrons and muons, and which of them are selected.
    """
    found: tuple[Any, ...] = tuple(np.full(len(rows), np.nan, dtype) for _ in range(4))
    for kind, selected in leptons:
        chosen = kind.take(rows, selected)
        has_one = chosen.counts == 1
        for values, field in zip(found, ("pt", "eta", "phi", "mass"), strict=True):
            values[has_one] = getattr(chosen, field)
    return found
