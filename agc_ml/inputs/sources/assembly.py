"""Filesets assembled from the files that a source finds for each dataset."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.datasets import File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.formats.metadata import described, known_luminosity


class SourceFiles(NamedTuple):
    """Files of a dataset at a source, with ``notes`` for readers.

    ``is_data`` is true for recorded collisions, ``label`` says whose events they are; both None if
    the source does not tell.
    """

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()
    is_data: bool | None = None
    label: str | None = None


def split_pairs(pairs: Iterable[str], second: str) -> list[tuple[str, str]]:
    """Split text ``NAME=VALUE`` into pairs; errors call the value ``second``.

    Raises
    ------
    UsageError
        A text is not such a pair.
    """
    split = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or not re.fullmatch(r"[\w.+-]+", name):
            raise UsageError(f"{pair}: NAME={second} is needed, with NAME for the dataset")
        split.append((name, value))
    return split


def assemble(pairs: Iterable[tuple[str, str]], find: Callable[[str], SourceFiles]) -> Fileset:
    """Make a fileset of the files that ``find`` returns for each pair of name and place.

    A repeated name adds files to its dataset. Process and variation come from the name
    (``process__variation``), which a note says.

    Raises
    ------
    AgcError
        As of ``find``; `FilesetError` for a file listed twice, or data among simulation.
    """
    parts: dict[str, list[SourceFiles]] = {}
    for name, place in pairs:
        parts.setdefault(name, []).append(find(place))
    datasets, notes = [], []
    for name, sources in parts.items():
        files = tuple(file for source in sources for file in source.files)
        kinds = {source.is_data for source in sources} - {None}
        if len(kinds) > 1:
            raise FilesetError(
                f"dataset {name}: recorded collisions and simulation in one; give each its own name"
            )
        metadata: dict[str, Any] = {"is_data": kinds.pop()} if kinds else {}
        dataset, guesses = described(name, files, metadata)
        datasets.append(dataset)
        notes += [f"{name}: {note}" for source in sources for note in source.notes] + guesses
    labels = {source.label for sources in parts.values() for source in sources}
    label = labels.pop() if len(labels) == 1 else None
    return Fileset(tuple(datasets), *known_luminosity(datasets), tuple(notes), label)
