"""Compiled likelihood of a workspace.

The model is the one that cabinetry builds from a workspace with pyhf. The function is

    t(parameters) = twice the negative log-likelihood, above that of the saturated model,

so that its minimum is the chi2 of the goodness-of-fit test, and no digits are lost in the
difference of two large numbers. Gradient and Hessian are jax's; without jax there are none.

The likelihood is pyhf's wherever no prediction is negative. A bin in which no parameter can predict
events has no likelihood, and must not be in the workspace
(`agc_ml.statistics.workspace.unreachable_bins`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.statistics.likelihood.pyhf_model import (
    backend,
    model_and_data,
    nominal_values,
    prefit_uncertainties,
    quiet,
)
from agc_ml.statistics.likelihood.starts import find_start

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]
Derivatives = Callable[[_Array], tuple[float, _Array, _Array]]

SOFT: Final = 1e-2
"""Depth of the likelihood of a bin without data below zero events, as a share of its yields.

Its term falls to minus this share, and no further. A share, for there may be thousands of bins
that predict a thousandth of an event each.
"""

SMALL: Final = 8_000
"""Bins times parameters squared up to which compiling with any effort costs more than it saves.

Without, a fit with its impacts takes 0.8 to 0.9 times the CPU time below (measured from 144 to
7,056), and 1.1 to 1.8 times above (14,400 to 72,000).
"""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A compiled likelihood; arrays have shape ``(n_parameters,)`` unless stated.

    Attributes
    ----------
    model
        The pyhf model.
    start, lower, upper, fixed
        Start of the minimiser, bounds, and parameters that stay as they are. The start differs
        from that of the workspace where bins with data had no prediction.
    centre
        Nominal values.
    prefit
        Pre-fit uncertainties; 0 for parameters without a constraint and fixed ones.
    observed
        The data, shape ``(n_bins,)``.
    soft
        Events below zero over which the likelihood of a bin without data bends, of this shape.
    saturated
        Twice the negative log-likelihood of the saturated model.
    value
        t at a point; infinite where the model predicts no events and there are some.
    derivatives
        t, its gradient, and its Hessian ``(n_parameters, n_parameters)``; None without jax.
    """

    model: Any
    names: tuple[str, ...]
    start: _Array
    centre: _Array
    lower: _Array
    upper: _Array
    fixed: _Mask
    prefit: _Array
    observed: _Array
    soft: _Array
    saturated: float
    value: Callable[[_Array], float]
    derivatives: Derivatives | None

    @property
    def poi(self) -> int:
        """Index of the parameter of interest."""
        return int(self.model.config.poi_index)

    @property
    def free(self) -> _Mask:
        """Parameters that are not fixed."""
        return ~self.fixed


def build(workspace: Mapping[str, Any]) -> Likelihood:
    """Build and compile the likelihood of a pyhf workspace.

    Raises
    ------
    FitError
        The workspace is not valid, or predicts no events at all.
    """
    return compile_likelihood(*model_and_data(workspace))


def compile_likelihood(model: Any, data: _Array) -> Likelihood:
    """Compile the likelihood of a pyhf model and its data, with the auxiliary ones."""
    with backend("numpy"), quiet():
        n_bins = sum(model.config.channel_nbins.values())
        lower, upper = np.asarray(model.config.suggested_bounds(), dtype=np.float64).T
        fixed = np.asarray(model.config.suggested_fixed(), dtype=np.bool_)
        initial = np.asarray(model.config.suggested_init(), dtype=np.float64)
        start = np.where(fixed, initial, np.clip(initial, lower, upper))
        start = find_start(model, data[:n_bins], start)
        terms = _Terms(
            model=model,
            observed=data[:n_bins],
            auxdata=data[n_bins:],
            soft=SOFT * _sizes(model),
            centre=nominal_values(model),
        )
    value, derivatives = _compile(terms, start)
    return Likelihood(
        model=model,
        names=tuple(model.config.par_names),
        start=start,
        centre=terms.centre,
        lower=lower,
        upper=upper,
        fixed=fixed,
        prefit=prefit_uncertainties(model),
        observed=terms.observed,
        soft=terms.soft,
        saturated=terms.saturated(),
        value=value,
        derivatives=derivatives,
    )


