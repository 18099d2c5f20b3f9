"""Parameters of a fit that neither data nor constraints determine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError
from agc_ml.statistics.likelihood.likelihood import Likelihood
from agc_ml.statistics.likelihood.newton import NEARLY_FLAT, Point, scaled
from agc_ml.statistics.likelihood.pyhf_model import backend

FLAT: Final = 1e-9
"""Eigenvalue of the Hessian, scaled to a diagonal of ones, of a direction that nothing determines.

It makes an uncertainty 30,000 times what it is with all other parameters fixed.
"""
ROUNDING: Final = 1e-14
"""Eigenvalues below this are rounding, which is another one on each kind of machine."""
DEGENERATE: Final = 1e-4
"""Eigenvalue of a correlation below which Minuit's uncertainties are doubted."""
LEAST_SHARE: Final = 0.01
"""Share of a direction with which a parameter takes part in it."""
MOST_NAMED: Final = 6

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


def check_determined(likelihood: Likelihood, point: Point) -> None:
    """Make sure that data or constraints determine each combination of the free parameters.

    Where only a product of parameters matters, the curvature along it is as small as the gradient
    that is left; so the minimum is approached further, but for the directions in question.

    Raises
    ------
    FitError
        One of them is not determined.
    """
    assert likelihood.derivatives is not None  # noqa: S101 - for the type checker
    free = np.flatnonzero(point.free)
    x = point.values.copy()
    for _ in range(2):
        _, gradient, hessian = likelihood.derivatives(x)
        unit, scale = scaled(hessian[np.ix_(free, free)])
        eigenvalues, vectors = np.linalg.eigh(unit)
        is_steep = eigenvalues > NEARLY_FLAT
        along = vectors[:, is_steep]
        x[free] -= along @ (along.T @ (gradient[free] / scale) / eigenvalues[is_steep]) / scale
        x[free] = np.clip(x, likelihood.lower, likelihood.upper)[free]
    _, _, hessian = likelihood.derivatives(x)
    unit, scale = scaled(hessian[np.ix_(free, free)])
    eigenvalues, vectors = np.linalg.eigh(unit)
    # the curvature that constraint terms give, which needs no data
    widths = likelihood.prefit[free]
    of_constraints = np.where(widths > 0, 2 / np.where(widths > 0, widths, 1) ** 2, 0) / scale**2
    supported = of_constraints @ vectors**2
    flat = (eigenvalues < FLAT) & (supported <= 0.5 * np.maximum(np.abs(eigenvalues), ROUNDING))
    if not flat.any():
        return
    names = _taking_part(likelihood, free, np.sum(vectors[:, flat] ** 2, axis=1))
    if _negative(likelihood, x).any():
        raise FitError(_without_floor(names))
    if len(names) == 1:
        raise FitError(
            f"the data do not determine {names[0]}: no prediction depends on it where the fit "
            "ended; fix it (General: Fixed) or take it out of the configuration"
        )
    raise FitError(
        f"the data determine only a combination of {_listed(names)}, not each of them: they change "
        "the predictions in the same way, or so nearly that no fit can tell; fix one (General: "
        "Fixed) or take it out"
    )


def _taking_part(
    likelihood: Likelihood, free: NDArray[np.intp], weights: NDArray[np.float64]
) -> list[str]:
    """Names of what moves along directions, the most first; those of all bins are one.

    ``weights`` are the squares of the directions' components, in scaled parameters.
    """
    by_index = np.zeros(len(likelihood.names))
    by_index[free] = weights / weights.sum()
    config = likelihood.model.config
    shares = {name: by_index[config.par_slice(name)].sum() for name in config.par_order}
    ranked = sorted(shares, key=lambda name: -shares[name])
    return [ranked[0], *(name for name in ranked[1:] if shares[name] > LEAST_SHARE)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def check_floor(likelihood: Likelihood, point: Point, covariance: _Array) -> None:
    """Make sure that no factor is determined by bins below zero.

    There the likelihood bends, by a width that is ours. What moves with a constraint is told of
    elsewhere.

    Raises
    ------
    FitError
        More than half of the curvature along a direction is that of the bend, and a free factor
        takes part in it.
    """
    negative = _negative(likelihood, point.values)
    if not negative.any():
        return
    free = np.flatnonzero(point.free)
    slopes = []
    with backend("numpy"):
        for index in free:
            step = np.zeros_like(point.values)
            step[index] = 1e-4 * max(abs(point.values[index]), 1.0)
            up, down = (
                np.asarray(likelihood.model.expected_actualdata(point.values + side * step))[
                    negative
                ]
                for side in (1, -1)
            )
            slopes.append((up - down) / (2 * step[index]))
        rates = np.asarray(likelihood.model.expected_actualdata(point.values))[negative]
    # second derivative of 2 s tanh(r / s)
    soft = likelihood.soft[negative]
    slope = np.tanh(rates / soft)
    bend = 4 / soft * np.abs(slope) * (1 - slope**2)
    of_bend = (np.array(slopes) * bend) @ np.array(slopes).T
    shares, vectors = np.linalg.eig(covariance[np.ix_(free, free)] / 2 @ of_bend)
    if shares.real.max(initial=0) < 0.5:  # noqa: PLR2004 - more than half
        return
    vector = np.abs(vectors[:, shares.real.argmax()]) / np.sqrt(np.diag(covariance)[free])
    names = _taking_part(likelihood, free, vector**2)
    config = likelihood.model.config
    if any(not config.param_set(name).constrained for name in names):
        raise FitError(_without_floor(names))


def _negative(likelihood: Likelihood, values: _Array) -> _Mask:
    """Bins without data for which less than no events are predicted."""
    is_empty = np.asarray(likelihood.observed == 0)
    if not is_empty.any():
        return is_empty
    with backend("numpy"):
        rates = np.asarray(likelihood.model.expected_actualdata(values))
    return np.asarray(is_empty & (rates < 0))


def _without_floor(names: list[str]) -> str:
    return (
        f"the data don't say how low {_listed(names)} may be: bins without data are predicted "
        "less than no events, which is as good as none; give bounds within which predictions are "
        "above zero (NormFactors: Bounds, or the parameter's bounds in a workspace)"
    )


def hardly_determined(likelihood: Likelihood, covariance: _Array) -> Iterator[str]:
    """Tell of free factors that are degenerate, as far as differences can tell."""
    factors = np.flatnonzero(likelihood.free & (likelihood.prefit == 0))
    own = covariance[np.ix_(factors, factors)]
    sizes = np.sqrt(np.diag(own))
    if len(factors) < 2 or not np.all(sizes > 0):  # noqa: PLR2004 - of which there are combinations
        return
    eigenvalues, vectors = np.linalg.eigh(own / np.outer(sizes, sizes))
    if eigenvalues[0] < DEGENERATE:
        names = _taking_part(likelihood, factors, vectors[:, 0] ** 2)
        yield f"the data hardly determine {_listed(names)} apart from each other, if at all"
