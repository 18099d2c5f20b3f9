"""Flat columns straight from baskets, against what uproot reads."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import cramjam
import flips
import nanoaod
import numpy as np
import pytest
import uproot
from hypothesis import given
from hypothesis import strategies as st
from services.web import Web

import agc_ml as agc
from agc_ml.columnar import basket_records
from agc_ml.columnar import columns as reading
from agc_ml.columnar.baskets import Baskets, entries_place, part_of
from agc_ml.columnar.columns import Columns, directory
from agc_ml.columnar.stream import Stream
from agc_ml.delivery.opening import open_file
from agc_ml.errors import InputFileError
from agc_ml.execution.inspection import FileInfo, inspect_file
from agc_ml.execution.processor.loading import load_processor
from agc_ml.execution.state.checkpoints import Chunk
from agc_ml.execution.worker.job import Failure, Finished, Job
from agc_ml.execution.worker.open_file import close_file
from agc_ml.execution.worker.processing import process_chunk
from agc_ml.inputs.columns import EVENT_ID
from agc_ml.inputs.datasets import File
from agc_ml.transports import local_file
from processors.ttbar import TtbarProcessor

NAMES = ("event", "genWeight", "nJet", "Jet_pt", "Jet_jetId", "nMuon", "Muon_tightId")
CODECS = {
    "zlib": uproot.ZLIB(1),
    "lz4": uproot.LZ4(1),
    "zstd": uproot.ZSTD(1),
    "lzma": uproot.LZMA(1),
    "none": None,
}


def made(path: Path, clusters: list[int], codec: Any = CODECS["zlib"]) -> Path:
    """A file of clusters of so many events each."""
    whole = nanoaod.events(sum(clusters), 5)
    types = {
        name: values.dtype if isinstance(values, np.ndarray) else ak.type(values).content
        for name, values in whole.items()
    }
    with uproot.recreate(path, compression=codec) as file:
        tree = file.mktree(
            "Events",
            types,
            counter_name=lambda name: f"n{name}",
            field_name=lambda outer, inner: inner if outer == "" else f"{outer}_{inner}",
        )
        start = 0
        for n in clusters:
            tree.extend({name: values[start : start + n] for name, values in whole.items()})
            start += n
    return path


@contextmanager
def columns(path: Path) -> Iterator[Columns]:
    with open_file(File(str(path), (str(path),))) as file:
        found, misread = directory(file, "Events", NAMES)
        assert misread == []
        yield Columns(file, "Events", found)


def expected(path: Path, name: str, start: int, stop: int) -> Any:
    with uproot.open(path) as file:
        array = file["Events"][name].array(entry_start=start, entry_stop=stop)
    return ak.to_numpy(ak.flatten(array) if array.ndim > 1 else array)


def assert_reads(path: Path, start: int, stop: int) -> None:
    with columns(path) as read:
        for name in NAMES:
            found, right = read.read(name, start, stop), expected(path, name, start, stop)
            assert found.dtype == right.dtype
            assert found.dtype.isnative
            np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("codec", CODECS)
def test_all_codecs(codec: str, tmp_path: Path) -> None:
    path = made(tmp_path / "x.root", [70, 30, 50], CODECS[codec])
    assert_reads(path, 0, 150)
    with columns(path) as read:
        assert all(read._directory.values()), "something was left to uproot"


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("reading") / "x.root", [40, 1, 25, 60, 24])


@given(start=st.integers(0, 149), length=st.integers(1, 150))
def test_any_range(clustered: Path, start: int, length: int) -> None:
    assert_reads(clustered, start, min(150, start + length))


@pytest.mark.parametrize("length", [10, 4060, 5000, 30_000])
def test_the_number_of_entries_behind_a_title(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", {"x": np.dtype("f4")}, title="t" * length)
        tree.extend({"x": np.ones(123, "f4")})
    with open_file(File("x.root", (str(path),))) as file:
        place = entries_place(file, "Events")
        assert place is not None
        assert basket_records.entries_at(file.file.source, place) == 123


def test_a_real_file(real_data: Path) -> None:
    """A real one, of 1479 branches."""
    path = real_data / "unroot_NanoAODv5_sample.root"
    assert_reads(path, 0, 1000)
    assert_reads(path, 123, 789)


def test_rntuples_are_left_to_uproot(real_data: Path) -> None:
    (path,) = real_data.glob("*rntuple*.root")
    assert_reads(path, 2, 9)
    with columns(path) as read:
        assert not any(read._directory.values())
        read.read("event", 2, 9)
        assert read.bytes > 0


def test_blocks_end_where_clusters_do(clustered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 41)
    with columns(clustered) as read:
        assert read.cuts(0, 150) == [0, 41, 126, 150]
        assert read.cuts(50, 140) == [50, 126, 140]
        stream = Stream(read, 0, 150, {"dataset": "d"})
        parts = list(stream.blocks())
        assert [len(part) for part in parts] == [41, 85, 24]
        assert len(stream) == 150
        assert all(part.metadata == {"dataset": "d"} for part in parts)
        pt = np.concatenate([part.Jet.pt for part in parts])
        np.testing.assert_array_equal(pt, expected(clustered, "Jet_pt", 0, 150))


def test_a_column_that_uproot_reads_otherwise_is_left_to_it(
    clustered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = basket_records.unpack

    def wrong(*arguments: Any) -> Any:
        basket = right(*arguments)
        return basket._replace(values=np.zeros_like(basket.values))

    monkeypatch.setattr(reading, "unpack", wrong)
    with open_file(File("x.root", (str(clustered),))) as file:
        found, misread = directory(file, "Events", NAMES)
        assert {"Jet_pt", "event"} <= set(misread)
        found_by_uproot = Columns(file, "Events", found).read("Jet_pt", 0, 150)
    np.testing.assert_array_equal(found_by_uproot, expected(clustered, "Jet_pt", 0, 150))


def test_misread_columns_are_told(
    clustered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Columns, "agrees", lambda self, name: name != "Jet_pt")
    result = agc.run(
        *("ttbar", nanoaod.fileset(one=[clustered])),
        site="inline",
        output=tmp_path / "run",
        quiet=True,
    )
    (line,) = [line for line in result.warnings if "uproot reads them" in line]
    assert "x.root: Jet_pt have an unexpected layout" in line
    assert result.metrics.events == 150


@given(start=st.integers(0, 149), length=st.integers(1, 150))
def test_a_part_of_a_directory_is_enough(clustered: Path, start: int, length: int) -> None:
    stop = min(150, start + length)
    with columns(clustered) as whole:
        part = part_of(whole._directory, start, stop)
        read = Columns(whole._file, "Events", part)
        for name in NAMES:
            right = whole.read(name, start, stop)
            np.testing.assert_array_equal(read.read(name, start, stop), right)
        assert read.cuts(start, stop) == whole.cuts(start, stop)


def test_parts_of_a_real_directory(real_data: Path) -> None:
    path = real_data / "unroot_NanoAODv5_sample.root"
    with columns(path) as whole:
        for start, stop in ((0, 1), (10, 500), (333, 777), (999, 1000)):
            read = Columns(whole._file, "Events", part_of(whole._directory, start, stop))
            for name in NAMES:
                right = expected(path, name, start, stop)
                np.testing.assert_array_equal(read.read(name, start, stop), right)


def test_undeclared_columns_are_refused(clustered: Path) -> None:
    message = "column Jet_eta is not among those"
    with columns(clustered) as read, pytest.raises(AttributeError, match=message):
        read.read("Jet_eta", 0, 10)


@pytest.mark.parametrize("place", range(0, 80, 2))
def test_flipped_bits_are_noticed(place: int, clustered: Path, tmp_path: Path) -> None:
    with uproot.open(clustered) as file:
        branch = file["Events"]["Jet_pt"]
        seek, size = int(branch.member("fBasketSeek")[3]), int(branch.member("fBasketBytes")[3])
    content = bytearray(clustered.read_bytes())
    rng = np.random.default_rng(place)
    at = seek + size - 1 - int(rng.integers(size // 2))  # in what is compressed
    content[at] ^= 1 << int(rng.integers(8))
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(content)
    message = r"branch Jet_pt: .*basket"
    with columns(damaged) as read, pytest.raises(InputFileError, match=message):
        read.read("Jet_pt", 66, 126)


@pytest.mark.parametrize(("at", "value"), [(0, 7), (0, 2**31 - 1), (6, 2**31 - 1)])
def test_damaged_headers_are_noticed(at: int, value: int, clustered: Path, tmp_path: Path) -> None:
    """The sizes of the record (at 0) and of its content (at 6)."""
    with uproot.open(clustered) as file:
        seek = int(file["Events"]["Jet_pt"].member("fBasketSeek")[3])
    content = bytearray(clustered.read_bytes())
    content[seek + at : seek + at + 4] = value.to_bytes(4, "big")
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(content)
    message = "branch Jet_pt: a basket"
    with columns(damaged) as read, pytest.raises(InputFileError, match=message):
        read.read("Jet_pt", 66, 126)


@pytest.mark.parametrize("size", [0, 4, 17])
def test_records_too_short_for_a_header_are_noticed(size: int) -> None:
    with pytest.raises(InputFileError, match="header is damaged"):
        basket_records.unpack(memoryview(bytes(size)), 3, np.dtype(">f4"), is_jagged=False)


@pytest.mark.parametrize("codec", flips.CODECS)
def test_a_flipped_bit_of_a_header_is_refused_or_changes_nothing(codec: str) -> None:
    """Some of all; `flips` by itself tries each."""
    bench = flips.Bench(codec)
    sample = [*bench.flipped(97, len(codec)), *bench.misled(71, len(codec))]
    outcomes = [outcome for _, outcome in sample]
    assert [flip for flip, outcome in sample if outcome == "WRONG"] == []
    assert {"as uproot", "refused"} <= set(outcomes)


@pytest.mark.parametrize("name", ["MET_pt", "nJet", "Jet_pt"])
@pytest.mark.parametrize("part", [(0, flips.N), (70, 80), (91, 137)])
def test_a_basket_that_holds_other_entries_is_refused(name: str, part: tuple[int, int]) -> None:
    """The second one, less a value, and a whole header that says so."""
    bench = flips.Bench("none")
    seek = int(bench.directory[name].seeks[1])
    n = int.from_bytes(bench.bytes[seek + 14 : seek + 16], "big")
    right = bench.ours(name, bench.directory, *part)
    assert right is not None
    place = slice(seek + n - 5, seek + n - 1)
    border = int.from_bytes(bench.bytes[place], "big")
    bench.bytes[place] = (border - 4).to_bytes(4, "big")
    touched = part[0] < 92 and part[1] > 62
    assert bench.ours(name, bench.directory, *part) == (None if touched else right)


def record(content: bytes, length: int) -> memoryview:
    """A compressed basket of so many bytes, as of one branch of float32."""
    header = bytearray(40)
    header[0:4] = (len(header) + len(content)).to_bytes(4, "big")
    header[6:10] = length.to_bytes(4, "big")
    header[14:16] = len(header).to_bytes(2, "big")
    header[31:35] = (length // 4).to_bytes(4, "big")
    header[35:39] = (len(header) + length).to_bytes(4, "big")
    return memoryview(bytes(header) + content)


def part(codec: bytes, content: bytes, unpacked: int, packed: int | None = None) -> bytes:
    sizes = (len(content) if packed is None else packed, unpacked)
    return codec + b"\x01" + b"".join(size.to_bytes(3, "little") for size in sizes) + content


BOMB = bytes(cramjam.zstd.compress(bytes(200_000_000)))
PARTS = {
    "nothing": b"",
    "half a header": b"ZS\x01\0",
    "no such codec": part(b"CS", b"abc", 400),
    "nonsense for zlib": part(b"ZL", b"abc" * 9, 400),
    "nonsense for lz4": part(b"L4", b"abc" * 9, 400),
    "lz4 without a checksum": part(b"L4", b"abc", 400),
    "nonsense for zstd": part(b"ZS", b"abc" * 9, 400),
    "nonsense for lzma": part(b"XZ", b"abc" * 9, 400),
    "nothing in many parts": part(b"ZS", b"", 0) * 1000,
    "cut off": part(b"ZS", bytes(cramjam.zstd.compress(bytes(400))), 400, packed=1000),
    "too little": part(b"ZS", bytes(cramjam.zstd.compress(bytes(200))), 200),
    "less than it says": part(b"ZS", bytes(cramjam.zstd.compress(bytes(200))), 400),
    "more than it says": part(b"ZS", BOMB, 400),
    "more than is wanted": part(b"ZS", BOMB, 1 << 23),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_can_not_be_right(kind: str) -> None:
    with pytest.raises(InputFileError, match="a basket is damaged: "):
        basket_records.unpack(record(PARTS[kind], 400), 100, np.dtype(">f4"), is_jagged=False)


def test_parts_are_put_together() -> None:
    """Each by its own codec."""
    values = np.arange(100, dtype=">f4")
    halves = values[:50].tobytes(), values[50:].tobytes()
    content = part(b"ZS", bytes(cramjam.zstd.compress(halves[0])), 200)
    content += part(b"XZ", bytes(cramjam.xz.compress(halves[1])), 200)
    found = basket_records.unpack(record(content, 400), 100, values.dtype, is_jagged=False)
    assert found.values.tolist() == values.tolist()


def test_sizes_of_gigabytes_are_not_believed() -> None:
    for at in (6, 31, 35):
        raw = bytearray(record(part(b"ZS", BOMB, 400), 400))
        raw[at] ^= 0x40
        with pytest.raises(InputFileError, match="a basket is damaged: "):
            basket_records.unpack(memoryview(raw), 100, np.dtype(">f4"), is_jagged=False)


def test_a_counter_that_counts_less_than_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path, compression=None) as file:
        file.mktree("Events", {"nJet": np.int32}).extend({"nJet": np.array([2, -1, 1], np.int32)})
    with open_file(File("x.root", (str(path),))) as file:
        read = Columns(file, "Events", directory(file, "Events", ["nJet"])[0])
        (block,) = Stream(read, 0, 3, {}).blocks()
        assert block.nJet.tolist() == [2, -1, 1]  # of itself a number as any other
        with pytest.raises(InputFileError, match="branch nJet has negative counts"):
            _ = block.Jet


def test_a_file_that_was_cut_off_while_it_was_open(clustered: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.root"
    path.write_bytes(clustered.read_bytes())
    with columns(path) as read:
        read.read("Jet_pt", 0, 40)
        with path.open("r+b") as file:
            file.truncate(3000)
        with pytest.raises(InputFileError, match="branch nJet: cut off"):
            read.read("Jet_pt", 66, 150)


def test_bytes_are_counted(clustered: Path) -> None:
    with uproot.open(clustered) as file:
        size = sum(file["Events"][name].compressed_bytes for name in ("nJet", "Jet_pt"))
    with columns(clustered) as read:
        (block,) = Stream(read, 0, 150, {}).blocks()
        assert len(block.Jet.pt)
        assert 0.5 * size < read.bytes < 1.5 * size  # uproot's sizes leave out the headers
        assert read.seconds > 0


def test_remote_files_are_read_in_one_go_a_block(
    clustered: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK", 60)
    shutil.copy(clustered, web.folder / "x.root")
    with open_file(File("x.root", (web.url("x.root"),))) as file:
        read = Columns(file, "Events", directory(file, "Events", NAMES)[0])
        web.requests.clear()
        blocks = []
        for block in Stream(read, 0, 150, {}).blocks():
            jets, muons = block.Jet.pt, block.Muon.tightId
            blocks.append(len(block))
            start = sum(blocks[:-1])
            for found, name in ((jets, "Jet_pt"), (muons, "Muon_tightId")):
                right = expected(clustered, name, start, start + len(block))
                np.testing.assert_array_equal(found, right)
        assert len(blocks) > 1
        assert len(web.requests) == len(blocks)


def test_lists_with_a_counter_of_their_own_are_refused(tmp_path: Path) -> None:
    """Their events begin elsewhere than those of the collection whose name they bear."""
    path = tmp_path / "x.root"
    lists = {
        name: ak.unflatten(np.arange(6, dtype=np.float32), counts)
        for name, counts in {"Jet_pt": [1, 2, 3], "Jet_hits": [3, 2, 1]}.items()
    }
    of_events = {name: np.arange(3, dtype=np.uint32) for name in EVENT_ID}
    types = {name: ak.type(values).content for name, values in lists.items()}
    counters = {"Jet_pt": "nJet", "Jet_hits": "nHits"}
    with uproot.recreate(path) as file:
        tree = file.mktree(
            "Events",
            {**types, **{name: values.dtype for name, values in of_events.items()}},
            counter_name=counters.__getitem__,
        )
        tree.extend({**lists, **of_events})
    columns = ("Jet_pt", "Jet_hits")
    found = inspect_file(File("x.root", (str(path),)), columns, flat=True)
    assert isinstance(found, Failure)
    assert found.kind == "definite"
    assert "branch Jet_hits is counted by nHits, not by nJet" in found.reason
    as_records = inspect_file(File("x.root", (str(path),)), columns, schema="BaseSchema")
    assert isinstance(as_records, FileInfo)


@pytest.mark.parametrize("equal", [True, False])
def test_columns_with_counters_of_their_own(tmp_path: Path, *, equal: bool) -> None:
    """As ServiceX writes them: each column its own, and that of the collection beside them."""
    counts = np.array([1, 2, 3, 0] * 20)
    others = counts if equal else counts[::-1]
    of_events = {name: np.arange(80, dtype=np.uint32) for name in EVENT_ID}
    branches = {
        **of_events,
        "nJet": counts.astype(np.int64),
        "Jet_pt": ak.unflatten(np.arange(counts.sum(), dtype=np.float32), counts),
        "Jet_eta": ak.unflatten(np.arange(counts.sum(), dtype=np.float32), others),
    }
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        types = {name: ak.type(ak.Array(values)).content for name, values in branches.items()}
        file.mktree("Events", types).extend(branches)
    info = inspect_file(File("x.root", (str(path),)), ("Jet_pt", "Jet_eta"), flat=True)
    assert isinstance(info, FileInfo)
    assert not info.misread
    with open_file(File("x.root", (str(path),))) as file:
        read = Columns(file, "Events", part_of(info.directory or {}, 10, 70))
        (block,) = Stream(read, 10, 70, {}).blocks()
        assert list(block.Jet.pt) == list(ak.flatten(branches["Jet_pt"][10:70]))
        if equal:
            assert list(block.Jet.eta) == list(ak.flatten(branches["Jet_eta"][10:70]))
            assert not hasattr(block, "Jet_pt_pt")
        else:
            with pytest.raises(
                InputFileError, match="branch Jet_eta: its lists are not as long as nJet"
            ):
                _ = block.Jet.eta


@pytest.mark.parametrize("order", [1, -1])
def test_lists_without_a_counter_of_their_own(tmp_path: Path, order: int) -> None:
    """As RDataFrame writes them; uproot reads these."""
    counts = np.array([1, 2, 3, 0] * 20)
    lists = ak.unflatten(np.arange(counts.sum(), dtype=np.float32), counts[::order])
    path = tmp_path / "x.root"
    of_events = {name: np.arange(80, dtype=np.uint32) for name in EVENT_ID}
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", {**of_events, "nJet": counts.astype(np.int32), "Jet_pt": lists})
    info = inspect_file(File("x.root", (str(path),)), ("Jet_pt",), flat=True)
    assert isinstance(info, FileInfo)
    with open_file(File("x.root", (str(path),))) as file:
        (block,) = Stream(Columns(file, "Events", info.directory or {}), 10, 70, {}).blocks()
        assert block.Jet.counts.tolist() == counts[10:70].tolist()
        if order == 1:
            assert block.Jet.pt.tolist() == ak.flatten(lists[10:70]).tolist()
        else:
            with pytest.raises(InputFileError, match="Jet_pt: its lists are not as long as nJet"):
                _ = block.Jet.pt


@pytest.mark.parametrize("form", ["TTree", "RNTuple"])
def test_groups_without_a_counter(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.root"
    values = np.arange(20, dtype=np.float32)
    content = {**dict.fromkeys(EVENT_ID, values.astype(np.uint32)), "PuppiMET_pt": values}
    with uproot.recreate(path) as file:
        if form == "TTree":
            file.mktree("Events", {n: v.dtype for n, v in content.items()}).extend(content)
        else:
            file.mkrntuple("Events", content)
    info = inspect_file(File("x.root", (str(path),)), ("event", "PuppiMET_pt"), flat=True)
    assert isinstance(info, FileInfo)
    with open_file(File("x.root", (str(path),))) as file:
        (block,) = Stream(Columns(file, "Events", info.directory or {}), 5, 20, {}).blocks()
        assert block.fields == ["event", "PuppiMET"]
        assert block.PuppiMET.fields == ["pt"]
        assert block.PuppiMET.pt.tolist() == block.PuppiMET_pt.tolist() == values[5:].tolist()
        with pytest.raises(AttributeError, match="column PuppiMET_phi is not among those"):
            _ = block.PuppiMET.phi


def a_job(path: Path) -> Job:
    """The whole of a file, as the driver hands it to a worker."""
    processor = TtbarProcessor()
    names = (*processor.columns, *processor.simulation_columns)
    info = inspect_file(File(path.name, (str(path),)), names, flat=True)
    assert isinstance(info, FileInfo)
    loaded = load_processor(processor)
    return Job(
        chunk=Chunk("d", path.name, "Events", info.uuid, info.entries, 0, info.entries),
        file=File(str(path), (str(path),)),
        known=info.known(is_remembered=False),
        place=info.place,
        metadata={"dataset": "d", "process": "ttbar", "variation": "nominal"},
        columns=names,
        directory=info.directory,
        key=loaded.key,
        processor=loaded.blob,
        modules={},
        module=None,
        source=b"",
    )


def test_a_file_that_vanished_is_not_the_processors_fault(clustered: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    path.write_bytes(clustered.read_bytes())
    job = a_job(path)
    path.unlink()
    outcome = process_chunk(job)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "input"
    assert outcome.reason == "can't be opened: No such file or directory"


def test_a_file_that_is_replaced_while_it_is_open_is_not_mixed_with_the_new_one(
    clustered: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.root"
    path.write_bytes(clustered.read_bytes())
    job = a_job(path)
    first = process_chunk(job)
    assert isinstance(first, Finished)
    assert first.receipt.bytes > 0
    assert first.receipt.read_s > 0
    path.unlink()
    made(path, [70, 30, 50])
    again = process_chunk(job)
    assert isinstance(again, Failure)
    assert (again.kind, again.reason) == ("other", "it was replaced or changed while it was read")
    close_file()
    replaced = process_chunk(job)
    assert isinstance(replaced, Failure)
    assert replaced.reason.startswith("its uuid is ")


def test_counters_are_read_once_a_block(clustered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of a chunk that cuts baskets ask for them again and again."""
    with columns(clustered) as read:
        seeks = []
        pread = os.pread

        def spy(descriptor: int, size: int, seek: int) -> bytes:
            seeks.append(seek)
            return pread(descriptor, size, seek)

        monkeypatch.setattr(local_file.os, "pread", spy)
        for block in Stream(read, 10, 140, {}).blocks():
            assert len(block.Jet.pt) == len(block.Jet.jetId)
            assert len(block.Muon.tightId)
        assert len(seeks) == len(set(seeks))


