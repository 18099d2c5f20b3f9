"""Result of a fit: parameters, impacts, yields of regions, and the sentences that explain it.

`agc_ml.statistics.fit_files` reads and writes these types; descriptions are those of ``fit.json``.
"""

from __future__ import annotations

import contextlib
import html
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, PlainSerializer

from agc_ml.statistics.rounding import with_uncertainty

PACKAGES: Final = ("agc-ml", "cabinetry", "iminuit", "jax", "jaxlib", "numpy", "pyhf", "scipy")
"""Packages that decide the result of a fit."""


def _in_json(numbers: Any) -> Any:
    """Let pydantic read and write an array as (nested) lists of finite ``numbers``."""
    read = AfterValidator(lambda values: np.array(values, dtype=np.float64))
    write = PlainSerializer(lambda values: values.tolist())
    return GetPydanticSchema(
        lambda _, handler: handler.generate_schema(Annotated[numbers, read, write])
    )


Vector = Annotated[NDArray[np.float64], _in_json(list[float])]
Matrix = Annotated[NDArray[np.float64], _in_json(list[list[float]])]


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide a fit."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):  # jax is an extra
            installed[name] = version(name)
    return installed


@dataclass(frozen=True)
class Parameter:
    """A fitted parameter; ``pull`` is (value - nominal value) / pre-fit uncertainty.

    ``pull`` is None for parameters without a constraint, such as the parameter of interest, and
    fixed ones; ``uncertainty`` is 0 for fixed ones, and those that end at a bound (see the notes).
    """

    name: str
    value: float
    uncertainty: float
    pull: float | None = None


@dataclass(frozen=True)
class Impact:
    """Change of the POI when a parameter moves by its pre-fit or post-fit uncertainty.

    The parameter moves from its fitted value, up or down, and all others are fitted again.
    """

    parameter: str
    prefit_up: float
    prefit_down: float
    postfit_up: float
    postfit_down: float

    @property
    def changes(self) -> tuple[float, float, float, float]:
        """The four changes: pre-fit up and down, post-fit up and down."""
        return self.prefit_up, self.prefit_down, self.postfit_up, self.postfit_down

    @property
    def size(self) -> float:
        """Post-fit impact, the larger of both sides."""
        return max(abs(self.postfit_up), abs(self.postfit_down))


@dataclass(frozen=True)
class GoodnessOfFit:
    """A chi2 test; ``p_value`` is None when there are no degrees of freedom.

    The test of a fit is the likelihood-ratio test against the saturated model: ``chi2`` is the
    difference of twice the negative log-likelihoods.
    """

    chi2: float
    ndof: int
    p_value: float | None


def chi2_test(chi2: float, ndof: int) -> GoodnessOfFit:
    """Judge a chi2 by the chi2 distribution with ``ndof`` degrees of freedom."""
    from scipy.special import gammaincc  # noqa: PLC0415 - heavy

    return GoodnessOfFit(chi2, ndof, float(gammaincc(ndof / 2, chi2 / 2)) if ndof > 0 else None)


@dataclass(frozen=True, eq=False)
class RegionYields:
    """Model and data of one region: arrays of shape ``(n_bins,)``, edges ``(n_bins + 1,)``.

    ``uncertainty`` is that of the total prediction, with correlations; ``label`` is the label of
    the observable's axis, ``unit`` the unit of an entry.
    """

    region: str
    label: str
    edges: Vector
    samples: dict[str, Vector]
    uncertainty: Vector
    data: Vector
    unit: str = "Entries"

    def __post_init__(self) -> None:
        """Reject edges that don't rise, and arrays of other lengths."""
        n = len(self.edges) - 1
        if n < 1 or any(high <= low for low, high in pairwise(self.edges)):
            raise ValueError(f"edges of {self.region} must rise")
        if {len(bins) for bins in (*self.samples.values(), self.uncertainty, self.data)} != {n}:
            raise ValueError(f"one number a bin is needed in {self.region}, of {n} bins")

    @property
    def total(self) -> NDArray[np.float64]:
        """Sum of the samples."""
        total: NDArray[np.float64] = np.sum(list(self.samples.values()), axis=0)
        return total


