"""Columns of trees as flat arrays, straight from the baskets that uproot finds.

Where reading with uproot builds lists first and then takes them apart, a basket is decompressed
here into the array in which it ends up. Each basket has to hold its entries, and lists have to be
as long as the counter of their collection says, event by event. Each column's first basket is
compared with what uproot makes of it; what is not known here (RNTuples, types other than numbers
and lists of them, baskets inside the tree's own record) is read with uproot altogether.
"""

from __future__ import annotations

import functools
import itertools
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.columnar.baskets import (
    Array,
    Baskets,
    Directory,
    EntriesPlace,
    baskets_of,
    is_counter,
    needed_of,
)
from agc_ml.columnar.events import FlatEvents
from agc_ml.columnar.jagged import lies_at, offsets_of
from agc_ml.errors import AgcError, DeliveryError, InputFileError, in_one_line

_KEY: Final = struct.Struct(">i2xi4xH")  # bytes of the record, of its content, of its header
_TAIL: Final = struct.Struct(">iix")  # of the header: number of entries, where values end
_HEADER: Final = 9  # bytes before each compressed part
_CHECKSUM: Final = 8  # bytes before what LZ4 compressed

_RETAINED: Final = 31 << 20

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
    """Columns of the tree of an `agc_ml.delivery.opening.open_file` file.

    ``names`` are those of its branches. ``seconds`` and ``bytes`` count the time spent on reading,
    or waiting for it, and what was read.
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
        self._asked: tuple[list[int], Future[list[Any]]] | None = None
        self._fetched: dict[int, Any] = {}
        self._fetched_from = ""
        self._counters: dict[int, _Basket] = {}
        self._offsets: dict[tuple[str, int, int], Array] = {}
        self._error: Exception | None = None

    def see_whole(self) -> None:
        """Raise what reading raised first, whatever a processor made of it."""
        if self._error is not None:
            raise self._error

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
        self._asked = list(ranges), self._source.read_ahead(list(ranges.values()))

    def take(self) -> None:
        """Wait for what was asked for; what was taken before is gone."""
        self._counters, self._offsets = {}, {}
        if self._asked is None:
            return
        with self._timed():
            (seeks, future), self._asked = self._asked, None
            self._fetched = dict(zip(seeks, future.result(), strict=True))
            self._fetched_from = self._source.url

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
        for values in parts:
            content[place : place + len(values)] = values
            place += len(values)
        if (start, stop) == (first, bounds[-1]):
            return content
        start, stop = start - first, stop - first
        return content[start:stop] if starts is None else content[starts[start] : starts[stop]]

    def _starts(self, counter: str, start: int, stop: int) -> Array:
        """Offsets of the objects in the entries [start, stop) that a counter counts."""
        if counter not in self._directory:
            raise InputFileError(f"branch {counter} is missing, which tells where events begin")
        found: Array | None = self._offsets.get((counter, start, stop))
        if found is not None:  # all columns of a collection ask for the same
            return found
        baskets, first, last = self._directory[counter], start, stop
        if baskets is not None:
            touched = baskets.touched(start, stop)
            first, last = int(baskets.bounds[touched.start]), int(baskets.bounds[touched.stop])
        if (first, last) != (start, stop):
            found = self._starts(counter, first, last)[start - first : stop - first + 1]
            found = found - found[0]
        else:
            counts = self._read(counter, first, last)
            if counts.min(initial=0) < 0:
                raise InputFileError(f"branch {counter} counts less than nothing; it is damaged")
            found = offsets_of(counts)
        self._offsets[counter, start, stop] = found
        return found

    def _basket(self, name: str, baskets: Baskets, i: int) -> _Basket:
        """What a basket holds; counters are kept, as all columns of a collection ask for them."""
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
                found = _unpacked(memoryview(raw), entries, baskets.dtype, baskets.is_jagged)
                break
            except AgcError as error:
                is_damaged = not isinstance(error, DeliveryError)
                if is_damaged and self._source.distrust(f"at {seek}: {error}", replica):
                    raw = None
                    continue
                error.args = (f"branch {name}: {error}",)  # of whatever kind, it stays that
                raise
        if is_counter(name):
            self._counters[seek] = found
        return found

    def agrees(self, name: str) -> bool:
        """Whether the first basket of a branch holds what uproot makes of it, if it is whole."""
        import awkward as ak  # noqa: PLC0415 - heavy

        baskets = self._directory[name]
        if baskets is None:
            return True
        try:
            ours = self._basket(name, baskets, 0).values
        except InputFileError:  # only its own chunk is lost, and says so
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
    """Have the memory of a block used for the next one, once a process.

    glibc gives what is freed back to the system, and getting it again is a twentieth of the time of
    reading; unless it has seen a block of this size that was freed.
    """
    bytes(_RETAINED)


def _counter_of(name: str) -> str:
    return f"n{name.partition('_')[0]}"


def _other_lists(name: str) -> InputFileError:
    return InputFileError(
        f"branch {name}: its lists are not as long as {_counter_of(name)} says; it is damaged, or "
        "was made anew without its counter"
    )


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
            "for block in agc_ml.columnar.events.blocks(events)"
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

            def offsets(name: str, start: int = start, stop: int = stop) -> Array:
                return columns.offsets(name, start, stop)

            events = FlatEvents(stop - start, column, offsets, columns.names, self.metadata)
            events.is_selected = is_selected
            yield events


def entries_at(source: Any, place: EntriesPlace) -> int:
    """Read how many entries a tree has, without the rest of it.

    Raises
    ------
    InputFileError
        There is no such record.
    """
    needed = place.offset + 8
    for n_bytes in (min(_ENOUGH, place.size), place.size):  # of long titles more is needed
        (raw,) = source.read([(place.seek, place.seek + n_bytes)])
        content = _begin_of_record(memoryview(raw), place.size, needed)
        if len(content) >= needed:
            return int.from_bytes(content[place.offset : needed], "big")
    raise InputFileError("the record of the tree is damaged")


_ENOUGH: Final = 4096
"""Bytes of a tree's record that hold its first numbers: its name and title come before them."""


