"""RNTuples, of which what is read is compared with its checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
import uproot
from sums import Sum

import agc_ml as agc
from agc_ml.columnar.columns import Columns
from agc_ml.columnar.rntuple_pages import compare_pages
from agc_ml.delivery.opening import open_file
from agc_ml.errors import InputFileError
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset


@pytest.fixture(scope="module")
def real(real_data: Path) -> Path:
    """As ROOT wrote it, with checksums of pages."""
    (path,) = real_data.glob("*rntuple*.root")
    return path


def place_of(path: Path, name: str) -> tuple[int, int]:
    """Where the first page of a column of numbers begins, and its length."""
    with uproot.open(path) as file:
        tree = file["Events"]
        field = next(i for i, one in enumerate(tree.field_records) if one.field_name == name)
        columns = enumerate(tree.column_records)
        column = next(i for i, one in columns if one.field_id == field)
        (page, *_) = tree.page_link_list[0][column].pages
    return int(page.locator.offset), int(page.locator.num_bytes)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.15])
def test_a_flipped_bit_of_a_page_is_noticed(real: Path, at: float, tmp_path: Path) -> None:
    """None shows in the values: pages are not compressed here. The last one is in the checksum."""
    seek, n_bytes = place_of(real, "MET_pt")
    content = bytearray(real.read_bytes())
    content[seek + round(at * n_bytes) - (at == 1)] ^= 4
    path = tmp_path / "x.root"
    path.write_bytes(content)
    with open_file(File("x.root", (str(path),))) as file:
        compare_pages(file["Events"])
        columns = Columns(file, "Events", {"MET_pt": None, "MET_phi": None})
        assert len(columns.read("MET_phi", 0, 10)) == 10
        with pytest.raises(InputFileError, match="branch MET_pt: ChecksumError: 40 bytes at "):
            columns.read("MET_pt", 0, 10)


def run(path: Path, folder: Path) -> Any:
    fileset = Fileset((Dataset("d", "d", (File(str(path), (str(path),)),)),))
    return agc.run(Sum(), fileset, site="inline", output=folder, quiet=True)


def test_runs_of_rntuples(tmp_path: Path) -> None:
    """A list of pages tells how many entries there are, and has a checksum whoever wrote it."""
    values = np.arange(1000, dtype=np.float32)
    path = damage.rntuple(tmp_path / "x.root", {"x": values})
    assert run(path, tmp_path / "a").outputs["sum"] == values.sum()
    seek, n_bytes = damage.list_of_pages(path)
    content = bytearray(path.read_bytes())
    place = content.index((1000).to_bytes(8, "little"), seek, seek + n_bytes)
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"ChecksumError: \d+ bytes at \d+ are damaged"):
        run(path, tmp_path / "b")
