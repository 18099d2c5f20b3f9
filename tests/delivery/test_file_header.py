"""The first bytes of a ROOT file, and files of this machine however their names are spelled."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import nanoaod
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.delivery import opening
from agc_ml.errors import DeliveryError
from agc_ml.inputs.datasets import File
from agc_ml.transports import file_header
from agc_ml.transports.base import local_path
from agc_ml.transports.connect import connect
from agc_ml.transports.replica_errors import CorruptError, PermanentError

UUID = uuid.UUID("3a554482-e0e1-11ea-875a-4a82e4a9beef")


def first_bytes(version: int, end: int) -> bytes:
    """The header of a file of that version, as ROOT's TFile::WriteHeader has it."""
    layout = file_header._BIG if version >= 1_000_000 else file_header._SMALL
    return layout.pack(b"root", version, 100, end, end, 1, 1, 60, 4, 101, end, 1, 1, UUID.bytes)


@given(st.integers(-(2**31), 2**31 - 1), st.integers(100, 2**31 - 1))
def test_the_version_is_signed(version: int, end: int) -> None:
    begin = first_bytes(version, end).ljust(file_header.N_BYTES, b"\0")
    assert file_header.parse_header(begin) == file_header.FileHeader(end, str(UUID))


def test_a_file_of_a_negative_version_is_read(tmp_path: Path) -> None:
    path = nanoaod.write(tmp_path / "a.root", nanoaod.events(20, 1))
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff\xf1\xaf\x28"
    path.write_bytes(content)
    with opening.open_file(File(lfn="a", replicas=(str(path),))) as opened:
        assert opened["Events"].num_entries == 20


@pytest.mark.parametrize(
    ("begin", "says"),
    [
        (b"", "it is empty"),
        (b"PK\3\4", "not a ROOT file: it begins with"),
        (b"root\0\0", "cut off: only 6 bytes"),
        (b"root://host//a.root\n" * 30, "a list of URLs; give such lists names in .txt"),
    ],
)
def test_what_is_no_header(begin: bytes, says: str) -> None:
    with pytest.raises(CorruptError, match=says):
        file_header.parse_header(begin)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/a.root", "/data/a.root"),
        ("//data//a.root", "/data/a.root"),
        ("sub/a.root", "sub/a.root"),
        ("file:/data/a.root", "/data/a.root"),
        ("file:///data/a.root", "/data/a.root"),
        ("file:////data/a.root", "/data/a.root"),
        ("file://localhost/data/a.root", "/data/a.root"),
        ("FILE://LOCALHOST/data/a.root", "/data/a.root"),
        ("file:///data/a%20b%23.root", "/data/a b#.root"),
        ("file:///data/a?b#c.root", "/data/a?b#c.root"),
        ("file://elsewhere/data/a.root", None),
        ("root://host//data/a.root", None),
    ],
)
def test_spellings_of_a_path(text: str, path: str | None) -> None:
    assert local_path(text) == (None if path is None else Path(path))


def test_what_is_no_file_of_this_machine(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.root")
    for url, says in {
        "file://elsewhere/a.root": "another machine",
        f"file:{tmp_path}": "it is a folder",
        f"file:{tmp_path}/pipe.root": "it is a pipe",
        f"file:{tmp_path}/none.root": "No such file",
    }.items():
        with pytest.raises(PermanentError, match=says):
            connect(url, 1.0)
        with pytest.raises(DeliveryError, match=says), opening.open_file(File("a", (url,))):
            pass
