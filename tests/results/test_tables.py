"""Tables: adding them up, their digest, and files that are not what they say."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.errors import RunDirectoryError
from agc_ml.results import tables
from agc_ml.results.run_result import RunResult
from agc_ml.results.tables import ColumnTable

COLUMNS = {
    "n": np.array([1, 2, 3], np.int16),
    "x": np.array([0.5, -0.0, 2.5], np.float32),
    "name": np.array([b"a", b"", b"long one"]),
}


def written(
    path: Path, columns: dict[str, Any] = COLUMNS, about: dict[str, Any] | None = None
) -> Path:
    tables.write(path, ColumnTable(columns, about or {"task": "test"}), {"code": "abc"})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet")
    table = tables.read(path)
    assert {name: values.tolist() for name, values in table.columns.items()} == {
        name: values.tolist() for name, values in COLUMNS.items()
    }
    assert [v.dtype.kind for v in table.columns.values()] == ["i", "f", "S"]
    assert table.about == {"task": "test"}
    assert table.provenance == {"code": "abc"}
    assert table.digest == ColumnTable(COLUMNS, {"task": "test"}).digest == tables.digest_of(path)
    assert tables.read(io.BytesIO(path.read_bytes())).digest == table.digest


@given(cuts=st.lists(st.integers(0, 3), max_size=4))
def test_chunks_add_up_to_the_same(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), 3]
    parts = [
        ColumnTable({name: values[a:b] for name, values in COLUMNS.items()})
        for a, b in itertools.pairwise(bounds)
    ]
    total = sum(parts[1:], start=parts[0])
    assert len(total) == 3
    assert total.digest == ColumnTable(COLUMNS).digest
    assert parts[0].names == total.names


@pytest.mark.parametrize(
    "changed",
    [
        {**COLUMNS, "n": np.array([1, 2, 4], np.int16)},
        {**COLUMNS, "n": COLUMNS["n"].astype(np.int32)},
        {"m": COLUMNS["n"], "x": COLUMNS["x"], "name": COLUMNS["name"]},
        {"x": COLUMNS["x"], "n": COLUMNS["n"], "name": COLUMNS["name"]},
        {**COLUMNS, "x": np.array([0.5, 0.0, 2.5], np.float32)},
        {**COLUMNS, "name": np.array([b"a", b"l", b"ong one"])},
    ],
)
def test_any_change_is_another_digest(changed: dict[str, Any]) -> None:
    assert ColumnTable(changed).digest != ColumnTable(COLUMNS).digest
    assert ColumnTable(COLUMNS, {"a": 1}).digest != ColumnTable(COLUMNS).digest


def test_the_width_of_text_does_not_count() -> None:
    wide = {**COLUMNS, "name": COLUMNS["name"].astype("S40")}
    assert ColumnTable(wide).digest == ColumnTable(COLUMNS).digest
    assert len(ColumnTable(wide) + ColumnTable(COLUMNS)) == 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, 2], "b": [1]}, "one length"),
        ({"a": np.zeros((2, 2))}, "one number or bytes per row"),
        ({"a": np.array([{}], object)}, "one number or bytes per row"),
        ({"a": np.array(["text"])}, "one number or bytes per row"),
    ],
)
def test_what_is_no_table(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColumnTable(columns)


def test_tables_of_other_kinds_do_not_add_up() -> None:
    for other in (ColumnTable({"n": [1]}), ColumnTable(COLUMNS, {"task": "other"}), 3):
        with pytest.raises(ValueError, match="different columns"):
            ColumnTable(COLUMNS) + other


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet")
    table = pq.read_table(path)
    changed = table.set_column(0, "n", [np.array([1, 2, 9], np.int16)])
    pq.write_table(changed, tmp_path / "changed.parquet")
    with pytest.raises(RunDirectoryError, match=r"changed\.parquet: its content has the digest"):
        tables.read(tmp_path / "changed.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "plain.parquet")
    with pytest.raises(RunDirectoryError, match="it has no header of agc-ml"):
        tables.read(tmp_path / "plain.parquet")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:200])
    with pytest.raises(RunDirectoryError, match="can't be read as Parquet"):
        tables.read(tmp_path / "cut.parquet")
    with pytest.raises(RunDirectoryError, match="no such file"):
        tables.read(tmp_path / "gone.parquet")


def test_text_of_any_alphabet(tmp_path: Path) -> None:
    words = [word.encode() for word in ("", "Zürich", "μμ", "ttbar")]
    path = written(tmp_path / "t.parquet", {"name": np.array(words)})
    assert tables.read(path).columns["name"].tolist() == words


def test_a_table_that_takes_much_memory(tmp_path: Path) -> None:
    """Parquet packs what repeats: the size of a file says little of what it takes to read it."""
    n = 1_000_000
    path = tmp_path / "t.parquet"
    for columns, size in (
        ({"n": np.ones(n), "flag": np.ones(n, bool)}, 9e6),
        ({"name": np.full(n, b"x" * 40)}, 40e6),
    ):
        written(path, columns)
        assert path.stat().st_size < 10_000
        assert len(tables.read(path, most_bytes=int(size)).columns) == len(columns)
        message = f"takes {size / 1e6:.0f} MB of memory; at most {size / 1e6:.0f} MB are taken"
        with pytest.raises(RunDirectoryError, match=message):
            tables.read(path, most_bytes=int(size) - 1)


def self_told(table: pa.Table, path: Path) -> Path:
    """Written as a table that says of itself what one of ours says."""
    written(path)
    metadata = pq.read_schema(path).metadata
    pq.write_table(table.replace_schema_metadata(metadata), path, use_dictionary=False)
    return path


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"n": [[1, 2]]}), "column n is of type list"),
        (pa.table({"n": [{"a": 1}]}), "column n is of type struct"),
        (pa.table({"n": pa.array(["a"]).dictionary_encode()}), "column n is of type dictionary"),
        (pa.table({"n": pa.array(["a"], pa.large_string())}), "column n is of type large_string"),
        (pa.table({"n": pa.array([1], pa.timestamp("s"))}), "column n is of type timestamp"),
        (pa.table({"n": pa.array([None], pa.null())}), "column n is of type null"),
        (pa.table([[1], [2]], names=["n", "n"]), "there are two columns n"),
        (
            pa.table({"n": pa.array([b"\xff"], pa.binary()).view(pa.string())}),
            "can't be read as Parquet",
        ),
    ],
)
def test_columns_that_are_none(tmp_path: Path, table: pa.Table, message: str) -> None:
    """Of which some would take much memory, or have no end, before that is noticed."""
    path = self_told(table, tmp_path / "t.parquet")
    for most in (None, 10**6):
        with pytest.raises(RunDirectoryError, match=message) as told:
            tables.read(path, most_bytes=most)
        assert str(path) in str(told.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": ["a"] * 999 + ["b" * 5000]}, "takes 5 MB of memory; at most 1 MB"),
        ({"name": [f"{i}" for i in range(999)] + ["b" * 5000]}, "column name: takes 5 MB"),
        ({"name": ["b" * 9_000_000]}, "column name: takes 9 MB of memory; at most 8 MB"),
        ({"name": ["b" * 1000] * 10_000}, "column name: takes 10 MB of memory; at most 8 MB"),
    ],
)
def test_text_that_takes_much_memory(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    """Each word takes as much as the longest one."""
    path = self_told(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(RunDirectoryError, match=message):
        tables.read(path, most_bytes=10**6)


FLIPS = """
import io, random, sys
from pathlib import Path
from agc_ml.results import tables
from agc_ml.errors import RunDirectoryError
data, dice = Path(sys.argv[1]).read_bytes(), random.Random(1)
good = tables.read(Path(sys.argv[1])).digest
footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
for _ in range(600):
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        place = dice.randrange(footer if dice.random() < 0.6 else 0, len(data))
        changed[place] ^= 1 << dice.randrange(8)
    try:
        assert tables.read(io.BytesIO(bytes(changed))).digest == good
    except RunDirectoryError:
        pass
