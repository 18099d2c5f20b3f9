"""The result of a fit, and what is said of it."""

from __future__ import annotations

import contextlib
import html
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.statistics.rounding import with_uncertainty

PACKAGES: Final = ("agc-ml", "cabinetry", "iminuit", "jax", "jaxlib", "numpy", "pyhf", "scipy")
"""What decides a fit."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a fit, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # jax is an extra
            found[name] = version(name)
    return found


class Parameter(NamedTuple):
    """A fitted parameter; ``pull`` is (value - nominal value) / pre-fit uncertainty.

    ``pull`` is None for parameters without a constraint, such as the parameter of interest, and
    fixed ones; ``uncertainty`` is 0 for fixed ones, and those that end at a bound (see the notes).
    """

    name: str
    value: float
    uncertainty: float
    pull: float | None


class Impact(NamedTuple):
    """Change of the POI when a parameter moves by its pre-fit or post-fit uncertainty.

    It moves from its fitted value, up or down, and all other parameters are fitted again.
    """

    parameter: str
    prefit_up: float
    prefit_down: float
    postfit_up: float
    postfit_down: float


class GoodnessOfFit(NamedTuple):
    """A chi2 test; ``p_value`` is None when there are no degrees of freedom.

    That of a fit is the likelihood-ratio test against the saturated model: ``chi2`` is the
    difference of twice the negative log-likelihoods.
    """

    chi2: float
    ndof: int
    p_value: float | None


def chi2_test(chi2: float, ndof: int) -> GoodnessOfFit:
    """Judge a chi2 by the chi2 distribution with ``ndof`` degrees of freedom."""
    from scipy.special import gammaincc  # noqa: PLC0415 - heavy

    return GoodnessOfFit(chi2, ndof, float(gammaincc(ndof / 2, chi2 / 2)) if ndof > 0 else None)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"  # noqa: PLR2004 - digits shown


class RegionYields(NamedTuple):
    """Model and data of one region: arrays of shape ``(n_bins,)``, edges ``(n_bins + 1,)``.

    ``uncertainty`` is the one of the total prediction, with correlations; ``unit`` what is counted.
    """

    region: str
    label: str
    edges: NDArray[np.float64]
    samples: dict[str, NDArray[np.float64]]
    uncertainty: NDArray[np.float64]
    data: NDArray[np.float64]
    unit: str = "Entries"

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of the samples."""
        total: NDArray[np.float64] = np.sum(list(self.samples.values()), axis=0)
        return total


class CarriedOver(NamedTuple):
    """A fit carried over to an observable that it did not use: model and data, and tests of them.

    ``prefit`` and ``postfit`` have all bins and ``region`` is the observable's name; how the tests
    are made, `agc_ml.statistics.unfitted_observables` says.
    """

    prefit: RegionYields
    postfit: RegionYields
    prefit_test: GoodnessOfFit
    postfit_test: GoodnessOfFit


class CrossSection(NamedTuple):
    """The cross-section of a ``process`` that the parameter of interest multiplies, in pb.

    ``symbol`` is what stands in sigma(...).
    """

    process: str
    symbol: str
    predicted: float


