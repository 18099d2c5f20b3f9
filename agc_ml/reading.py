"""Columns of trees as flat arrays, straight from the baskets that uproot finds.

Where reading with uproot builds lists first and then takes them apart, a basket is decompressed
here into the array in which it ends up. Each column's first basket is compared with what uproot
makes of it; what is not known here (RNTuples, types other than numbers and lists of them, baskets
inside the tree's own record) is read with uproot altogether.
"""

from __future__ import annotations

import itertools
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, Final

import numpy as np

from agc_ml.baskets import (
    Array,
    Baskets,
    Directory,
    EntriesPlace,
    baskets_of,
    is_counter,
    needed_of,
)
from agc_ml.errors import InputFileError
from agc_ml.kernels.flat import FlatEvents

_KEY: Final = struct.Struct(">i2xi4xH")  # bytes of the record, of its content, of its header
_ZLIB: Final = b"ZL"
_HEADER: Final = 9  # bytes before each compressed part

BLOCK: Final = 50_000
"""Least number of events that are handed on at once, where clusters are smaller."""


def directory(file: Any, tree: str, names: Iterable[str]) -> tuple[Directory, list[str]]:
    """Find the baskets of branches of an `opened` file, and see that they hold what uproot reads.

    Returns them, and the names of branches for which that is not so: uproot has to read those.
    """
    found = {name: baskets_of(file[tree], name) for name in names}
    columns = Columns(file, tree, found)
    columns.fetch_first()
    wrong = [name for name in found if not columns.agrees(name)]
    return {name: None if name in wrong else baskets for name, baskets in found.items()}, wrong


