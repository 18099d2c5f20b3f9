"""The cache of inspections decides nothing; files that change while they are read are noticed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import damage
import nanoaod
import numpy as np
import pytest
import stepwise
import uproot
import xxhash
from coffea.nanoevents import BaseSchema
from services.web import Web
from services.xrootd import Storage

import agc_ml as agc
from agc_ml.columnar.events import blocks
from agc_ml.errors import AgcError, IncompleteError, InputFileError, UsageError
from agc_ml.execution import rounds
from agc_ml.execution.inspection import FileInfo, inspect_file
from agc_ml.execution.state import inspection_cache
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import Dataset, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.results.run_result import RunResult
from agc_ml.transports import file_header, server_health

pytestmark = pytest.mark.usefixtures("fresh")

N, CHUNK = 1000, 250
KINDS = {"flat": stepwise.Flat(), "records": stepwise.Records()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three files of as many events, so that only their content tells them apart."""
    folder = tmp_path_factory.mktemp("files")
    return [
        nanoaod.write(folder / f"{i}.root", nanoaod.events(N, i + 1), cluster=100) for i in range(3)
    ]


def listed(*urls: str, **more: Any) -> Fileset:
    file = File("x.root", tuple(map(str, urls)), **more)
    return Fileset((Dataset("tt", "tt", (file,), xsec=1.0),), 1.0, "made up")


def run(kind: str, what: Fileset, output: Path, **options: Any) -> RunResult:
    options = {"site": "inline", "quiet": True, "chunk_size": CHUNK, **options}
    return agc.run(KINDS[kind], what, output=output, **options)


def is_of(result: RunResult, path: Path, folder: Path, kind: str) -> bool:
    """Whether a result is that of a file, to the last bit."""
    right = run(kind, listed(str(path)), folder)
    return result.cutflow == right.cutflow and all(
        np.array_equal(h.view(flow=True), result.hists[name].view(flow=True))
        for name, h in right.hists.items()
    )


