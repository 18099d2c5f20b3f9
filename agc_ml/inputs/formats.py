"""The formats of filesets: our own, the Analysis Grand Challenge's, coffea's.

Relative paths are relative to the file that names them; ``~`` and ``$VARIABLES`` are expanded in
paths, not in URLs, and so are folders and patterns (`agc_ml.inputs.paths`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from agc_ml.errors import FilesetError
from agc_ml.inputs import agc_published
from agc_ml.inputs.fileset import Dataset, File, Fileset
from agc_ml.inputs.paths import meant, written
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


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - what pydantic takes for its own
    return value


class Quantity(_Model):
    """A number with the place it comes from."""

    value: Annotated[float, BeforeValidator(_no_flag)] = Field(gt=0, allow_inf_nan=False)
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
    label: str | None = Field(None, min_length=1, description="whose events they are, on figures")
    datasets: dict[str, DatasetModel] = Field(min_length=1)


class AgcFileModel(_Model):
    """A file in the input list of the Analysis Grand Challenge."""

    path: str
    nevts: _Count


class AgcVariationModel(_Model):
    """A dataset in the input list of the Analysis Grand Challenge."""

    nevts_total: _Count | None = None
    files: list[AgcFileModel] = Field(min_length=1)


class CoffeaFileModel(BaseModel):
    """A file of a coffea fileset; the last three fields coffea adds for itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    object_path: str | None = None
    steps: list[Annotated[list[_Count], Field(min_length=2, max_length=2)]] | None = None
    num_entries: _Count | None = None
    uuid: str | None = None
    lfn: str | None = None
    format: Literal["root"] | None = None
    form: Any = None
    pfn: Any = None
    num_selected_entries: Any = None  # the sum of the steps


