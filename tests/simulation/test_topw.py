"""The process g b -> t W against the exact traces of its two diagrams."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from agc_ml.simulation.truth import topw

METRIC = np.array([1.0, -1.0, -1.0, -1.0])


def dirac() -> tuple[list[np.ndarray], np.ndarray]:
    one, zero = np.eye(2), np.zeros((2, 2))
    pauli = [
        np.array([[0, 1], [1, 0]], complex),
        np.array([[0, -1j], [1j, 0]]),
        np.diag([1, -1]).astype(complex),
    ]
    gamma = [np.block([[zero, one], [one, zero]]).astype(complex)]
    gamma += [np.block([[zero, sigma], [-sigma, zero]]) for sigma in pauli]
    return gamma, np.diag([-1, -1, 1, 1]).astype(complex)


def exact(s: float, cosine: float) -> tuple[float, float]:
    """Spin-summed squared amplitude in units of gs^2 gw^2 / 2, and u, from gamma matrices."""
    gamma, gamma5 = dirac()
    left = (np.eye(4) - gamma5) / 2
    mt, mw = topw.TOP_MASS, topw.W_MASS

    def slash(p: np.ndarray) -> np.ndarray:
        return sum(METRIC[m] * p[m] * gamma[m] for m in range(4))

    root, sine = math.sqrt(s), math.sqrt(1 - cosine**2)
    bottom, gluon = np.array([root, 0, 0, root]) / 2, np.array([root, 0, 0, -root]) / 2
    energy = (s + mt**2 - mw**2) / (2 * root)
    momentum = math.sqrt(energy**2 - mt**2)
    top = np.array([energy, momentum * sine, 0, momentum * cosine])
    w = bottom + gluon - top
    exchanged = top - gluon
    u = float((METRIC * exchanged) @ exchanged)
    s_channel, u_channel = slash(bottom + gluon), slash(exchanged) + mt * np.eye(4)
    amplitude = [
        [
            gamma[n] @ left @ s_channel @ gamma[m] / s
            + gamma[m] @ u_channel @ gamma[n] @ left / (u - mt**2)
            for n in range(4)
        ]
        for m in range(4)
    ]
    total = 0.0
    for m in range(4):
        for n in range(4):
            for k in range(4):
                sum_of_w = METRIC[n] * METRIC[k] * w[n] * w[k] / mw**2 - (n == k) * METRIC[n]
                bar = gamma[0] @ amplitude[m][k].conj().T @ gamma[0]
                trace = np.trace(
                    (slash(top) + mt * np.eye(4)) @ amplitude[m][n] @ slash(bottom) @ bar
                )
                total += -METRIC[m] * sum_of_w * trace.real
    return total, u


@pytest.mark.parametrize("cosine", [-0.95, -0.3, 0.2, 0.9])
@pytest.mark.parametrize("energy", [270.0, 400.0, 2000.0])
def test_matrix_element_is_the_exact_one(energy: float, cosine: float) -> None:
    squared, u = exact(energy**2, cosine)
    assert topw.matrix_element(energy**2, u) == pytest.approx(squared, rel=1e-10)
    assert squared > 0


def test_the_exchanged_top_takes_the_gluon() -> None:
    """u is of top and gluon, whichever beam the gluon came from."""
    s, t, u = 400.0**2, -2e4, -9e4

    def sigma(first: int, second: int, t: float, u: float) -> float:
        process = SimpleNamespace(id1=first, id2=second, sH=s, tH=t, uH=u, alpEM=1 / 128, alpS=0.1)
        return topw.GluonBottomToTopW.sigmaHat(process)

    assert sigma(5, 21, t, u) == sigma(21, -5, u, t) > 0
    ratio = topw.matrix_element(s, u) / topw.matrix_element(s, t)
    assert sigma(5, 21, t, u) / sigma(5, 21, u, t) == pytest.approx(ratio)
    assert sigma(4, 21, t, u) == 0
