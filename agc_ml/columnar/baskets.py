"""Where the columns of a tree are in a file: the baskets of its branches."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import InputFileError, in_one_line

Array = NDArray[Any]


class Baskets(NamedTuple):
    """Where the baskets of a branch are, and what is in them.

    Basket i holds the entries [bounds[i], bounds[i + 1]) in ``sizes[i]`` bytes from ``seeks[i]``.
    """

    seeks: Array
    sizes: Array
    bounds: Array
    dtype: np.dtype[Any]
    is_jagged: bool

    def touched(self, start: int, stop: int) -> range:
        """Numbers of the baskets that hold the entries [start, stop), one at least."""
        first = int(self.bounds.searchsorted(start, "right")) - 1
        last = int(self.bounds.searchsorted(stop, "left"))
        return range(first, max(last, first + 1))

    def some(self, kept: range) -> Baskets:
        """Those of the given numbers."""
        return self._replace(
            seeks=self.seeks[kept.start : kept.stop],
            sizes=self.sizes[kept.start : kept.stop],
            bounds=self.bounds[kept.start : kept.stop + 1],
        )


Directory = Mapping[str, Baskets | None]
"""Baskets of each branch, None for one that only uproot can read."""


def baskets_of(tree: Any, name: str) -> Baskets | None:
    """Directory of a branch; None for one that only uproot can read.

    Raises
    ------
    InputFileError
        It is not for all entries of the tree, or the places of its baskets can't be right.
    """
    import uproot  # noqa: PLC0415 - heavy

    branch = tree.get(name)
    problem = uneven(branch)
    if problem is not None:
        raise InputFileError(problem)
    interpretation = branch.interpretation if isinstance(branch, uproot.TBranch) else None
    if interpretation is None or isinstance(interpretation, uproot.AsGrouped):
        return None
    is_jagged = isinstance(interpretation, uproot.AsJagged)
    content = interpretation.content if is_jagged else interpretation
    bounds = _bounds(tree, branch)
    n = branch.num_baskets
    seeks = np.asarray(branch.member("fBasketSeek")[:n], np.int64)
    sizes = np.asarray(branch.member("fBasketBytes")[:n], np.int64)
    if (
        type(content) is not uproot.AsDtype
        or content.from_dtype.shape
        or (is_jagged and interpretation.header_bytes)
        or not n
        or not seeks.all()
    ):
        return None
    if (np.minimum(seeks, sizes) <= 0).any() or (seeks + sizes).max() > tree.file.source.num_bytes:
        raise InputFileError(f"branch {name}: its baskets are not inside the file; it is damaged")
    return Baskets(
        seeks=seeks,
        sizes=sizes,
        bounds=bounds,
        dtype=np.dtype(content.from_dtype),
        is_jagged=is_jagged,
    )


def _bounds(tree: Any, branch: Any) -> Array:
    try:
        bounds = np.asarray(branch.entry_offsets, np.int64)
    except ValueError as error:  # it has another sum than the branch
        raise InputFileError(f"branch {branch.name}: {in_one_line(error)}") from error
    if bounds[0] != 0 or bounds[-1] != tree.num_entries or (np.diff(bounds) < 0).any():
        raise InputFileError(
            f"branch {branch.name}: its baskets don't hold the entries 0 to {tree.num_entries} of "
            "the tree one after another; it is damaged, or was merged from files without it"
        )
    return bounds


def uneven(branch: Any) -> str | None:
    """Say that a branch is not for all entries of its tree, as after a merge with files without it.

    What it has of an entry is then of another one. Fields of RNTuples have no length of their own.
    """
    tree = getattr(branch, "tree", None)
    if tree is None or branch.num_entries == tree.num_entries or branch.branches:
        return None  # those with branches hold nothing
    return (
        f"branch {branch.name} has {branch.num_entries} entries, but the tree has "
        f"{tree.num_entries}; choose or merge files that all have it"
    )


def part_of(directory: Directory, start: int, stop: int) -> Directory:
    """What is needed of a directory to read the entries [start, stop)."""
    if start == stop:
        return {}
    needed = needed_of(directory, start, stop)
    return {
        name: None if baskets is None else baskets.some(needed[name])
        for name, baskets in directory.items()
    }


def needed_of(directory: Directory, start: int, stop: int) -> dict[str, range]:
    """Numbers of the baskets of each branch that are needed for the entries [start, stop)."""
    known = {name: baskets for name, baskets in directory.items() if baskets is not None}
    touched = {name: baskets.touched(start, stop) for name, baskets in known.items()}
    first = min((known[name].bounds[some.start] for name, some in touched.items()), default=start)
    last = max((known[name].bounds[some.stop] for name, some in touched.items()), default=stop)
    return {
        # counters tell where entries begin in baskets that hold others too
        name: known[name].touched(first, last) if is_counter(name) else some
        for name, some in touched.items()
    }


def is_counter(name: str) -> bool:
    """Return whether a branch says how many objects of a collection an event has."""
    return name.startswith("n")


class Dropped(NamedTuple):
    """A tree of entries that a preselection dropped. They count on from the last of those it kept.

    ``directory`` has the few columns that are there of them.
    """

    tree: str
    directory: Directory
    entries: int


def in_both(start: int, stop: int, n_kept: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the entries [start, stop) those of the kept ones, and those of the dropped ones."""
    return (
        (min(start, n_kept), min(stop, n_kept)),
        (max(start - n_kept, 0), max(stop - n_kept, 0)),
    )


class EntriesPlace(NamedTuple):
    """Where a file says how many entries a tree has, so that it needs not be parsed for that.

    The tree's record begins at ``seek`` and has ``size`` bytes; the number is ``offset`` bytes into
    its content.
    """

    seek: int
    size: int
    offset: int


def entries_place(directory: Any, name: str) -> EntriesPlace | None:
    """Find the place of a tree's number of entries; None of RNTuples, which say it at once.

    Raises
    ------
    InputFileError
        The tree's record, read once more, is another one.
    """
    import uproot  # noqa: PLC0415 - heavy

    tree = directory[name]
    if not isinstance(tree, uproot.TTree):
        return None
    key = directory.key(name)
    chunk, cursor = key.get_uncompressed_chunk_cursor()
    content = bytes(chunk.get(cursor.index, cursor.index + key.fObjlen, cursor, {}))
    # as they follow each other in a TTree of any version
    names = ("fEntries", "fTotBytes", "fZipBytes")
    around = struct.pack(">qqq", *(tree.member(one) for one in names))
    offset = content.find(around)
    if offset < 0:
        raise InputFileError(f"the record of {name} is not what it was a moment ago")
    return EntriesPlace(int(key.fSeekKey), int(key.fNbytes), offset)