@dataclass(frozen=True, eq=False)
class CarriedOver:
    """Prediction for an observable that was not fitted, before and after the fit, with tests.

    ``prefit`` and ``postfit`` have all bins, and ``region`` is the observable's name;
    `agc_ml.statistics.unfitted_observables` describes the tests.
    """

    prefit: RegionYields
    postfit: RegionYields
    prefit_test: GoodnessOfFit
    postfit_test: GoodnessOfFit


@dataclass(frozen=True)
class CrossSection:
    """Cross-section of a ``process`` that the parameter of interest multiplies, in pb.

    ``symbol`` stands in sigma(...).
    """

    # fit.json has value and uncertainty, too: products of the predicted one and the POI
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="ignore", allow_inf_nan=False)

    process: str
    symbol: str
    predicted: float


@dataclass(frozen=True, eq=False, kw_only=True)
class FitResult:
    """Result of a fit, with all that its figures need.

    ``parameters`` are in the model's order, as are rows and columns of ``correlation``;
    ``impacts`` are sorted, the largest first; ``minimizer`` is "newton" (exact) or "minuit"
    (approximate).
    """

    # for the types of all fields, too
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    poi: Annotated[Parameter, Field(description="parameter of interest")]
    parameters: tuple[Parameter, ...]
    correlation: Annotated[Matrix, Field(description="in the order of the parameters")]
    goodness_of_fit: Annotated[
        GoodnessOfFit, Field(description="likelihood-ratio test against the saturated model")
    ]
    twice_nll: Annotated[
        float, Field(description="twice the negative log-likelihood at the minimum")
    ]
    minimizer: str
    converged: bool
    pseudodata: Annotated[str, Field(description="kind of the fitted pseudodata, or data")]
    impacts: tuple[Impact, ...]
    prefit: tuple[RegionYields, ...]
    postfit: tuple[RegionYields, ...]
    workspace: Annotated[dict[str, Any], Field(description="pyhf's format; in workspace.json")]
    inputs: Annotated[dict[str, str], Field(description="sha256 of templates and configuration")]
    notes: Annotated[tuple[str, ...], Field(description="caveats for the reader")]
    carried_over: Annotated[
        tuple[CarriedOver, ...], Field(description="observables that were not fitted")
    ] = ()
    states: Annotated[
        dict[str, str], Field(description="parameters without uncertainty: fixed, or at a bound")
    ] = field(default_factory=dict)
    cross_section: Annotated[
        CrossSection | None, Field(description="cross-section that the POI multiplies, if known")
    ] = None
    versions: Annotated[
        dict[str, str], Field(description="Python and the packages that decide the fit")
    ] = field(default_factory=dict)
    widths: Annotated[
        dict[str, float], Field(description="pre-fit uncertainties of constrained parameters")
    ] = field(default_factory=dict)
    is_closure: Annotated[
        bool, Field(description="all that the pseudodata are made of is in the model")
    ] = False

    @property
    def points(self) -> str:
        """Name of the fitted points: data or pseudodata."""
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
        quality = f"chi2 = {test.chi2:.2f} for {test.ndof} degrees of freedom"
        if test.p_value is not None:
            is_tiny = test.p_value < 0.001  # noqa: PLR2004 - three digits would be zeros
            quality += f", p = {test.p_value:{'.1g' if is_tiny else '.3f'}}"
        lines = (f"fitted to {self.kind}: {quality}", self.closure, self.definition)
        return tuple(line for line in lines if line)

    @property
    def value(self) -> str:
        """The parameter of interest, rounded, or its state instead of an uncertainty."""
        state = self.states.get(self.poi.name)
        if state is None:
            return with_uncertainty(self.poi.value, self.poi.uncertainty)
        return f"{self.poi.value + 0.0:.6g} ({state}, without an uncertainty)"

    @property
    def measured(self) -> tuple[str, str, str]:
        """Name and value of the measured quantity, and the prediction if a cross-section."""
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
