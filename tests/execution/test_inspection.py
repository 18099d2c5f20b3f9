"""Files looked into before any of them is processed: lengths of branches."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
import uproot
from sums import Sum

import agc_ml as agc
from agc_ml.errors import InputFileError, UsageError
from agc_ml.execution.file_check import check
from agc_ml.execution.inspection import FileInfo, inspect_file
from agc_ml.execution.worker.job import Failure
from agc_ml.inputs.fileset import Dataset, File, Fileset
from agc_ml.transports import server_health

COUNTS = np.array([1, 2, 3, 0] * 20)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = damage.own_counters(tmp_path / "x.root", COUNTS, COUNTS)
    return damage.shorten(path, "Hit_pt", "nHit", "run")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    ("columns", "named"), [(("Hit_pt",), "Hit_pt"), (("run",), "run"), (("nHit",), "nHit")]
)
def test_needed_branches_of_another_length_are_refused(
    short: Path, columns: tuple[str, ...], named: str, *, flat: bool
) -> None:
    outcome = inspect_file(File("x.root", (str(short),)), columns, flat=flat)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "definite"
    first = named if flat else "run"  # records are set up with the identity of their events
    assert outcome.reason.startswith(f"branch {first} has 40 entries, but the tree has 80; ")


def test_others_are_not(short: Path) -> None:
    outcome = inspect_file(File("x.root", (str(short),)), ("event",), flat=True)
    assert isinstance(outcome, FileInfo)
    assert outcome.uneven == ()


def test_a_check_names_them(short: Path) -> None:
    fileset = Fileset((Dataset("d", "d", (File("x.root", (str(short),)),)),))
    (found,) = check(fileset, site="inline", quiet=True)
    assert found.problem is not None
    assert found.problem.startswith("branch run has 40 entries, but the tree has 80; ")
    assert found.problem.endswith(" (and 2 more branches)")


def damaged(path: Path, column: str, codec: Any) -> tuple[str, str]:
    """Write a file, its checksum, and a copy with one bit of a value flipped: gives both."""
    values = np.arange(1000, dtype=np.float32)
    with uproot.recreate(path, compression=codec) as file:
        made = file.mktree("Events", {column: values.dtype})
        made.extend({column: values})
    data = bytearray(path.read_bytes())
    checksum = f"{zlib.adler32(data):08x}"
    with uproot.open(path) as file:
        branch = file["Events"][column]
        seek, size = (int(branch.member(m)[0]) for m in ("fBasketSeek", "fBasketBytes"))
    data[seek + size - 7] ^= 1  # inside of the values, or of what they are compressed to
    path.with_suffix(".bad").write_bytes(data)
    return checksum, str(path.with_suffix(".bad"))


def test_damage_that_no_checksum_of_a_basket_shows_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    checksum, bad = damaged(path, "x", None)
    options = {"site": "inline", "quiet": True, "verify_checksums": True}
    right = float(np.arange(1000, dtype=np.float32).sum())

    def listed(*replicas: str, adler32: str | None = checksum) -> Fileset:
        file = File("x.root", replicas, adler32=adler32)
        return Fileset((Dataset("tt", "tt", (file,)),))

    with pytest.raises(InputFileError, match=rf"its adler32 is .* the fileset says {checksum}"):
        agc.run(Sum(), listed(bad), output=tmp_path / "a", **options)
    server_health.forget()
    result = agc.run(Sum(), listed(bad, str(path)), output=tmp_path / "b", **options)
    assert result.outputs["sum"] == right
    assert any("its adler32 is" in line for line in result.warnings)
    result = agc.run(Sum(), listed(str(path), bad), output=tmp_path / "c", **options)
    assert result.outputs["sum"] == right
    with pytest.raises(UsageError, match=r"no file of the fileset states its adler32; 'agc-ml fi"):
        agc.run(Sum(), listed(str(path), adler32=None), output=tmp_path / "d", **options)
