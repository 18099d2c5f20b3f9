"""The formats of filesets: our own, the Analysis Grand Challenge's, coffea's.

Relative paths are relative to the file that names them; ``~`` and ``$VARIABLES`` are expanded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agc_ml import agc
from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.errors import FilesetError
from agc_ml.variations import NOMINAL

SCHEMA: Final = 1
_SECRET: Final = re.compile(
    r"(?i)(authz|access_token|x-amz-[a-z-]+|awsaccesskeyid|signature|sig|xrdhttptk)="
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _replica_only(value: Any) -> Any:
    return {"replicas": [value]} if isinstance(value, str) else value


_Adler32 = Annotated[
    str,
    BeforeValidator(lambda value: value.lower().zfill(8) if isinstance(value, str) else value),
    Field(pattern="^[0-9a-f]{8}$"),
]


class FileModel(_Model):
    """A file of our own fileset format; a plain string is its only replica."""

    lfn: str | None = Field(None, description="logical name; default: path of the first replica")
    replicas: list[str] = Field(min_length=1, description="URLs or paths, nearest first")
    tree: str = Field("Events", description="name of the tree or RNTuple")
    uuid: str | None = Field(None, description="UUID in the ROOT file's header")
    entries: int | None = Field(None, ge=0, description="number of events")
    size: int | None = Field(None, ge=0, description="bytes")
    adler32: _Adler32 | None = Field(None, description="checksum, eight hexadecimal digits")
    generated: int | None = Field(
        None, gt=0, description="events generated, of which the entries passed a filter"
    )


class Quantity(_Model):
    """A number with the place it comes from."""

    value: float = Field(gt=0, allow_inf_nan=False)
    source: str = Field(min_length=1, description="paper, record or person")


class DatasetModel(_Model):
    """A dataset of our own fileset format."""

    process: str = Field(min_length=1)
    variation: str = Field(NOMINAL, min_length=1)
    xsec: Quantity | None = Field(None, description="cross-section in pb")
    is_data: bool = False
    metadata: dict[str, Any] = Field(default_factory=dict, description="handed to the processor")
    files: list[Annotated[FileModel, BeforeValidator(_replica_only)]] = Field(min_length=1)


class FilesetModel(_Model):
    """Our own fileset format."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    luminosity: Quantity | None = Field(None, description="integrated luminosity in 1/pb")
    notes: list[str] = Field(default_factory=list, description="shown with every result")
    label: str | None = Field(
        None, min_length=1, description="whose events they are, on figures [CMS Open Data]"
    )
    datasets: dict[str, DatasetModel] = Field(min_length=1)


class AgcFileModel(_Model):
    """A file in the input list of the Analysis Grand Challenge."""

    path: str
    nevts: int = Field(ge=0)


class AgcVariationModel(_Model):
    """A dataset in the input list of the Analysis Grand Challenge."""

    nevts_total: int | None = None
    files: list[AgcFileModel] = Field(min_length=1)


def from_mapping(path: Path, raw: Mapping[str, Any]) -> Fileset:
    """Make a fileset of the content of a file in any of the formats.

    Raises
    ------
    FilesetError
        It is in none of them, or has a field that is unknown or wrong.
    """
    try:
        if "schema" in raw:
            return _from_own(path, raw)
        if _is_agc(raw):
            return _from_agc(path, raw)
        if _is_coffea(raw):
            return _from_coffea(path, raw)
    except ValidationError as error:
        raise FilesetError(f"{path}: {first_problem(error)}") from error
    except FilesetError as error:
        raise FilesetError(f"{path}: {error}") from error
    raise FilesetError(
        f"{path}: not a fileset; known are our own (schema: 1), coffea's ({{dataset: [files]}}) "
        "and AGC's (process -> variation -> files)"
    )


def _from_own(path: Path, raw: Mapping[str, Any]) -> Fileset:
    model = FilesetModel.model_validate(raw)
    datasets = tuple(
        Dataset(
            name=name,
            process=d.process,
            variation=d.variation,
            xsec=None if d.xsec is None else d.xsec.value,
            xsec_source=None if d.xsec is None else d.xsec.source,
            is_data=d.is_data,
            metadata=d.metadata,
            files=tuple(_file(path, name, f) for f in d.files),
        )
        for name, d in model.datasets.items()
    )
    stated = model.luminosity
    return Fileset(
        datasets,
        luminosity=None if stated is None else stated.value,
        luminosity_source=None if stated is None else stated.source,
        notes=tuple(model.notes),
        label=model.label,
    )


