"""Records of ROOT files: baskets of values, and a tree's number of entries.

Source of the formats: ROOT's TKey, TBasket and RZip.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, NamedTuple

import numpy as np

from agc_ml.columnar.baskets import Array, EntriesPlace
from agc_ml.columnar.jagged import lies_at
from agc_ml.errors import InputFileError, in_one_line

_KEY: Final = struct.Struct(">i2xi4xH")  # bytes of the record, of its content, of its header
_TAIL: Final = struct.Struct(">iix")  # end of the header: number of entries, end of the values
_HEADER: Final = 9  # bytes before each compressed part
_CHECKSUM: Final = 8  # bytes before each part compressed with LZ4

_FIRST_BYTES: Final = 4096
"""Bytes of a tree's record that usually hold its first numbers, after its name and title."""


class Basket(NamedTuple):
    """Values of a basket, in the byte order of the file, and the positions of its entries.

    ``begins`` are byte positions as `lies_at` takes them, after a header of ``key_length`` bytes;
    None if only the counter branch knows them.
    """

    values: Array
    begins: Array | None
    key_length: int

    def has_lists(self, starts: Array) -> bool:
        """Return True if its lists begin at ``starts``, offsets of its entries with the end."""
        if starts[-1] - starts[0] != len(self.values):
            return False
        width = self.values.itemsize
        return self.begins is None or lies_at(self.begins, starts, width, self.key_length)


def unpack(raw: memoryview, entries: int, dtype: np.dtype[Any], is_jagged: bool) -> Basket:
    """Unpack a basket's record with ``entries`` entries.

    Raises
    ------
    InputFileError
        The record is damaged, or has another number of entries.
    """
    n_bytes, length, key_length = _KEY.unpack_from(raw) if len(raw) >= _KEY.size else (-1, 0, 0)
    if n_bytes != len(raw) or not _KEY.size + _TAIL.size <= key_length <= len(raw):
        raise InputFileError("a basket's header is damaged")
    n_entries, border = _TAIL.unpack_from(raw, key_length - _TAIL.size)
    border -= key_length
    # After the values may follow a count, the position of each entry, and one more number.
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
    return Basket(values, begins, key_length)


def _decompressed(payload: memoryview, length: int) -> Any:
    """Decompress the parts of a payload into ``length`` bytes, never more."""
    parts, missing = [], length
    while payload:
        packed = int.from_bytes(payload[3:6], "little")
        unpacked = int.from_bytes(payload[6:9], "little")
        part = payload[_HEADER : _HEADER + packed]
        if not 0 < unpacked <= missing or len(part) != packed:
            raise InputFileError("a basket is damaged: the sizes of its parts are wrong")
        try:
            parts.append(_part(bytes(payload[:2]), part, unpacked))
        except InputFileError:
            raise
        except Exception as error:  # each codec raises its own errors
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
        raise InputFileError(f"a basket is damaged: unknown compression {codec!r}")
    if xxhash.xxh64_digest(part[_CHECKSUM:]) != part[:_CHECKSUM]:
        raise InputFileError("a basket is damaged: wrong checksum")
    return cramjam.lz4.decompress_block_into(part[_CHECKSUM:], content)


def entries_at(source: Any, place: EntriesPlace) -> int:
    """Read a tree's number of entries, without parsing the tree.

    Raises
    ------
    InputFileError
        There is no such record, or it is damaged.
    """
    needed = place.offset + 8
    for n_bytes in (min(_FIRST_BYTES, place.size), place.size):  # long titles need more
        (raw,) = source.read([(place.seek, place.seek + n_bytes)])
        content = _begin_of_record(memoryview(raw), place.size, needed)
        if len(content) >= needed:
            return int.from_bytes(content[place.offset : needed], "big")
    raise InputFileError("the record of the tree is damaged")


def _begin_of_record(raw: memoryview, size: int, needed: int) -> Any:
    """First bytes of a record's content, as far as ``raw`` holds them, of ``size`` bytes."""
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