def poisons() -> dict[str, Callable[[FileInfo], FileInfo]]:
    def of_jet_pt(info: FileInfo, **changes: Any) -> FileInfo:
        baskets = (info.directory or {})["Jet_pt"]
        assert baskets is not None
        changed = baskets._replace(**{k: make(getattr(baskets, k)) for k, make in changes.items()})
        return replace(info, directory={**(info.directory or {}), "Jet_pt": changed})

    return {
        "fewer entries": lambda info: replace(info, entries=744),
        "more entries": lambda info: replace(info, entries=N + 1),
        "another uuid": lambda info: replace(info, uuid="3a554482-e0e1-11ea-875a-4a82e4a9beef"),
        "another size": lambda info: replace(info, size=info.size - 1),
        "another stamp": lambda info: replace(info, stamp="yesterday"),
        "another place": lambda info: replace(
            info, place=info.place and info.place._replace(seek=9)
        ),
        "seeks": lambda info: of_jet_pt(info, seeks=lambda x: x + 4),
        "sizes": lambda info: of_jet_pt(info, sizes=lambda x: x - 1),
        "bounds": lambda info: of_jet_pt(info, bounds=lambda x: x // 2),
        "order": lambda info: of_jet_pt(info, seeks=lambda x: x[::-1], sizes=lambda x: x[::-1]),
        "type": lambda info: of_jet_pt(info, dtype=lambda _: np.dtype(">f8")),
        "no such column": lambda info: replace(
            info, directory={k: v for k, v in (info.directory or {}).items() if k != "Jet_pt"}
        ),
    }


ON_THE_WEB = ("fewer entries", "another stamp", "another place", "seeks")
"""Of those that come from a server."""


@pytest.mark.parametrize(
    ("poison", "where"), [*((p, "disk") for p in poisons()), *((p, "web") for p in ON_THE_WEB)]
)
def test_whatever_is_cached_the_result_is_the_files(
    poison: str, where: str, files: list[Path], web: Web, tmp_path: Path
) -> None:
    shutil.copy(files[0], web.folder / "x.root")
    url = web.url("x.root") if where == "web" else str(files[0])
    file = File("x.root", (url,))
    processor = KINDS["flat"]
    columns = (*processor.columns, *processor.simulation_columns)
    info = inspect_file(file, columns, flat=True)
    assert isinstance(info, FileInfo)
    cache = inspection_cache.InspectionCache()
    cache.keep(file, ColumnRequest(columns, flat=True), poisons()[poison](info))
    result = run("flat", listed(url), tmp_path / "run")
    assert result.status == "complete"
    assert is_of(result, files[0], tmp_path / "right", "flat")
    server_health.forget()
    again = run("flat", listed(url), tmp_path / "again")  # and what is cached now is right
    assert again.cutflow == result.cutflow
    assert not any("failed while it was read" in line for line in again.warnings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lies", [1, 2, 4, 10])
def test_a_smaller_number_told_once_is_not_believed(
    lies: int, kind: str, files: list[Path], web: Web, tmp_path: Path
) -> None:
    """uproot writes trees uncompressed: nothing in them shows that a number is another one."""
    shutil.copy(files[0], web.folder / "x.root")
    with uproot.open(files[0]) as opened:
        tree = opened["Events"]
        right = struct.pack(
            ">qqq", *(tree.member(m) for m in ("fEntries", "fTotBytes", "fZipBytes"))
        )
    web.lie = lambda content: content.replace(right, struct.pack(">q", 744) + right[8:])
    web.lies = lies
    for number in range(3):
        folder = tmp_path / f"run{number}"
        try:
            result = run(kind, listed(web.url("x.root")), folder)
        except AgcError:
            assert number == 0  # while it lies, an error is right, too
            web.lies = 0
            continue
        web.lies = 0
        assert result.status == "complete"
        assert result.cutflow == {"tt": {"all": N}}


@dataclass(frozen=True)
class FlatNumbers:
    """The number of events, and the sum of a column of numbers."""

    columns: ClassVar = ("x",)
    flat: ClassVar = True

    def process(self, events: Any) -> dict[str, Any]:
        parts = [np.asarray(block.x) for block in blocks(events)]
        return {"n": sum(map(len, parts)), "sum": float(sum(part.sum() for part in parts))}


@dataclass(frozen=True)
class Numbers(FlatNumbers):
    flat: ClassVar = False
    schema: ClassVar = BaseSchema


@pytest.mark.parametrize("processor", [Numbers(), FlatNumbers()])
@pytest.mark.parametrize("lies", [6, 10])
def test_a_smaller_number_of_an_rntuple_told_once_is_not_believed(
    lies: int, processor: Any, web: Web, tmp_path: Path
) -> None:
    """It says so in its list of pages; the server tells a right checksum of that."""
    path = damage.rntuple(web.folder / "x.root", {"x": np.ones(N, np.float32)})
    start, n_bytes = damage.list_of_pages(path)
    right = path.read_bytes()[start : start + n_bytes]
    wrong = right[:-8].replace(struct.pack("<QQ", 0, N), struct.pack("<QQ", 0, 744))
    wrong += struct.pack("<Q", xxhash.xxh3_64_intdigest(wrong))
    web.lie, web.lies = (lambda content: content.replace(right, wrong)), lies
    for number in range(2):
        result = agc.run(
            processor,
            listed(web.url("x.root")),
            site="inline",
            quiet=True,
            output=tmp_path / f"{number}",
        )
        assert result.outputs == {"n": N, "sum": N}
        assert not web.lies


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lies", [1, 3, 5, 9, 30])
def test_a_server_that_flips_bytes_leaves_nothing_behind(
    lies: int, kind: str, files: list[Path], web: Web, tmp_path: Path
) -> None:
    def flipped(content: bytes) -> bytes:
        values = bytearray(content)
        for i in range(len(values) // 3, len(values), max(1, len(values) // 70)):
            values[i] ^= 0x55
        return bytes(values)

    shutil.copy(files[0], web.folder / "x.root")
    web.lie, web.lies = flipped, lies
    with contextlib.suppress(InputFileError, IncompleteError):  # the processor is not to blame
        first = run(kind, listed(web.url("x.root")), tmp_path / "run")
        assert is_of(first, files[0], tmp_path / "right0", kind)
    web.lies = 0
    server_health.forget()
    later = run(kind, listed(web.url("x.root")), tmp_path / "later")
    assert is_of(later, files[0], tmp_path / "right", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_that_was_made_anew_wins_over_a_stale_one(
    kind: str, files: list[Path], tmp_path: Path
) -> None:
    first, second = (tmp_path / name for name in ("first.root", "second.root"))
    shutil.copy(files[0], first)
    shutil.copy(files[0], second)
    what = listed(str(first), str(second))
    assert is_of(run(kind, what, tmp_path / "a"), files[0], tmp_path / "right", kind)
    shutil.copy(files[1], first)
    assert is_of(run(kind, what, tmp_path / "b"), files[1], tmp_path / "right1", kind)


@pytest.fixture
def twins(tmp_path: Path) -> list[Path]:
    """Two files of one UUID and size: only their content tells them apart, or a server's times."""
    paths, uuids = [tmp_path / "a.root", tmp_path / "b.root"], []
    for factor, path in enumerate(paths, 1):
        branches = nanoaod.events(N, 1)
        branches["genWeight"] = branches["genWeight"] * np.float32(factor)
        nanoaod.write(path, branches, cluster=100, codec=None)
        with uproot.open(path) as file:
            uuids.append(file.file.uuid.bytes)
    first, second = (path.read_bytes() for path in paths)
    second = second.replace(uuids[1], uuids[0])
    paths[1].write_bytes(first[: file_header.N_BYTES] + second[file_header.N_BYTES :])
    return paths


def put(file: Path, path: Path, age: float) -> None:
    shutil.copyfile(file, path)
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.parametrize("age", [0, 1000])
@pytest.mark.parametrize(("when", "kind"), [(2, "flat"), (7, "flat"), (1, "records")])
def test_a_file_that_changes_on_the_web_is_never_mixed(
    when: int,
    kind: str,
    age: int,
    twins: list[Path],
    web: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``age`` in s: what is written twice within a second has one time."""
    monkeypatch.setattr(rounds, "FIRST_WAIT_S", 0.01)
    path = web.folder / "x.root"
    put(twins[0], path, age)
    stepwise.EVENTS[:] = [*[None] * when, lambda: put(twins[1], path, age / 2)]
    result = run(kind, listed(web.url("x.root")), tmp_path / "run")
    assert not stepwise.EVENTS
    assert result.status == "complete"
    assert is_of(result, twins[1], tmp_path / "right", kind)
    assert not any("several times or tags" in line for line in result.warnings)


def test_what_is_known_of_another_replica_does_not_mix_it_either(
    twins: list[Path], web: Web, tmp_path: Path
) -> None:
    path = web.folder / "x.root"
    for age, file in enumerate((twins[0], path)):
        put(twins[0], path, 1000)
        stepwise.EVENTS[:] = [*[None] * 5, *[lambda: put(twins[1], path, 500)] * age]
        url = str(file) if file is twins[0] else web.url("x.root")
        result = run("flat", listed(url), tmp_path / f"run{age}")
        stepwise.EVENTS.clear()
        assert is_of(result, twins[age], tmp_path / f"right{age}", "flat")


def test_a_complete_run_is_not_complete_of_other_inputs_on_the_web(
    twins: list[Path], web: Web, tmp_path: Path
) -> None:
    what, path = listed(web.url("x.root")), web.folder / "x.root"
    put(twins[0], path, 1000)
    run("flat", what, tmp_path / "run")
    web.mirrors = [0, 5]
    assert run("flat", what, tmp_path / "run", resume=True).status == "complete"
    web.mirrors = [0]
    put(twins[1], path, 500)
    with pytest.raises(UsageError, match=r"complete, but its inputs have changed.*x\.root"):
        run("flat", what, tmp_path / "run", resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_mirrors_on_the_web(kind: str, files: list[Path], web: Web, tmp_path: Path) -> None:
    """Each has a time and a tag of its own, and they take turns."""
    shutil.copy(files[0], web.folder / "x.root")
    web.mirrors = [0, 5, 9]
    result = run(kind, listed(web.url("x.root")), tmp_path / "run")
    assert result.status == "complete"
    assert is_of(result, files[0], tmp_path / "right", kind)
    assert not any("failed while it was read" in line for line in result.warnings)


def test_a_stale_replica_on_the_web(files: list[Path], web: Web, tmp_path: Path) -> None:
    for name in ("first.root", "second.root"):
        shutil.copy(files[0], web.folder / name)
    what = listed(web.url("first.root"), web.url("second.root"))
    assert is_of(run("flat", what, tmp_path / "a"), files[0], tmp_path / "right", "flat")
    shutil.copy(files[1], web.folder / "first.root")
    result = run("flat", what, tmp_path / "b")
    assert is_of(result, files[1], tmp_path / "right1", "flat")
    assert not any("the fileset says" in line for line in result.warnings)


def renamed(path: Path, other: Path) -> None:
    new = path.with_suffix(".new")
    shutil.copy(other, new)
    new.replace(path)


def overwritten(path: Path, other: Path) -> None:
    with path.open("r+b") as file:
        file.write(other.read_bytes())
        file.truncate()
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10_000_000))  # clocks of disks are coarse


CHANGES = {"renamed": renamed, "overwritten": overwritten}


@pytest.mark.parametrize(
    ("when", "kind"), [(0, "flat"), (7, "flat"), (0, "records"), (3, "records")]
)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_on_disk_is_never_mixed(
    when: int, change: str, kind: str, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.root"
    shutil.copy(files[0], path)
    stepwise.EVENTS[:] = [*[None] * when, lambda: CHANGES[change](path, files[1])]
    result = run(kind, listed(str(path)), tmp_path / "run")
    assert not stepwise.EVENTS
    assert result.status == "complete"
    assert is_of(result, files[1], tmp_path / "right", kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_processor_that_raises_on_what_is_written_meanwhile_is_not_to_blame(
    change: str, kind: str, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.root"
    shutil.copy(files[0], path)

    def change_it() -> None:
        CHANGES[change](path, files[1])
        raise ValueError("so much nonsense")

    stepwise.EVENTS[:] = [None, change_it]
    result = run(kind, listed(str(path)), tmp_path / "run")
    assert is_of(result, files[1], tmp_path / "right", kind)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", [0, 5])
def test_a_file_that_changes_on_an_xrootd_server_is_never_mixed(
    when: int, change: str, files: list[Path], storage: Storage, tmp_path: Path
) -> None:
    folder = storage.folder(files[0])
    server = storage.data(folder)
    path, url = folder / files[0].name, server.url(files[0].name)

    def change_it() -> None:
        CHANGES[change](path, files[1])
        path.chmod(0o644)
        os.utime(path, (1, 1))  # its clock counts seconds

    stepwise.EVENTS[:] = [*[None] * when, change_it]
    result = run("flat", listed(url), tmp_path / "run")
    stepwise.EVENTS.clear()
    assert result.status == "complete"
    # a server keeps the old file for whoever has it open
    of_old = change == "renamed" and is_of(result, files[0], tmp_path / "old", "flat")
    assert of_old or is_of(result, files[1], tmp_path / "right", "flat")


@pytest.mark.parametrize("change", CHANGES)
def test_a_complete_run_is_not_complete_of_other_inputs(
    change: str, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.root"
    shutil.copy(files[0], path)
    run("flat", listed(str(path)), tmp_path / "run")
    assert run("flat", listed(str(path)), tmp_path / "run", resume=True).status == "complete"
    CHANGES[change](path, files[1])
    with pytest.raises(UsageError, match=r"complete, but its inputs have changed.*x\.root"):
        run("flat", listed(str(path)), tmp_path / "run", resume=True)
    path.unlink()  # what can't be reached can't be compared
    assert run("flat", listed(str(path)), tmp_path / "run", resume=True).status == "complete"


def test_a_resume_does_not_mix_a_file_with_what_took_its_place(
    files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "x.root"
    shutil.copy(files[0], path)

    def stop() -> None:
        raise KeyboardInterrupt

    stepwise.EVENTS[:] = [*[None] * 6, stop]
    with pytest.raises(KeyboardInterrupt):
        run("flat", listed(str(path)), tmp_path / "run")
    assert len(list((tmp_path / "run" / "chunks").iterdir())) == 2
    changed = bytearray(files[0].read_bytes())  # the same UUID and size
    path.write_bytes(bytes(changed))
    os.utime(path, (1, 1))
    done: list[int] = []
    stepwise.EVENTS[:] = [lambda: done.append(1)] * 100
    result = run("flat", listed(str(path)), tmp_path / "run", resume=True)
    stepwise.EVENTS.clear()
    assert is_of(result, files[0], tmp_path / "right", "flat")
    assert len(done) > 2 * 3  # all chunks were read again


def of_two(first: Path, second: Path) -> Fileset:
    both = tuple(File(str(path), (str(path),)) for path in (first, second))
    return Fileset((Dataset("tt", "tt", both, xsec=1.0),), 1.0, "made up")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_another_one_each_time_is_missing_as_a_whole(
    kind: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bins, ledger and fractions agree on it, though a chunk of it was done before it was lost."""
    monkeypatch.setattr(rounds, "FIRST_WAIT_S", 0.01)
    path = tmp_path / "x.root"
    shutil.copy(files[1], path)
    steps = {"flat": 3, "records": 1}[kind]  # blocks of a chunk
    nothing = [None] * (steps * N // CHUNK)
    one: list[Any] = [None] * steps
    lost = [lambda: renamed(path, files[2]), lambda: renamed(path, files[1]), path.unlink]
    stepwise.EVENTS[:] = [*nothing, *(step for change in lost for step in (*one, change))]
    result = run(kind, of_two(files[0], path), tmp_path / "run", allow_missing=0.5)
    assert not stepwise.EVENTS
    assert result.status == "partial"
    assert result.cutflow["tt"]["all"] == result.ledger.events == N
    assert is_of(result, files[0], tmp_path / "right", kind)
    (entry,) = result.ledger.missing
    assert (entry.lfn, entry.uuid) == (str(path), None)
    assert "it was replaced or changed while it was read" in entry.errors[0]
    assert any(line.startswith(f"missing: tt: {path}: it was re") for line in result.warnings)
    stepwise.EVENTS[:] = [*nothing, *(step for change in lost for step in (*one, change))]
    shutil.copy(files[1], path)
    with pytest.raises(IncompleteError, match=r"it was replaced.*\(tt lacks 50\.00%\)"):
        run(kind, of_two(files[0], path), tmp_path / "less", allow_missing=0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_ends_a_run_is_told_though_a_file_is_in_doubt(
    kind: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "FIRST_WAIT_S", 0.01)
    without = nanoaod.events(N, 4)
    del without["genWeight"]
    other = nanoaod.write(tmp_path / "other.root", without, cluster=100)
    path = tmp_path / "x.root"
    shutil.copy(files[0], path)
    steps = {"flat": 3, "records": 1}[kind]
    stepwise.EVENTS[:] = [*[None] * steps, lambda: renamed(path, other)]
    with pytest.raises(InputFileError, match="branches are missing that the processor needs: genW"):
        run(kind, of_two(path, files[1]), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "partial"


def test_datasets_without_events_are_told(files: list[Path], tmp_path: Path) -> None:
    empty = nanoaod.write(
        tmp_path / "empty.root", {k: v[:0] for k, v in nanoaod.events(3, 1).items()}
    )
    what = nanoaod.fileset(full=[files[0]], none=[empty])
    result = run("flat", what, tmp_path / "run")
    assert result.status == "complete"
    assert result.cutflow == {"full": {"all": N}}
    assert any(
        "dataset none: no events in any of its files; it is not in the result" in line
        for line in result.warnings
    )
    with pytest.raises(AgcError, match="no events in it"):
        run("flat", nanoaod.fileset(none=[empty]), tmp_path / "other")


def test_a_processors_own_failing_read_is_its_own(files: list[Path], tmp_path: Path) -> None:
    class Reads(stepwise.Records):
        def process(self, events: Any) -> Any:
            with uproot.open(str(files[1].with_name("pileup.root"))) as file:
                return {"n": file["x"].num_entries}

    class Lacks(stepwise.Records):
        def process(self, events: Any) -> Any:
            with uproot.open(str(files[1])) as file:
                return {"n": file["no such tree"].num_entries}

    class Opens(stepwise.Records):
        def process(self, events: Any) -> Any:
            import fsspec  # noqa: PLC0415 - only here

            with fsspec.open(str(tmp_path / "corrections.json")) as file:
                return json.load(file)

    for made in (Reads, Lacks, Opens):
        with pytest.raises(agc.AgcError, match=r"processor .*(FileNotFound|KeyInFile)"):
            agc.run(
                *(made(), listed(str(files[0]))),
                site="inline",
                quiet=True,
                output=tmp_path / made.__name__,
                allow_missing=0.9,
            )
