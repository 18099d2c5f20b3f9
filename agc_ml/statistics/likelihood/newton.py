"""Newton's method with exact gradient and Hessian: to a minimum, and out of saddles.

The eigenvalues of the Hessian are taken as absolute ones, so that a step leads down, with a line
search: exact, in some ten steps. A point without gradient is a minimum only where the Hessian is
positive: from a saddle the way goes on along the direction of negative curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError
from agc_ml.statistics.likelihood.likelihood import Derivatives, Likelihood

EDM: Final = 1e-12
"""Estimated distance to the minimum of t at which the minimiser stops."""
CHANCE: Final = 1e3 * EDM
"""What t may fall by if a parameter left its bound, without its being held there."""
MAX_STEPS: Final = 500
NEARLY_FLAT: Final = 1e-5
"""Eigenvalue of the Hessian, scaled to a diagonal of ones, below which it is looked at closely."""

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


class Point(NamedTuple):
    """Last point of Newton's method; ``free`` are neither fixed nor pushed against their bound."""

    values: _Array
    hessian: _Array
    free: _Mask
    edm: float
    steps: int
    converged: bool


def descend(
    derivatives: Derivatives,
    likelihood: Likelihood,
    start: _Array,
    fixed: _Mask,
    *,
    max_steps: int = MAX_STEPS,
    tell: Callable[[str], None] = lambda _: None,
) -> Point:
    """Newton steps with absolute eigenvalues and a line search, within the bounds, to a minimum.

    Raises
    ------
    FitError
        The likelihood is not finite at ``start``.
    """
    lower = np.where(fixed, -np.inf, likelihood.lower)
    upper = np.where(fixed, np.inf, likelihood.upper)
    x = np.clip(start, lower, upper)
    for steps in range(max_steps):
        t, gradient, hessian = derivatives(x)
        if not (np.isfinite(t) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            raise FitError(
                "the likelihood is not finite where the fit starts: a bin with data has no "
                "prediction there, or numbers are too large; look at the initial and fixed values"
            )
        free = ~fixed & ~((x <= lower) & (gradient > 0)) & ~((x >= upper) & (gradient < 0))
        step, edm = newton_step(gradient[free], hessian[np.ix_(free, free)])
        direction = np.zeros_like(x)
        direction[free] = step
        tell(f"step {steps + 1}: distance to the minimum {edm:.2g}")
        downwards = None
        if edm < EDM:
            # where rounding decides whether a bound holds a parameter, none does
            free |= ~fixed & (0.5 * gradient**2 < CHANCE * np.abs(np.diag(hessian)))
            downwards = _downwards(hessian, free)
        point = Point(x, hessian, free, edm, steps, converged=edm < EDM and downwards is None)
        if point.converged:
            return point
        moved = (
            _search(likelihood, x, direction, t, gradient)
            if downwards is None
            else _escape(likelihood, x, downwards, t)
        )
        if moved is None:
            return point
        x = np.clip(moved, lower, upper)
    return point


def newton_step(gradient: _Array, hessian: _Array) -> tuple[_Array, float]:
    """Newton step that always leads down, and the decrease of t that it promises.

    Where the Hessian is not positive definite its eigenvalues are taken as absolute ones.
    """
    try:
        np.linalg.cholesky(hessian)
        step = np.asarray(-np.linalg.solve(hessian, gradient), dtype=np.float64)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(hessian)
        sizes = np.abs(eigenvalues)
        # a direction without curvature has no gradient either, but for rounding
        sizes = np.maximum(sizes, 1e-12 * sizes.max(initial=1.0))
        step = -(vectors @ ((vectors.T @ gradient) / sizes))
    return step, float(-0.5 * gradient @ step)


def scaled(hessian: _Array) -> tuple[_Array, _Array]:
    """Hessian with a diagonal of ones (or minus ones), and the square roots of its own."""
    scale = np.sqrt(np.abs(np.diag(hessian)))
    scale = np.where(scale > 0, scale, 1.0)
    return hessian / np.outer(scale, scale), scale


def _downwards(hessian: _Array, free: _Mask) -> _Array | None:
    """Direction of the most negative curvature, None where no curvature is negative.

    Its length is that of a standard deviation if the curvature were positive; it leads up in the
    parameter that moves most, so that of two equal minima the one there is found.
    """
    unit, scale = scaled(hessian[np.ix_(free, free)])
    eigenvalues, vectors = np.linalg.eigh(unit)
    if not len(eigenvalues) or eigenvalues[0] > -NEARLY_FLAT:
        return None
    vector = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])
    direction = np.zeros(len(free))
    direction[free] = vector / scale / np.sqrt(-eigenvalues[0])
    return direction


def _escape(likelihood: Likelihood, x: _Array, direction: _Array, t: float) -> _Array | None:
    """Go from a saddle along ``direction`` or against it, as far as t falls, halving the way."""
    lower, upper = np.minimum(likelihood.lower, x), np.maximum(likelihood.upper, x)
    for halvings in range(30):
        trials = [np.clip(x + side * direction / 2**halvings, lower, upper) for side in (1, -1)]
        values = [likelihood.value(trial) for trial in trials]
        if min(values) < t - 1e-12 * (1 + abs(t)):
            return np.asarray(trials[int(np.argmin(values))])
    return None


def _search(
    likelihood: Likelihood, x: _Array, direction: _Array, t: float, gradient: _Array
) -> _Array | None:
    """Go along ``direction`` as far as t falls as it should (Armijo), halving the way."""
    rounding = 1e-12 * (1 + abs(t))
    lower, upper = np.minimum(likelihood.lower, x), np.maximum(likelihood.upper, x)
    for halvings in range(50):
        trial: _Array = np.clip(x + direction / 2**halvings, lower, upper)
        if likelihood.value(trial) <= t + 1e-4 * float(gradient @ (trial - x)) + rounding:
            return trial
    return None
