"""``manifest.json``: content, origin and known shortfalls of a generated set."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml import documents
from agc_ml.errors import GenerateError
from agc_ml.files import write
from agc_ml.inputs import agc_published, loading
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
FILESET: Final = "fileset.json"

Content = Literal["full", "slim"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(_Record):
    """Request for a set; the same request gives the same events."""

    seed: int
    events: dict[str, int] = Field(description="events of each dataset")
    content: Content
    muons: bool = Field(description="True if the lepton may be a muon")
    constituents: bool
    emulate_cms2015_muon_id: bool
    settings: str = Field(description="sha256 of all that decides events besides this")


class ShortfallRecord(_Record):
    """A known difference of a sample from the published one, beyond the limits."""

    quantity: str
    value: float
    why: str


class FileRecord(_Record):
    """A file of the set."""

    name: str
    sha256: str
    size: int = Field(description="bytes")
    uuid: str
    entries: int = Field(gt=0)
    generated: int = Field(
        gt=0, description="hard events, from which the entries passed vetoes and skim"
    )
    sumw: float = Field(description="sum of weights of all generated events")


class DatasetRecord(_Record):
    """A dataset of the set.

    ``factor`` is the ratio of yields, generated over published, at the published cross-section;
    ``absorbs`` names its causes, ``shortfalls`` other known differences beyond the limits.
    """

    process: str
    variation: str
    xsec: float = Field(gt=0, description="cross-section in pb")
    xsec_source: str
    factor: float = Field(gt=0)
    absorbs: str
    veto_loss: float = Field(description="fraction of selected events lost by vetoes")
    shortfalls: tuple[ShortfallRecord, ...]
    settings: tuple[str, ...] = Field(description="lines for Pythia")
    events: int
    generated: int
    sumw: float
    files: tuple[FileRecord, ...]


class Manifest(_Record):
    """A generated set, complete or partial."""

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    status: Literal["complete", "partial"]
    request: Request
    skim: str
    detector: dict[str, Any]
    versions: dict[str, str]
    datasets: dict[str, DatasetRecord]


def save(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json``, and for a complete set ``fileset.json``.

    Raises
    ------
    StoreError
        The folder can't be written.
    """
    text = manifest.model_dump_json(by_alias=True, indent=1)
    if manifest.status == "complete":
        loading.save(fileset(manifest), folder / FILESET)
    write(folder / MANIFEST, lambda path: path.write_text(text + "\n"))


def load(folder: Path) -> Manifest:
    """Read the manifest of a generated set.

    Raises
    ------
    GenerateError
        There is no manifest, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        raw = documents.json_of(documents.text(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GenerateError(
            f"{folder}: no generated set (no {MANIFEST} in it); make one with 'agc-ml generate'"
        ) from error
    except (OSError, ValueError) as error:
        raise GenerateError(f"{path}: truncated or not JSON ({error}); generate again") from error
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise GenerateError(f"{path}: field {where}: {first['msg']}; generate again") from error


def verify(folder: Path, manifest: Manifest) -> None:
    """Check that all files exist and have their checksums.

    Raises
    ------
    GenerateError
        The set is not complete, or a file is missing or differs from the manifest.
    UsageError, FilesetError
        Its fileset is missing or damaged.
    """
    if manifest.status != "complete":
        raise GenerateError(f"{folder}: not complete; resume with 'agc-ml generate ... --resume'")
    for name, dataset in manifest.datasets.items():
        for file in dataset.files:
            problem = problem_of(folder / file.name, file)
            if problem:
                raise GenerateError(
                    f"{folder / file.name}: {problem} (dataset {name}); generate the set again, "
                    "or copy it again"
                )
    stated = Fileset.load(str(folder / FILESET))
    if stated.digest != fileset(manifest).digest:
        raise GenerateError(
            f"{folder / FILESET}: it contradicts {MANIFEST}; generate or copy the set again"
        )


def problem_of(path: Path, record: FileRecord) -> str | None:
    """Problem of a file of the set, None if it is intact."""
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size != record.size:
        return f"{size:,} bytes instead of {record.size:,}"
    found = sha256(path)
    return None if found == record.sha256 else f"its sha256 is {found[:12]}..., not the manifest's"


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fileset(manifest: Manifest) -> Fileset:
    """The fileset of a set; paths are relative to its folder.

    Cross-sections are divided by the factors, so that yields equal the published ones.
    """
    datasets = tuple(
        Dataset(
            name=name,
            process=d.process,
            variation=d.variation,
            **over_factor(d.xsec, d.xsec_source, d.factor),
            files=tuple(
                File(
                    lfn=f.name,
                    replicas=(f.name,),
                    uuid=f.uuid,
                    entries=f.entries,
                    size=f.size,
                    generated=f.generated,
                )
                for f in d.files
            ),
        )
        for name, d in manifest.datasets.items()
    )
    note = (
        f"generated events, no data of CMS: Pythia {manifest.versions['pythia8mc']}, parametrised "
        f"detector, seed {manifest.request.seed}"
    )
    return labelled(datasets, note)


def over_factor(xsec: float, source: str, factor: float) -> dict[str, Any]:
    """Cross-sections [pb] and source of a dataset whose yield is ``factor`` too high."""
    return {
        "process_xsec": xsec,
        "xsec": xsec / factor,
        "xsec_source": f"{xsec:g} pb ({source}) over the factor {factor:g}",
    }


def labelled(datasets: tuple[Dataset, ...], note: str) -> Fileset:
    """Fileset of generated datasets; its label tells so in figures."""
    return Fileset(
        datasets,
        agc_published.LUMINOSITY,
        agc_published.SOURCE,
        (note,),
        label=agc_published.GENERATED,
    )
