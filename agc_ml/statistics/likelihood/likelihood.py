"""The likelihood of a workspace, compiled.

The model is the one that cabinetry builds from a workspace with pyhf. The function is

    t(parameters) = twice the negative log-likelihood, above that of the saturated model,

so that its minimum is the chi2 of the goodness-of-fit test, and no digits are lost in the
difference of two large numbers. Gradient and Hessian are jax's; without jax there are none.

It is that of pyhf wherever no prediction is negative. A bin in which no parameter can predict
events has no likelihood, and must not be in the workspace
(`agc_ml.statistics.workspace.unreachable_bins`).
"""

from __future__ import annotations

import itertools
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
"""Where the likelihood of a bin without data bends, as a share of the bin's nominal yields.

Below zero events its term falls to minus this share, and no further. It is a share, for there may
be thousands of bins that predict a thousandth of an event each.
"""
STARTS: Final = (1.0, 0.1, 10.0, 0.01, 100.0)
"""Values of free factors with which a fit starts where the configured ones predict no data."""
SHAPE_STARTS: Final = (0.1, -0.1)
"""The same of shapes, in standard deviations."""

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
        Where the minimiser starts, within which bounds, and what it leaves alone. It starts
        elsewhere than the workspace says where bins with data had no prediction.
    centre
        Nominal values, as `nominal` gives them.
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
    with backend("numpy"), quiet():
        model, data = model_and_data(workspace)
        n_bins = sum(model.config.channel_nbins.values())
        observed = data[:n_bins]
        lower, upper = np.asarray(model.config.suggested_bounds(), dtype=np.float64).T
        fixed = np.asarray(model.config.suggested_fixed(), dtype=np.bool_)
        initial = np.asarray(model.config.suggested_init(), dtype=np.float64)
        start = np.where(fixed, initial, np.clip(initial, lower, upper))
        start = _start(model, observed, start)
        terms = _Terms(
            model=model,
            observed=observed,
            auxdata=data[n_bins:],
            soft=SOFT * _sizes(model),
            centre=nominal(model),
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
        prefit=widths(model),
        observed=observed,
        soft=terms.soft,
        saturated=terms.saturated(),
        value=value,
        derivatives=derivatives,
    )


def nominal(model: Any) -> _Array:
    """Nominal values of a pyhf model's parameters: what the auxiliary measurements found.

    Where there is none, and where a parameter is fixed, it is the initial value. (cabinetry's own
    ones ignore auxiliary data that a workspace states.)
    """
    found: list[float] = []
    for parameters in map(model.config.param_set, model.config.par_order):
        values = parameters.suggested_init
        if parameters.constrained:
            scales = parameters.factors if parameters.pdf_type == "poisson" else [1.0] * len(values)
            measured = (aux / scale for aux, scale in zip(parameters.auxdata, scales, strict=True))
            fixed = parameters.suggested_fixed
            values = [v if f else m for v, m, f in zip(values, measured, fixed, strict=True)]
        found += values
    return np.asarray(found, dtype=np.float64)


def widths(model: Any) -> _Array:
    """Pre-fit uncertainties of a pyhf model's parameters; 0 without a constraint and if fixed."""
    found: list[float] = []
    for parameters in map(model.config.param_set, model.config.par_order):
        sizes = [0.0] * parameters.n_parameters
        if parameters.constrained:
            sizes = parameters.width()
            if parameters.pdf_type == "poisson":
                # of the counts that were measured; where there were none, of those expected
                counts = zip(parameters.auxdata, parameters.factors, sizes, strict=True)
                sizes = [np.sqrt(n) / per_unit if n else size for n, per_unit, size in counts]
            fixed = parameters.suggested_fixed
            sizes = [0.0 if f else size for size, f in zip(sizes, fixed, strict=True)]
        found += sizes
    return np.asarray(found, dtype=np.float64)


def _sizes(model: Any) -> _Array:
    """Sum of the samples' largest nominal or varied yield in each bin, shape ``(n_bins,)``."""
    found = np.full(sum(model.config.channel_nbins.values()), np.finfo(np.float64).tiny)
    for channel in model.spec["channels"]:
        for sample in channel["samples"]:
            yields = [sample["data"]]
            for modifier in sample["modifiers"]:
                if modifier["type"] == "histosys":
                    yields += modifier["data"].values()
            found[model.config.channel_slices[channel["name"]]] += np.abs(yields).max(axis=0)
    return found


def _start(model: Any, observed: _Array, start: _Array) -> _Array:
    """Find a start with a prediction wherever there are data.

    A signal that starts at nothing would leave bins without one that only it fills, and so would a
    shape that is zero but for its variations. Free factors are moved first, then shapes.
    """

    def lacking(parameters: _Array) -> int:
        rates = np.asarray(model.expected_actualdata(parameters))
        return int(np.sum(rates[observed > 0] <= 0))

    config = model.config
    lower, upper = np.asarray(config.suggested_bounds(), dtype=np.float64).T
    is_fixed = np.asarray(config.suggested_fixed(), dtype=np.bool_)
    best, fewest = start, lacking(start)
    is_factor = ~is_fixed
    for name in config.par_order:
        is_factor[config.par_slice(name)] &= not config.param_set(name).constrained
    for which in (is_factor & (start <= 0), is_factor):
        for value in STARTS:
            moved = np.where(which, np.clip(value, lower, upper), start)
            if fewest and lacking(moved) < fewest:
                best, fewest = moved, lacking(moved)
    shapes = [config.par_slice(name).start for name, kind in config.modifiers if kind == "histosys"]
    for index, value in itertools.product(shapes, SHAPE_STARTS):
        moved = best.copy()
        moved[index] = value
        if fewest and not is_fixed[index] and lacking(moved) < fewest:
            best, fewest = moved, lacking(moved)
    return best


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
    offset = terms.offset()

    def t(parameters: Any) -> Any:
        return terms.poisson(parameters, jax.numpy) + terms.constraints(parameters) - offset

    def all_of_it(parameters: Any) -> Any:
        return *jax.value_and_grad(t)(parameters), jax.jacfwd(jax.grad(t))(parameters)

    is_large = len(terms.observed) * len(start) ** 2 > SMALL
    effort = {"xla_backend_optimization_level": int(is_large)}
    with backend("jax"), jax.default_device(jax.devices("cpu")[0]):
        value_of, derivatives_of = (
            jax.jit(function, compiler_options=effort).lower(start).compile()
            for function in (t, all_of_it)
        )

    def value(parameters: _Array) -> float:
        found = float(value_of(parameters))
        return found if np.isfinite(found) else np.inf

    def derivatives(parameters: _Array) -> tuple[float, _Array, _Array]:
        found, gradient, hessian = derivatives_of(parameters)
        return float(found), np.asarray(gradient), np.asarray(hessian)

    return value, derivatives
