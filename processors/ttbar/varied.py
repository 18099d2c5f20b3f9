"""The selection, once for each kinematic variation of the jets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from agc_ml.columnar.jagged import Collection, count
from processors.ttbar import selection
from processors.ttbar.systematics import Variation


class Varied(NamedTuple):
    """Candidate events of a block, as a kinematic variation sees them.

    ``rows`` are their places in the block, ``jets`` those with good jets whatever their pt,
    ``passed`` which of the jets pass the threshold; masks of the regions and numbers of jets have
    the shape of ``rows``.
    """

    variation: str
    rows: Any
    jets: Collection
    passed: Any
    n_jets: Any
    regions: dict[str, Any]

    def selected(self, region: str) -> tuple[Collection, Any]:
        """Selected jets of the events in a region, and the places of these events in the block."""
        mask = self.regions[region]
        return self.jets.take(mask, self.passed), self.rows[mask]


def select(
    events: Any, one_lepton: Any, kinematic: Mapping[str, Variation], precision: type
) -> Iterator[Varied]:
    """Apply the cuts on jets to the events with one lepton, for each variation of the jets."""
    good = selection.jets(events.Jet)
    # whatever their pt is: a variation may lift it
    four_jets = count(events.Jet.offsets, good) >= selection.N_JETS
    rows = np.flatnonzero(one_lepton & four_jets)
    jets = events.Jet.take(rows, good).converted(precision, "pt", "eta", "phi", "mass")
    for name, vary in kinematic.items():
        varied = vary(events, rows, jets)
        passed = selection.hard(varied)
        n_jets = count(jets.offsets, passed)
        n_btags = count(jets.offsets, passed & selection.b_tagged(jets))
        yield Varied(name, rows, varied, passed, n_jets, selection.regions(n_jets, n_btags))
