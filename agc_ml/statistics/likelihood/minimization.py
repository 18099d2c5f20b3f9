"""The minimum of a likelihood, and the covariance there.

With jax's gradient and Hessian the minimiser is Newton's method
(`agc_ml.statistics.likelihood.newton`). Without jax it is Minuit, whose derivatives are
differences, and uncertainties approximate.

A systematic uncertainty whose variations up and down act alike makes pairs of minima; so may any
whose effect is not linear: the other ones are looked for, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError
from agc_ml.statistics.likelihood.degeneracy import check_determined, check_floor, hardly_determined
from agc_ml.statistics.likelihood.likelihood import Likelihood
from agc_ml.statistics.likelihood.newton import EDM, NEARLY_FLAT, Point, descend, scaled
from agc_ml.statistics.likelihood.pyhf_model import backend

BENT: Final = 1.0
"""By how much of a chi2 the effects up and down must differ from a line to be followed."""
FAR: Final = 3.0
"""How many pre-fit uncertainties from zero other minima are looked for, besides other places.

The constraint alone makes t about the square of it there: a fit of less has no lower minimum so far
out.
"""
MOST_PAIRED: Final = 3
"""Up to so many of such parameters are turned round in pairs, more of them one by one."""
DEEPER: Final = 1e-6
"""By how much t must be lower at another minimum to count as lower."""
AS_GOOD: Final = 1.0
"""A minimum that is higher by less is told of: it is within one standard deviation."""
APART: Final = 0.1
"""By how many uncertainties a parameter differs between minima that are told apart."""
MOST_TOLD: Final = 3

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


def minimise(likelihood: Likelihood, tell: Callable[[str], None] = lambda _: None) -> Minimum:
    """Find the minimum and the covariance there: exactly with jax, by Minuit without.

    It need not be converged; ``converged`` and the notes say so. ``tell`` is told what is done.

    Raises
    ------
    FitError
        The likelihood does not determine all free parameters, or Minuit finds no minimum.
    """
    local = _minuit if likelihood.derivatives is None else _exact
    best = local(likelihood, tell)
    others: list[Minimum] = []
    bent = _bent(likelihood, _in_effect(likelihood, best.values))
    if bent:
        tell(f"looking for other minima: {_named(likelihood, bent)} act differently up and down")
    is_lower = bool(bent)
    while is_lower:
        is_lower = False
        for start in _turned(likelihood, best, bent):
            if not np.isfinite(likelihood.value(start)):
                continue
            try:
                other = local(replace(likelihood, start=start), tell)
            except FitError:  # what is wrong there says nothing of the minimum that was found
                continue
            if other.converged >= best.converged and _is_better(other, best, bent):
                best, other, is_lower = other, best, True
            others.append(other)
            if is_lower:
                break
    return best._replace(notes=(*best.notes, *_rivals(likelihood, best, others)))


def _is_better(one: Minimum, other: Minimum, bent: list[int]) -> bool:
    """Return whether a minimum is lower, or as low and further up in what acts differently."""
    if abs(one.chi2 - other.chi2) > DEEPER:
        return one.chi2 < other.chi2
    upwards = np.sum((one.values - other.values)[bent])
    return bool(upwards > APART * np.min(other.uncertainties[bent]))


def _in_effect(likelihood: Likelihood, values: _Array) -> _Array:
    """Values with free factors that are at least one, or as large as at the start.

    Near zero, what a factor scales does not show how it varies.
    """
    is_factor = likelihood.free & (likelihood.prefit == 0)
    least = np.clip(np.maximum(likelihood.start, 1.0), likelihood.lower, likelihood.upper)
    return np.where(is_factor & (np.abs(values) < np.abs(least)), least, values)


def _bent(likelihood: Likelihood, values: _Array) -> list[int]:
    """Indices of free parameters whose effect is not linear, by more than the data's fluctuations.

    Predictions that are linear in the parameters have one minimum; others may have several, above
    all where a variation acts alike up and down.
    """
    model = likelihood.model
    indices = []
    with backend("numpy"):
        for name in dict.fromkeys(
            name for name, kind in model.config.modifiers if kind in ("histosys", "normsys")
        ):
            index = model.config.par_slice(name).start
            if likelihood.fixed[index]:
                continue
            rates = []
            for move in (0, likelihood.prefit[index], -likelihood.prefit[index]):
                moved = values.copy()
                moved[index] = move
                rates.append(np.asarray(model.expected_actualdata(moved)))
            bend = rates[1] + rates[2] - 2 * rates[0]
            if np.sum(bend**2 / np.maximum(np.abs(rates[0]), 1.0)) > BENT:
                indices.append(index)
    return indices


def _turned(likelihood: Likelihood, best: Minimum, bent: list[int]) -> Iterator[_Array]:
    """Starts with bent parameters on the other side, alone and in pairs, or far out, alone.

    The others stay where they are, or where the fit began.
    """
    places: dict[tuple[int, ...], list[tuple[float, ...]]] = {}
    for index in bent:
        value, width = best.values[index], likelihood.prefit[index]
        # close to zero both are other sides
        sides = [side for side in (1, -1) if side * value < 0.1 * width]
        sizes = dict.fromkeys((width, max(abs(value), width)))
        places[(index,)] = [(side * size,) for side in sides for size in sizes]
    if len(bent) <= MOST_PAIRED:
        for one, other in itertools.combinations(bent, 2):
            both = itertools.product(places[(one,)], places[(other,)])
            places[one, other] = [(*first, *second) for first, second in both]
    if best.chi2 > FAR**2:
        for index in bent:
            far = FAR * likelihood.prefit[index]
            places[(index,)] += [(far,), (-far,)]
    for chosen, base in itertools.product(places, (best.values, likelihood.start)):
        where = list(chosen)
        for moves in places[chosen]:
            start = base.copy()
            start[where] = np.clip(moves, likelihood.lower[where], likelihood.upper[where])
            yield start


def _rivals(likelihood: Likelihood, best: Minimum, others: list[Minimum]) -> Iterator[str]:
    """Tell of the best one of other minima that are nearly as good."""
    poi = likelihood.poi
    for other in sorted(others, key=lambda one: one.chi2):
        higher = other.chi2 - best.chi2
        # at a bound a parameter has no uncertainty
        sizes = np.where(likelihood.prefit > 0, likelihood.prefit, np.abs(best.values))
        sizes = np.where(best.uncertainties > 0, best.uncertainties, sizes)
        apart = np.abs(other.values - best.values) > APART * sizes
        if higher < AS_GOOD and other.converged and apart.any():
            indices = np.flatnonzero(apart).tolist()
            indices.sort(key=lambda index: index != poi)
            values = ", ".join(_told(other, i) for i in indices[:MOST_TOLD])
            quality = (
                "as good"
                if higher < DEEPER
                else f"nearly as good (twice the negative log-likelihood is {higher:.2g} higher)"
            )
            yield (
                f"another minimum is {quality}: {values}; uncertainties are those of the one given "
                "alone"
            )
            return


def _told(minimum: Minimum, index: int) -> str:
    value, size = minimum.values[index], minimum.uncertainties[index]
    return f"{minimum.names[index]} = {value:.4g}{f' ± {size:.2g}' if size > 0 else ''}"


def _named(likelihood: Likelihood, indices: list[int]) -> str:
    return ", ".join(likelihood.names[index] for index in indices)


def _exact(likelihood: Likelihood, tell: Callable[[str], None]) -> Minimum:
    """Newton's method from the start of a likelihood that has derivatives."""
    assert likelihood.derivatives is not None  # noqa: S101 - for the type checker
    point = descend(
        likelihood.derivatives, likelihood, likelihood.start, likelihood.fixed, tell=tell
    )
    notes = []
    if not point.converged:
        where = (
            f"distance to the minimum {point.edm:.1g} after {point.steps} steps"
            if point.edm >= EDM
            else "it ended at a saddle, from which no step led down"
        )
        notes.append(
            f"the minimiser did not converge ({where}): values and uncertainties can't be relied "
            "upon"
        )
    is_at_bound = ~point.free & likelihood.free
    if is_at_bound.any():
        names = _named(likelihood, np.flatnonzero(is_at_bound).tolist())
        notes.append(f"at their bound, without uncertainty: {names}")
    return _minimum(
        likelihood,
        values=point.values,
        covariance=_covariance(likelihood, point),
        edm=point.edm,
        steps=point.steps,
        minimizer="newton",
        converged=point.converged,
        notes=notes,
    )


