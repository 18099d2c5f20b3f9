"""The minimum of a likelihood, the covariance there, and impacts.

With jax's gradient and Hessian the minimiser is Newton's method with the absolute eigenvalues of
the Hessian, and a line search: exact, in some ten steps. Without jax it is Minuit, whose
derivatives are differences, and uncertainties approximate.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError
from agc_ml.likelihood import Derivatives, Likelihood, backend

EDM: Final = 1e-12
"""Estimated distance to the minimum of t at which the minimiser stops."""
MAX_STEPS: Final = 500
FLAT: Final = 1e-8
"""Smallest eigenvalue of the Hessian, scaled to a diagonal of ones, that is not called flat.

It makes an uncertainty ten thousand times what it is with all other parameters fixed.
"""
IMPACT_STEPS: Final = 50
"""Steps for each of the many fits behind the impacts, which start close by."""
MAX_STAGES: Final = 10
"""In how many moves a parameter gets to where its impact is wanted, at most."""

APPROXIMATE: Final = (
    "uncertainties are approximate (Minuit's, from differences) and impacts those of a parabola: "
    "install the extra 'fit' (pip install 'agc-ml[fit]') for exact ones"
)

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


class Minimum(NamedTuple):
    """The minimum of a likelihood; arrays in the order of ``names``.

    ``chi2`` is t there, ``twice_nll`` twice the negative log-likelihood itself. Parameters that are
    fixed, or end at a bound, have no uncertainty.
    """

    names: tuple[str, ...]
    values: _Array
    uncertainties: _Array
    covariance: _Array
    correlation: _Array
    chi2: float
    twice_nll: float
    edm: float
    steps: int
    minimizer: str
    converged: bool
    notes: tuple[str, ...]


def minimise(likelihood: Likelihood) -> Minimum:
    """Find the minimum and the covariance there: exactly with jax, by Minuit without.

    It need not be converged; ``converged`` and the notes say so.

    Raises
    ------
    FitError
        The likelihood does not determine all free parameters, or Minuit finds no minimum.
    """
    if likelihood.derivatives is None:
        return _minuit(likelihood)
    point = _newton(likelihood.derivatives, likelihood, likelihood.start, likelihood.fixed)
    notes = []
    if not point.converged:
        notes.append(
            f"the minimiser did not converge (distance to the minimum {point.edm:.1g} after "
            f"{point.steps} steps): values and uncertainties can't be relied upon"
        )
    at_bound = [
        name
        for name, free, fixed in zip(likelihood.names, point.free, likelihood.fixed, strict=True)
        if not free and not fixed
    ]
    if at_bound:
        notes.append(f"at their bound, without uncertainty: {', '.join(at_bound)}")
    covariance = _covariance(likelihood, point)
    return _minimum(
        likelihood,
        values=point.values,
        covariance=covariance,
        edm=point.edm,
        steps=point.steps,
        minimizer="newton",
        converged=point.converged,
        notes=notes,
    )


class _Point(NamedTuple):
    """Where Newton's method ended; ``free`` are neither fixed nor pushed against their bound."""

    values: _Array
    hessian: _Array
    free: _Mask
    edm: float
    steps: int
    converged: bool