def _file(path: Path, dataset: str, model: FileModel) -> File:
    replicas = tuple(
        place(path.parent, replica, f"dataset {dataset}") for replica in model.replicas
    )
    lfn = model.lfn or logical_name(model.replicas[0])
    rest = model.model_dump(exclude={"lfn", "replicas"})
    return File(lfn=lfn, replicas=replicas, **rest)


def _is_agc(raw: Mapping[str, Any]) -> bool:
    def is_dataset(value: Any) -> bool:
        files = value.get("files") if isinstance(value, dict) else None
        return isinstance(files, list) and all(isinstance(f, dict) and "path" in f for f in files)

    return all(
        isinstance(variations, dict) and variations and all(map(is_dataset, variations.values()))
        for variations in raw.values()
    )


def _from_agc(path: Path, raw: Mapping[str, Any]) -> Fileset:
    datasets = []
    for process, variations in raw.items():
        if process not in agc.CROSS_SECTIONS:
            known = ", ".join(agc.CROSS_SECTIONS)
            raise FilesetError(
                f"process {process!r} is unknown, so its cross-section is too; known are {known} "
                "(others: in our own format, with xsec)"
            )
        for variation, content in variations.items():
            name = f"{process}__{variation}"
            try:
                model = AgcVariationModel.model_validate(content)
            except ValidationError as error:
                raise FilesetError(f"{process} -> {variation} -> {first_problem(error)}") from error
            files = tuple(
                File(
                    lfn=logical_name(f.path),
                    replicas=(place(path.parent, f.path, f"dataset {name}"),),
                    entries=f.nevts,
                )
                for f in model.files
            )
            datasets.append(_agc_dataset(name, process, variation, files))
    return Fileset(tuple(datasets), agc.LUMINOSITY, agc.SOURCE)


def _agc_dataset(name: str, process: str, variation: str, files: tuple[File, ...]) -> Dataset:
    return Dataset(
        name=name,
        process=process,
        variation=variation,
        xsec=agc.CROSS_SECTIONS[process],
        xsec_source=agc.SOURCE,
        files=files,
    )


def _is_coffea(raw: Mapping[str, Any]) -> bool:
    return all(
        isinstance(value, list) or (isinstance(value, dict) and "files" in value)
        for value in raw.values()
    )


def _from_coffea(path: Path, raw: Mapping[str, Any]) -> Fileset:
    datasets, notes = [], []
    luminosities = set()
    for name, content in raw.items():
        value = {"files": content} if isinstance(content, list) else content
        unknown = set(value) - {"files", "metadata", "treename", "form", "format"}
        if unknown:
            raise FilesetError(f"{name} -> {min(unknown)}: unknown field")
        metadata = value.get("metadata") or {}
        if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
            raise FilesetError(f"{name} -> metadata: a mapping of names is needed")
        metadata = dict(metadata)
        luminosities.add(_number(name, metadata.pop("luminosity", None), "luminosity", "1/pb"))
        dataset, dataset_notes = described(
            name, _coffea_files(path, name, value), metadata, given_by="the name of the dataset"
        )
        datasets.append(dataset)
        notes += dataset_notes
    if len(luminosities) > 1:
        raise FilesetError("metadata -> luminosity: it differs between datasets")
    stated = luminosities.pop()
    if stated is None:
        return Fileset(tuple(datasets), *known_luminosity(datasets), tuple(notes))
    return Fileset(tuple(datasets), stated, "the fileset's metadata", tuple(notes))


def _coffea_files(path: Path, name: str, value: Mapping[str, Any]) -> tuple[File, ...]:
    files, tree = value["files"], value.get("treename", "Events")
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(files, dict):
        pairs = files.items()
    elif isinstance(files, list):
        pairs = ((url, tree) for url in files)
    else:
        raise FilesetError(f"{name} -> files: a list of files or a mapping file -> tree is needed")
    found = []
    for url, given in pairs:
        spec = {"object_path": given} if isinstance(given, str) else given
        if not isinstance(url, str) or not isinstance(spec, dict):
            raise FilesetError(
                f"{name} -> files -> {url}: a file and the name of its tree is needed"
            )
        if spec.get("steps"):
            raise FilesetError(
                f"{name} -> files -> {url} -> steps: files are read whole; take the steps out"
            )
        entries = spec.get("num_entries")
        if not isinstance(entries, int | None):
            raise FilesetError(f"{name} -> files -> {url} -> num_entries: {entries!r}, no number")
        found.append(
            File(
                lfn=logical_name(url),
                replicas=(place(path.parent, url, f"dataset {name}"),),
                tree=spec.get("object_path", tree),
                uuid=spec.get("uuid"),
                entries=entries,
            )
        )
    return tuple(found)


