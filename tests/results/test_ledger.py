from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agc_ml.execution.inspection import FileInfo
from agc_ml.execution.state.run_state import chunks_of
from agc_ml.inputs.datasets import File
from agc_ml.results.ledger import Entry, Ledger, merge_attempts


def ledger_of(entries: int, size: int) -> Ledger:
    file = File(lfn="a", replicas=("a",))
    info = FileInfo(entries=entries, uuid="u", size=1, n_columns=1, column_bytes=None)
    return Ledger(
        tuple(
            Entry("d", c.lfn, c.uuid, c.entries, c.start, c.stop, status="done", attempts=1)
            for c in chunks_of("d", file, info, size)
        )
    )


@given(st.integers(0, 10_000), st.integers(1, 3_000))
def test_chunks_cover_each_file_once(entries: int, size: int) -> None:
    ledger = ledger_of(entries, size)
    assert ledger.faults() == []
    assert ledger.events == entries
    sizes = [entry.events for entry in ledger.entries]
    assert max(sizes) <= size
    assert len(sizes) == max(1, -(-entries // size))
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 2000), st.integers(1, 300), st.data())
def test_every_gap_and_every_double_is_found(entries: int, size: int, data: st.DataObject) -> None:
    ledger = ledger_of(entries, size)
    index = data.draw(st.integers(0, len(ledger.entries) - 1))
    entry = ledger.entries[index]
    lost = Ledger(tuple(e for e in ledger.entries if e is not entry))
    assert lost.faults() or not lost.entries
    assert Ledger((*ledger.entries, entry)).faults()
    spelled = tuple(replace(e, tree="Events;1") for e in ledger.entries)
    assert Ledger(spelled).faults() == []
    assert Ledger((*spelled, replace(entry, tree="/Events"))).faults()
    shifted = replace(entry, start=entry.start + 1)
    assert Ledger(tuple(shifted if e is entry else e for e in ledger.entries)).faults()


def test_two_trees_of_one_file_are_counted_apart() -> None:
    both = [replace(e, lfn=t, tree=t) for t in ("A", "d/B") for e in ledger_of(10, 4).entries]
    assert Ledger(tuple(both)).faults() == []
    assert Ledger(tuple(both[1:])).faults()


def test_lines_keep_everything(tmp_path: Path) -> None:
    ledger = Ledger(
        (
            *ledger_of(10, 4).entries,
            Entry("d", "é\n", None, None, 0, None, status="missing", errors=("why", "again")),
        )
    )
    path = tmp_path / "ledger.jsonl"
    path.write_text(ledger.to_jsonl())
    assert Ledger.load(path) == ledger
    assert len(path.read_text().splitlines()) == 4


def test_attempts_of_an_interrupted_run_are_carried_over() -> None:
    first = ledger_of(10, 5)
    failed = replace(first.entries[0], status="missing", attempts=2, errors=("a", "b"))
    worked = replace(first.entries[1], worker="w", seconds=2.0, bytes=7)
    reused = replace(first.entries[1], attempts=0)
    merged = merge_attempts((first.entries[0], reused), Ledger((failed, worked)))
    assert (merged[0].attempts, merged[0].errors) == (3, ("a", "b"))
    assert (merged[1].attempts, merged[1].worker, merged[1].bytes) == (1, "w", 7)
    assert Ledger(merged).retries == 2