"""


def test_damaged_files(tmp_path: Path) -> None:
    """Bits that flipped: the same table or a line, and the process goes on."""
    path = written(tmp_path / "t.parquet")
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_words_of_all_lengths(tmp_path: Path) -> None:
    """More than are taken at once, and none at all."""
    for words in ([b"%d" % (i % 70_000) for i in range(80_000)], [b""], []):
        columns = {"name": np.array(words, "S"), "n": np.arange(len(words))}
        found = tables.read(written(tmp_path / "t.parquet", columns), most_bytes=10**8)
        assert found.columns["name"].tolist() == words
        assert found.columns["name"].dtype == columns["name"].dtype


def test_rows_without_a_value(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet")
    table = pq.read_table(path)
    for name in ("n", "name"):
        hole = table.set_column(
            table.column_names.index(name),
            name,
            pa.array([None, *table[name].to_pylist()[1:]], table[name].type),
        )
        pq.write_table(hole, path)
        with pytest.raises(RunDirectoryError, match=f"column {name} has rows without a value"):
            tables.read(path)


def test_a_run_keeps_its_tables(training_run: Path, tmp_path: Path) -> None:
    result = RunResult.load(training_run)
    table = result.tables["training"]
    record = result.record().tables["training"]
    assert record.rows == len(table) > 10_000
    assert record.digest == table.digest == tables.digest_of(training_run / "training.parquet")
    for name in ("run.json", "ledger.jsonl"):
        (tmp_path / name).write_bytes((training_run / name).read_bytes())
    written(tmp_path / "training.parquet")
    with pytest.raises(RunDirectoryError, match=r"not what run\.json states"):
        RunResult.load(tmp_path)