def _number(name: str, value: Any, field: str, unit: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise FilesetError(f"{name} -> metadata -> {field}: {value!r} is not a number in {unit}")


def described(
    name: str, files: tuple[File, ...], metadata: dict[str, Any], *, given_by: str
) -> tuple[Dataset, list[str]]:
    """Build a dataset from coffea metadata, and from its name what they leave open: say what."""
    process, _, variation = name.partition("__")
    stated = {key: metadata.pop(key, None) for key in ("process", "variation", "xsec", "is_data")}
    metadata.pop("nevts", None)  # counted from the files that are used
    process = stated["process"] or process
    variation = stated["variation"] or variation or NOMINAL
    notes = []
    if stated["process"] is None:
        notes.append(f"{name}: process {process!r}, variation {variation!r}, from {given_by}")
    xsec, source = _number(name, stated["xsec"], "xsec", "pb"), "the fileset's metadata"
    if not isinstance(stated["is_data"], bool | None):
        raise FilesetError(f"{name} -> metadata -> is_data: true or false is needed")
    if xsec is None and not stated["is_data"] and process in agc.CROSS_SECTIONS:
        xsec, source = agc.CROSS_SECTIONS[process], agc.SOURCE
        notes.append(f"{name}: cross-section {xsec:g} pb for {process!r}, from {source}")
    dataset = Dataset(
        name=name,
        process=process,
        variation=variation,
        xsec=xsec,
        xsec_source=None if xsec is None else source,
        is_data=bool(stated["is_data"]),
        metadata=metadata,
        files=files,
    )
    return dataset, notes


def known_luminosity(datasets: Iterable[Dataset]) -> tuple[float | None, str | None]:
    """Luminosity in 1/pb and its source, where all cross-sections are AGC's own; else None."""
    if all(dataset.xsec_source == agc.SOURCE for dataset in datasets):
        return agc.LUMINOSITY, agc.SOURCE
    return None, None


def to_model(fileset: Fileset) -> FilesetModel:
    """The fileset in our own format."""
    return FilesetModel(
        schema=SCHEMA,
        luminosity=_quantity(fileset.luminosity, fileset.luminosity_source),
        notes=list(fileset.notes),
        label=fileset.label,
        datasets={dataset.name: _to_model(dataset) for dataset in fileset.datasets},
    )


def _to_model(dataset: Dataset) -> DatasetModel:
    files = [
        FileModel(
            lfn=f.lfn,
            replicas=list(f.replicas),
            tree=f.tree,
            uuid=f.uuid,
            entries=f.entries,
            size=f.size,
            adler32=f.adler32,
            generated=f.generated,
        )
        for f in dataset.files
    ]
    return DatasetModel(
        process=dataset.process,
        variation=dataset.variation,
        xsec=_quantity(dataset.xsec, dataset.xsec_source),
        is_data=dataset.is_data,
        metadata=dict(dataset.metadata),
        files=files,
    )


def _quantity(value: float | None, source: str | None) -> Quantity | None:
    return None if value is None else Quantity(value=value, source=source or "not stated")


def first_problem(error: ValidationError) -> str:
    """Field and message of the first thing that pydantic found, on one line."""
    first = error.errors()[0]
    where = " -> ".join(str(part) for part in first["loc"])
    message = first["msg"].replace("Extra inputs are not permitted", "unknown field")
    given = first.get("input")
    shown = f" (it is {given!r})" if isinstance(given, str | int | float) else ""
    return f"{where}: {message}{shown}"


def is_url(text: str) -> bool:
    """Whether it names a protocol."""
    return "://" in text


def logical_name(url: str) -> str:
    """Path of a URL without scheme and host: the same file at any door has the same."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    query = "&".join(part for part in parts.query.split("&") if not _SECRET.match(part))
    return re.sub("/+", "/", parts.path) + (f"?{query}" if query else "")


def place(folder: Path, url: str, where: str) -> str:
    """Where a file is: a URL, or an absolute path. Errors as of `expand`."""
    expanded = expand(url, where)
    return expanded if is_url(expanded) else str((folder / expanded).absolute())


def expand(path: str, where: str) -> str:
    """Expand ``~`` and ``$VARIABLES``; ``where`` says in errors what names the path.

    Raises
    ------
    FilesetError
        A variable is not set.
    """
    expanded = os.path.expandvars(Path(path).expanduser()) if not is_url(path) else path
    expanded = os.path.expandvars(expanded)
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        raise FilesetError(f"{where}: {path}: the variable {unset[0]} is not set")
    return expanded
