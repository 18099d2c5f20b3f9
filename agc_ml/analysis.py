"""Declarations of an analysis: files beside its processor's code, read without importing the code.

``analysis.yml`` says how its processes are drawn, how pseudodata are mixed, which model cards it
ships and what its training task learns. ``fit.yml``, ``fit_ml.yml`` and ``carryover.yml`` lie there
too (`agc_ml.statistics`). A run directory may come from anybody and name any module: so modules are
only located, never imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    field_validator,
)
from pydantic.dataclasses import dataclass

from agc_ml import documents
from agc_ml.errors import FitError, UsageError

ENTRY_POINTS: Final = "agc_ml.processors"
"""Group of entry points by which installed processors have names."""
DEFAULT: Final = "ttbar"
"""Processor whose declaration holds for histograms without a run, and where none is declared."""
FILE_NAME: Final = "analysis.yml"

_STRICT: Final = ConfigDict(extra="forbid")
_Name = Annotated[str, Field(min_length=1)]
_FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


@dataclass(frozen=True, config=_STRICT)
class Process:
    """Looks of a process.

    ``label`` is its legend entry, which may hold mathematics between dollar signs; ``color`` is
    #rrggbb; ``symbol`` is how results write it; ``samples`` are the names that fits give it.
    """

    label: _Name | None = None
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None
    symbol: _Name | None = None
    samples: tuple[_Name, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class Pseudodata:
    """Recipe of pseudodata: its name, and parts ``{process}[_{variation}]`` with their factors."""

    kind: str
    parts: Mapping[str, float]


@dataclass(frozen=True, config=_STRICT)
class TrainingTask:
    """Choice among the rows of an event, of which one is right.

    Each row assigns a number of objects, such as jets, to ``kinds``: ``rows`` holds the place in
    ``kinds`` for each object of each row.
    """

    name: _Name
    kinds: Annotated[tuple[_Name, ...], Field(min_length=1)]
    rows: Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(min_length=2)]

    @field_validator("rows")
    @classmethod
    def _assign_all_objects(
        cls, rows: tuple[tuple[int, ...], ...], info: object
    ) -> tuple[tuple[int, ...], ...]:
        kinds = getattr(info, "data", {}).get("kinds", ())
        if len({len(row) for row in rows}) > 1 or not rows[0]:
            raise ValueError("all rows need the same number of objects, one at least")
        if max(chain(*rows)) >= len(kinds):
            raise ValueError(f"its numbers are places in kinds, 0 to {len(kinds) - 1}")
        return rows


@dataclass(frozen=True, config=_STRICT)
class Analysis:
    """What an analysis brings beside its processor.

    ``processes`` by name; ``pseudodata`` are recipes by kind, the first one the default;
    ``models`` are files with cards of published models; ``training`` is its training task.
    """

    processes: Mapping[str, Process] = Field(default_factory=dict)
    pseudodata: Mapping[_Name, Annotated[Mapping[str, FiniteFloat], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    models: tuple[_FileName, ...] = ()
    training: TrainingTask | None = None

    @field_validator("processes")
    @classmethod
    def _name_samples_once(cls, processes: Mapping[str, Process]) -> Mapping[str, Process]:
        names = [*processes, *chain(*(process.samples for process in processes.values()))]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is the name of two processes or samples")
        return processes

    @field_validator("pseudodata")
    @classmethod
    def _leave_data_alone(cls, pseudodata: Mapping[str, object]) -> Mapping[str, object]:
        if "data" in pseudodata:
            raise ValueError("'data' are real ones; choose another name")
        return pseudodata

    def recipe(self, kind: str | None = None) -> Pseudodata:
        """Return how pseudodata of a kind are mixed, by default of the first one.

        Raises
        ------
        UsageError
            There is no such kind.
        FitError
            The analysis declares no pseudodata.
        """
        if not self.pseudodata:
            raise FitError(
                f"the analysis declares no pseudodata: add them to its {FILE_NAME}, or name data "
                "in the fit configuration"
            )
        if kind is None:
            kind = next(iter(self.pseudodata))
        if kind not in self.pseudodata:
            kinds = ", ".join(self.pseudodata)
            raise UsageError(f"--pseudodata {kind}: not a kind of this analysis, which has {kinds}")
        return Pseudodata(kind, self.pseudodata[kind])


_CONTENT: Final = TypeAdapter(Analysis)


def analysis_of(processor: str = DEFAULT) -> Analysis:
    """Read what the analysis of a processor declares; the default one's where it declares nothing.

    ``processor`` is a registered name or ``module:Class``.

    Raises
    ------
    UsageError
        The file is damaged, or a field is wrong.
    """
    file = shipped_file(processor, FILE_NAME) or shipped_file(DEFAULT, FILE_NAME)
    return Analysis() if file is None else read(file)


def read(file: Path) -> Analysis:
    """Read a declaration.

    Raises
    ------
    UsageError
        The file is damaged, or a field is wrong.
    """
    try:
        return _CONTENT.validate_python(documents.read(file) or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = " -> ".join(str(part) for part in first["loc"]) or "(top)"
        raise UsageError(f"{file}: field {field}: {first['msg']}; correct the file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: can't be read as YAML ({error})") from error


def training_task(name: str) -> TrainingTask | None:
    """Find a training task among those of the registered processors; None if nobody declares it."""
    for file in _registered_files():
        task = read(file).training
        if task is not None and task.name == name:
            return task
    return None


def shipped_cards() -> list[Path]:
    """Return the cards of published models that registered processors ship."""
    return [file.parent / name for file in _registered_files() for name in read(file).models]


def _registered_files() -> list[Path]:
    files = (shipped_file(processor, FILE_NAME) for processor in registered())
    return list(dict.fromkeys(file for file in files if file is not None))


def registered() -> dict[str, str]:
    """Names of the installed processors and what they stand for, ``name -> module:Class``."""
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}


def shipped_file(processor: str, name: str) -> Path | None:
    """Find a file beside the code of a processor; None where there is none.

    That is in the folder of its package, or in the folder that its module lies in.
    """
    spec = located(processor)
    places: list[str] = list((spec and spec.submodule_search_locations) or ())
    if spec is not None and spec.submodule_search_locations is None and spec.has_location:
        places = [str(Path(str(spec.origin)).parent)]
    files = (Path(place) / name for place in places)
    return next((file for file in files if file.is_file()), None)


def located(processor: str) -> ModuleSpec | None:
    """Locate the module of a processor without importing anything, whoever wrote down its name."""
    module = registered().get(processor, processor).partition(":")[0]
    places: list[str] = [*sys.path, ""]  # the working directory, as it is now
    spec = None
    for part in module.split("."):
        name = part if spec is None else f"{spec.name}.{part}"
        is_first, spec = spec is None, None
        if part.isidentifier():
            # all finders, as of what is installed as editable; without a dot none imports anything
            with suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(name) if is_first else None
            with suppress(KeyError):  # as of folders in folders, without __init__.py
                spec = spec or PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
        if is_first and places:  # a folder of the user's may have the name of an installed package
            places += portions(part, [*sys.path, ""])
    return spec


def portions(package: str, places: Iterable[str]) -> list[str]:
    """Folders with the name of a package in the places where modules are looked for."""
    folders = (Path(place).absolute() / package for place in places)
    return list(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))