def _newton(
    derivatives: Derivatives,
    likelihood: Likelihood,
    start: _Array,
    fixed: _Mask,
    max_steps: int = MAX_STEPS,
) -> _Point:
    """Newton steps with absolute eigenvalues and a line search, within the bounds."""
    lower = np.where(fixed, -np.inf, likelihood.lower)
    upper = np.where(fixed, np.inf, likelihood.upper)
    x = np.clip(start, lower, upper)
    for steps in range(max_steps):
        t, gradient, hessian = derivatives(x)
        if not (np.isfinite(t) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            raise FitError(
                "the likelihood is not finite where the fit starts: a bin with data has no "
                "prediction there; look at the initial and fixed values of the configuration"
            )
        free = ~fixed & ~((x <= lower) & (gradient > 0)) & ~((x >= upper) & (gradient < 0))
        step, edm = _step(gradient[free], hessian[np.ix_(free, free)])
        point = _Point(x, hessian, free, edm, steps, converged=edm < EDM)
        direction = np.zeros_like(x)
        direction[free] = step
        found = None if point.converged else _search(likelihood, x, direction, t, gradient)
        if found is None:
            return point
        x = np.clip(found, lower, upper)
    return point


def _step(gradient: _Array, hessian: _Array) -> tuple[_Array, float]:
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


def _covariance(likelihood: Likelihood, point: _Point) -> _Array:
    """Twice the inverse Hessian of t; zero for parameters that are not free."""
    free = np.flatnonzero(point.free)
    hessian = point.hessian[np.ix_(free, free)]
    scale = np.sqrt(np.abs(np.diag(hessian)))
    scale = np.where(scale > 0, scale, 1.0)
    eigenvalues, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    flat = np.abs(eigenvalues) < FLAT
    if flat.any():
        strongest = np.abs(vectors[:, flat]).max(axis=1) > 0.3  # noqa: PLR2004 - takes part
        names = ", ".join(likelihood.names[i] for i in free[strongest])
        raise FitError(
            f"the data do not determine {names}: no prediction depends on it; fix it (General: "
            "Fixed) or take it out of the configuration"
        )
    covariance = np.zeros_like(point.hessian)
    inverse = (vectors / np.abs(eigenvalues)) @ vectors.T
    covariance[np.ix_(free, free)] = 2 * inverse / np.outer(scale, scale)
    return covariance


def _minimum(
    likelihood: Likelihood,
    *,
    values: _Array,
    covariance: _Array,
    edm: float,
    steps: int,
    minimizer: str,
    converged: bool,
    notes: list[str],
) -> Minimum:
    uncertainties = np.sqrt(np.diag(covariance))
    known = np.where(uncertainties > 0, uncertainties, 1.0)
    correlation = covariance / np.outer(known, known)
    np.fill_diagonal(correlation, 1.0)
    chi2 = likelihood.value(values)
    return Minimum(
        names=likelihood.names,
        values=values,
        uncertainties=uncertainties,
        covariance=covariance,
        correlation=correlation,
        chi2=chi2,
        twice_nll=chi2 + likelihood.saturated,
        edm=edm,
        steps=steps,
        minimizer=minimizer,
        converged=converged,
        notes=tuple(notes),
    )


def _minuit(likelihood: Likelihood) -> Minimum:
    """Minuit's Migrad and Hesse at strategy 2, which converges where lower ones fail."""
    import iminuit  # noqa: PLC0415 - only without jax

    def value(parameters: _Array) -> float:
        return min(likelihood.value(parameters), 1e12)  # Minuit wants finite ones

    with backend("numpy"):
        minuit = iminuit.Minuit(value, likelihood.start, name=likelihood.names)
        minuit.errordef = iminuit.Minuit.LEAST_SQUARES  # t is twice a negative log-likelihood
        minuit.strategy = 2
        minuit.tol = 1e-3  # of an EDM of 0.002: its default stops 0.001 off in ttbar_norm
        minuit.fixed = likelihood.fixed
        minuit.limits = list(zip(likelihood.lower, likelihood.upper, strict=True))
        minuit.migrad(ncall=100_000)
        if minuit.covariance is None or not np.isfinite(minuit.covariance).all():
            minuit.hesse()
        if minuit.covariance is None or not np.isfinite(minuit.covariance).all():
            raise FitError(
                "Minuit found no minimum with a covariance; install the extra 'fit' (pip install "
                "'agc-ml[fit]') for the exact minimiser"
            )
        covariance = np.array(minuit.covariance, dtype=np.float64)
        covariance[likelihood.fixed, :] = covariance[:, likelihood.fixed] = 0.0
        return _minimum(
            likelihood,
            values=np.array(minuit.values, dtype=np.float64),
            covariance=covariance,
            edm=float(minuit.fmin.edm),
            steps=int(minuit.nfcn),
            minimizer="minuit",
            converged=bool(minuit.valid),
            notes=[APPROXIMATE]
            + ([] if minuit.valid else ["Minuit says that its minimum is not valid"]),
        )


def impacts(likelihood: Likelihood, minimum: Minimum, poi: str) -> dict[str, _Array]:
    """Change of the POI when each other parameter is moved, and all others are fitted again.

    It moves from its fitted value by its pre-fit uncertainty up and down, then by its post-fit one
    up and down: shape ``(4,)``. A parameter that a fit can't follow is not in the result. Without
    jax the changes are those of a parabola of the same covariance.
    """
    target = likelihood.names.index(poi)
    found = {}
    for index, name in enumerate(likelihood.names):
        if index == target or likelihood.fixed[index]:
            continue
        prefit, postfit = likelihood.prefit[index], minimum.uncertainties[index]
        moves = np.array([prefit, -prefit, postfit, -postfit])
        changes = [_impact(likelihood, minimum, target, index, move) for move in moves]
        if all(change is not None for change in changes):
            found[name] = np.array(changes, dtype=np.float64)
    return found


def _impact(
    likelihood: Likelihood, minimum: Minimum, target: int, index: int, move: float
) -> float | None:
    """Change of parameter ``target`` when parameter ``index`` moves by ``move``."""
    if move == 0:
        return 0.0
    if likelihood.derivatives is None:
        return float(move * minimum.covariance[index, target] / minimum.covariance[index, index])
    moved = _refitted(likelihood.derivatives, likelihood, minimum.values, index=index, move=move)
    return None if moved is None else float(moved[target] - minimum.values[target])


def _refitted(
    derivatives: Derivatives, likelihood: Likelihood, x: _Array, *, index: int, move: float
) -> _Array | None:
    """Fit with parameter ``index`` moved from ``x``: at once as a rule, or in stages."""
    fixed = likelihood.fixed.copy()
    fixed[index] = True
    aim = x[index] + move
    for _ in range(MAX_STAGES):
        start = _moved(derivatives, likelihood, x, fixed=fixed, index=index, move=aim - x[index])
        if start is None:
            return None
        try:
            point = _newton(derivatives, likelihood, start, fixed, IMPACT_STEPS)
        except FitError:  # it went where t is not finite
            return None
        x = point.values
        if not point.converged or abs(x[index] - aim) < 1e-12 * abs(move):
            return x if point.converged else None
    return None


def _moved(
    derivatives: Derivatives,
    likelihood: Likelihood,
    x: _Array,
    *,
    fixed: _Mask,
    index: int,
    move: float,
) -> _Array | None:
    """Move parameter ``index`` and let the others follow, as far as there is a prediction.

    The whole move as a rule, and less of it where a bin with data would be left without prediction.
    """
    _, _, hessian = derivatives(x)
    free = ~fixed & (x > likelihood.lower) & (x < likelihood.upper)
    along = np.zeros_like(x)
    along[free], _ = _step(hessian[free, index], hessian[np.ix_(free, free)])
    along[index] = 1.0
    for halvings in range(10):
        trial = x + move / 2**halvings * along
        inside: _Array = np.where(free, np.clip(trial, likelihood.lower, likelihood.upper), trial)
        if np.isfinite(likelihood.value(inside)):
            return inside
    return None
