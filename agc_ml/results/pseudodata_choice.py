"""What commands were told of a run, and later ones go on with: ``measurement.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml import documents
from agc_ml.errors import RunDirectoryError
from agc_ml.files import write

FILE_NAME: Final = "measurement.json"
_MOST: Final = 1 << 16
"""Bytes of that file."""


class Choices(BaseModel):
    """The content of ``measurement.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(1, alias="schema")
    pseudodata: Literal["published", "complete"] = Field(
        default="published", description="kind of the run's pseudodata"
    )
    drawn: Literal["published", "complete"] | None = Field(
        default=None, description="kind in figures/, if there are any"
    )


def load(run: Path) -> Choices:
    """Read what was chosen for a run; without a record the published pseudodata.

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
        raise RunDirectoryError(
            f"{path}: damaged ({reason}); remove it, and say again which pseudodata: agc-ml fit "
            "RUN --pseudodata KIND"
        ) from error


def change(run: Path, **changes: str) -> None:
    """Change what later commands of a run go on with.

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
