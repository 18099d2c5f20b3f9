"""Header of a ROOT file: its UUID and the length it should have."""

from __future__ import annotations

import struct
import uuid
from typing import Final, NamedTuple

from agc_ml.transports.replica_errors import CorruptError

N_BYTES: Final = 512
_FIRST_BIG_VERSION: Final = 1_000_000  # from here on addresses have 64 bits
_SMALL: Final = struct.Struct(">4siiiiiiiBiiiH16s")
_BIG: Final = struct.Struct(">4siiqqiiiBiqiH16s")


class FileHeader(NamedTuple):
    """Least length of a file in bytes, and its UUID."""

    end: int
    uuid: str


def parse_header(content: bytes) -> FileHeader:
    """Read the header of a file from its first bytes. Source: ROOT's TFile.

    Raises
    ------
    CorruptError
        It is not a ROOT file, or cut off in its header.
    """
    if not content.startswith(b"root"):
        reason = f"it begins with {content[:12]!r}" if content else "it is empty"
        raise CorruptError(f"not a ROOT file: {reason}")
    if content.startswith(b"root:/"):
        raise CorruptError("not a ROOT file, but a list of URLs; give such lists names in .txt")
    if len(content) < _BIG.size:
        raise CorruptError(f"cut off: only {len(content)} bytes are there")
    # signed, as in ROOT: what looks like a huge number is a negative one, of a small file
    is_big = int.from_bytes(content[4:8], "big", signed=True) >= _FIRST_BIG_VERSION
    fields = (_BIG if is_big else _SMALL).unpack_from(content)
    return FileHeader(int(fields[3]), str(uuid.UUID(bytes=fields[-1])))
