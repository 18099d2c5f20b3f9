"""Files that are not as they should be."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from agc_ml.datasets import EVENT_ID


def own_counters(path: Path, n_jets: Any, counts: Any) -> Path:
    """A tree in which Hit_pt has a counter of its own, beside nHit; one cluster in two."""
    n = len(n_jets)
    branches = {
        **{name: np.arange(n, dtype=np.uint32) for name in EVENT_ID},
        "nHit": np.asarray(n_jets, np.int32),
        "Hit_pt": ak.unflatten(np.arange(sum(counts), dtype=np.float32), counts),
    }
    with uproot.recreate(path, compression=None) as file:
        types = {name: ak.type(ak.Array(values)).content for name, values in branches.items()}
        tree = file.mktree("Events", types)
        for some in (slice(0, n // 2), slice(n // 2, n)):
            tree.extend({name: values[some] for name, values in branches.items()})
    return path


def vectors(path: Path, n_jets: Any, counts: Any) -> Path:
    """The same without a counter of its own, as lists of an RNTuple."""
    content = {
        **{name: np.arange(len(n_jets), dtype=np.uint32) for name in EVENT_ID},
        "nHit": np.asarray(n_jets, np.int32),
        "Hit_pt": ak.unflatten(np.arange(sum(counts), dtype=np.float32), counts),
    }
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", content)
    return path


def shorten(path: Path, *names: str) -> Path:
    """Leave out the second of two baskets of branches, as hadd does of files that lack them."""
    raw = bytearray(path.read_bytes())
    with uproot.open(path) as file:
        branches = [file["Events"][name] for name in names]
    for branch in branches:
        known = branch.all_members
        bounds = branch.entry_offsets
        title = (branch.name + chr(len(branch.title)) + branch.title).encode()
        place = raw.index(title)
        n_baskets = struct.pack(">iq", known["fWriteBasket"], known["fEntryNumber"])
        place = raw.index(n_baskets, place)
        raw[place : place + 12] = struct.pack(">iq", 1, bounds[1])
        entries = struct.pack(">qq", known["fEntries"], known["fFirstEntry"])
        place = raw.index(entries, place + 12)
        raw[place : place + 8] = struct.pack(">q", bounds[1])
    path.write_bytes(raw)
    return path


def rntuple(path: Path, content: Any) -> Path:
    """An RNTuple that is not compressed."""
    with uproot.recreate(path, compression=None) as file:
        made = file.mkrntuple("Events", {name: values.dtype for name, values in content.items()})
        made.extend(content)
    return path


def list_of_pages(path: Path) -> tuple[int, int]:
    """Where the list of pages of an RNTuple begins, and its length with its checksum."""
    with uproot.open(path) as file:
        (group,) = file["Events"].footer.cluster_group_records
    where = group.page_list_link.locator
    return int(where.offset), int(where.num_bytes)
