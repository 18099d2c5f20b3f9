"""RNTuples with the checksum of each page verified: uproot verifies header and footer only.

Source: ROOT's RNTuple Binary Format.
"""

from __future__ import annotations

from typing import Any, Final

import uproot
import xxhash
from uproot.models.RNTuple import Model_ROOT_3a3a_RNTuple
from uproot.source.cursor import Cursor

_CHECKSUM: Final = 8


class ChecksumError(Exception):
    """A part of an RNTuple is damaged."""


def compare_pages(tree: Any) -> None:
    """Verify the pages that uproot reads of an RNTuple; a TTree has no such checksums.

    Reading a page raises `ChecksumError` if its checksum differs; not all pages have one.
    """
    if isinstance(tree, Model_ROOT_3a3a_RNTuple):
        tree.__class__ = _ComparedRNTuple


class _ComparedRNTuple(Model_ROOT_3a3a_RNTuple):  # type: ignore[misc]
    """uproot's RNTuple, with pages verified before they are unpacked."""

    _page: Any = None

    def read_page(
        self, destination: Any, cluster_idx: int, col_idx: int, page_idx: int, field_metadata: Any
    ) -> None:
        """Read the content of a page into an array."""
        self._page = self.page_link_list[cluster_idx][col_idx].pages[page_idx]
        super().read_page(destination, cluster_idx, col_idx, page_idx, field_metadata)

    def read_locator(self, loc: Any, uncomp_size: int) -> tuple[Any, Any]:
        """Read a page, or a list of pages, which ends with its own checksum."""
        if self._page is None or loc is not self._page.locator:
            chunk, cursor = super().read_locator(loc, uncomp_size)
            _compare(chunk, cursor, uncomp_size - _CHECKSUM)
            return chunk, cursor
        if not self._page.has_checksum:
            return super().read_locator(loc, uncomp_size)  # type: ignore[no-any-return]
        cursor = Cursor(loc.offset)
        chunk = self.file.source.chunk(loc.offset, loc.offset + loc.num_bytes + _CHECKSUM)
        _compare(chunk, cursor, loc.num_bytes)
        if loc.num_bytes < uncomp_size:
            chunk = uproot.compression.decompress(
                chunk, cursor, {}, loc.num_bytes, uncomp_size, block_info=None
            )
            cursor.move_to(0)
        return chunk, cursor


def _compare(chunk: Any, cursor: Cursor, n_bytes: int) -> None:
    """Compare the checksum of some bytes with the one after them."""
    end = cursor.index + n_bytes
    stored = chunk.get(cursor.index, end, cursor, {})
    checksum = bytes(chunk.get(end, end + _CHECKSUM, cursor, {}))
    if xxhash.xxh3_64_intdigest(bytes(stored)) != int.from_bytes(checksum, "little"):
        raise ChecksumError(f"{n_bytes} bytes at {cursor.index} are damaged: wrong checksum")
