"""Input list of the Analysis Grand Challenge: process -> variation -> files with ``nevts``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agc_ml.errors import FilesetError
from agc_ml.inputs import agc_published
from agc_ml.inputs.datasets import Dataset, FilesetContent
from agc_ml.inputs.formats.listing import FileListing, count_notes
from agc_ml.inputs.formats.schema import AgcVariationModel, first_problem


def is_agc(raw: Mapping[str, Any]) -> bool:
    """Return whether a mapping has the structure of AGC's input list."""

    def is_dataset(value: Any) -> bool:
        files = value.get("files") if isinstance(value, dict) else None
        return isinstance(files, list) and all(isinstance(f, dict) and "path" in f for f in files)

    return all(
        isinstance(variations, dict) and variations and all(map(is_dataset, variations.values()))
        for variations in raw.values()
    )


def read(path: Path, raw: Mapping[str, Any]) -> FilesetContent:
    """Return the fileset of AGC's input list, with its cross-sections and luminosity."""
    datasets, notes = [], list[str]()
    for process, variations in raw.items():
        if process not in agc_published.CROSS_SECTIONS:
            raise FilesetError(
                f"process {process!r} is unknown, so its cross-section is too; known are "
                f"{', '.join(agc_published.CROSS_SECTIONS)} (others: in our own format, with xsec)"
            )
        for variation, content in variations.items():
            name = f"{process}__{variation}"
            try:
                model = AgcVariationModel.model_validate(content)
            except ValidationError as error:
                raise FilesetError(f"{process} -> {variation} -> {first_problem(error)}") from error
            listing = FileListing(path.parent, name)
            for file in model.files:
                listing.add([file.path], None, {"entries": file.nevts})
            dataset = Dataset(
                name=name,
                process=process,
                variation=variation,
                xsec=agc_published.CROSS_SECTIONS[process],
                xsec_source=agc_published.SOURCE,
                files=tuple(listing.files),
            )
            datasets.append(dataset)
            notes += [*listing.notes, *count_notes(dataset, "nevts_total", model.nevts_total)]
    return FilesetContent(
        tuple(datasets),
        agc_published.LUMINOSITY,
        agc_published.SOURCE,
        tuple(notes),
        agc_published.LABEL,
    )