class Columns:
    """Columns of the tree of an `agc_ml.delivery.opening.opened` file.

    ``collections`` are the names that have a counter. ``seconds`` and ``bytes`` count the time
    spent on reading, or waiting for it, and what was read.
    """

    def __init__(self, file: Any, tree: str, directory: Directory) -> None:
        self.seconds = 0.0
        self.bytes = 0
        self.collections = frozenset(
            name[1:] for name in directory if is_counter(name) and "_" not in name
        )
        self._file = file
        self._tree = tree
        self._directory = directory
        self._source = file.file.source
        self._asked: tuple[list[int], Future[list[Any]]] | None = None
        self._fetched: dict[int, Any] = {}
        self._fetched_from = ""
        self._counts: dict[int, Array] = {}

    def stream(
        self, start: int, stop: int, metadata: Mapping[str, Any], dropped: Stream | None = None
    ) -> Stream:
        """The events [start, stop), to be had in parts; then those that were ``dropped``."""
        return Stream(self, start, stop, metadata, dropped)

    def cuts(self, start: int, stop: int) -> list[int]:
        """Where to cut [start, stop) so that no basket is in two parts, if that can be."""
        known = [baskets for baskets in self._directory.values() if baskets is not None]
        bounds = [set(baskets.bounds.tolist()) for baskets in known]
        cuts = [start]
        for cut in sorted(set.intersection(*bounds)) if bounds else ():
            if cut - cuts[-1] >= BLOCK and cut < stop:
                cuts.append(cut)
        return [*cuts, stop]

    def ask(self, start: int, stop: int) -> None:
        """Begin to read all that is needed of the entries [start, stop) from a remote file."""
        self._ask(needed_of(self._directory, start, stop))

    def _ask(self, wanted: Mapping[str, range]) -> None:
        if self._source.is_local:
            return
        ranges = {}
        for name, needed in wanted.items():
            baskets: Any = self._directory[name]
            for i in needed:
                seek = int(baskets.seeks[i])
                ranges[seek] = (seek, seek + int(baskets.sizes[i]))
        self._asked = list(ranges), self._source.begin(list(ranges.values()))

    def take(self) -> None:
        """Wait for what was asked for; what was taken before is gone."""
        self._counts = {}
        if self._asked is None:
            return
        begun = time.perf_counter()
        (seeks, future), self._asked = self._asked, None
        self._fetched = dict(zip(seeks, future.result(), strict=True))
        self._fetched_from = self._source.url
        self.seconds += time.perf_counter() - begun

    def fetch_first(self) -> None:
        """Get the first basket of each branch, in one go."""
        known = [name for name, baskets in self._directory.items() if baskets is not None]
        self._ask(dict.fromkeys(known, range(1)))
        self.take()

    def read(self, name: str, start: int, stop: int) -> Array:
        """Content of a branch for the entries [start, stop), of all events behind each other."""
        if name not in self._directory:
            raise AttributeError(
                f"column {name} is not among those that the processor declares (of events without "
                "is_selected, in counted_columns)"
            )
        begun = time.perf_counter()
        baskets = self._directory[name]
        content = (
            self._with_uproot(name, start, stop)
            if baskets is None
            else self._with_baskets(name, baskets, start, stop)
        )
        self.seconds += time.perf_counter() - begun
        self._see_counter_of(name, start, stop)
        return content

    def _see_counter_of(self, name: str, start: int, stop: int) -> None:
        """Where a column has a counter of its own, that of its collection has to say the same."""
        own, shared = f"n{name}", f"n{name.partition('_')[0]}"
        if own not in self._directory or "_" not in name:
            return
        if not np.array_equal(self.read(own, start, stop), self.read(shared, start, stop)):
            raise InputFileError(f"branch {name}: {own} and {shared} differ: no flat column")

    def _with_baskets(self, name: str, baskets: Baskets, start: int, stop: int) -> Array:
        touched = baskets.touched(start, stop)
        try:
            content = self._content(baskets, touched, kept=is_counter(name))
        except InputFileError as error:  # of whatever kind, it stays that
            error.args = (f"branch {name}: {error}",)
            raise
        first, last = int(baskets.bounds[touched.start]), int(baskets.bounds[touched.stop])
        if (first, last) == (start, stop):
            return content
        if not baskets.is_jagged:
            return content[start - first : stop - first]
        before, inside = self._objects(name, first, start), self._objects(name, start, stop)
        return content[before : before + inside]

    def _objects(self, name: str, start: int, stop: int) -> int:
        """Number of objects of a collection in the entries [start, stop)."""
        counter = f"n{name.partition('_')[0]}"
        return int(self.read(counter, start, stop).sum()) if stop > start else 0

    def _content(self, baskets: Baskets, touched: range, *, kept: bool) -> Array:
        """Content of baskets; counters are ``kept``, as many columns may ask for them."""
        take = self._kept_basket if kept else self._basket
        parts = [take(baskets, i) for i in touched]
        content = np.empty(sum(map(len, parts)), baskets.dtype.newbyteorder("="))
        place = 0
        for part in parts:
            content[place : place + len(part)] = part
            place += len(part)
        return content

    def _kept_basket(self, baskets: Baskets, i: int) -> Array:
        seek = int(baskets.seeks[i])
        if seek not in self._counts:
            self._counts[seek] = self._basket(baskets, i)
        return self._counts[seek]

    def _basket(self, baskets: Baskets, i: int) -> Array:
        """Content of a basket, in the byte order of the file."""
        seek, size = int(baskets.seeks[i]), int(baskets.sizes[i])
        raw, replica = self._fetched.pop(seek, None), self._fetched_from
        while True:
            if raw is None:
                raw, replica = self._source.read([(seek, seek + size)])[0], self._source.url
            self.bytes += size
            try:
                payload, n_bytes = _unpacked(memoryview(raw))
                break
            except InputFileError as error:
                if not self._source.distrust(f"at {seek}: {error}", replica):
                    raise
                raw = None
        return np.frombuffer(payload, baskets.dtype, n_bytes // baskets.dtype.itemsize)

    def agrees(self, name: str) -> bool:
        """Whether the first basket of a branch holds what uproot makes of it, if it is whole."""
        baskets = self._directory[name]
        if baskets is None:
            return True
        try:
            ours = self._basket(baskets, 0)
        except InputFileError:  # only its own chunk is lost, and says so
            return True
        theirs = self._with_uproot(name, 0, int(baskets.bounds[1]))
        same_type = theirs.dtype == baskets.dtype.newbyteorder("=")
        return bool(same_type and ours.tobytes() == theirs.astype(baskets.dtype).tobytes())

    def _with_uproot(self, name: str, start: int, stop: int) -> Array:
        import awkward as ak  # noqa: PLC0415 - heavy

        tree, source = self._file[self._tree], self._file.file.source
        bytes_before = source.num_requested_bytes
        if name in tree:
            array = tree[name].array(entry_start=start, entry_stop=stop)
        else:  # a counter that the file does without
            member = next(n for n in self._directory if n.startswith(f"{name[1:]}_"))
            array = ak.num(tree[member].array(entry_start=start, entry_stop=stop))
        self.bytes += int(source.num_requested_bytes - bytes_before)
        return np.asarray(ak.flatten(array) if array.ndim > 1 else array)


class Stream:
    """The events of a chunk, for processors that take flat columns: `blocks` gives its parts.

    Last come those of ``dropped``, which are not selected.
    """

    def __init__(
        self,
        columns: Columns,
        start: int,
        stop: int,
        metadata: Mapping[str, Any],
        dropped: Stream | None = None,
    ) -> None:
        self.metadata = metadata
        self._columns = columns
        self._range = (start, stop)
        self._dropped = dropped

    def __len__(self) -> int:
        start, stop = self._range
        return stop - start + len(self._dropped or ())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"no {name}: events of a flat processor come in parts; take each one's columns: "
            "for block in agc_ml.kernels.flat.blocks(events)"
        )

    def blocks(self) -> Iterator[FlatEvents]:
        """The events in parts of some 50,000, or as many as lie together in the file."""
        if self._range[0] < self._range[1]:
            yield from self._blocks(is_selected=True)
        if self._dropped is not None and len(self._dropped):
            yield from self._dropped._blocks(is_selected=False)  # noqa: SLF001 - of the same kind

    def _blocks(self, *, is_selected: bool) -> Iterator[FlatEvents]:
        columns = self._columns
        parts = list(itertools.pairwise(columns.cuts(*self._range)))
        columns.ask(*parts[0])
        for (start, stop), following in itertools.zip_longest(parts, parts[1:]):
            columns.take()
            if following is not None:  # its bytes come while this one is worked on
                columns.ask(*following)

            def column(name: str, start: int = start, stop: int = stop) -> Array:
                return columns.read(name, start, stop)

            events = FlatEvents(stop - start, column, columns.collections, self.metadata)
            events.is_selected = is_selected
            yield events


