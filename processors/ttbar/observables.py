"""What is filled in each region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import awkward as ak
import numpy as np

from processors.ttbar.selection import B_TAG


class Observable(NamedTuple):
    """An axis label with its unit, and the values for selected jets, shape ``(n_events,)``."""

    label: str
    values: Callable[[Any], Any]


def h_t(jets: Any) -> Any:
    """Scalar sum of the jets' pt, in GeV; shape ``(n_events,)``."""
    return ak.sum(jets.pt, axis=1)


def m_bjj(jets: Any) -> Any:
    """Mass of the three-jet system with the highest pt among those with a b-tag, in GeV."""
    a, b, c = ak.unzip(ak.combinations(jets, 3))
    trijet = a + b + c
    b_tagged = np.maximum(np.maximum(a.btag, b.btag), c.btag) > B_TAG
    trijet = trijet[b_tagged]
    return ak.flatten(trijet[ak.argmax(trijet.pt, axis=1, keepdims=True)].mass)


OBSERVABLES: Final = {
    "4j1b": Observable("$H_T$ [GeV]", h_t),
    "4j2b": Observable("$m_{bjj}$ [GeV]", m_bjj),
}