class CoffeaDatasetModel(BaseModel):
    """A dataset of a coffea fileset, perhaps preprocessed, or a dump of its DataGroupSpec."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: Any
    metadata: dict[str, Any] | None = None
    treename: str | None = None
    format: Literal["root"] | None = None
    form: Any = None
    compressed_form: Any = None
    did: Any = None


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
    datasets, notes = [], list(model.notes)
    for name, d in model.datasets.items():
        files = _Files(path.parent, name)
        for file in d.files:
            has_tree = "tree" in file.model_fields_set
            facts = file.model_dump(exclude={"replicas", "tree"}, exclude_none=True)
            files.add(file.replicas, file.tree if has_tree else None, facts)
        dataset = Dataset(
            name=name,
            process=d.process,
            variation=d.variation,
            xsec=None if d.xsec is None else d.xsec.value,
            xsec_source=None if d.xsec is None else d.xsec.source,
            process_xsec=d.process_xsec,
            is_data=_is_data(name, {**d.metadata, **_stated(d, "is_data")}),
            metadata=d.metadata,
            files=tuple(files.found),
        )
        datasets.append(dataset)
        notes += [note for note in (*files.notes, *_nevts_note(dataset)) if note not in notes]
    stated = model.luminosity
    return Fileset(
        tuple(datasets),
        luminosity=None if stated is None else stated.value,
        luminosity_source=None if stated is None else stated.source,
        notes=tuple(notes),
        label=model.label,
    )


def _stated(model: BaseModel, field: str) -> dict[str, Any]:
    return {field: getattr(model, field)} if field in model.model_fields_set else {}


class _Files:
    """Files of a dataset as it lists them: ``found``, and ``notes`` on how they were found."""

    def __init__(self, folder: Path, dataset: str) -> None:
        self.found: list[File] = []
        self.notes: list[str] = []
        self._folder = folder
        self._dataset = dataset

    def add(self, replicas: Sequence[str], tree: str | None, facts: Mapping[str, Any]) -> None:
        """Add a file with its replicas, or all files of a folder or pattern.

        ``tree`` and ``facts``, fields of `File`, are what the list states of it.
        """
        where = f"dataset {self._dataset}"
        matches = [meant(text, self._folder, where) for text in replicas]
        for text, match in zip(replicas, matches, strict=True):
            if match.problem:
                raise FilesetError(f"{where}: {text}: {match.problem}")
            stated = ", ".join(facts) or ("other replicas" if len(matches) > 1 else "")
            if len(match.places) > 1 and stated:
                raise FilesetError(
                    f"{where}: {text}: {len(match.places)} files match, but what is stated "
                    f"beside it ({stated}) is of one; list each file"
                )
        trees = {name for name in (tree, *(match.tree for match in matches)) if name is not None}
        if len(trees) > 1:
            raise FilesetError(
                f"{where}: {replicas[0]}: two trees are named, {' and '.join(sorted(trees))}; "
                "take one"
            )
        known = {**facts, **({"tree": trees.pop()} if trees else {})}
        first, *others = matches
        for place in first.places:
            urls = (place.url, *(match.places[0].url for match in others))
            self.found.append(File(**{"lfn": place.lfn, "replicas": urls, **known}))
        self.notes += [f"{self._dataset}: {match.note}" for match in matches if match.note]


def _nevts_note(dataset: Dataset) -> list[str]:
    return _count_note(dataset, "metadata -> nevts", dataset.metadata.get("nevts"))


def _count_note(dataset: Dataset, field: str, stated: float | None) -> list[str]:
    """Say that the events stated file by file count, where a field states another number."""
    counted = dataset.n_generated
    if stated is None or counted is None or stated == counted:
        return []
    note = f"{dataset.name}: its files state {counted:,} events, {field} {stated:,}"
    return [f"{note}: the files' are taken"]


def _is_agc(raw: Mapping[str, Any]) -> bool:
    def is_dataset(value: Any) -> bool:
        files = value.get("files") if isinstance(value, dict) else None
        return isinstance(files, list) and all(isinstance(f, dict) and "path" in f for f in files)

    return all(
        isinstance(variations, dict) and variations and all(map(is_dataset, variations.values()))
        for variations in raw.values()
    )


def _from_agc(path: Path, raw: Mapping[str, Any]) -> Fileset:
    datasets, notes = [], list[str]()
    for process, variations in raw.items():
        if process not in agc_published.CROSS_SECTIONS:
            known = ", ".join(agc_published.CROSS_SECTIONS)
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
            files = _Files(path.parent, name)
            for file in model.files:
                files.add([file.path], None, {"entries": file.nevts})
            dataset = _agc_dataset(name, process, variation, tuple(files.found))
            datasets.append(dataset)
            notes += [*files.notes, *_count_note(dataset, "nevts_total", model.nevts_total)]
    return Fileset(
        tuple(datasets),
        agc_published.LUMINOSITY,
        agc_published.SOURCE,
        tuple(notes),
        agc_published.LABEL,
    )


def _agc_dataset(name: str, process: str, variation: str, files: tuple[File, ...]) -> Dataset:
    return Dataset(
        name=name,
        process=process,
        variation=variation,
        xsec=agc_published.CROSS_SECTIONS[process],
        xsec_source=agc_published.SOURCE,
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
        try:
            model = CoffeaDatasetModel.model_validate(
                {"files": content} if isinstance(content, list) else content
            )
            files = _coffea_files(path, name, model)
        except ValidationError as error:
            raise FilesetError(f"{name} -> {first_problem(error)}") from error
        metadata = dict(model.metadata or {})
        luminosities |= {_number(name, metadata.get("luminosity"), "luminosity", "1/pb")} - {None}
        dataset, dataset_notes = described(
            name, tuple(files.found), metadata, given_by="the name of the dataset"
        )
        datasets.append(dataset)
        notes += files.notes + dataset_notes
    simulated = [dataset for dataset in datasets if not dataset.is_data]
    is_bare = bool(simulated) and all(dataset.xsec is None for dataset in simulated)
    if is_bare or not luminosities:  # what means nothing here stays the user's own
        return Fileset(tuple(datasets), *known_luminosity(datasets), tuple(notes))
    if len(luminosities) > 1:
        notes.append(
            "metadata -> luminosity differs between datasets: it reaches the processor, and "
            "nothing is scaled to it"
        )
        return Fileset(tuple(datasets), notes=tuple(notes))
    own = [{k: v for k, v in d.metadata.items() if k != "luminosity"} for d in datasets]
    return Fileset(
        tuple(replace(d, metadata=metadata) for d, metadata in zip(datasets, own, strict=True)),
        *(luminosities.pop(), "the fileset's metadata", tuple(notes)),
    )


def _coffea_files(path: Path, name: str, model: CoffeaDatasetModel) -> _Files:
    listed = model.files
    if not isinstance(listed, dict | list):
        raise FilesetError(f"{name} -> files: a list of files or a mapping file -> tree is needed")
    pairs = listed.items() if isinstance(listed, dict) else ((url, None) for url in listed)
    files = _Files(path.parent, name)
    for url, given in pairs:
        where = f"{name} -> files -> {url}"
        if not isinstance(url, str) or not isinstance(given, str | dict | None):
            raise FilesetError(f"{where}: a file and the name of its tree is needed")
        try:
            spec = CoffeaFileModel.model_validate(
                given if isinstance(given, dict) else {"object_path": given}
            )
        except ValidationError as error:
            raise FilesetError(f"{where} -> {first_problem(error)}") from error
        facts = {"lfn": spec.lfn, "uuid": spec.uuid, "entries": _whole(where, spec)}
        files.add(
            [url],
            model.treename if spec.object_path is None else spec.object_path,
            {key: value for key, value in facts.items() if value is not None},
        )
    return files


def _whole(where: str, spec: CoffeaFileModel) -> int | None:
    """Entries of a file, if its steps are all of them."""
    if spec.steps is None:
        return spec.num_entries
    if spec.num_entries is None:
        raise FilesetError(
            f"{where} -> steps: files are read whole, and without num_entries it is not known "
            "whether these steps are; state it, or take the steps out"
        )
    end = 0
    for start, stop in sorted(spec.steps):
        if start != end or stop < start:
            break
        end = stop
    else:
        if end == spec.num_entries:
            return end
    raise FilesetError(
        f"{where} -> steps: files are read whole, and these steps leave entries out, overlap or "
        "are not of this file; take the steps out"
    )


def _number(name: str, value: Any, field: str, unit: str) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    shown = repr(value)[:80]
    raise FilesetError(f"{name} -> metadata -> {field}: {shown} is not a number in {unit}")


def described(
    name: str, files: tuple[File, ...], metadata: dict[str, Any], *, given_by: str
) -> tuple[Dataset, list[str]]:
    """Build a dataset from coffea metadata, and from its name what they leave open: say what."""
    process, _, variation = name.partition("__")
    is_data = _is_data(name, metadata)
    # of data a cross-section means nothing, and stays the user's own
    fields = ("process", "variation", "is_data", *(() if is_data else ("xsec",)))
    stated = {key: metadata.pop(key, None) for key in fields}
    for key in ("process", "variation"):
        if not isinstance(stated[key], str | None):
            raise FilesetError(f"{name} -> metadata -> {key}: {stated[key]!r} is no name")
    process = stated["process"] or process
    variation = stated["variation"] or variation or NOMINAL
    notes = []
    if stated["process"] is None:
        notes.append(f"{name}: process {process!r}, variation {variation!r}, from {given_by}")
    xsec, source = _number(name, stated.get("xsec"), "xsec", "pb"), "the fileset's metadata"
    if xsec is None and not is_data and process in agc_published.CROSS_SECTIONS:
        xsec, source = agc_published.CROSS_SECTIONS[process], agc_published.SOURCE
        notes.append(f"{name}: cross-section {xsec:g} pb for {process!r}, from {source}")
    dataset = Dataset(
        name=name,
        process=process,
        variation=variation,
        xsec=xsec,
        xsec_source=None if xsec is None else source,
        is_data=is_data,
        metadata=metadata,
        files=files,
    )
    return dataset, notes + _nevts_note(dataset)


_SAYS_DATA: Final = {"is_data": True, "isData": True, "isMC": False, "is_mc": False}
"""What metadata of coffea's users say of data."""


