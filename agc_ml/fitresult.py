"""The result of a fit, in memory and as ``fit.json`` with ``workspace.json``."""

from __future__ import annotations

import contextlib
import html
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml.errors import FitError, StoreError
from agc_ml.results import write
from agc_ml.rounding import with_uncertainty

SCHEMA: Final = 1


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
    are made, `agc_ml.carryover` says.
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
        """What was fitted, with the kind of pseudodata."""
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
        """What the parameter of interest is, where it measures a known cross-section."""
        if self.cross_section is None:
            return ""
        return (
            f"{self.poi.name} is the cross-section of {self.cross_section.process} over the "
            f"predicted one, {self.cross_section.predicted:g} pb."
        )

    @property
    def facts(self) -> tuple[str, ...]:
        """What stands beside the result: what was fitted, how well, and what its numbers mean."""
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
        return f"{self.poi.value:.6g} ({state}, without an uncertainty)"

    @property
    def measured(self) -> tuple[str, str, str]:
        """Name and value of what is measured, and what it is compared with, if a cross-section."""
        sigma = self.cross_section
        if sigma is None:
            return self.poi.name, self.value, ""
        value = f"{sigma.predicted * self.poi.value:.6g}"
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


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PoiRecord(_Record):
    """The parameter of interest."""

    name: str
    value: float
    uncertainty: float


class CrossSectionRecord(_Record):
    """A measured cross-section, in pb: the parameter of interest times the predicted one."""

    process: str
    symbol: str = Field(description="what stands in sigma(...)")
    predicted: float
    value: float
    uncertainty: float


class ParameterRecord(PoiRecord):
    """A parameter of the fit."""

    pull: float | None = Field(description="(value - nominal) / pre-fit uncertainty, if it has one")


class GoodnessOfFitRecord(_Record):
    """A chi2 test."""

    chi2: float
    ndof: int
    p_value: float | None


class ImpactRecord(_Record):
    """Change of the parameter of interest when a parameter is moved and all others refitted."""

    parameter: str
    prefit_up: float
    prefit_down: float
    postfit_up: float
    postfit_down: float


class RegionRecord(_Record):
    """Model and data of a region, one number a bin."""

    region: str
    label: str = Field(description="label of the observable's axis")
    edges: list[float]
    samples: dict[str, list[float]]
    uncertainty: list[float] = Field(description="of the sum of the samples")
    data: list[float]
    unit: str = Field(default="Entries", description="what is counted")


class CarriedOverRecord(_Record):
    """Model and data of an observable that was not fitted, before and after the fit."""

    prefit: RegionRecord
    postfit: RegionRecord
    prefit_test: GoodnessOfFitRecord = Field(description="of the data against the model")
    postfit_test: GoodnessOfFitRecord


class FitRecord(_Record):
    """The content of ``fit.json``."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    poi: PoiRecord
    parameters: list[ParameterRecord]
    correlation: list[list[float]] = Field(description="in the order of the parameters")
    goodness_of_fit: GoodnessOfFitRecord = Field(
        description="likelihood-ratio test against the saturated model"
    )
    twice_nll: float = Field(description="twice the negative log-likelihood at the minimum")
    minimizer: str
    converged: bool
    pseudodata: str = Field(description="published, complete, or data: what was fitted")
    impacts: list[ImpactRecord]
    prefit: list[RegionRecord]
    postfit: list[RegionRecord]
    inputs: dict[str, str] = Field(description="sha256 of the templates and of the configuration")
    notes: list[str]
    carried_over: list[CarriedOverRecord] = Field(
        default_factory=list, description="the result carried over to observables not fitted"
    )
    states: dict[str, str] = Field(
        default_factory=dict, description="parameters without uncertainty: fixed, or at a bound"
    )
    cross_section: CrossSectionRecord | None = None
    versions: dict[str, str] = Field(
        default_factory=dict, description="Python and the packages that decide the fit"
    )
    widths: dict[str, float] = Field(
        default_factory=dict, description="pre-fit uncertainties of constrained parameters"
    )
    is_closure: bool = Field(
        default=False, description="all that the pseudodata are made of is in the model"
    )


def save(result: FitResult, directory: str | Path) -> None:
    """Write ``fit.json`` and ``workspace.json`` (pyhf's format) into a folder, made if need be.

    Raises
    ------
    StoreError
        The folder can't be written, or the disk is full.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{folder}: can't be made ({error.strerror or error}); give another folder with -o"
        ) from error
    workspace = json.dumps(result.workspace, indent=1) + "\n"
    record = _record(result).model_dump_json(by_alias=True, indent=1) + "\n"
    write(folder / "workspace.json", lambda path: path.write_text(workspace))
    write(folder / "fit.json", lambda path: path.write_text(record))