def _sizes(model: Any) -> _Array:
    """Return the sum of the samples' largest nominal or varied yields, shape ``(n_bins,)``."""
    sizes = np.full(sum(model.config.channel_nbins.values()), np.finfo(np.float64).tiny)
    for channel in model.spec["channels"]:
        for sample in channel["samples"]:
            yields = [sample["data"]]
            for modifier in sample["modifiers"]:
                if modifier["type"] == "histosys":
                    yields += modifier["data"].values()
            sizes[model.config.channel_slices[channel["name"]]] += np.abs(yields).max(axis=0)
    return sizes


@dataclass(frozen=True, eq=False)
class _Terms:
    """The terms of t, for any of pyhf's backends.

    ``centre`` are the parameters that maximise the constraint terms, ``soft`` the events over which
    the term of a bin without data bends, shape ``(n_bins,)``.
    """

    model: Any
    observed: _Array
    auxdata: _Array
    soft: _Array
    centre: _Array

    def constraints(self, parameters: Any) -> Any:
        """Twice the negative logarithm of the constraint terms."""
        import pyhf  # noqa: PLC0415 - heavy

        if not len(self.auxdata):
            return 0.0
        return -2 * self.model.constraint_logpdf(pyhf.tensorlib.astensor(self.auxdata), parameters)

    def poisson(self, parameters: Any, xp: Any) -> Any:
        """Twice the Poisson terms, less the saturated ones; ``xp`` is numpy or jax.numpy.

        A bin without data adds its prediction r, and where that is negative s tanh(r / s): it goes
        on from there with the same slope and curvature, to no less than -s. (pyhf's own formula
        rewards negative predictions without limit.)
        """
        n = self.observed
        filled, empty = np.flatnonzero(n > 0), np.flatnonzero(n == 0)
        rates = self.model.expected_actualdata(parameters)
        negative = self.soft[empty] * xp.tanh(xp.minimum(rates[empty], 0) / self.soft[empty])
        of_empty = xp.sum(xp.maximum(rates[empty], 0) + negative)
        excess = (rates[filled] - n[filled]) / n[filled]
        of_filled = xp.sum(n[filled] * (excess - xp.log1p(excess)))
        return 2 * (of_filled + of_empty)

    def offset(self) -> float:
        """Twice the negative logarithm of the constraint terms at their largest."""
        with backend("numpy"):
            return float(self.constraints(self.centre))

    def saturated(self) -> float:
        """Twice the negative log-likelihood of data that are as predicted."""
        from scipy.special import gammaln, xlogy  # noqa: PLC0415 - heavy

        n = self.observed
        return float(-2 * np.sum(xlogy(n, n) - n - gammaln(n + 1))) + self.offset()


def _compile(terms: _Terms, start: _Array) -> tuple[Callable[[_Array], float], Derivatives | None]:
    try:
        import jax  # noqa: PLC0415 - heavy, and an extra
    except ImportError:
        return _with_numpy(terms), None
    return _with_jax(jax, terms, start)


def _with_numpy(terms: _Terms) -> Callable[[_Array], float]:
    offset = terms.offset()

    def value(parameters: _Array) -> float:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = float(terms.poisson(parameters, np) + terms.constraints(parameters)) - offset
        return t if np.isfinite(t) else np.inf

    return value


def _with_jax(
    jax: Any, terms: _Terms, start: _Array
) -> tuple[Callable[[_Array], float], Derivatives]:
    """Compile t, and t with gradient and Hessian, for the CPU."""
    # a constant, so that t is zero for the saturated model
    offset = terms.offset()

    def t(parameters: Any) -> Any:
        return terms.poisson(parameters, jax.numpy) + terms.constraints(parameters) - offset

    def with_derivatives(parameters: Any) -> Any:
        return *jax.value_and_grad(t)(parameters), jax.jacfwd(jax.grad(t))(parameters)

    is_large = len(terms.observed) * len(start) ** 2 > SMALL
    effort = {"xla_backend_optimization_level": int(is_large)}
    with backend("jax"), jax.default_device(jax.devices("cpu")[0]):
        value_of, derivatives_of = (
            jax.jit(function, compiler_options=effort).lower(start).compile()
            for function in (t, with_derivatives)
        )

    def value(parameters: _Array) -> float:
        t = float(value_of(parameters))
        return t if np.isfinite(t) else np.inf

    def derivatives(parameters: _Array) -> tuple[float, _Array, _Array]:
        t, gradient, hessian = derivatives_of(parameters)
        return float(t), np.asarray(gradient), np.asarray(hessian)

    return value, derivatives
