"""What a chunk does to its processor, no other chunk sees."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import hist
import nanoaod
import numpy as np
import pytest
from coffea.processor import ProcessorABC, column_accumulator, defaultdict_accumulator
from correctionlib import schemav2
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st

import agc_ml as agc
from agc_ml.errors import ProcessorError
from agc_ml.execution.processor import loading
from agc_ml.execution.processor.copies import LARGE, ProcessorTemplate
from agc_ml.execution.state.checkpoints import Chunk
from agc_ml.execution.worker import processors
from agc_ml.execution.worker.job import Job
from agc_ml.inputs.datasets import ExpectedFile, File

N_FILES, N_EVENTS = 3, 1000


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [
        nanoaod.write(folder / f"{i}.root", nanoaod.events(N_EVENTS, i + 1)) for i in range(N_FILES)
    ]


class Booked(ProcessorABC):
    """Books in ``__init__`` and fills in ``process``, as many do."""

    def __init__(self) -> None:
        self.out = {
            "met": hist.Hist.new.Reg(30, 0, 4e6, name="event").Weight(),
            "n": 0,
            "rows": [],
            "cuts": defaultdict_accumulator(int),
        }
        self.steps = Counter()

    def load(self, events: Any) -> None:
        self.events = events
        self.ids = np.asarray(events.event).astype(float)

    def process(self, events: Any) -> dict[str, Any]:
        self.load(events)
        time.sleep(0.02)  # so that threads meet
        self.out["met"].fill(self.ids)
        self.out["n"] += len(self.events)
        self.out["rows"].append(len(self.events))
        self.out["cuts"]["all"] += len(self.ids)
        self.steps["process"] += 1
        return {**self.out, "steps": dict(self.steps)}


def check(result: agc.RunResult, paths: list[Path], chunk_size: int) -> None:
    n, chunks = N_EVENTS * len(paths), N_EVENTS // chunk_size * len(paths)
    expected = hist.Hist.new.Reg(30, 0, 4e6, name="event").Weight()
    for i in range(len(paths)):
        expected.fill(1e6 * (i + 1) + np.arange(N_EVENTS))
    assert np.array_equal(result.hists["met"].values(), expected.values())
    assert result.outputs["n"] == n
    assert sum(result.outputs["rows"]) == n
    assert len(result.outputs["rows"]) == chunks
    assert result.outputs["steps"] == {"process": chunks}


def test_chunks_do_not_share_state_in_one_process(paths: list[Path], tmp_path: Path) -> None:
    mine = Booked()
    options = {"site": "inline", "quiet": True, "chunk_size": 250}
    result = agc.run(mine, nanoaod.fileset(tt=paths), output=tmp_path / "run", **options)
    check(result, paths, 250)
    assert mine.out["n"] == 0  # nor does the user's own object change
    assert not hasattr(mine, "events")


@pytest.mark.parametrize("processes", [True, False])
def test_chunks_do_not_share_state_between_threads(
    processes: bool, paths: list[Path], tmp_path: Path
) -> None:
    cluster = LocalCluster(
        n_workers=1, threads_per_worker=4, processes=processes, dashboard_address=":0"
    )
    with cluster, Client(cluster) as client:
        result = agc.run(
            *(Booked(), nanoaod.fileset(tt=paths)),
            client=client,
            quiet=True,
            chunk_size=100,
            output=tmp_path / "run",
        )
    check(result, paths, 100)


states = st.recursive(
    st.integers() | st.text(max_size=5) | st.floats(allow_nan=False) | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.builds(lambda values: np.array(values, float), st.lists(st.integers(0, 9), max_size=4))
    ),
    max_leaves=8,
)


def spoil(value: Any) -> Any:
    """Change all that can be changed in place."""
    if isinstance(value, dict):
        for inner in value.values():
            spoil(inner)
        value["spoilt"] = 1
    elif isinstance(value, list):
        for inner in value:
            spoil(inner)
        value.append("spoilt")
    elif isinstance(value, set):
        value.add("spoilt")
    elif isinstance(value, np.ndarray):
        value += 1
    return value


@given(state=st.dictionaries(st.sampled_from("abc"), states))
def test_no_copy_sees_what_another_one_does(state: dict[str, Any]) -> None:
    original = ProcessorTemplate(SimpleNamespace(**state))
    before = repr(vars(original.copy()))
    used = original.copy()
    for value in vars(used).values():
        spoil(value)
    used.more = 1
    assert repr(vars(original.copy())) == before


def counter() -> Any:
    n = 0

    def count() -> int:
        nonlocal n
        n += 1
        return n

    return count


def test_closures_and_cycles_are_copied_too() -> None:
    processor = SimpleNamespace(count=counter(), found=defaultdict(lambda: defaultdict(int)))
    processor.itself = processor
    original = ProcessorTemplate(processor)
    for _ in range(2):
        one = original.copy()
        assert one.count() == 1
        assert one.itself is one
        one.found["a"]["b"] += 1
        assert one.found == {"a": {"b": 1}}


def correction() -> Any:
    flat = schemav2.Correction(
        name="pu",
        version=1,
        inputs=[{"name": "x", "type": "real"}],
        output={"name": "w", "type": "real"},
        data=2.0,
    )
    return schemav2.CorrectionSet(schema_version=2, corrections=[flat]).to_evaluator()


def test_what_does_not_change_is_shared() -> None:
    table = np.arange(LARGE // 8, dtype=float)
    original = ProcessorTemplate(
        SimpleNamespace(corrections=correction(), table=table, text="x" * LARGE)
    )
    first, second = original.copy(), original.copy()
    assert first.corrections is second.corrections
    assert first.corrections["pu"].evaluate(1.0) == 2
    assert np.shares_memory(first.table, second.table)
    assert first.text is second.text
    with pytest.raises(ValueError, match="read-only"):
        first.table[0] = 5
    assert table.flags.writeable  # the user's own stays as it is


class WritesTo(ProcessorABC):
    def __init__(self) -> None:
        self.buffer = np.zeros(LARGE)

    def process(self, events: Any) -> Any:
        self.buffer[: len(events)] = events.event
        return {"n": len(events)}


def test_who_writes_to_what_is_shared_is_told(paths: list[Path], tmp_path: Path) -> None:
    fileset = nanoaod.fileset(tt=paths[:1])
    says = r"read-only, at \S+, line \d+; an array of 1 MB.*copy it in process"
    with pytest.raises(ProcessorError, match=says):
        agc.run(WritesTo(), fileset, site="inline", quiet=True, output=tmp_path / "run")


def test_a_copy_is_cheap() -> None:
    processor = Booked()
    processor.corrections, processor.tables = correction(), [np.zeros(LARGE) for _ in range(20)]
    original = ProcessorTemplate(processor)
    assert not original.notes
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        original.copy()
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.001


class Slow:
    def __reduce__(self) -> Any:
        return slow, ()


def slow() -> Slow:
    time.sleep(0.02)
    return Slow()


def test_a_pause_of_the_machine_is_no_slow_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies, copy = [], ProcessorTemplate.copy

    def paused(self: ProcessorTemplate) -> Any:
        copies.append(copy(self))
        time.sleep(0.02 if len(copies) == 2 else 0)  # the first one is not timed
        return copies[-1]

    monkeypatch.setattr(ProcessorTemplate, "copy", paused)
    assert not ProcessorTemplate(Booked()).notes
    assert len(copies) > 2


def test_a_slow_copy_is_told(paths: list[Path], tmp_path: Path) -> None:
    class Mine(ProcessorABC):
        def __init__(self) -> None:
            self.table = Slow()

        def process(self, events: Any) -> dict[str, Any]:
            return {"n": len(events)}

    result = agc.run(
        *(Mine(), nanoaod.fileset(tt=paths[:1])),
        site="inline",
        quiet=True,
        output=tmp_path / "run",
    )
    assert [line for line in result.warnings if "each chunk gets a copy" in line]


LASTING = {"n": 0, "met": hist.Hist.new.Reg(3, 0, 100, name="met").Weight()}
CONSTANT = {"luminosity": 3}


class OnTheClass(ProcessorABC):
    out = {"met": hist.Hist.new.Reg(3, 0, 100, name="met").Weight()}  # noqa: RUF012

    def process(self, events: Any) -> dict[str, Any]:
        self.out["met"].fill(np.zeros(len(events)))
        return {"nested": {"met": self.out["met"]}}


class OnTheModule(ProcessorABC):
    def process(self, events: Any) -> dict[str, Any]:
        LASTING["n"] += len(events)
        return LASTING


class Constants(ProcessorABC):
    def process(self, events: Any) -> dict[str, Any]:
        return {"stated": CONSTANT, "n": len(events)}


@pytest.mark.parametrize(
    ("made", "name"),
    [(OnTheClass, r"OnTheClass\.out\['met'\]"), (OnTheModule, "LASTING")],
)
def test_outputs_that_outlive_the_chunk_are_refused(
    made: Any, name: str, paths: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ProcessorError, match=rf"its output has the content of {name}.*, which all chunks"
    ):
        agc.run(
            *(made(), nanoaod.fileset(tt=paths)),
            site="inline",
            quiet=True,
            output=tmp_path / "run",
        )


def test_constants_may_be_returned(paths: list[Path], tmp_path: Path) -> None:
    result = agc.run(
        *(Constants(), nanoaod.fileset(tt=paths)),
        site="inline",
        quiet=True,
        output=tmp_path / "run",
    )
    assert result.outputs["n"] == N_EVENTS * N_FILES


NOTEBOOK = """
import os
import hist, numpy as np
import agc_ml as agc
from coffea.processor import ProcessorABC

