from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.checkpoints import Chunk, Receipt, Store

CHUNK = Chunk("d", "a.root", "Events", "u", 100, 0, 50)
RECEIPT = Receipt(50, "w", 1.0, 0.9, 0.1, 0.2, 1000, 100.0)


def stored(folder: Path, blob: bytes = b"content") -> tuple[Store, Path]:
    store = Store(folder, {"code": "1"})
    path = store.path(CHUNK, {"xsec": 1.0})
    store.save(path, RECEIPT, blob)
    return store, path


@given(blob=st.binary(max_size=300))
def test_content_comes_back(blob: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    store, path = stored(tmp_path_factory.getbasetemp(), blob)
    assert store.load(path, CHUNK) == (RECEIPT, blob)
    assert store.receipt(path, CHUNK) == RECEIPT


@given(data=st.data())
def test_no_damaged_file_is_taken(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, path = stored(tmp_path_factory.getbasetemp())
    content = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(content.index(b"\n") + 1, len(content) - 1))
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes(damaged)
    assert store.load(path, CHUNK) is None


def test_not_of_other_events(tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    assert store.load(path, replace(CHUNK, stop=60)) is None


def test_name_depends_on_all_that_decides(tmp_path: Path) -> None:
    store = Store(tmp_path, {"code": "1"})
    metadata = {"xsec": 1.0}
    name = store.path(CHUNK, metadata)
    others = [
        store.path(replace(CHUNK, dataset="e"), metadata),
        store.path(replace(CHUNK, uuid="v"), metadata),
        store.path(replace(CHUNK, tree="T"), metadata),
        store.path(replace(CHUNK, start=1), metadata),
        store.path(replace(CHUNK, stop=51), metadata),
        store.path(CHUNK, {"xsec": 2.0}),
        Store(tmp_path, {"code": "2"}).path(CHUNK, metadata),
    ]
    others.append(store.path(replace(CHUNK, lfn="elsewhere/a.root"), metadata))
    assert len({name, *others}) == 9
