from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agc_ml.errors import UsageError
from agc_ml.execution.state import signing
from agc_ml.execution.state.checkpoints import CheckpointStore, Chunk, Receipt, seal, unseal
from agc_ml.execution.state.packing import is_code, pack, unpack
from agc_ml.execution.state.signing import key_file


@dataclass
class NotOurs:
    """An object of a processor's own, with an addition of its own."""

    n: int

    def __add__(self, other: NotOurs) -> NotOurs:
        return NotOurs(self.n + other.n)


class Attack:
    """What runs a command when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch attacked",)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


PICKLE = pack(NotOurs(2))
CHUNK = Chunk("d", "a.root", "Events", "u", 100, 0, 50)
RECEIPT = Receipt(50, "w", 1.0, 0.9, 0.1, 0.2, 1000, 100.0)


def stored(folder: Path, blob: bytes = pack("content")) -> tuple[CheckpointStore, Path]:
    store = CheckpointStore(folder, {"code": "1"})
    path = store.path(CHUNK, {"xsec": 1.0})
    store.save(path, CHUNK, RECEIPT, blob)
    return store, path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blob=st.binary(max_size=300))
def test_content_comes_back(blob: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = pack(blob)
    store, path = stored(tmp_path_factory.getbasetemp(), blob)
    assert store.load(path, CHUNK) == (RECEIPT, blob)
    assert store.receipt(path, CHUNK) == RECEIPT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_file_is_taken(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store, path = stored(tmp_path_factory.getbasetemp())
    content = path.read_bytes()
    if data.draw(st.booleans()):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        damaged = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes(damaged)
    assert store.load(path, CHUNK) is None


def test_not_of_other_events(tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    assert store.load(path, replace(CHUNK, stop=60)) is None


def test_name_depends_on_all_that_decides(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, {"code": "1"})
    metadata = {"xsec": 1.0}
    name = store.path(CHUNK, metadata)
    others = [
        store.path(replace(CHUNK, dataset="e"), metadata),
        store.path(replace(CHUNK, uuid="v"), metadata),
        store.path(replace(CHUNK, tree="T"), metadata),
        store.path(replace(CHUNK, start=1), metadata),
        store.path(replace(CHUNK, stop=51), metadata),
        store.path(CHUNK, {"xsec": 2.0}),
        CheckpointStore(tmp_path, {"code": "2"}).path(CHUNK, metadata),
    ]
    others.append(store.path(replace(CHUNK, lfn="elsewhere/a.root"), metadata))
    assert len({name, *others}) == 9


def again(folder: Path, *, trusts_all: bool = False) -> CheckpointStore:
    """The store of another process."""
    return CheckpointStore(folder, {"code": "1"}, trusts_all=trusts_all)


def test_one_under_the_name_of_another_is_nothing(tmp_path: Path) -> None:
    other = replace(CHUNK, start=50, stop=100)
    store, path = stored(tmp_path)
    second = store.path(other, {"xsec": 1.0})
    store.save(second, other, RECEIPT, pack("second"))
    first, last = path.read_bytes(), second.read_bytes()
    path.write_bytes(last)
    second.write_bytes(first)
    assert again(tmp_path).load(path, CHUNK) is None
    assert again(tmp_path).load(second, other) is None
    second.write_bytes(last)
    assert again(tmp_path).load(second, other) is not None


def test_pickle_of_this_user_is_read_again(tmp_path: Path) -> None:
    assert is_code(PICKLE)
    _, path = stored(tmp_path, PICKLE)
    assert key_file().stat().st_mode & 0o777 == 0o600
    found = again(tmp_path).load(path, CHUNK)
    assert found is not None
    assert unpack(found[1]) == NotOurs(2)


@pytest.mark.parametrize("case", ["unsigned", "wrong", "of another", "no key", "not ASCII"])
def test_pickle_of_somebody_else_is_refused(case: str, tmp_path: Path) -> None:
    _, path = stored(tmp_path, PICKLE)
    found = unseal(path)
    assert found is not None
    checks, _, content = path.read_bytes().partition(b"\n")
    signed = json.loads(checks)
    if case == "unsigned":
        del signed["signature"]
    elif case == "wrong":
        signed["signature"] = "0" * 64
    elif case == "not ASCII":
        signed["signature"] = "\xe9"
    elif case == "of another":  # everything is right but for what is in it
        blob = b"pick" + lz4.frame.compress(pickle.dumps(Attack()))
        evil = content[: content.index(b"\n") + 1] + blob
        signed["sha256"], content = hashlib.sha256(evil).hexdigest(), evil
    else:
        key_file().unlink()
    path.write_bytes(json.dumps(signed).encode() + b"\n" + content)
    with pytest.raises(UsageError, match="--trust"):
        again(tmp_path).load(path, CHUNK)
    assert not Path("attacked").exists()
    assert again(tmp_path, trusts_all=True).load(path, CHUNK) is not None


def test_no_form_without_code_runs_any(tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    evil = b"agc1" + lz4.frame.compress(pickle.dumps(Attack()))
    seal(path, {"chunk": str(CHUNK), **asdict(RECEIPT)}, evil)
    found = store.load(path, CHUNK)
    assert found is not None
    with pytest.raises(ValueError, match="not a packed output"):
        unpack(found[1])
    assert not Path("attacked").exists()


@pytest.mark.parametrize("case", ["open", "short"])
def test_key_that_is_none_is_not_used(case: str, tmp_path: Path) -> None:
    _, path = stored(tmp_path, PICKLE)
    if case == "open":
        key_file().chmod(0o640)
    else:
        key_file().write_bytes(b"short")
    with pytest.raises(UsageError, match="remove it, and the next run makes a new one"):
        again(tmp_path).load(path, CHUNK)


@pytest.mark.parametrize("case", ["no folder", "no modes"])
def test_without_a_key_the_same_process_goes_on(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if case == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    else:  # as on disks of other systems, where all files have the same
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.setattr(signing, "_OTHERS", 0o700)
    store, path = stored(tmp_path, PICKLE)
    assert "--resume needs --trust" in caplog.text
    assert store.load(path, CHUNK) == (RECEIPT, PICKLE)
    with pytest.raises(UsageError, match="--trust"):
        again(tmp_path).load(path, CHUNK)


@pytest.mark.parametrize(
    "changes",
    [
        *({"seconds": "long"}, {"files": [1]}, {"files": {"a": 1}}, {"worker": None}),
        *({"bytes": []}, {"events": 49}, {"sumw": {}}, {"events": None}),
        {"chunk": "another one"},
    ],
    ids=str,
)
def test_a_receipt_that_is_none(changes: dict[str, object], tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    seal(path, {"chunk": str(CHUNK), **asdict(RECEIPT), **changes}, pack("content"))
    assert store.load(path, CHUNK) is None


def test_neither_pipes_nor_folders_are_read(tmp_path: Path) -> None:
    store, path = stored(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert store.load(path, CHUNK) is None
    path.unlink()
    path.mkdir()
    assert store.load(path, CHUNK) is None


def test_what_would_fill_the_memory_is_taken_from_this_process_only(tmp_path: Path) -> None:
    store, path = stored(tmp_path, pack(np.zeros(1 << 26)))
    assert store.load(path, CHUNK) is not None
    assert again(tmp_path).load(path, CHUNK) is None


def test_a_state_folder_that_is_relative_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the XDG specification says: it would be another one in each working directory."""
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_file() == tmp_path / ".local" / "state" / "agc-ml" / "key"
