"""coffea's filesets, plain, preprocessed, or dumped from a DataGroupSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agc_ml.errors import FilesetError
from agc_ml.inputs.datasets import FilesetContent
from agc_ml.inputs.formats.listing import FileListing
from agc_ml.inputs.formats.metadata import described, known_luminosity, number
from agc_ml.inputs.formats.schema import CoffeaDatasetModel, CoffeaFileModel, first_problem


def is_coffea(raw: Mapping[str, Any]) -> bool:
    """Return whether a mapping has the structure of a coffea fileset."""
    return all(
        isinstance(value, list) or (isinstance(value, dict) and "files" in value)
        for value in raw.values()
    )


def read(path: Path, raw: Mapping[str, Any]) -> FilesetContent:
    """Return the fileset of a file in coffea's format."""
    datasets, notes = [], []
    luminosities = set()
    # datasets, with the luminosity that each states
    for name, content in raw.items():
        try:
            model = CoffeaDatasetModel.model_validate(
                {"files": content} if isinstance(content, list) else content
            )
        except ValidationError as error:
            raise FilesetError(f"{name} -> {first_problem(error)}") from error
        listing = _listing(path, name, model)
        metadata = dict(model.metadata or {})
        luminosities |= {number(name, metadata.get("luminosity"), "luminosity", "1/pb")} - {None}
        dataset, dataset_notes = described(name, tuple(listing.files), metadata)
        datasets.append(dataset)
        notes += listing.notes + dataset_notes
    simulated = [dataset for dataset in datasets if not dataset.is_data]
    is_unscaled = bool(simulated) and all(dataset.xsec is None for dataset in simulated)
    # a luminosity that scales nothing stays with the user's own metadata
    if is_unscaled or not luminosities:
        return FilesetContent(tuple(datasets), *known_luminosity(datasets), tuple(notes))
    # one luminosity for all datasets is the fileset's
    if len(luminosities) > 1:
        notes.append(
            "metadata -> luminosity differs between datasets: it reaches the processor, and "
            "nothing is scaled to it"
        )
        return FilesetContent(tuple(datasets), notes=tuple(notes))
    return FilesetContent(
        tuple(
            replace(d, metadata={k: v for k, v in d.metadata.items() if k != "luminosity"})
            for d in datasets
        ),
        luminosities.pop(),
        "the fileset's metadata",
        tuple(notes),
    )


def _listing(path: Path, name: str, model: CoffeaDatasetModel) -> FileListing:
    """Return the files of a dataset, listed as URLs or as a mapping of URL to tree or facts."""
    listed = model.files
    if not isinstance(listed, dict | list):
        raise FilesetError(f"{name} -> files: a list of files or a mapping file -> tree is needed")
    pairs = listed.items() if isinstance(listed, dict) else ((url, None) for url in listed)
    listing = FileListing(path.parent, name)
    for url, content in pairs:
        where = f"{name} -> files -> {url}"
        if not isinstance(url, str) or not isinstance(content, str | dict | None):
            raise FilesetError(f"{where}: a file and the name of its tree is needed")
        try:
            spec = CoffeaFileModel.model_validate(
                content if isinstance(content, dict) else {"object_path": content}
            )
        except ValidationError as error:
            raise FilesetError(f"{where} -> {first_problem(error)}") from error
        facts = {"lfn": spec.lfn, "uuid": spec.uuid, "entries": _entries(where, spec)}
        listing.add(
            [url],
            model.treename if spec.object_path is None else spec.object_path,
            {key: value for key, value in facts.items() if value is not None},
        )
    return listing


def _entries(where: str, spec: CoffeaFileModel) -> int | None:
    """Return the entries of a file; reject steps that are not all of them."""
    if spec.steps is None:
        return spec.num_entries
    if spec.num_entries is None:
        raise FilesetError(
            f"{where} -> steps: files are read whole, and without num_entries it is not known "
            "whether these steps are all of it; state it, or remove the steps"
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
        "are not of this file; remove the steps"
    )
