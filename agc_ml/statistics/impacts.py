"""Impacts: changes of the parameter of interest when another parameter is moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError
from agc_ml.statistics.fit_result import Impact
from agc_ml.statistics.likelihood.likelihood import Likelihood
from agc_ml.statistics.likelihood.minimization import Minimum
from agc_ml.statistics.likelihood.newton import descend, newton_step

MAX_STEPS: Final = 200
"""Steps for each of the many fits behind the impacts, which start close by."""
MAX_STAGES: Final = 10
"""Stages in which a parameter is moved, at most."""

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


def impacts(
    likelihood: Likelihood, minimum: Minimum, tell: Callable[[str], None] = lambda _: None
) -> tuple[Impact, ...]:
    """Impacts of all other free parameters on the parameter of interest, the largest first.

    A parameter is moved from its fitted value by its pre-fit uncertainty up and down, then by its
    post-fit one, and all others are fitted again. One that no fit can follow is left out. Without
    jax the changes are those of a parabola of the same covariance. ``tell`` gets the progress.
    """
    # the curvature at the minimum, from where all fits start
    hessian = None if likelihood.derivatives is None else likelihood.derivatives(minimum.values)[2]
    ranked = []
    for index, name in enumerate(likelihood.names):
        if index == likelihood.poi or likelihood.fixed[index]:
            continue
        tell(f"impacts: parameter {index + 1} of {len(likelihood.names)}")
        prefit, postfit = likelihood.prefit[index], minimum.uncertainties[index]
        changes = [
            _impact(likelihood, minimum, hessian, index=index, move=move)
            for move in (prefit, -prefit, postfit, -postfit)
        ]
        followed = [change for change in changes if change is not None]
        if len(followed) == len(changes):
            ranked.append(Impact(name, *followed))
    return tuple(sorted(ranked, key=lambda impact: impact.size, reverse=True))


def _impact(
    likelihood: Likelihood,
    minimum: Minimum,
    hessian: _Array | None,
    *,
    index: int,
    move: float,
) -> float | None:
    """Change of the parameter of interest when parameter ``index`` moves by ``move``."""
    target = likelihood.poi
    if move == 0:
        return 0.0
    if hessian is None:
        return float(move * minimum.covariance[index, target] / minimum.covariance[index, index])
    moved = _refitted(likelihood, minimum.values, hessian, index=index, move=move)
    return None if moved is None else float(moved[target] - minimum.values[target])


def _refitted(
    likelihood: Likelihood, x: _Array, hessian: _Array, *, index: int, move: float
) -> _Array | None:
    """Fit with parameter ``index`` moved from ``x``: usually at once, else in stages."""
    assert likelihood.derivatives is not None  # noqa: S101 - for the type checker
    fixed = likelihood.fixed.copy()
    fixed[index] = True
    aim = x[index] + move
    for _ in range(MAX_STAGES):
        start = _moved(likelihood, x, hessian, fixed=fixed, index=index, move=aim - x[index])
        if start is None:
            return None
        try:
            point = descend(likelihood.derivatives, likelihood, start, fixed, max_steps=MAX_STEPS)
        except FitError:  # t is not finite there
            return None
        x, hessian = point.values, point.hessian
        if not point.converged or abs(x[index] - aim) < 1e-12 * abs(move):
            return x if point.converged else None
    return None


def _moved(
    likelihood: Likelihood,
    x: _Array,
    hessian: _Array,
    *,
    fixed: _Mask,
    index: int,
    move: float,
) -> _Array | None:
    """Move parameter ``index`` and let the others follow, as far as there is a prediction.

    The move is halved until no bin with data is left without prediction.
    """
    free = ~fixed & (x > likelihood.lower) & (x < likelihood.upper)
    along = np.zeros_like(x)
    along[free], _ = newton_step(hessian[free, index], hessian[np.ix_(free, free)])
    along[index] = 1.0
    for halvings in range(10):
        trial = x + move / 2**halvings * along
        inside: _Array = np.where(free, np.clip(trial, likelihood.lower, likelihood.upper), trial)
        if np.isfinite(likelihood.value(inside)):
            return inside
    return None