def test_a_flat_processor_that_forgets_blocks_is_told(clustered: Path) -> None:
    with columns(clustered) as read:
        stream = Stream(read, 0, 150, {})
        with pytest.raises(
            AttributeError, match=r"no Jet: .* for block in agc_ml\.columnar\.events"
        ):
            _ = stream.Jet


FORMS = {
    "TTree float[3]": (np.dtype((np.float32, (3,))), np.zeros((20, 3), np.float32)),
    "TTree string": ("string", ak.Array(["a"] * 20)),
    "TTree double[]": ("var * float64", ak.Array([[1.0] * (i % 3) for i in range(20)])),
    "RNTuple vector": (None, ak.Array([[1.0] * (i % 3) for i in range(20)])),
    "RNTuple array": (None, ak.to_regular(ak.Array([[1.0, 2.0, 3.0]] * 20))),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_that_are_no_number_an_event_are_refused(form: str, tmp_path: Path) -> None:
    kind, values = FORMS[form]
    path = tmp_path / "x.root"
    content = {"LHEPdfWeight": values, **{name: np.arange(20) for name in EVENT_ID}}
    with uproot.recreate(path) as file:
        if kind is not None:
            types = {"LHEPdfWeight": kind, **dict.fromkeys(EVENT_ID, "int64")}
            file.mktree("Events", types).extend(content)
        else:
            file.mkrntuple("Events", content)
    outcome = inspect_file(File("x.root", (str(path),)), ("LHEPdfWeight",), flat=True)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "definite"
    assert "branch LHEPdfWeight is of type" in outcome.reason
    assert "not a field of a collection" in outcome.reason or "numbers are needed" in outcome.reason


def a_basket(values: Any, n_entries: int, lengths: Any = None) -> bytes:
    """A record as ROOT writes it, of what matters in it here, without compression."""
    header = bytearray(40)
    content = values.tobytes()
    header[31:35] = n_entries.to_bytes(4, "big")
    header[35:39] = (len(header) + len(content)).to_bytes(4, "big")
    if lengths is not None:
        begins = len(header) + values.itemsize * np.array([0, *np.cumsum(lengths)])
        begins[-1] = 0
        content += np.array([n_entries + 1, *begins], ">i4").tobytes()
    header[0:4] = (len(header) + len(content)).to_bytes(4, "big")
    header[6:10] = len(content).to_bytes(4, "big")
    header[14:16] = len(header).to_bytes(2, "big")
    return bytes(header) + content


@given(
    counts=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    cuts=st.lists(st.sets(st.integers(1, 11)), min_size=3, max_size=3),
    ends=st.tuples(st.integers(0, 11), st.integers(1, 12)),
    is_part=st.booleans(),
)
def test_baskets_of_each_branch_may_end_elsewhere(
    counts: list[int], cuts: list[set[int]], ends: tuple[int, int], *, is_part: bool
) -> None:
    """As in files of CMS: counters tell where events begin in baskets that hold others too."""
    n_events = len(counts)
    start = min(ends[0], n_events - 1)
    stop = min(max(ends[1], start + 1), n_events)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    contents = {
        "nJet": np.array(counts, ">u4"),
        "Jet_pt": np.arange(offsets[-1]).astype(">f4"),
        "Jet_jetId": np.arange(offsets[-1]).astype(">i4"),
    }
    written, found = bytearray(), {}
    for (name, values), inner in zip(contents.items(), cuts, strict=True):
        bounds = np.array([0, *sorted(cut for cut in inner if cut < n_events), n_events])
        places = bounds if name == "nJet" else offsets[bounds]
        records = [
            a_basket(values[a:b], int(j - i), None if name == "nJet" else counts[i:j])
            for (i, j), (a, b) in zip(
                itertools.pairwise(bounds), itertools.pairwise(places), strict=True
            )
        ]
        sizes = np.array([len(record) for record in records])
        seeks = len(written) + np.cumsum(sizes) - sizes
        found[name] = Baskets(seeks, sizes, bounds, values.dtype, name != "nJet")
        written += b"".join(records)
    used = part_of(found, start, stop) if is_part else found

    def at_once(ranges: list[tuple[int, int]]) -> list[bytes]:
        return [bytes(written[a:b]) for a, b in ranges]

    def later(ranges: list[tuple[int, int]]) -> Future[list[bytes]]:
        future: Future[list[bytes]] = Future()
        future.set_result(at_once(ranges))
        return future

    for is_local in (True, False):
        source = SimpleNamespace(read=at_once, read_ahead=later, is_local=is_local, url="x")
        columns = Columns(SimpleNamespace(file=SimpleNamespace(source=source)), "", used)
        columns.ask(start, stop)
        columns.take()
        for name, values in contents.items():
            first, last = (start, stop) if name == "nJet" else offsets[[start, stop]]
            right = values[first:last]
            assert columns.read(name, start, stop).tolist() == right.tolist()
