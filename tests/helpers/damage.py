"""Files that are not as they should be."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
import yaml

from agc_ml.inputs.columns import EVENT_ID


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


def variants(data: bytes, kind: str, seed: int, n: int) -> Iterator[tuple[str, bytes]]:
    """``n`` damaged variants of a file, each with a name; the same for a seed.

    ``kind`` is ``json`` or ``yaml``, of which every other one is an edit of its content, or else
    ``bytes``: flips, truncations, blocks that are zeroed, doubled or lost.
    """
    rng = random.Random(f"{seed} {kind}")
    for number in range(n):
        made = data
        while made == data:
            if kind in {"json", "yaml"} and number % 2:
                what, made = _edited(data, kind, rng)
            else:
                what, made = _broken(data, rng)
        yield f"{number} {what}", made


def _broken(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    what = rng.choice(["flip", "flip", "flips", "cut", "zeroed", "doubled", "lost"])
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice([1, 16, 512, 4096]))
    made = bytearray(data)
    if what in {"flip", "flips"}:
        for _ in range(1 if what == "flip" else 8):
            made[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del made[start:]
    elif what == "zeroed":
        made[start:stop] = bytes(stop - start)
    elif what == "doubled":
        made[start:start] = made[start:stop]
    else:
        del made[start:stop]
    return f"{what} at {start}", bytes(made)


_TWICE = "a key that is there twice"
_VALUES = (
    *(None, True, 0, -1, 10**18, 10**30, 10**400, 0.5, -1e300, float("nan"), float("inf")),
    *("", "x", "$HOME", "\ud800", "\0", "1e5", "2001-01-01", [], {}, [[]], {"x": 1}, "x" * 5000),
)


def _edited(data: bytes, kind: str, rng: random.Random) -> tuple[str, bytes]:
    content = copy.deepcopy(yaml.safe_load(data) if kind == "yaml" else json.loads(data))
    places = list(_places(content))
    if not places:
        return _broken(data, rng)
    owner, key = rng.choice(places)
    what = rng.choice(["another value", "another value", "gone", "twice", "swapped", "renamed"])
    if what == "gone":
        del owner[key]
    elif what == "swapped":
        other, place = rng.choice(places)
        owner[key], other[place] = copy.deepcopy((other[place], owner[key]))
    elif what == "twice" and isinstance(owner, dict):
        owner[_TWICE] = copy.deepcopy(owner[key])
    elif what == "twice":
        owner.insert(key, copy.deepcopy(owner[key]))
    elif what == "renamed" and isinstance(owner, dict):
        owner[f"{key}_"] = owner.pop(key)
    else:
        owner[key] = rng.choice(_VALUES)
    made = yaml.safe_dump(content, sort_keys=False) if kind == "yaml" else json.dumps(content)
    return f"{what} {str(key)[:20]}", made.replace(_TWICE, str(key)).encode("utf-8", "replace")


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each mapping or list in a content, with each of its keys."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    for key, inner in pairs:
        yield content, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