CUT = 0.0
class Mine(ProcessorABC):
    def process(self, events):
        return {"n": int((np.asarray(events.genWeight) > CUT).sum())}

def go(folder):
    run = agc.run(Mine(), PATH, site="inline", quiet=True, output=folder)
    return run.outputs["n"]

first, same = go(FOLDER + "/a"), Mine.process
assert Mine.process is same
CUT = 100.0
assert (first > 0, go(FOLDER + "/b")) == (True, 0), first
CUT = 0.0
try:
    agc.run(Mine(), PATH, site="inline", quiet=True, output=FOLDER + "/b", resume=True)
    raise SystemExit("the values of another cell count")
except agc.AgcError as error:
    assert "of another processor" in str(error)
class Mine(Mine):
    def process(self, events):
        return {"n": 7}
assert go(FOLDER + "/c") == 7
"""


def test_classes_of_a_notebook_stay_the_users(paths: list[Path], tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415 - only here
    import sys  # noqa: PLC0415 - only here

    code = f"PATH, FOLDER = {str(paths[0])!r}, {str(tmp_path)!r}\n{NOTEBOOK}"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


CHANGED = """
import agc_ml as agc
import numpy as np
from coffea.processor import ProcessorABC
from distributed import Client, LocalCluster

class Mine(ProcessorABC):
    CUT = 0.0
    def process(self, events):
        return {"n": int((np.asarray(events.genWeight) > self.CUT).sum()), "cut": self.CUT}

