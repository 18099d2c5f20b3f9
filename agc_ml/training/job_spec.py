"""Specification of a job, and the inputs of its process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from agc_ml.errors import ModelError, UsageError
from agc_ml.models.backends.kserve_endpoint import Endpoint
from agc_ml.models.model import PARITIES, Parity
from agc_ml.models.naming import NAME
from agc_ml.models.registry import MOST_VERSION
from agc_ml.training.search_spaces import Kind, space_of

if TYPE_CHECKING:
    from fastapi.exceptions import RequestValidationError

DIGEST: Final = r"[0-9a-f]{64}"
MAX_TRIALS: Final = 1000

VersionNumber = Annotated[int, Field(ge=1, le=MOST_VERSION)]


def _both(versions: dict[Parity, int]) -> dict[Parity, int]:
    if set(versions) != set(PARITIES):
        raise ValueError("versions of the even and of the odd model are needed")
    return versions


# Versions of the two models of a bundle
Pair = Annotated[dict[Parity, VersionNumber], AfterValidator(_both)]


class Limits(BaseModel):
    """Limits of the gates; a service may have its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_auc: FiniteFloat = Field(default=0.9, ge=0, le=1, description="least AUC")
    max_loss: FiniteFloat = Field(
        default=0.02, ge=0, description="largest loss of AUC or jet score against the champion"
    )
    max_gap: FiniteFloat = Field(
        default=0.02,
        ge=0,
        description="largest excess of the AUC in cross-validation over the AUC in the test",
    )
    max_calibration: FiniteFloat = Field(
        default=0.1,
        ge=0,
        description="largest difference of score and fraction of right permutations, beyond two "
        "standard errors, in the worst of ten score bins",
    )
    max_multiplicity: FiniteFloat = Field(
        default=0.1,
        ge=0,
        description="largest loss of the jet score at a number of jets, against that of all events",
    )
    max_variation: FiniteFloat = Field(
        default=0.02, ge=0, description="largest change of AUC or jet score under a variation"
    )
    max_parity: FiniteFloat = Field(
        default=1e-5, ge=0, description="largest difference of a score between two libraries"
    )
    max_latency: FiniteFloat = Field(
        default=20.0, ge=0, description="largest time for a row in microseconds, on one core"
    )


class JobSpec(BaseModel):
    """Specification of a job: models to train, or a pair of models to validate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["xgboost", "keras", "judge"]
    name: str = Field(pattern=f"^{NAME}$", description="name of the model in the registry")
    dataset: str = Field(
        description="digest of the training set; or label@digest",
        json_schema_extra={"pattern": f"^(.*@)?{DIGEST}$"},
    )
    fold: Literal["even", "odd", "both"] = Field(
        default="both", description="parity of the training events"
    )
    space: str | dict[str, Any] | None = Field(
        default=None, description="search space: name of a preset, or parameters"
    )
    trials: int = Field(
        default=20, ge=1, le=MAX_TRIALS, description="number of trials for each parity"
    )
    seed: int = Field(default=1, ge=0, lt=2**31)
    variation: str = Field(
        default="nominal", pattern=r"^\w{1,64}$", description="variation of the jets to train with"
    )
    versions: Pair | None = Field(
        default=None, description="versions of the two models to validate"
    )
    remote: dict[Parity, Annotated[str, Field(max_length=1000)]] | None = Field(
        default=None, description="servers of the two models, to compare their scores"
    )
    idempotency_key: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="a second job with the same key is the first one",
    )

    @field_validator("dataset")
    @classmethod
    def _is_a_digest(cls, value: str) -> str:
        digest = value.rpartition("@")[2]
        if not re.fullmatch(DIGEST, digest):
            raise ValueError("the digest of a training set is needed, 64 hexadecimal digits")
        return digest

    @field_validator("remote")
    @classmethod
    def _are_addresses(cls, value: dict[Parity, str] | None) -> dict[Parity, str] | None:
        for address in (value or {}).values():
            try:
                Endpoint.parse(address)
            except ModelError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if (self.kind == "judge") != (self.versions is not None):
            raise ValueError("versions belong to the kind judge, which needs them")
        if self.kind == "judge" and self.space is not None:
            raise ValueError("space belongs to the kinds that train")
        if self.remote and self.kind != "judge":
            raise ValueError("remote belongs to the kind judge")
        if self.kind != "judge":
            try:
                space_of(self.kind, self.space)
            except UsageError as error:
                raise ValueError(str(error)) from error
        return self

    @property
    def parities(self) -> tuple[Parity, ...]:
        """Parities of the training events."""
        return PARITIES if self.fold == "both" else (self.fold,)

    @property
    def trained_kind(self) -> Kind:
        """Kind of the models to train; the kind judge trains none."""
        if self.kind == "judge":
            raise ValueError("nothing is trained")
        return self.kind


def first_error(error: ValidationError | RequestValidationError, skip: int = 0) -> str:
    """Return the first error of a validation in one line, without ``skip`` parts of its place."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][skip:])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


class RegisteredModel(BaseModel):
    """A version in the registry, and the folder with a copy of its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str
    folder: str


class Setup(BaseModel):
    """Inputs of a job's process."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    spec: JobSpec
    dataset: str = Field(description="path of the training set")
    site: str = Field(description="site where trials run")
    workers: int
    limits: Limits
    champion: RegisteredModel | None
    members: dict[Parity, RegisteredModel] = Field(
        default_factory=dict, description="two models of other jobs, to combine"
    )
