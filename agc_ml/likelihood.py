"""The likelihood of a workspace, compiled.

The model is the one that cabinetry builds from a workspace with pyhf. The function is

    t(parameters) = twice the negative log-likelihood, above that of the saturated model,

so that its minimum is the chi2 of the goodness-of-fit test, and no digits are lost in the
difference of two large numbers. Gradient and Hessian are jax's; without jax there are none.

A bin in which the samples together predict no events has no likelihood; it is left out.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]
Derivatives = Callable[[_Array], tuple[float, _Array, _Array]]

SOFT: Final = 1e-2
"""Over how many predicted events the likelihood of a bin without data bends to zero."""

# The likelihood is small: compiling with more effort costs more than it saves.
_COMPILER: Final = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A compiled likelihood; arrays have shape ``(n_parameters,)`` unless stated.

    Attributes
    ----------
    model
        The pyhf model.
    start, lower, upper, fixed
        Where the minimiser starts, within which bounds, and what it leaves alone.
    prefit
        Pre-fit uncertainties; 0 for parameters without a constraint and fixed ones.
    bins
        Which of the model's bins enter, shape ``(n_bins,)``.
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
    lower: _Array
    upper: _Array
    fixed: _Mask
    prefit: _Array
    bins: _Mask
    saturated: float
    value: Callable[[_Array], float]
    derivatives: Derivatives | None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Switch pyhf, whose backend is global, to another one for a while."""
    import pyhf  # noqa: PLC0415 - heavy

    before = pyhf.get_backend()
    pyhf.set_backend(name)
    try:
        yield
    finally:
        pyhf.set_backend(*before)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep cabinetry and pyhf from logging, and from warning of what is theirs to mend."""
    loggers = [logging.getLogger(name) for name in ("cabinetry", "pyhf")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # pyhf 0.7.6 validates with an interface that jsonschema is about to drop
            warnings.filterwarnings(
                "ignore", "jsonschema.RefResolver is deprecated", DeprecationWarning
            )
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def build(workspace: Mapping[str, Any]) -> Likelihood:
    """Build and compile the likelihood of a pyhf workspace.

    Raises
    ------
    FitError
        The workspace is not valid, or predicts no events at all.
    """
    import cabinetry  # noqa: PLC0415 - heavy

    with backend("numpy"), quiet():
        model, data = model_and_data(workspace)
        start = np.asarray(model.config.suggested_init(), dtype=np.float64)
        bins = np.asarray(model.expected_actualdata(start)) > 0
        if not bins.any():
            raise FitError("no sample predicts events in any bin: there is nothing to fit")
        terms = _Terms(
            model=model,
            observed=data[: len(bins)],
            auxdata=data[len(bins) :],
            bins=np.flatnonzero(bins),
            centre=np.asarray(cabinetry.model_utils.asimov_parameters(model), dtype=np.float64),
        )
        prefit = cabinetry.model_utils.prefit_uncertainties(model)
    value, derivatives = _compile(terms, start)
    lower, upper = np.asarray(model.config.suggested_bounds(), dtype=np.float64).T
    return Likelihood(
        model=model,
        names=tuple(model.config.par_names),
        start=start,
        lower=lower,
        upper=upper,
        fixed=np.asarray(model.config.suggested_fixed(), dtype=np.bool_),
        prefit=np.asarray(prefit, dtype=np.float64),
        bins=bins,
        saturated=terms.saturated(),
        value=value,
        derivatives=derivatives,
    )


def model_and_data(workspace: Mapping[str, Any]) -> tuple[Any, _Array]:
    """Make the pyhf model of a workspace, for numpy, and the data with the auxiliary ones.

    Raises
    ------
    FitError
        The workspace is not valid.
    """
    import cabinetry  # noqa: PLC0415 - heavy
    import pyhf.exceptions as problems  # noqa: PLC0415 - heavy

    try:
        with backend("numpy"), quiet():
            model, data = cabinetry.model_utils.model_and_data(workspace)
    except (
        problems.InvalidSpecification,
        problems.InvalidModel,
        problems.InvalidModifier,
        problems.InvalidNameReuse,
    ) as error:
        reason = " ".join(str(error).split())
        raise FitError(f"pyhf makes no model of the workspace ({reason})") from error
    return model, np.asarray(data, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class _Terms:
    """The terms of t, for any of pyhf's backends.

    ``centre`` are the parameters that maximise the constraint terms.
    """

    model: Any
    observed: _Array
    auxdata: _Array
    bins: NDArray[np.intp]
    centre: _Array

    def constraints(self, parameters: Any) -> Any:
        """Twice the negative logarithm of the constraint terms."""
        import pyhf  # noqa: PLC0415 - heavy

        if not len(self.auxdata):
            return 0.0
        return -2 * self.model.constraint_logpdf(pyhf.tensorlib.astensor(self.auxdata), parameters)

    def poisson(self, parameters: Any, xp: Any) -> Any:
        """Twice the Poisson terms, less the saturated ones; ``xp`` is numpy or jax.numpy.

        A bin without data adds its prediction, but nothing when that is negative: bent over SOFT
        events, for a sharp bend is where minimisers get stuck. (pyhf's own formula rewards negative
        predictions without limit.)
        """
        n = self.observed[self.bins]
        filled, empty = np.flatnonzero(n > 0), np.flatnonzero(n == 0)
        rates = self.model.expected_actualdata(parameters)[self.bins]
        positive = 0.5 * (rates[empty] + xp.sqrt(rates[empty] ** 2 + SOFT**2) - SOFT)
        excess = (rates[filled] - n[filled]) / n[filled]
        of_filled = xp.sum(n[filled] * (excess - xp.log1p(excess)))
        return 2 * (of_filled + xp.sum(positive))

    def offset(self) -> float:
        """Twice the negative logarithm of the constraint terms at their largest."""
        with backend("numpy"):
            return float(self.constraints(self.centre))

    def saturated(self) -> float:
        """Twice the negative log-likelihood of data that are as predicted."""
        from scipy.special import gammaln, xlogy  # noqa: PLC0415 - heavy

        n = self.observed[self.bins]
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
        with np.errstate(divide="ignore", invalid="ignore"):
            t = float(terms.poisson(parameters, np) + terms.constraints(parameters)) - offset
        return t if np.isfinite(t) else np.inf

    return value


def _with_jax(
    jax: Any, terms: _Terms, start: _Array
) -> tuple[Callable[[_Array], float], Derivatives]:
    """Compile t, and t with gradient and Hessian, for the CPU."""
    offset = terms.offset()

    def t(parameters: Any) -> Any:
        return terms.poisson(parameters, jax.numpy) + terms.constraints(parameters) - offset

    def all_of_it(parameters: Any) -> Any:
        return *jax.value_and_grad(t)(parameters), jax.jacfwd(jax.grad(t))(parameters)

    with backend("jax"), jax.default_device(jax.devices("cpu")[0]):
        value_of, derivatives_of = (
            jax.jit(function, compiler_options=_COMPILER).lower(start).compile()
            for function in (t, all_of_it)
        )

    def value(parameters: _Array) -> float:
        found = float(value_of(parameters))
        return found if np.isfinite(found) else np.inf

    def derivatives(parameters: _Array) -> tuple[float, _Array, _Array]:
        found, gradient, hessian = derivatives_of(parameters)
        return float(found), np.asarray(gradient), np.asarray(hessian)

    return value, derivatives
