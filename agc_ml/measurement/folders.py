"""Folders that the steps write to, and the index of their figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agc_ml import documents, files
from agc_ml.errors import AgcError, UsageError

if TYPE_CHECKING:
    from agc_ml.presentation.page import FigureInfo

INDEX: Final = "figures.json"


def other_folder(source: Path, output: Path | None) -> Path | None:
    """Folder to write to, None for the run directory itself, also if it is named."""
    if output is None or not output.exists() or not source.is_dir():
        return output
    return None if output.samefile(source) else output


def output_folder(source: Path, output: Path | None) -> Path:
    """Folder that a step writes to: ``output``, or the run directory itself.

    Raises
    ------
    UsageError
        There is no such run directory, or a file needs ``output``.
    """
    if output is not None:
        return output
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if not source.is_dir():
        raise UsageError(f"{source}: not a run directory, so say with -o DIR where to write")
    return source


def reject_link(folder: Path) -> Path:
    """Return a folder inside a run directory; reject links, which others may have made."""
    if folder.is_symlink():
        raise UsageError(f"{folder}: a link is in the way; take it away, or name a folder with -o")
    return folder


def remove_index(folder: Path) -> None:
    """Remove the index while figures are drawn again: two kinds must never be mixed."""
    with files.store_errors(folder):
        (folder / INDEX).unlink(missing_ok=True)


def write_index(folder: Path, figures: Sequence[FigureInfo]) -> None:
    """Write titles and captions beside the figures, for the report."""
    content = [{"name": f.name, "title": f.title, "caption": f.caption} for f in figures]
    files.write(folder / INDEX, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def read_index(folder: Path) -> list[FigureInfo]:
    """Figures that were drawn into a folder; none without an index.

    Raises
    ------
    AgcError
        The index is damaged.
    """
    from agc_ml.presentation.page import FigureInfo  # noqa: PLC0415 - heavy

    path = folder / INDEX
    if not path.exists():
        return []
    try:
        content = documents.json_of(documents.text(path))
        return [
            FigureInfo(
                **entry, png=folder / f"{entry['name']}.png", pdf=folder / f"{entry['name']}.pdf"
            )
            for entry in content
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AgcError(f"{path}: damaged ({error}); draw again with 'agc-ml plot'") from error
