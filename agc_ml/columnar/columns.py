"""Columns of trees as flat arrays, straight from the baskets that uproot finds.

A basket is decompressed into its final array; uproot would build lists and take them apart again.
Each basket must hold its entries, and each list must be as long as the counter of its collection
says, event by event. The first basket of each column is compared with uproot's result; uproot
itself reads RNTuples, types other than numbers and lists of them, and baskets inside the tree's
record.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from agc_ml.columnar.basket_records import Basket, unpack
from agc_ml.columnar.baskets import (
    Array,
    Baskets,
    Directory,
    baskets_of,
    is_counter,
    needed_of,
)
from agc_ml.columnar.jagged import offsets_of
from agc_ml.errors import AgcError, DeliveryError, InputFileError, in_one_line

_RETAINED: Final = 31 << 20

BLOCK: Final = 50_000
"""Least number of events in a block, if clusters are smaller."""


def directory(file: Any, tree: str, names: Iterable[str]) -> tuple[Directory, list[str]]:
    """Find the baskets of branches of an `opened` file, and compare the first ones with uproot.

    Returns the directory, and the names of branches that differ, which uproot has to read.
    """
    baskets = {name: baskets_of(file[tree], name) for name in names}
    columns = Columns(file, tree, baskets)
    columns.fetch_first()
    differing = [name for name in baskets if not columns.agrees(name)]
    return baskets | dict.fromkeys(differing), differing


class Columns:
    """Columns of the tree of an `agc_ml.delivery.opening.open_file` file.

    ``names`` are its branches; ``seconds`` and ``bytes`` count the time spent on reading, or
    waiting for it, and the bytes read.
    """

    def __init__(self, file: Any, tree: str, directory: Directory) -> None:
        _retain_memory()
        self.seconds = 0.0
        self.bytes = 0
        self.names = tuple(directory)
        self._file = file
        self._tree = tree
        self._directory = directory
        self._source = file.file.source
        self._requested: tuple[list[int], Future[list[Any]]] | None = None
        self._fetched: dict[int, Any] = {}
        self._fetched_from = ""
        self._counters: dict[int, Basket] = {}
        self._offsets: dict[tuple[str, int, int], Array] = {}
        self._error: Exception | None = None

    def see_whole(self) -> None:
        """Raise the first error of reading, even if a processor caught it."""
        if self._error is not None:
            raise self._error

    def cuts(self, start: int, stop: int) -> list[int]:
        """Cut [start, stop) into blocks, if possible without a basket in two of them."""
        known = [baskets for baskets in self._directory.values() if baskets is not None]
        bounds = [set(baskets.bounds.tolist()) for baskets in known]
        cuts = [start]
        for cut in sorted(set.intersection(*bounds)) if bounds else ():
            if cut - cuts[-1] >= BLOCK and cut < stop:
                cuts.append(cut)
        return [*cuts, stop]

    def ask(self, start: int, stop: int) -> None:
        """Start to fetch the entries [start, stop) from a remote file."""
        self._request(needed_of(self._directory, start, stop))

    def _request(self, wanted: Mapping[str, range]) -> None:
        if self._source.is_local:
            return
        ranges = {}
        for name, needed in wanted.items():
            baskets: Any = self._directory[name]
            for i in needed:
                seek = int(baskets.seeks[i])
                ranges[seek] = (seek, seek + int(baskets.sizes[i]))
        self._requested = list(ranges), self._source.read_ahead(list(ranges.values()))

    def take(self) -> None:
        """Wait for the requested entries; earlier ones are dropped."""
        self._counters, self._offsets = {}, {}
        if self._requested is None:
            return
        with self._timed():
            (seeks, future), self._requested = self._requested, None
            self._fetched = dict(zip(seeks, future.result(), strict=True))
            self._fetched_from = self._source.url

    def fetch_first(self) -> None:
        """Fetch the first basket of each branch, in one request."""
        known = [name for name, baskets in self._directory.items() if baskets is not None]
        self._request(dict.fromkeys(known, range(1)))
        self.take()

    def read(self, name: str, start: int, stop: int) -> Array:
        """Content of a branch for the entries [start, stop), concatenated over events."""
        if name not in self._directory:
            raise AttributeError(
                f"column {name} is not among those that the processor declares (of events without "
                "is_selected, in counted_columns)"
            )
        with self._timed():
            return self._read(name, start, stop)

    def offsets(self, collection: str, start: int, stop: int) -> Array:
        """Offsets of a collection's objects in the entries [start, stop)."""
        with self._timed():
            return self._starts(f"n{collection}", start, stop)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._error = self._error or error
            raise
        finally:
            self.seconds += time.perf_counter() - begun

    def _read(self, name: str, start: int, stop: int) -> Array:
        baskets = self._directory[name]
        if baskets is None:
            return self._with_uproot(name, start, stop)
        # Whole baskets first: lists begin where the counter of all their entries says.
        touched = baskets.touched(start, stop)
        bounds = baskets.bounds[touched.start : touched.stop + 1].tolist()
        first = bounds[0]
        starts = None
        if baskets.is_jagged:
            starts = self._starts(_counter_of(name), first, bounds[-1])
        parts = []
        for i, begin, end in zip(touched, bounds, bounds[1:], strict=False):
            part = self._basket(name, baskets, i)
            if starts is not None and not part.has_lists(starts[begin - first : end - first + 1]):
                raise _other_lists(name)
            parts.append(part.values)
        content = np.empty(sum(map(len, parts)), baskets.dtype.newbyteorder("="))
        place = 0
        for values in parts:  # copy and swap bytes in one go
            content[place : place + len(values)] = values
            place += len(values)
        # Then cut off the entries outside [start, stop).
        if (start, stop) == (first, bounds[-1]):
            return content
        start, stop = start - first, stop - first
        return content[start:stop] if starts is None else content[starts[start] : starts[stop]]

    def _starts(self, counter: str, start: int, stop: int) -> Array:
        """Offsets of the objects in the entries [start, stop) that a counter counts."""
        if counter not in self._directory:
            raise InputFileError(f"branch {counter} is missing, which tells where events begin")
        offsets: Array | None = self._offsets.get((counter, start, stop))
        if offsets is not None:  # all columns of a collection need the same
            return offsets
        baskets, first, last = self._directory[counter], start, stop
        if baskets is not None:
            touched = baskets.touched(start, stop)
            first, last = int(baskets.bounds[touched.start]), int(baskets.bounds[touched.stop])
        if (first, last) != (start, stop):
            offsets = self._starts(counter, first, last)[start - first : stop - first + 1]
            offsets = offsets - offsets[0]
        else:
            counts = self._read(counter, first, last)
            if counts.min(initial=0) < 0:
                raise InputFileError(f"branch {counter} has negative counts; it is damaged")
            offsets = offsets_of(counts)
        self._offsets[counter, start, stop] = offsets
        return offsets

    def _basket(self, name: str, baskets: Baskets, i: int) -> Basket:
        """Basket i of a branch; counters are cached for all columns of their collection."""
        seek, size = int(baskets.seeks[i]), int(baskets.sizes[i])
        if seek in self._counters:
            return self._counters[seek]
        entries = int(baskets.bounds[i + 1] - baskets.bounds[i])
        raw, replica = self._fetched.pop(seek, None), self._fetched_from
        while True:
            try:
                if raw is None:
                    raw, replica = self._source.read([(seek, seek + size)])[0], self._source.url
                self.bytes += size
                basket = unpack(memoryview(raw), entries, baskets.dtype, baskets.is_jagged)
                break
            except AgcError as error:
                # Damaged bytes may come from the replica: get them from another one.
                is_damaged = not isinstance(error, DeliveryError)
                if is_damaged and self._source.distrust(f"at {seek}: {error}", replica):
                    raw = None
                    continue
                error.args = (f"branch {name}: {error}",)  # its type stays
                raise
        if is_counter(name):
            self._counters[seek] = basket
        return basket

    def agrees(self, name: str) -> bool:
        """Return True if uproot reads the same from the first basket of a branch, if intact."""
        import awkward as ak  # noqa: PLC0415 - heavy

        baskets = self._directory[name]
        if baskets is None:
            return True
        try:
            ours = self._basket(name, baskets, 0).values
        except InputFileError:  # the chunk that reads it will report it
            return True
        lists = self._from_uproot(name, 0, int(baskets.bounds[1]))
        theirs = np.asarray(ak.flatten(lists) if lists.ndim > 1 else lists)
        same_type = theirs.dtype == baskets.dtype.newbyteorder("=")
        return bool(same_type and ours.tobytes() == theirs.astype(baskets.dtype).tobytes())

    def _with_uproot(self, name: str, start: int, stop: int) -> Array:
        import awkward as ak  # noqa: PLC0415 - heavy

        array = self._from_uproot(name, start, stop)
        if array.ndim == 1:
            return np.asarray(array)
        counts = np.diff(self._starts(_counter_of(name), start, stop))
        if not np.array_equal(ak.num(array), counts):
            raise _other_lists(name)
        return np.asarray(ak.flatten(array))

    def _from_uproot(self, name: str, start: int, stop: int) -> Any:
        source = self._file.file.source
        bytes_before = source.num_requested_bytes
        try:
            array = self._file[self._tree][name].array(entry_start=start, entry_stop=stop)
        except (AgcError, MemoryError):
            raise
        except Exception as error:  # uproot raises anything on damaged input
            raise InputFileError(f"branch {name}: {in_one_line(error)}") from error
        self.bytes += int(source.num_requested_bytes - bytes_before)
        if len(array) != stop - start:
            raise InputFileError(
                f"branch {name}: {len(array)} entries were read of {stop - start}; it is damaged"
            )
        return array


@functools.cache
def _retain_memory() -> None:
    """Make glibc keep the memory of a block for the next one, once a process.

    It returns large freed blocks to the system, and getting them again takes a twentieth of the
    reading time, unless a block of this size was freed before.
    """
    bytes(_RETAINED)


def _counter_of(name: str) -> str:
    return f"n{name.partition('_')[0]}"


def _other_lists(name: str) -> InputFileError:
    return InputFileError(
        f"branch {name}: its lists are not as long as {_counter_of(name)} says; it is damaged, or "
        "was recomputed without its counter"
    )
