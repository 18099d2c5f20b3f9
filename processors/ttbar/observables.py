"""Observables of the regions: axes, labels and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from agc_ml import DenseHist
from agc_ml.columnar.combinatorics import best_trijet_mass
from agc_ml.columnar.jagged import total
from agc_ml.columnar.kinematics import cartesian
from processors.ttbar import selection


class Observable(NamedTuple):
    """An axis, its label with the unit, and the values for selected jets, shape ``(n_events,)``."""

    bins: tuple[int, float, float]
    label: str
    values: Callable[[Any], Any]


def h_t(jets: Any) -> Any:
    """Scalar sum of the jets' pt, in GeV; shape ``(n_events,)``."""
    return total(jets.offsets, jets.pt)


def m_bjj(jets: Any) -> Any:
    """Mass of the three-jet system with the highest pt among those with a b-tag, in GeV."""
    momenta = cartesian(jets.pt, jets.eta, jets.phi, jets.mass)
    return best_trijet_mass(jets.offsets, *momenta, selection.b_tagged(jets))


OBSERVABLES: Final = {
    "4j1b": Observable((25, 50, 550), "$H_T$ [GeV]", h_t),
    "4j2b": Observable((25, 50, 550), "$m_{bjj}$ [GeV]", m_bjj),
}


def book(process: str, variations: list[str]) -> dict[str, DenseHist]:
    """Histogram of the observable of each region."""
    return {
        region: DenseHist(
            *observable.bins,
            label=observable.label,
            process=process,
            variations=variations,
            counts="Events",
        )
        for region, observable in OBSERVABLES.items()
    }