def _is_data(name: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a dataset is data, as its metadata say in one of several ways."""
    if not isinstance(metadata.get("is_data"), bool | None):
        raise FilesetError(f"{name} -> metadata -> is_data: true or false is needed")
    said = {
        key: bool(metadata[key]) is of_data
        for key, of_data in _SAYS_DATA.items()
        if isinstance(metadata.get(key), bool | int) and metadata[key] in {0, 1}
    }
    if len(set(said.values())) > 1:
        raise FilesetError(
            f"{name} -> metadata: {' and '.join(said)} contradict each other; state one of them"
        )
    return any(said.values())


def known_luminosity(datasets: Iterable[Dataset]) -> tuple[float | None, str | None]:
    """Luminosity in 1/pb and its source, where all cross-sections are AGC's own; else None."""
    if all(dataset.xsec_source == agc_published.SOURCE for dataset in datasets):
        return agc_published.LUMINOSITY, agc_published.SOURCE
    return None, None


def to_model(fileset: Fileset) -> FilesetModel:
    """The fileset in our own format.

    Raises
    ------
    FilesetError
        A checksum or another fact of a file is none, or a name on a server would be read as a
        pattern.
    """
    return FilesetModel(
        schema=SCHEMA,
        luminosity=_quantity(fileset.luminosity, fileset.luminosity_source),
        notes=list(fileset.notes),
        label=fileset.label or None,
        datasets={dataset.name: _to_model(dataset) for dataset in fileset.datasets},
    )


def _to_model(dataset: Dataset) -> DatasetModel:
    files = [_file_model(dataset, file) for file in dataset.files]
    return DatasetModel(
        process=dataset.process,
        variation=dataset.variation,
        xsec=_quantity(dataset.xsec, dataset.xsec_source),
        process_xsec=dataset.process_xsec,
        is_data=dataset.is_data,
        metadata=dict(dataset.metadata),
        files=files,
    )


def _file_model(dataset: Dataset, file: File) -> FileModel:
    try:
        return FileModel(
            lfn=file.lfn,
            replicas=[written(url) for url in file.replicas],
            tree=file.tree,
            uuid=file.uuid,
            entries=file.entries,
            size=file.size,
            adler32=file.adler32,
            generated=file.generated,
        )
    except ValidationError as error:
        where = f"dataset {dataset.name}: {file.lfn}"
        raise FilesetError(f"{where}: {first_problem(error)}; correct it") from error


def _quantity(value: float | None, source: str | None) -> Quantity | None:
    return None if value is None else Quantity(value=value, source=source or "not stated")


def first_problem(error: ValidationError) -> str:
    """Field and message of the first thing that pydantic found, on one line."""
    first = error.errors()[0]
    where = " -> ".join(str(part) for part in first["loc"])
    message = first["msg"].replace("Extra inputs are not permitted", "unknown field")
    message = message.removeprefix("Value error, ")
    given = first.get("input")
    shown = f" (it is {repr(given)[:80]})" if isinstance(given, str | int | float) else ""
    return f"{where}: {message}{shown}"
