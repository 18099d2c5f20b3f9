"""Choices made for a run, which later commands follow: ``measurement.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml import documents
from agc_ml.analysis import Analysis, Pseudodata
from agc_ml.errors import RunDirectoryError
from agc_ml.files import write

FILE_NAME: Final = "measurement.json"
_MOST: Final = 1 << 16
"""Bytes of that file."""


class Choices(BaseModel):
    """The content of ``measurement.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(1, alias="schema")
    pseudodata: str | None = Field(
        default=None, description="kind of the run's pseudodata, the analysis's first one if none"
    )
    drawn: str | None = Field(default=None, description="kind in figures/, if there are any")


def load(run: Path) -> Choices:
    """Read the choices made for a run; without a record there are none.

    Raises
    ------
    RunDirectoryError
        The record is damaged.
    """
    path = run / FILE_NAME
    try:
        return Choices.model_validate_json(documents.content(path, _MOST))
    except (FileNotFoundError, NotADirectoryError):  # the latter of a file of histograms
        return Choices(schema=1)
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise _damaged(path, reason) from error


def _damaged(path: Path, reason: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{path}: damaged ({reason}); remove it, and choose the pseudodata again: agc-ml fit RUN "
        "--pseudodata KIND"
    )


def recipe_of(run: Path, analysis: Analysis, kind: str | None = None) -> Pseudodata | None:
    """Recipe of a run's pseudodata: of the given kind, else the chosen one, else the first.

    None if the analysis declares no pseudodata.

    Raises
    ------
    UsageError, FitError
        The analysis has none of the given kind.
    RunDirectoryError
        The record is damaged.
    """
    if kind is not None:
        return analysis.recipe(kind)
    chosen = load(run).pseudodata
    if chosen is not None and chosen not in analysis.pseudodata:
        kinds = ", ".join(analysis.pseudodata) or "no"
        raise _damaged(run / FILE_NAME, f"{chosen!r} pseudodata, and its analysis has {kinds} ones")
    return analysis.recipe(chosen) if analysis.pseudodata else None


def change(run: Path, **changes: str | None) -> None:
    """Change the choices that later commands of a run follow.

    Raises
    ------
    RunDirectoryError
        The record is damaged.
    StoreError
        It can't be written.
    """
    before = load(run)
    after = before.model_copy(update=changes)
    if after != before or not (run / FILE_NAME).exists():
        text = after.model_dump_json(by_alias=True) + "\n"
        write(run / FILE_NAME, lambda path: path.write_text(text))
