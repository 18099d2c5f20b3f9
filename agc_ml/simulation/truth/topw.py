"""Hard process g b -> t W- (and charge conjugate), which Pythia lacks.

Leading order, two diagrams (s and u channel), summed over spins and colours, with the masses of top
and W on their poles and a massless b. In units of the top mass, with r = mW^2 / mt^2, x = s / mt^2
and v = (u - mt^2) / mt^2, where u = (p_top - p_gluon)^2, the traces give

    -(2 / r) { (1 + 2r) [ x/v + v/x + 2(1-r) (1/x + 1/v + 1/v^2) + 2(1-r)^2 / (xv) ] + 2 }

in units of gs^2 gw^2 / 2 and before the colour factor. The formula was fitted to the exact traces,
and is tested against them (``tests/simulation/test_topw.py``). The process is from T. M. P. Tait,
Phys. Rev. D 61 (2000) 034001.
"""

from __future__ import annotations

import math
from typing import Any, Final

from pythia8mc import Sigma2Process

TOP_MASS: Final = 172.5  # GeV, as in all samples
W_MASS: Final = 80.385  # GeV, Pythia's own
SIN2_THETA_W: Final = 0.2312  # effective, PDG; affects only the size of the cross-section

_R: Final = (W_MASS / TOP_MASS) ** 2
_BOTTOM: Final = 5
_CODE: Final = 10401  # of a user's process: any number unused by Pythia


def matrix_element(s: float, u: float) -> float:
    """Spin-summed squared amplitude of g b -> t W; ``s`` and ``u`` in GeV^2."""
    x, v, rest = s / TOP_MASS**2, (u - TOP_MASS**2) / TOP_MASS**2, 1 - _R
    inner = x / v + v / x + 2 * rest * (1 / x + 1 / v + 1 / v**2) + 2 * rest**2 / (x * v)
    squared: float = -(2 / _R) * ((1 + 2 * _R) * inner + 2)
    return squared


class GluonBottomToTopW(Sigma2Process):  # type: ignore[misc]
    """Process for ``Pythia.setSigmaPtr``, which calls its methods; its caller keeps it alive."""

    def initProc(self) -> None:
        pass

    def name(self) -> str:
        return "g b -> t W"

    def code(self) -> int:
        return _CODE

    def inFlux(self) -> str:
        return "qg"

    def id3Mass(self) -> int:
        return 6

    def id4Mass(self) -> int:
        return 24

    def sigmaKin(self) -> None:
        pass

    def sigmaHat(self) -> float:
        """d(sigma) / d(t) in GeV^-4: averaged over 4 spins and 24 colours, colour factor 4."""
        bottom_first = abs(self.id1) == _BOTTOM
        if not (bottom_first or abs(self.id2) == _BOTTOM):
            return 0.0
        squared = matrix_element(self.sH, self.uH if bottom_first else self.tH)
        # gs^2 gw^2 / 2, then averages and phase space.
        weak = 4 * math.pi * self.alpEM / SIN2_THETA_W
        couplings = 4 * math.pi * self.alpS * weak / 2
        sigma: float = max(squared, 0.0) * couplings / 6 / 4 / (16 * math.pi * self.sH**2)
        return sigma

    def setIdColAcol(self) -> None:
        bottom_first = abs(self.id1) == _BOTTOM
        sign = 1 if (self.id1 if bottom_first else self.id2) > 0 else -1
        self.setId(self.id1, self.id2, 6 * sign, -24 * sign)
        if bottom_first:
            self.setColAcol(1, 0, 2, 1, 2, 0, 0, 0)
        else:
            self.setColAcol(2, 1, 1, 0, 2, 0, 0, 0)
        if sign < 0:
            self.swapColAcol()

    def weightDecay(self, record: Any, first: int, last: int) -> float:
        """Spin correlations of the top's decay."""
        mother = abs(record[record[first].mother1()].id())
        return self.weightTopDecay(record, first, last) if mother == 6 else 1.0