def _covariance(likelihood: Likelihood, point: Point) -> _Array:
    """Twice the inverse Hessian of t; zero for parameters that are not free."""
    free = np.flatnonzero(point.free)
    unit, scale = scaled(point.hessian[np.ix_(free, free)])
    eigenvalues, vectors = np.linalg.eigh(unit)
    if point.converged and np.any(eigenvalues < NEARLY_FLAT):
        check_determined(likelihood, point)
    covariance = np.zeros_like(point.hessian)
    inverse = (vectors / np.maximum(np.abs(eigenvalues), np.finfo(np.float64).tiny)) @ vectors.T
    covariance[np.ix_(free, free)] = 2 * inverse / np.outer(scale, scale)
    if point.converged:
        check_floor(likelihood, point, covariance)
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
    scale = np.where(uncertainties > 0, uncertainties, 1.0)
    correlation = covariance / np.outer(scale, scale)
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


def _minuit(likelihood: Likelihood, _: Callable[[str], None]) -> Minimum:
    """Minuit's Migrad and Hesse at strategy 2, which converges where lower ones fail."""
    import iminuit  # noqa: PLC0415 - only without jax

    def value(parameters: _Array) -> float:
        return min(likelihood.value(parameters), 1e12)  # Minuit wants finite ones

    with backend("numpy"):
        minuit = iminuit.Minuit(value, likelihood.start, name=likelihood.names)
        minuit.errordef = iminuit.Minuit.LEAST_SQUARES  # t is twice a negative log-likelihood
        minuit.strategy = 2
        minuit.tol = 1e-3  # of an EDM of 0.002: its default stops 0.001 off in a factor
        minuit.fixed = likelihood.fixed
        # it would move fixed ones into theirs
        lower = np.where(likelihood.fixed, -np.inf, likelihood.lower)
        upper = np.where(likelihood.fixed, np.inf, likelihood.upper)
        minuit.limits = list(zip(lower, upper, strict=True))
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
            converged=bool(minuit.valid and not minuit.fmin.has_made_posdef_covar),
            notes=[
                APPROXIMATE,
                *_minuit_problems(minuit),
                *hardly_determined(likelihood, np.array(minuit.covariance, dtype=np.float64)),
            ],
        )


def _minuit_problems(minuit: Any) -> Iterator[str]:
    if not minuit.valid:
        yield "Minuit says that its minimum is not valid"
    elif minuit.fmin.has_made_posdef_covar:
        yield "Minuit's covariance is not that of a minimum: it had to be made positive"
    at_bound = [one.name for one in minuit.params if not one.is_fixed and _is_at_bound(one)]
    if at_bound:
        yield f"at their bound, where uncertainties mean little: {', '.join(at_bound)}"


def _is_at_bound(parameter: Any) -> bool:
    limits = [
        limit for limit in (parameter.lower_limit, parameter.upper_limit) if limit is not None
    ]
    near = 0.01 * parameter.error
    return any(abs(parameter.value - limit) < near for limit in limits)