class FitResult(NamedTuple):
    """The result of a fit, with all that its figures need.

    ``parameters`` are in the model's order, which is that of ``correlation``, shape ``(n, n)``;
    ``impacts`` are sorted, the largest first. ``twice_nll`` is twice the negative log-likelihood at
    the minimum. ``minimizer`` is "newton" (exact) or "minuit" (approximate); ``pseudodata`` says
    which, or "data"; ``inputs`` are sha256 digests; ``notes`` what a reader must know;
    ``carried_over`` is empty where there are no observables for it. ``states`` says by name which
    parameters are "fixed" or "at its lower bound" (or upper), and have no uncertainty.
    ``cross_section`` is None where the fit does not measure a known one. ``widths`` are pre-fit
    uncertainties of constrained parameters, by name. ``is_closure``: all that the pseudodata are
    made of is in the model.
    """

    poi: Parameter
    parameters: tuple[Parameter, ...]
    correlation: NDArray[np.float64]
    goodness_of_fit: GoodnessOfFit
    twice_nll: float
    minimizer: str
    converged: bool
    pseudodata: str
    impacts: tuple[Impact, ...]
    prefit: tuple[RegionYields, ...]
    postfit: tuple[RegionYields, ...]
    workspace: dict[str, Any]
    inputs: dict[str, str]
    notes: tuple[str, ...]
    carried_over: tuple[CarriedOver, ...] = ()
    states: Mapping[str, str] = {}
    cross_section: CrossSection | None = None
    versions: Mapping[str, str] = {}
    widths: Mapping[str, float] = {}
    is_closure: bool = False

    @property
    def points(self) -> str:
        """What was fitted: pseudodata, or data."""
        return "data" if self.pseudodata == "data" else "pseudodata"

    @property
    def kind(self) -> str:
        """Data or pseudodata that were fitted, with their kind."""
        return "data" if self.pseudodata == "data" else f"{self.pseudodata} pseudodata"

    @property
    def closure(self) -> str:
        """One sentence where pseudodata are made of the templates, else nothing."""
        if not self.is_closure:
            return ""
        return (
            f"This is a closure test: the {self.kind} are mixed from the model's own templates, so "
            "that chi2 and pulls say nothing of real data."
        )

    @property
    def definition(self) -> str:
        """Definition of the parameter of interest, where it measures a known cross-section."""
        if self.cross_section is None:
            return ""
        return (
            f"{self.poi.name} is the cross-section of {self.cross_section.process} over the "
            f"predicted one, {self.cross_section.predicted:g} pb."
        )

    @property
    def facts(self) -> tuple[str, ...]:
        """Lines beside the result: what was fitted, how well, and what its numbers mean."""
        test = self.goodness_of_fit
        p_value = "" if test.p_value is None else f", p = {_p(test.p_value)}"
        quality = f"chi2 = {test.chi2:.2f} for {test.ndof} degrees of freedom{p_value}"
        lines = (f"fitted to {self.kind}: {quality}", self.closure, self.definition)
        return tuple(line for line in lines if line)

    @property
    def value(self) -> str:
        """The parameter of interest, rounded, or what it is instead of an uncertainty."""
        state = self.states.get(self.poi.name)
        if state is None:
            return with_uncertainty(self.poi.value, self.poi.uncertainty)
        return f"{self.poi.value + 0.0:.6g} ({state}, without an uncertainty)"

    @property
    def measured(self) -> tuple[str, str, str]:
        """Name and value of what is measured, and what it is compared with, if a cross-section."""
        sigma = self.cross_section
        if sigma is None:
            return self.poi.name, self.value, ""
        value = f"{sigma.predicted * self.poi.value + 0.0:.6g}"
        if self.poi.name not in self.states:
            uncertainty = sigma.predicted * self.poi.uncertainty
            value = with_uncertainty(sigma.predicted * self.poi.value, uncertainty)
        beside = f"predicted {sigma.predicted:g}; {self.poi.name} {self.value}"
        return f"sigma({sigma.symbol})", f"{value} pb", beside

    def __str__(self) -> str:
        name, value, beside = self.measured
        state = "" if self.converged else " (NOT CONVERGED)"
        return f"{name} = {value}{f' ({beside})' if beside else ''}{state}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(p.name)}</td><td>{p.value:.4f} ± {p.uncertainty:.4f}</td>"
            f"<td>{'' if p.pull is None else f'{p.pull:+.3f}'}</td></tr>"
            for p in self.parameters
        )
        test = self.goodness_of_fit
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<p><b>{html.escape(str(self))}</b>; {html.escape(self.kind)}; "
            f"chi2 = {test.chi2:.2f} for {test.ndof} degrees of freedom; "
            f"{html.escape(self.minimizer)}</p>{notes}"
            f"<table><tr><th>parameter</th><th>value</th><th>pull</th></tr>{rows}</table>"
        )
