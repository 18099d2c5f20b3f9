"""Schemas of the formats of filesets: our own, the Analysis Grand Challenge's, coffea's."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agc_ml.inputs.variations import NOMINAL

SCHEMA: Final = 1


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _replica_only(value: Any) -> Any:
    return {"replicas": [value]} if isinstance(value, str) else value


_Adler32 = Annotated[
    str,
    Field(pattern="^[0-9a-fA-F]{1,8}$"),
    AfterValidator(lambda value: value.lower().zfill(8)),
]


_Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class FileModel(_Model):
    """A file of our own fileset format; a plain string is its only replica."""

    lfn: str | None = Field(None, description="logical name; default: path of the first replica")
    replicas: list[str] = Field(min_length=1, description="URLs or paths, nearest first")
    tree: str = Field("Events", description="name of the tree or RNTuple")
    uuid: str | None = Field(None, description="UUID in the ROOT file's header")
    entries: _Count | None = Field(None, description="number of events")
    size: _Count | None = Field(None, description="bytes")
    adler32: _Adler32 | None = Field(None, description="checksum, eight hexadecimal digits")
    generated: _Count | None = Field(
        None, gt=0, description="events generated, of which the entries passed a filter"
    )


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - pydantic reports it as its own
    return value


class Quantity(_Model):
    """A number with its source."""

    value: Annotated[float, BeforeValidator(_not_bool)] = Field(gt=0, allow_inf_nan=False)
    source: str = Field(min_length=1, description="paper, record or person")


class DatasetModel(_Model):
    """A dataset of our own fileset format."""

    process: str = Field(min_length=1)
    variation: str = Field(NOMINAL, min_length=1)
    xsec: Quantity | None = Field(None, description="cross-section in pb")
    process_xsec: float | None = Field(
        None, description="cross-section of the process in pb, if xsec is one over a factor"
    )
    is_data: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict, description="handed to the processor")
    files: list[Annotated[FileModel, BeforeValidator(_replica_only)]] = Field(min_length=1)


class FilesetModel(_Model):
    """Our own fileset format."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    luminosity: Quantity | None = Field(None, description="integrated luminosity in 1/pb")
    notes: list[str] = Field(default_factory=list, description="shown with every result")
    label: str | None = Field(None, min_length=1, description="whose events these are, for figures")
    datasets: dict[str, DatasetModel] = Field(min_length=1)


class AgcFileModel(_Model):
    """A file in the input list of the Analysis Grand Challenge."""

    path: str
    nevts: _Count


class AgcVariationModel(_Model):
    """A dataset in the input list of the Analysis Grand Challenge."""

    nevts_total: _Count | None = None
    files: list[AgcFileModel] = Field(min_length=1)


class CoffeaFileModel(_Model, strict=True):
    """A file of a coffea fileset; coffea adds the last three fields itself."""

    object_path: str | None = None
    steps: list[Annotated[list[_Count], Field(min_length=2, max_length=2)]] | None = None
    num_entries: _Count | None = None
    uuid: str | None = None
    lfn: str | None = None
    format: Literal["root"] | None = None
    form: Any = None
    pfn: Any = None
    num_selected_entries: Any = None  # the sum of the steps


class CoffeaDatasetModel(_Model, strict=True):
    """A dataset of a coffea fileset, plain, preprocessed, or dumped from a DataGroupSpec."""

    files: Any
    metadata: dict[str, Any] | None = None
    treename: str | None = None
    format: Literal["root"] | None = None
    form: Any = None
    compressed_form: Any = None
    did: Any = None


def first_problem(error: ValidationError) -> str:
    """Return field and message of the first error of a validation, in one line."""
    first = error.errors()[0]
    where = " -> ".join(str(part) for part in first["loc"])
    message = first["msg"].replace("Extra inputs are not permitted", "unknown field")
    message = message.removeprefix("Value error, ")
    value = first.get("input")
    shown = f" (it is {repr(value)[:80]})" if isinstance(value, str | int | float) else ""
    return f"{where}: {message}{shown}"