def entries_at(source: Any, place: EntriesPlace) -> int:
    """Read how many entries a tree has, without the rest of it.

    Raises
    ------
    InputFileError
        There is no such record.
    """
    stop = place.seek + place.size
    begin = min(_ENOUGH, place.size)
    (raw,) = source.read([(place.seek, place.seek + begin)])
    n_bytes, length, key_length = _KEY.unpack_from(raw) if len(raw) >= _KEY.size else (-1, 0, 0)
    needed = place.offset + 8
    if n_bytes != place.size or not needed <= length:
        raise InputFileError("the record of the tree is not where it was")
    payload = memoryview(raw)[key_length:]
    content: Any = payload
    if place.size == key_length + length:
        pass
    elif bytes(payload[:2]) == _ZLIB:
        try:
            content = zlib.decompressobj().decompress(payload[_HEADER:], needed)
        except zlib.error as error:
            raise InputFileError(f"the record of the tree is damaged: {error}") from error
    else:
        (raw,) = source.read([(place.seek, stop)])
        content = _decompressed(memoryview(raw)[key_length:], length)
    if len(content) < needed:
        raise InputFileError("the record of the tree is damaged")
    return int.from_bytes(content[place.offset : needed], "big")


_ENOUGH: Final = 4096
"""Bytes of a compressed tree that hold its first numbers: its name and title come before them."""


def _unpacked(raw: memoryview) -> tuple[Any, int]:
    """Content of a basket's record, and how many bytes of it are values; offsets come after these.

    Source: ROOT's TKey, TBasket and RZip.
    """
    n_bytes, length, key_length = _KEY.unpack_from(raw) if len(raw) >= _KEY.size else (-1, 0, 0)
    border = int.from_bytes(raw[key_length - 5 : key_length - 1], "big") - key_length
    if not 0 <= border <= length or n_bytes != len(raw):
        raise InputFileError("a basket's header is damaged")
    payload = raw[key_length:]
    if len(payload) == length:
        return payload, border
    content = _decompressed(payload, length)
    if len(content) != length:
        raise InputFileError(f"a basket is damaged: {len(content)} of {length} bytes are in it")
    return content, border


def _decompressed(payload: memoryview, length: int) -> Any:
    import deflate  # noqa: PLC0415 - only here

    if bytes(payload[:2]) != _ZLIB:
        return _with_other_codec(payload, length)
    parts = []
    while payload:
        packed = int.from_bytes(payload[3:6], "little")
        unpacked = int.from_bytes(payload[6:9], "little")
        try:
            part = payload[_HEADER : _HEADER + packed]
            parts.append(deflate.zlib_decompress(part, unpacked))
        except deflate.DeflateError as error:
            raise InputFileError(f"a basket is damaged: {error}") from error
        payload = payload[_HEADER + packed :]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _with_other_codec(payload: memoryview, length: int) -> Any:
    from uproot.compression import decompress  # noqa: PLC0415 - heavy
    from uproot.source.chunk import Chunk  # noqa: PLC0415 - heavy
    from uproot.source.cursor import Cursor  # noqa: PLC0415 - heavy

    whole = np.frombuffer(payload, np.uint8)
    chunk = decompress(Chunk.wrap(None, whole), Cursor(0), {}, len(payload), length)
    return chunk.raw_data
