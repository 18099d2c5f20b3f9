"""Datasets described by a name, files and metadata, as in coffea filesets and lists of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agc_ml.errors import FilesetError
from agc_ml.inputs import agc_published
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.formats.listing import count_notes
from agc_ml.inputs.variations import NOMINAL

BY_NAME: Final = "the name of the dataset"
_DATA_FLAGS: Final = {"is_data": True, "isData": True, "isMC": False, "is_mc": False}
"""Metadata keys for data in use, and their value for data."""


def described(
    name: str, files: tuple[File, ...], metadata: dict[str, Any], *, given_by: str = BY_NAME
) -> tuple[Dataset, list[str]]:
    """Build a dataset from metadata, and from its name what they leave open, with notes on that."""
    process, _, variation = name.partition("__")
    of_data = is_data(name, metadata)
    # a cross-section of data means nothing, and stays with the user's own metadata
    fields = ("process", "variation", "is_data", *(() if of_data else ("xsec",)))
    stated = {key: metadata.pop(key, None) for key in fields}
    for key in ("process", "variation"):
        if not isinstance(stated[key], str | None):
            raise FilesetError(f"{name} -> metadata -> {key}: {stated[key]!r} is not a name")
    process = stated["process"] or process
    variation = stated["variation"] or variation or NOMINAL
    # a note for each property that was guessed
    notes = []
    if stated["process"] is None:
        notes.append(f"{name}: process {process!r}, variation {variation!r}, from {given_by}")
    xsec, source = number(name, stated.get("xsec"), "xsec", "pb"), "the fileset's metadata"
    if xsec is None and not of_data and process in agc_published.CROSS_SECTIONS:
        xsec, source = agc_published.CROSS_SECTIONS[process], agc_published.SOURCE
        notes.append(f"{name}: cross-section {xsec:g} pb for {process!r}, from {source}")
    dataset = Dataset(
        name=name,
        process=process,
        variation=variation,
        xsec=xsec,
        xsec_source=None if xsec is None else source,
        is_data=of_data,
        metadata=metadata,
        files=files,
    )
    return dataset, notes + count_notes(dataset, "metadata -> nevts", metadata.get("nevts"))


def number(name: str, value: Any, field: str, unit: str) -> float | None:
    """Return a number of a dataset's metadata, None if it is not stated."""
    if value is None:
        return None
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    shown = repr(value)[:80]
    raise FilesetError(f"{name} -> metadata -> {field}: {shown} is not a number in {unit}")


def is_data(name: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether a dataset is data, from the flags in its metadata."""
    if not isinstance(metadata.get("is_data"), bool | None):
        raise FilesetError(f"{name} -> metadata -> is_data: true or false is needed")
    flags = {
        key: bool(metadata[key]) is for_data
        for key, for_data in _DATA_FLAGS.items()
        if isinstance(metadata.get(key), bool | int) and metadata[key] in {0, 1}
    }
    if len(set(flags.values())) > 1:
        raise FilesetError(
            f"{name} -> metadata: {' and '.join(flags)} contradict each other; state one of them"
        )
    return any(flags.values())


def known_luminosity(datasets: Iterable[Dataset]) -> tuple[float | None, str | None]:
    """Return AGC's luminosity in 1/pb and its source if all cross-sections are AGC's, else None."""
    if all(dataset.xsec_source == agc_published.SOURCE for dataset in datasets):
        return agc_published.LUMINOSITY, agc_published.SOURCE
    return None, None