def _begin_of_record(raw: memoryview, size: int, needed: int) -> Any:
    """First bytes of a record's content, as far as ``raw`` tells them; the record has ``size``."""
    n_bytes, length, key_length = _KEY.unpack_from(raw) if len(raw) >= _KEY.size else (-1, 0, 0)
    if n_bytes != size or not needed <= length:
        raise InputFileError("the record of the tree is not where it was")
    payload = raw[key_length:]
    if size == key_length + length:
        return payload
    if bytes(payload[:2]) == b"ZL":
        try:
            return zlib.decompressobj().decompress(payload[_HEADER:], needed)
        except zlib.error as error:
            raise InputFileError(f"the record of the tree is damaged: {error}") from error
    return _decompressed(payload, length) if len(raw) == size else b""


class _Basket(NamedTuple):
    """Values, in the byte order of the file; where each entry's begin, as the file says it.

    ``begins`` are as `lies_at` takes them, behind a header of ``key_length``; None where counters
    alone tell.
    """

    values: Array
    begins: Array | None
    key_length: int

    def has_lists(self, starts: Array) -> bool:
        """Whether its lists begin and end at ``starts``, of each of its entries and the end."""
        if starts[-1] - starts[0] != len(self.values):
            return False
        width = self.values.itemsize
        return self.begins is None or lies_at(self.begins, starts, width, self.key_length)


def _unpacked(raw: memoryview, entries: int, dtype: np.dtype[Any], is_jagged: bool) -> _Basket:
    """Content of a basket's record, if it can be that of so many entries.

    Source: ROOT's TKey, TBasket and RZip.
    """
    n_bytes, length, key_length = _KEY.unpack_from(raw) if len(raw) >= _KEY.size else (-1, 0, 0)
    if n_bytes != len(raw) or not _KEY.size + _TAIL.size <= key_length <= len(raw):
        raise InputFileError("a basket's header is damaged")
    n_entries, border = _TAIL.unpack_from(raw, key_length - _TAIL.size)
    border -= key_length
    # behind the values may be a number, where each entry begins, and one more
    places = 4 * (entries + 2) if length != border else 0
    n_values = border // dtype.itemsize if is_jagged else entries
    if (n_entries, length, border) != (entries, border + places, n_values * dtype.itemsize):
        raise InputFileError(
            f"a basket is damaged: {n_entries} entries in {border} of {length} bytes are not the "
            f"{entries} entries that the tree has there"
        )
    payload = raw[key_length:]
    content = payload if len(payload) == length else _decompressed(payload, length)
    values = np.frombuffer(content, dtype, n_values)
    begins = (
        np.frombuffer(content, np.uint32, entries, border + 4) if is_jagged and places else None
    )
    return _Basket(values, begins, key_length)


def _decompressed(payload: memoryview, length: int) -> Any:
    """So many bytes, from the parts that ROOT makes of them; never more, whatever these say."""
    parts, missing = [], length
    while payload:
        packed = int.from_bytes(payload[3:6], "little")
        unpacked = int.from_bytes(payload[6:9], "little")
        part = payload[_HEADER : _HEADER + packed]
        if not 0 < unpacked <= missing or len(part) != packed:
            raise InputFileError("a basket is damaged: the sizes of its parts can't be right")
        try:
            parts.append(_part(bytes(payload[:2]), part, unpacked))
        except InputFileError:
            raise
        except Exception as error:  # each codec has errors of its own
            raise InputFileError(f"a basket is damaged: {in_one_line(error)}") from error
        missing -= unpacked
        payload = payload[_HEADER + packed :]
    if missing:
        raise InputFileError(f"a basket is damaged: {missing} of {length} bytes are missing")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _part(codec: bytes, part: memoryview, unpacked: int) -> Any:
    if codec == b"ZL":
        import deflate  # noqa: PLC0415 - only here

        content = deflate.zlib_decompress(part, unpacked)
        n_bytes = len(content)
    else:
        content = bytearray(unpacked)
        n_bytes = _unpack_into(content, codec, part)
    if n_bytes != unpacked:
        raise InputFileError(f"a basket is damaged: {n_bytes} of {unpacked} bytes are in it")
    return content


def _unpack_into(content: bytearray, codec: bytes, part: memoryview) -> int:
    import cramjam  # noqa: PLC0415 - only here
    import xxhash  # noqa: PLC0415 - only here

    if codec == b"XZ":
        return cramjam.xz.decompress_into(part, content)
    if codec == b"ZS":
        return cramjam.zstd.decompress_into(part, content)
    if codec != b"L4":
        raise InputFileError(f"a basket is damaged: there is no compression {codec!r}")
    if xxhash.xxh64_digest(part[_CHECKSUM:]) != part[:_CHECKSUM]:
        raise InputFileError("a basket is damaged: its checksum is another")
    return cramjam.lz4.decompress_block_into(part[_CHECKSUM:], content)