def _record(result: FitResult) -> FitRecord:
    content = result._asdict()
    del content["workspace"]
    poi = {key: value for key, value in result.poi._asdict().items() if key != "pull"}
    return FitRecord.model_validate(
        {
            **content,
            "schema": SCHEMA,
            "poi": poi,
            "parameters": [parameter._asdict() for parameter in result.parameters],
            "correlation": result.correlation.tolist(),
            "goodness_of_fit": result.goodness_of_fit._asdict(),
            "states": dict(result.states),
            "versions": dict(result.versions),
            "widths": dict(result.widths),
            "cross_section": None
            if result.cross_section is None
            else {
                **result.cross_section._asdict(),
                "value": result.cross_section.predicted * result.poi.value,
                "uncertainty": result.cross_section.predicted * result.poi.uncertainty,
            },
            "impacts": [impact._asdict() for impact in result.impacts],
            "prefit": [_plain(region) for region in result.prefit],
            "postfit": [_plain(region) for region in result.postfit],
            "notes": list(result.notes),
            "carried_over": [
                {
                    "prefit": _plain(carried.prefit),
                    "postfit": _plain(carried.postfit),
                    "prefit_test": carried.prefit_test._asdict(),
                    "postfit_test": carried.postfit_test._asdict(),
                }
                for carried in result.carried_over
            ],
        }
    )


def _plain(region: RegionYields) -> dict[str, Any]:
    return {
        **region._asdict(),
        "edges": region.edges.tolist(),
        "samples": {name: values.tolist() for name, values in region.samples.items()},
        "uncertainty": region.uncertainty.tolist(),
        "data": region.data.tolist(),
    }


def load(path: str | Path) -> FitResult:
    """Read what `save` wrote, from its folder or its ``fit.json``.

    Raises
    ------
    FitError
        There is no fit, or it is cut off, or not of this format.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    record = _load_record(Path(path) / "fit.json" if Path(path).is_dir() else Path(path))
    workspace = _load_json(folder / "workspace.json")
    poi = next((p for p in _loaded_parameters(record) if p.name == record.poi.name), None)
    if poi is None:
        raise FitError(
            f"{folder / 'fit.json'}: {record.poi.name!r} is none of its parameters; run 'agc-ml "
            "fit' again"
        )
    return FitResult(
        poi=poi,
        parameters=_loaded_parameters(record),
        correlation=np.array(record.correlation, dtype=np.float64),
        goodness_of_fit=_loaded_test(record.goodness_of_fit),
        twice_nll=record.twice_nll,
        minimizer=record.minimizer,
        converged=record.converged,
        pseudodata=record.pseudodata,
        impacts=tuple(Impact(**impact.model_dump()) for impact in record.impacts),
        prefit=tuple(_loaded_region(region) for region in record.prefit),
        postfit=tuple(_loaded_region(region) for region in record.postfit),
        workspace=workspace,
        inputs=record.inputs,
        notes=tuple(record.notes),
        states=record.states,
        cross_section=None
        if record.cross_section is None
        else CrossSection(
            record.cross_section.process,
            record.cross_section.symbol,
            record.cross_section.predicted,
        ),
        versions=record.versions,
        widths=record.widths,
        is_closure=record.is_closure,
        carried_over=tuple(
            CarriedOver(
                prefit=_loaded_region(carried.prefit),
                postfit=_loaded_region(carried.postfit),
                prefit_test=_loaded_test(carried.prefit_test),
                postfit_test=_loaded_test(carried.postfit_test),
            )
            for carried in record.carried_over
        ),
    )


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FitError(f"{path}: no such file; 'agc-ml fit' writes it") from error
    except (OSError, ValueError) as error:
        raise FitError(f"{path}: cut off or not JSON ({error}); run 'agc-ml fit' again") from error


def _load_record(path: Path) -> FitRecord:
    try:
        return FitRecord.model_validate(_load_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = " -> ".join(str(part) for part in first["loc"])
        raise FitError(
            f"{path}: field {where}: {first['msg']}; run 'agc-ml fit' again with this version"
        ) from error


def _loaded_parameters(record: FitRecord) -> tuple[Parameter, ...]:
    return tuple(Parameter(**parameter.model_dump()) for parameter in record.parameters)


def _loaded_test(test: GoodnessOfFitRecord) -> GoodnessOfFit:
    return GoodnessOfFit(**test.model_dump())


def _loaded_region(region: RegionRecord) -> RegionYields:
    return RegionYields(
        region=region.region,
        label=region.label,
        edges=np.array(region.edges, dtype=np.float64),
        samples={name: np.array(v, dtype=np.float64) for name, v in region.samples.items()},
        uncertainty=np.array(region.uncertainty, dtype=np.float64),
        data=np.array(region.data, dtype=np.float64),
        unit=region.unit,
    )
