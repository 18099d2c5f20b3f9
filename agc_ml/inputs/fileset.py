"""Filesets: datasets that are analysed together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from agc_ml.errors import FilesetError, UsageError
from agc_ml.inputs import loading
from agc_ml.inputs.datasets import Dataset, File, FileFacts, FilesetContent, as_text


@dataclass(frozen=True, slots=True)
class Fileset(FilesetContent):
    """Datasets that are analysed together, with their integrated luminosity.

    See `FilesetContent` for the fields, and what is rejected.
    """

    @classmethod
    def load(cls, source: str | Path, *, dataset: str | None = None) -> Self:
        """Read a fileset in any format of `agc_ml.inputs.loading`.

        ``dataset`` names the dataset that ROOT files without a catalogue make. The string ``demo``
        is the embedded fileset; as a path it is a folder of that name.

        Raises
        ------
        UsageError
            There is nothing of that name, or it can't be looked up.
        FilesetError
            It is not a fileset, or has a field that is unknown or wrong.
        """
        return cls._of(loading.read(source, dataset=dataset))

    @classmethod
    def _of(cls, content: FilesetContent) -> Self:
        return cls(**{field.name: getattr(content, field.name) for field in fields(content)})

    @classmethod
    def find(cls, folder: Path) -> list[tuple[Path, Self]]:
        """Return the filesets among the JSON and YAML files of a folder.

        Raises
        ------
        UsageError
            There is no such folder.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
        filesets = []
        for path in sorted(folder.iterdir()):
            if loading.is_described(path) and path.is_file():
                with suppress(FilesetError):  # other JSON and YAML files are expected here
                    filesets.append((path, cls._of(loading.read_document(path))))
        return filesets

    @property
    def digest(self) -> str:
        """Sha256 of all that can change a result; replicas can not."""
        content = [
            self.luminosity,
            [
                [
                    d.name,
                    d.process,
                    d.variation,
                    d.xsec,
                    d.is_data,
                    dict(d.metadata),
                    [_identity(file) for file in d.files],
                ]
                for d in self.datasets
            ],
        ]
        text = json.dumps(content, sort_keys=True, default=as_text)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def n_files(self) -> int:
        """Number of files of all datasets."""
        return sum(len(dataset.files) for dataset in self.datasets)

    def limit(self, files: int) -> Self:
        """Keep the first ``files`` files of each dataset.

        A stated ``nevts`` of all files is left out if files are.

        Raises
        ------
        UsageError
            ``files`` is less than one.
        """
        if files < 1:
            raise UsageError(f"at least one file per dataset is needed, not {files}")
        limited = tuple(_limited(dataset, files) for dataset in self.datasets)
        left_out = (
            f"{before.name}: metadata -> nevts ({before.metadata['nevts']:,}) counts all "
            f"{len(before.files)} files and is left out: {files} used"
            for before, after in zip(self.datasets, limited, strict=True)
            if "nevts" in before.metadata and "nevts" not in after.metadata
        )
        return replace(self, datasets=limited, notes=(*self.notes, *left_out))

    def select(self, patterns: Iterable[str]) -> Self:
        """Keep the datasets whose name matches one of the shell patterns.

        Raises
        ------
        UsageError
            A pattern matches none.
        """
        patterns = list(patterns)
        names = [dataset.name for dataset in self.datasets]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UsageError(f"no dataset matches {pattern!r}; there are: {', '.join(names)}")
        chosen = (d for d in self.datasets if any(fnmatchcase(d.name, p) for p in patterns))
        return replace(self, datasets=tuple(chosen))

    def with_facts(self, facts: Mapping[tuple[str, str], FileFacts]) -> Self:
        """Return the fileset with what opening its files found, by dataset name and lfn.

        Facts that are None, and files without facts, change nothing.

        Raises
        ------
        FilesetError
            Two files turn out to be one (same UUID), so that events would count twice.
        """

        def updated(dataset: str, file: File) -> File:
            stated = facts.get((dataset, file.lfn))
            known = {} if stated is None else stated._asdict()
            return replace(
                file, **{key: value for key, value in known.items() if value is not None}
            )

        datasets = tuple(
            replace(d, files=tuple(updated(d.name, file) for file in d.files))
            for d in self.datasets
        )
        return replace(self, datasets=datasets)

    def to_coffea(self) -> dict[str, dict[str, Any]]:
        """Return a coffea fileset: ``{dataset: {"files": {url: tree}, "metadata": {}}}``."""
        return {
            dataset.name: {
                "files": {file.url: file.tree for file in dataset.files},
                "metadata": self.metadata(dataset),
            }
            for dataset in self.datasets
        }

    def metadata(self, dataset: Dataset) -> dict[str, Any]:
        """Return ``events.metadata`` of a dataset for processors, without file and range.

        ``nevts`` (the name that AGC's processors use for the number to normalise to) is the sum
        over files if the catalogue states it, with events that a filter dropped; else the number
        in the dataset's metadata.
        """
        fields_ = {
            "dataset": dataset.name,
            "process": dataset.process,
            "variation": dataset.variation,
            "is_data": dataset.is_data,
            "xsec": dataset.xsec,
            "luminosity": self.luminosity,
            "nevts": dataset.n_generated,
        }
        return {**dataset.metadata, **{k: v for k, v in fields_.items() if v is not None}}


def _limited(dataset: Dataset, files: int) -> Dataset:
    if len(dataset.files) <= files:
        return dataset
    metadata = {key: value for key, value in dataset.metadata.items() if key != "nevts"}
    return replace(dataset, files=dataset.files[:files], metadata=metadata)


def _identity(file: File) -> list[Any]:
    identity = [file.lfn, file.tree, file.uuid, file.entries, file.size, file.adler32]
    return identity if file.generated is None else [*identity, file.generated]