if __name__ == "__main__":
    with LocalCluster(1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster) as client:
            for i, Mine.CUT in enumerate((30.0, 60.0, 30.0)):
                run = agc.run(Mine(), PATH, client=client, quiet=True, output=f"{FOLDER}/{i}")
                assert run.outputs["cut"] == Mine.CUT * CHUNKS, (i, run.outputs)
"""


def test_a_class_that_is_changed_between_runs_on_a_cluster(
    paths: list[Path], tmp_path: Path
) -> None:
    """Each run has it as it was; what the worker knows of one is not written over by the next."""
    import subprocess  # noqa: PLC0415 - only here
    import sys  # noqa: PLC0415 - only here

    head = f"PATH, FOLDER, CHUNKS = {str(paths[0])!r}, {str(tmp_path)!r}, 1\n"
    (tmp_path / "script.py").write_text(head + CHANGED)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_classes_of_two_runs_at_once() -> None:
    def of(cut: int) -> Job:
        namespace["P"].cut = cut
        loaded = loading.load_processor(namespace["P"]())
        return Job(
            chunk=Chunk("d", "x", "Events", "u", 1, 0, 1),
            file=File("x", ("x",)),
            known=ExpectedFile("x", "", 1, "u", 1, is_remembered=False),
            metadata={},
            columns=(),
            key=loaded.key,
            processor=loaded.blob,
            modules={},
            module=None,
            source=b"",
        )

    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class P:\n    def process(self, events): return {'n': self.cut}\n", namespace)
    jobs = [of(30), of(60)]
    originals = [processors.template_of(job) for job in jobs]
    assert [one.copy().process(None)["n"] for one in originals] == [30, 60]
    assert namespace["P"].cut == 60
    assert processors.template_of(jobs[0]).copy().cut == 30


def test_what_can_not_be_copied_is_refused() -> None:
    processor = SimpleNamespace(events=(n for n in range(3)))
    with pytest.raises(ProcessorError, match="can't be copied for each chunk"):
        ProcessorTemplate(processor)


def test_threads_may_copy_at_once() -> None:
    original = ProcessorTemplate(
        SimpleNamespace(values=list(range(100)), column=column_accumulator(np.arange(3)))
    )
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: original.copy(), range(200)))
    assert len({id(one.values) for one in copies}) == 200
    assert all(one.values == list(range(100)) for one in copies)
    assert ak.all(copies[0].column.value == np.arange(3))
