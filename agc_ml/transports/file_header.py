"""The first bytes of a ROOT file: which file it is, and how long it should be."""

from __future__ import annotations

import struct
import uuid
from typing import Final, NamedTuple

from agc_ml.transports.replica_errors import CorruptError

N_BYTES: Final = 512
_IS_BIG: Final = 1_000_000  # versions from here on are of files with 64-bit addresses
_SMALL: Final = struct.Struct(">4siiiiiiiBiiiH16s")
_BIG: Final = struct.Struct(">4siiqqiiiBiqiH16s")


class Header(NamedTuple):
    """Length in bytes that a file should have at least, and its UUID."""

    end: int
    uuid: str


def parse(begin: bytes) -> Header:
    """Read the header of a file from its first bytes. Source: ROOT's TFile.

    Raises
    ------
    CorruptError
        It is not a ROOT file, or cut off in its header.
    """
    if not begin.startswith(b"root"):
        what = f"it begins with {begin[:12]!r}" if begin else "it is empty"
        raise CorruptError(f"not a ROOT file: {what}")
    if begin.startswith(b"root:/"):
        raise CorruptError("not a ROOT file, but a list of URLs; the name of a list ends in .txt")
    if len(begin) < _BIG.size:
        raise CorruptError(f"cut off: only {len(begin)} bytes are there")
    # signed, as in ROOT: what looks like a huge number is a negative one, of a small file
    is_big = int.from_bytes(begin[4:8], "big", signed=True) >= _IS_BIG
    fields = (_BIG if is_big else _SMALL).unpack_from(begin)
    return Header(int(fields[3]), str(uuid.UUID(bytes=fields[-1])))
