"""Flip bits of baskets, one at a time: what we read is what uproot reads, or is refused.

    python tests/helpers/flips.py [EVERY]     # every bit (or each EVERYth), in a minute

For each codec a small file is made. Flipped is each bit of the headers of each basket
(key, TBasket, those of compressed parts), of the places where lists begin in uncompressed ones,
and of what is known of baskets from the tree: where they are, how long, which entries they hold.
Where uproot refuses and we don't, what we read has to be what was written. The table counts flips.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import awkward as ak
import numpy as np
import uproot

from agc_ml.columnar.baskets import Baskets, baskets_of
from agc_ml.columnar.columns import Columns
from agc_ml.errors import InputFileError

NAMES = ("event", "MET_pt", "nJet", "Jet_pt", "Jet_isTight")
CODECS = {
    "none": None,
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "lzma": uproot.LZMA(1),
}
CLUSTERS = (62, 30, 45)  # of 62, all places of lists are 256 bytes: one bit of where values end
N = sum(CLUSTERS)


class Bench:
    """A file, mapped into memory, read by us and by uproot, whose bits can be flipped."""

    def __init__(self, codec: str) -> None:
        with tempfile.NamedTemporaryFile() as file:  # mapped: it lives on without its name
            _write(file.name, CODECS[codec])
            self.bytes = mmap.mmap(file.fileno(), 0)
            self._tree = uproot.open(file.name, handler=uproot.MemmapSource, array_cache=None)[
                "Events"
            ]
        found = {name: baskets_of(self._tree, name) for name in NAMES}
        self.directory = {name: some for name, some in found.items() if some is not None}
        assert set(self.directory) == set(NAMES)
        self.right = {name: self.theirs(name) for name in NAMES}

    def ours(self, name: str, directory: dict[str, Baskets], start: int = 0, stop: int = N) -> Any:
        """Values and lengths of lists in a range of entries; None where that is refused."""

        def read(ranges: list[tuple[int, int]]) -> list[bytes]:
            return [bytes(self.bytes[begin:end]) for begin, end in ranges]

        def distrust(*_: str) -> bool:
            return False

        source = SimpleNamespace(read=read, distrust=distrust, is_local=True, url="")
        columns = Columns(SimpleNamespace(file=SimpleNamespace(source=source)), "", directory)
        try:
            values = columns.read(name, start, stop)
            if name.startswith("Jet_"):
                return values.tolist(), np.diff(columns.offsets("Jet", start, stop)).tolist()
        except InputFileError:
            return None
        return values.tolist(), None

    def theirs(self, name: str) -> Any:
        """The same of all entries, as uproot reads it; None where it raises."""
        try:
            array = self._tree[name].array()
            if array.ndim > 1:
                return ak.to_list(ak.flatten(array)), ak.to_list(ak.num(array))
            return array.tolist(), None
        except Exception:  # noqa: BLE001 - it raises anything
            return None

    def spots(self, name: str) -> Iterator[int]:
        """Where bytes of the headers of a branch's baskets are."""
        for seek, size in zip(self.directory[name].seeks, self.directory[name].sizes, strict=True):
            n = int.from_bytes(self.bytes[seek + 14 : seek + 16], "big")
            length = int.from_bytes(self.bytes[seek + 6 : seek + 10], "big")
            border = int.from_bytes(self.bytes[seek + n - 5 : seek + n - 1], "big")
            is_packed = size - n != length
            yield from range(seek, seek + 18)
            yield from range(seek + n - 19, seek + n + 9 * is_packed)
            yield from () if is_packed else range(seek + border, seek + size)

    def flipped(self, every: int, skipped: int = 0) -> Iterator[tuple[str, str]]:
        """What becomes of each flip of bytes: a description of it, and the outcome."""
        spots = [
            (name, spot, bit) for name in NAMES for spot in self.spots(name) for bit in range(8)
        ]
        for name, spot, bit in spots[skipped::every]:
            self.bytes[spot] ^= 1 << bit
            outcome = self._judged(name, self.ours(name, self.directory))
            # what a counter counts is read by it, too
            others = self.ours("Jet_pt", self.directory) if name == "nJet" else None
            self.bytes[spot] ^= 1 << bit
            if others not in (None, self.right["Jet_pt"]):
                outcome = "WRONG"
            yield f"{name}: bit {bit} of byte {spot}", outcome

    def misled(self, every: int, skipped: int = 0) -> Iterator[tuple[str, str]]:
        """The same of each flip of what the tree says of its baskets."""
        flips = [
            (name, field, i, bit)
            for name in NAMES
            for field in ("fBasketSeek", "fBasketBytes", "fBasketEntry")
            for i in range(len(CLUSTERS) + (field == "fBasketEntry"))
            for bit in range(31 if field == "fBasketBytes" else 63)
        ]
        for name, field, i, bit in flips[skipped::every]:
            places = self._tree[name].member(field)
            places[i] ^= 1 << bit
            try:
                found = {**self.directory, name: baskets_of(self._tree, name)}
                ours = self.ours(name, found) if found[name] else None
            except InputFileError:
                ours = None
            outcome = self._judged(name, ours)
            places[i] ^= 1 << bit
            yield f"{name}: bit {bit} of {field}[{i}]", outcome

    def _judged(self, name: str, ours: Any) -> str:
        """Compare what we read; uproot, which takes gigabytes for some flips, only if we do."""
        if ours is None:
            return "refused"
        theirs = self.theirs(name)
        if theirs is None:
            return "only uproot refuses" if ours == self.right[name] else "WRONG"
        return "as uproot" if ours == theirs else "WRONG"


def _write(path: str, codec: Any) -> None:
    rng = np.random.default_rng(1)
    with uproot.recreate(path, compression=codec) as file:
        tree = file.mktree(
            "Events",
            {
                "event": "u8",
                "MET_pt": "f4",
                "Jet": ak.Array([[{"pt": np.float32(1), "isTight": True}]]).type.content,
            },
        )
        for n in CLUSTERS:
            counts = rng.integers(0, 4, n)
            jets = ak.zip(
                {
                    "pt": rng.integers(0, 9, counts.sum()).astype(np.float32),
                    "isTight": rng.random(counts.sum()) < 0.5,
                }
            )
            met = rng.integers(0, 9, n).astype(np.float32)
            jet = ak.unflatten(jets, counts)
            tree.extend({"event": np.arange(n, dtype=np.uint64), "MET_pt": met, "Jet": jet})


def main() -> int:
    """Flip all bits, and count; 1 if anything was read wrong."""
    every, wrong = int((sys.argv[1:] or ["1"])[0]), 0
    for codec in CODECS:
        bench = Bench(codec)
        for what, outcomes in (("bytes", bench.flipped(every)), ("places", bench.misled(every))):
            counts: Counter[str] = Counter()
            for flip, outcome in outcomes:
                counts[outcome] += 1
                if outcome == "WRONG":
                    print(codec, flip)  # noqa: T201 - a script's result
            wrong += counts["WRONG"]
            print(codec, what, dict(sorted(counts.items())), flush=True)  # noqa: T201 - likewise
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
