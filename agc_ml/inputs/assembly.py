"""Datasets by name, of what the sources find for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs.fileset import File, Fileset
from agc_ml.inputs.formats import described, known_luminosity


class Found(NamedTuple):
    """Files that a source has for a dataset.

    ``notes`` are what a reader should know of them; ``is_data``: whether they are recorded
    collisions, ``label`` whose events they are: None where the source does not tell.
    """

    files: tuple[File, ...]
    notes: tuple[str, ...] = ()
    is_data: bool | None = None
    label: str | None = None


def named(pairs: Iterable[str], what: str) -> list[tuple[str, str]]:
    """Take pairs of text ``NAME=WHAT`` apart; ``what`` is what errors call the second half.

    Raises
    ------
    UsageError
        One is no such pair.
    """
    split = []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or not re.fullmatch(r"[\w.+-]+", name):
            raise UsageError(f"{pair}: NAME={what} is needed, where NAME is that of the dataset")
        split.append((name, value))
    return split


def assembled(pairs: Iterable[tuple[str, str]], find: Callable[[str], Found]) -> Fileset:
    """Make a fileset of what ``find`` has for each pair of name and place.

    A name that is there again adds files to its dataset. Process and variation come from the name
    (``process__variation``), which the fileset's notes say.

    Raises
    ------
    AgcError
        As of ``find``; `FilesetError` for a file that is there twice, or data among simulation.
    """
    parts: dict[str, list[Found]] = {}
    for name, where in pairs:
        parts.setdefault(name, []).append(find(where))
    datasets, notes = [], []
    for name, found in parts.items():
        files = tuple(file for part in found for file in part.files)
        told = {part.is_data for part in found} - {None}
        if len(told) > 1:
            raise FilesetError(
                f"dataset {name}: recorded collisions and simulation in one; give each its own name"
            )
        metadata: dict[str, Any] = {"is_data": told.pop()} if told else {}
        dataset, guessed = described(name, files, metadata, given_by="the name of the dataset")
        datasets.append(dataset)
        notes += [f"{name}: {note}" for part in found for note in part.notes] + guessed
    labels = {part.label for found in parts.values() for part in found}
    label = labels.pop() if len(labels) == 1 else None
    return Fileset(tuple(datasets), *known_luminosity(datasets), tuple(notes), label)
