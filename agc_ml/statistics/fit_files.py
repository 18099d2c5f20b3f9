"""The result of a fit on disk: ``fit.json``, with ``workspace.json`` in pyhf's format."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agc_ml import documents
from agc_ml.errors import FitError, StoreError
from agc_ml.files import write
from agc_ml.statistics.fit_result import (
    CarriedOver,
    CrossSection,
    FitResult,
    GoodnessOfFit,
    Impact,
    Parameter,
    RegionYields,
)

SCHEMA: Final = 1


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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        n = len(self.edges) - 1
        if n < 1 or any(high <= low for low, high in pairwise(self.edges)):
            raise ValueError(f"edges of {self.region} must rise")
        if {len(bins) for bins in (*self.samples.values(), self.uncertainty, self.data)} != {n}:
            raise ValueError(f"one number a bin is needed in {self.region}, of {n} bins")
        return self


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
    pseudodata: str = Field(description="kind of pseudodata, or data: what was fitted")
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [parameter.name for parameter in self.parameters]
        if {len(self.correlation), *map(len, self.correlation)} != {len(names)}:
            raise ValueError("correlation needs a row and a column of each parameter")
        unknown = {*(impact.parameter for impact in self.impacts), *self.states} - {*names}
        if unknown or len({*names}) < len(names):
            what = f"{min(unknown)!r} is none" if unknown else "one is there twice"
            raise ValueError(f"parameters: {what}")
        before, after = ([one.region for one in which] for which in (self.prefit, self.postfit))
        if before != after:
            raise ValueError("prefit and postfit have other regions")
        return self


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
        return documents.json_of(documents.text(path))
    except FileNotFoundError as error:
        raise FitError(f"{path}: no such file; 'agc-ml fit' writes it") from error
    except (OSError, ValueError) as error:
        raise FitError(f"{path}: cut off or not JSON ({error}); run 'agc-ml fit' again") from error


def _load_record(path: Path) -> FitRecord:
    try:
        return FitRecord.model_validate(_load_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = " -> ".join(str(part) for part in first["loc"]) or "(all)"
        message = first["msg"].removeprefix("Value error, ")
        raise FitError(
            f"{path}: field {where}: {message}; run 'agc-ml fit' again with this version"
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
