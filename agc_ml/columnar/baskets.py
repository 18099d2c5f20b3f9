"""Positions of the columns of a tree in a file: the baskets of its branches."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import InputFileError, in_one_line

Array = NDArray[Any]


class Baskets(NamedTuple):
    """Positions and content of the baskets of a branch.

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

    def part(self, kept: range) -> Baskets:
        """The baskets with the given numbers."""
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
        It does not cover all entries of the tree, or its baskets are at impossible positions.
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
    # Positions of all baskets; only numbers and lists of them can be read without uproot.
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
    except ValueError as error:  # the sum of its baskets differs from the branch
        raise InputFileError(f"branch {branch.name}: {in_one_line(error)}") from error
    if bounds[0] != 0 or bounds[-1] != tree.num_entries or (np.diff(bounds) < 0).any():
        raise InputFileError(
            f"branch {branch.name}: its baskets don't cover the entries 0 to {tree.num_entries} of "
            "the tree in order; it is damaged, or was merged from files without it"
        )
    return bounds


def uneven(branch: Any) -> str | None:
    """Problem of a branch that lacks entries of its tree, as after a merge with files without it.

    Its values would belong to other entries. Fields of RNTuples have no length of their own.
    """
    tree = getattr(branch, "tree", None)
    if tree is None or branch.num_entries == tree.num_entries or branch.branches:
        return None  # branches with sub-branches hold no values
    return (
        f"branch {branch.name} has {branch.num_entries} entries, but the tree has "
        f"{tree.num_entries}; choose or merge files that all have it"
    )


def part_of(directory: Directory, start: int, stop: int) -> Directory:
    """Part of a directory that the entries [start, stop) need."""
    if start == stop:
        return {}
    needed = needed_of(directory, start, stop)
    return {
        name: None if baskets is None else baskets.part(needed[name])
        for name, baskets in directory.items()
    }


def needed_of(directory: Directory, start: int, stop: int) -> dict[str, range]:
    """Numbers of the baskets of each branch that the entries [start, stop) need."""
    known = {name: baskets for name, baskets in directory.items() if baskets is not None}
    touched = {name: baskets.touched(start, stop) for name, baskets in known.items()}
    # Counters locate entries in their baskets: they are needed for all entries of these baskets.
    first = min((known[name].bounds[n.start] for name, n in touched.items()), default=start)
    last = max((known[name].bounds[n.stop] for name, n in touched.items()), default=stop)
    return {
        name: known[name].touched(first, last) if is_counter(name) else numbers
        for name, numbers in touched.items()
    }


def is_counter(name: str) -> bool:
    """Return True if a branch counts the objects of a collection."""
    return name.startswith("n")


class Dropped(NamedTuple):
    """Tree of the entries that a preselection dropped, numbered after the kept ones.

    ``directory`` has the few columns that were kept of them.
    """

    tree: str
    directory: Directory
    entries: int


def in_both(start: int, stop: int, n_kept: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Split the entries [start, stop) into ranges of kept and of dropped entries."""
    return (
        (min(start, n_kept), min(stop, n_kept)),
        (max(start - n_kept, 0), max(stop - n_kept, 0)),
    )


class EntriesPlace(NamedTuple):
    """Position of a tree's number of entries in a file, to read it without parsing the tree.

    The tree's record has ``size`` bytes from ``seek``; the number is at ``offset`` of its content.
    """

    seek: int
    size: int
    offset: int


def entries_place(directory: Any, name: str) -> EntriesPlace | None:
    """Find the position of a tree's number of entries; None for RNTuples, which state it at once.

    Raises
    ------
    InputFileError
        The tree's record has changed since it was parsed.
    """
    import uproot  # noqa: PLC0415 - heavy

    tree = directory[name]
    if not isinstance(tree, uproot.TTree):
        return None
    key = directory.key(name)
    chunk, cursor = key.get_uncompressed_chunk_cursor()
    content = bytes(chunk.get(cursor.index, cursor.index + key.fObjlen, cursor, {}))
    # In this order in a TTree of any version.
    names = ("fEntries", "fTotBytes", "fZipBytes")
    around = struct.pack(">qqq", *(tree.member(member) for member in names))
    offset = content.find(around)
    if offset < 0:
        raise InputFileError(f"the record of {name} has changed while it was read")
    return EntriesPlace(int(key.fSeekKey), int(key.fNbytes), offset)
