"""Our own format of filesets (``schema: 1``), read and written.

Relative paths are relative to the file that lists them; ``~`` and ``$VARIABLES`` are expanded in
paths, not in URLs, and so are folders and patterns (`agc_ml.inputs.paths`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agc_ml.errors import FilesetError
from agc_ml.inputs.datasets import Dataset, File, FilesetContent
from agc_ml.inputs.formats.listing import FileListing, count_notes
from agc_ml.inputs.formats.metadata import is_data
from agc_ml.inputs.formats.schema import (
    SCHEMA,
    DatasetModel,
    FileModel,
    FilesetModel,
    Quantity,
    first_problem,
)
from agc_ml.inputs.paths import escaped


def read(path: Path, raw: Mapping[str, Any]) -> FilesetContent:
    """Return the fileset of a file in our own format; raises FilesetError or ValidationError."""
    model = FilesetModel.model_validate(raw)
    datasets, notes = [], list(model.notes)
    for name, d in model.datasets.items():
        listing = FileListing(path.parent, name)
        for file in d.files:
            facts = file.model_dump(exclude={"replicas", "tree"}, exclude_none=True)
            tree = file.tree if "tree" in file.model_fields_set else None
            listing.add(file.replicas, tree, facts)
        explicit = {"is_data": d.is_data} if "is_data" in d.model_fields_set else {}
        xsec, xsec_source = _number(d.xsec)
        dataset = Dataset(
            name=name,
            process=d.process,
            variation=d.variation,
            xsec=xsec,
            xsec_source=xsec_source,
            process_xsec=d.process_xsec,
            is_data=is_data(name, {**d.metadata, **explicit}),
            metadata=d.metadata,
            files=tuple(listing.files),
        )
        datasets.append(dataset)
        counted = count_notes(dataset, "metadata -> nevts", d.metadata.get("nevts"))
        notes += [note for note in (*listing.notes, *counted) if note not in notes]
    return FilesetContent(tuple(datasets), *_number(model.luminosity), tuple(notes), model.label)


def _number(quantity: Quantity | None) -> tuple[float | None, str | None]:
    return (None, None) if quantity is None else (quantity.value, quantity.source)


def to_model(fileset: FilesetContent) -> FilesetModel:
    """Return a fileset in our own format.

    Raises
    ------
    FilesetError
        A file has a wrong checksum, size or number, or its name on a server would be read as a
        pattern.
    """
    return FilesetModel(
        schema=SCHEMA,
        luminosity=_quantity(fileset.luminosity, fileset.luminosity_source),
        notes=list(fileset.notes),
        label=fileset.label or None,
        datasets={
            dataset.name: DatasetModel(
                process=dataset.process,
                variation=dataset.variation,
                xsec=_quantity(dataset.xsec, dataset.xsec_source),
                process_xsec=dataset.process_xsec,
                is_data=dataset.is_data,
                metadata=dict(dataset.metadata),
                files=[_file_model(dataset.name, file) for file in dataset.files],
            )
            for dataset in fileset.datasets
        },
    )


def _file_model(dataset: str, file: File) -> FileModel:
    try:
        return FileModel(
            lfn=file.lfn,
            replicas=[escaped(url) for url in file.replicas],
            tree=file.tree,
            uuid=file.uuid,
            entries=file.entries,
            size=file.size,
            adler32=file.adler32,
            generated=file.generated,
        )
    except ValidationError as error:
        raise FilesetError(
            f"dataset {dataset}: {file.lfn}: {first_problem(error)}; correct it"
        ) from error


def _quantity(value: float | None, source: str | None) -> Quantity | None:
    return None if value is None else Quantity(value=value, source=source or "not stated")
