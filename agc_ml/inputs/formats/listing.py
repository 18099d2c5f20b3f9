"""Files of a dataset as a fileset lists them, and the notes on how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agc_ml.errors import FilesetError
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.paths import resolve


class FileListing:
    """Builder of the ``files`` of a dataset, with ``notes`` on how they were found.

    Relative paths are relative to ``folder``.
    """

    def __init__(self, folder: Path, dataset: str) -> None:
        self.files: list[File] = []
        self.notes: list[str] = []
        self._folder = folder
        self._dataset = dataset

    def add(self, replicas: Sequence[str], tree: str | None, facts: Mapping[str, object]) -> None:
        """Add a file with its replicas, or all files of a folder or pattern.

        ``tree`` and ``facts``, fields of `File`, are what the list states about it.

        Raises
        ------
        FilesetError
            There is no such file, several files match what is stated about one, or two trees are
            named.
        """
        where = f"dataset {self._dataset}"
        # replicas as paths and URLs; several files can't share what is stated about one
        resolved = [resolve(text, self._folder, where) for text in replicas]
        stated = ", ".join(facts) or ("other replicas" if len(replicas) > 1 else "")
        for text, match in zip(replicas, resolved, strict=True):
            if match.problem:
                raise FilesetError(f"{where}: {text}: {match.problem}")
            if len(match.locations) > 1 and stated:
                raise FilesetError(
                    f"{where}: {text}: {len(match.locations)} files match, but what is stated "
                    f"beside it ({stated}) is about one; list each file"
                )
        # one tree, named in the list or in a path
        trees = {name for name in (tree, *(match.tree for match in resolved)) if name is not None}
        if len(trees) > 1:
            raise FilesetError(
                f"{where}: {replicas[0]}: two trees are named, {' and '.join(sorted(trees))}; "
                "take one"
            )
        given = {**facts, **({"tree": trees.pop()} if trees else {})}
        first, *others = resolved
        for location in first.locations:
            urls = (location.url, *(match.locations[0].url for match in others))
            fields: dict[str, object] = {"lfn": location.lfn, "replicas": urls, **given}
            self.files.append(File(**fields))  # type: ignore[arg-type]
        self.notes += [f"{self._dataset}: {match.note}" for match in resolved if match.note]


def count_notes(dataset: Dataset, field: str, stated: float | None) -> list[str]:
    """Return a note if a field states another number of events than the files together."""
    counted = dataset.n_generated
    if stated is None or counted is None or stated == counted:
        return []
    note = f"{dataset.name}: its files state {counted:,} events, {field} {stated:,}"
    return [f"{note}: the files' are taken"]
