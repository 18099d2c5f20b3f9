"""What decides a result is in its key: a resume never mixes old and new."""

from __future__ import annotations

import copy
import functools
import gzip
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import nanoaod
import numpy as np
import pytest
import urllib3
from commandline import agc as command
from hypothesis import given
from hypothesis import strategies as st
from services.web import Web

import agc_ml as agc
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.code import code_identity, source_files
from agc_ml.execution.code.canonical import NotPlainError, canonical
from agc_ml.execution.code.code_identity import digest_without_postprocess, identify_code
from agc_ml.execution.processor import attachments, loading, opened_files
from agc_ml.execution.state import provenance
from agc_ml.execution.state.checkpoints import CheckpointStore, Chunk
from agc_ml.execution.worker import processors

N = 100
without_sources = mock.patch.object(
    code_identity, "imported_sources", new=mock.Mock(return_value=({}, set()))
)
"""Values alone decide, and no source has to be read."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nanoaod.write(tmp_path_factory.mktemp("data") / "a.root", nanoaod.events(N, 1))


HEAD = """
import json, os, pathlib
import numpy as np
from coffea.processor import ProcessorABC

HERE = pathlib.Path(__file__).parent
"""
BODY = """
class Mine(ProcessorABC):
    def process(self, events):
        if os.path.exists({stop!r}) and events.metadata["entrystart"] >= 50:
            raise ValueError("stopped")
        {before}
        return {{"n": {value} * len(events)}}
    def postprocess(self, accumulator):
        {after}
"""


def module(folder: Path, head: str, value: str, before: str = "pass", after: str = "pass") -> Path:
    path = folder / "mine.py"
    body = BODY.format(stop=str(folder / "stop"), before=before, value=value, after=after)
    path.write_text(f"{HEAD}{head}\n{body}")
    return path


def go(path: Path, data: Path, *options: str) -> tuple[int, float, str]:
    """Run, or resume; gives the exit code, the result and what it said."""
    folder = path.parent / "run"
    called = command(
        *("run", f"{path}:Mine", data, "--dataset", "tt", "--cluster", "inline"),
        *("-o", folder, "--chunk-size", 10, *options),
    )
    n = agc.RunResult.load(folder).outputs.get("n", -1) if (folder / "run.json").exists() else -1
    return called.code, n, called.err


def begin(path: Path, data: Path) -> None:
    """A run that stops in the middle."""
    (path.parent / "stop").touch()
    code, _, says = go(path, data)
    assert (code, "stopped" in says) == (1, True), says
    assert len(list((path.parent / "run" / "chunks").iterdir())) == 5
    (path.parent / "stop").unlink()


DECIDES: dict[str, tuple[str, str, str]] = {
    # what makes the number 1 and the number 10; how it is used
    "file read at import": ("", "SF = json.loads((HERE / 'sf.json').read_text())", "SF"),
    "in a dictionary": ("", "S = {'a': [json.loads((HERE / 'sf.json').read_text())]}", "S['a'][0]"),
    "in a default": (
        "SF = json.loads((HERE / 'sf.json').read_text())\ndef f(x=SF): return x", "", "f()",
    ),
    "in a closure": (
        "def make(x):\n    return lambda: x\n",
        "f = make(json.loads((HERE / 'sf.json').read_text()))", "f()",
    ),
    "on the class of another": (
        "class Other:\n    x = json.loads((HERE / 'sf.json').read_text())\n", "", "Other.x",
    ),
    "in an object": (
        "class Other:\n    def __init__(self, x): self.x = x\n",
        "o = Other(json.loads((HERE / 'sf.json').read_text()))", "o.x",
    ),
    "in an array": ("", "A = np.array([json.loads((HERE / 'sf.json').read_text())])", "int(A[0])"),
    "two functions away": (
        "SF = json.loads((HERE / 'sf.json').read_text())",
        "def g(): return SF\ndef f(): return g()",
        "f()",
    ),
    "in a comprehension": (
        "SF = json.loads((HERE / 'sf.json').read_text())", "", "sum(SF for _ in range(1))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DECIDES)
def test_a_value_that_changed_is_never_mixed(kind: str, data: Path, tmp_path: Path) -> None:
    first, second, used = DECIDES[kind]
    path = module(tmp_path, f"{first}\n{second}", used)
    (tmp_path / "sf.json").write_text("1")
    begin(path, data)
    (tmp_path / "sf.json").write_text("10")
    code, n, says = go(path, data, "--resume")
    assert (code, n) == (0, 10 * N), says
    code, n, says = go(path, data, "--resume")  # complete, and the same
    assert (code, n) == (0, 10 * N), says
    (tmp_path / "sf.json").write_text("1")
    code, _, says = go(path, data, "--resume")
    assert (code, "complete, but of another processor" in says) == (2, True)


OPENS = {
    "text": "with open(HERE / 'sf.json') as f: sf = json.loads(f.read())",
    "bytes": "sf = json.loads(pathlib.Path(HERE / 'sf.json').read_bytes())",
    "array": "sf = int(np.loadtxt(str(HERE / 'sf.json')))",
    "in a thread": (
        "import concurrent.futures as c; p = c.ThreadPoolExecutor(1); "
        "sf = int(p.submit((HERE / 'sf.json').read_text).result())"
    ),
    "corrections": (
        "import correctionlib as c; "
        "sf = c.CorrectionSet.from_file(str(HERE / 'c.json.gz'))['sf'].evaluate(1.0)"
    ),
}


def write_number(folder: Path, number: int) -> None:
    (folder / "sf.json").write_text(str(number))
    content = {
        "schema_version": 2,
        "corrections": [
            {
                "name": "sf",
                "version": 1,
                "inputs": [{"name": "x", "type": "real"}],
                "output": {"name": "w", "type": "real"},
                "data": float(number),
            }
        ],
    }
    with gzip.open(folder / "c.json.gz", "wt") as file:
        json.dump(content, file)


@pytest.mark.parametrize("kind", OPENS)
def test_a_resume_is_refused_if_a_file_changed_that_it_opens(
    kind: str, data: Path, tmp_path: Path
) -> None:
    path = module(tmp_path, "", "sf", before=OPENS[kind])
    write_number(tmp_path, 1)
    begin(path, data)
    write_number(tmp_path, 10)
    name = "c.json.gz" if kind == "corrections" else "sf.json"
    code, _, says = go(path, data, "--resume")
    assert code == 2, says
    assert f"{tmp_path / name}: changed since the run began" in says
    write_number(tmp_path, 1)  # its time is another one, its content is not
    os.utime(tmp_path / "sf.json", (1, 1))
    if kind == "corrections":  # gzip writes down the time
        return
    code, n, says = go(path, data, "--resume")
    assert (code, n) == (0, N), says
    opened = agc.RunResult.load(tmp_path / "run").provenance.opened
    assert [Path(file).name for file in opened] == [name]
    write_number(tmp_path, 10)
    code, _, says = go(path, data, "--resume")  # it is complete, but not with what is there now
    assert code == 2
    assert f"{tmp_path / name}: changed since the run" in says


def test_a_file_that_changes_while_the_run_is_on_is_told(data: Path, tmp_path: Path) -> None:
    before = (
        "p = HERE / 'sf.json'; sf = int(p.read_text()); "
        "p.write_text(str(sf + 1)) if events.metadata['entrystart'] == 50 else None"
    )
    path = module(tmp_path, "", "sf", before=before)
    (tmp_path / "sf.json").write_text("1")
    code, _, says = go(path, data)
    assert code == 1
    assert "sf.json: the processor opens it, and it changed during the run" in says


def test_what_it_writes_or_belongs_to_libraries_is_no_input(data: Path, tmp_path: Path) -> None:
    before = (
        "(HERE / 'log').write_text('x'); (HERE / 'log').read_text(); "
        "import numpy, coffea; pathlib.Path(numpy.__file__).read_text(); "
        "pathlib.Path('/proc/cpuinfo').read_text()"
    )
    path = module(tmp_path, "", "1", before=before)
    code, n, says = go(path, data)
    assert (code, n) == (0, N), says
    assert not agc.RunResult.load(tmp_path / "run").provenance.opened


DECLARES = """
    files = ("sf.json", "more/c.json")
"""


@pytest.mark.parametrize("how", ["beside", "metadata"])
def test_declared_files_are_with_every_worker_and_in_the_key(
    how: str, data: Path, tmp_path: Path
) -> None:
    place = {"beside": "HERE / 'sf.json'", "metadata": "events.metadata['files']['sf.json']"}[how]
    path = module(tmp_path, "", "sf", before=f"sf = int(pathlib.Path({place}).read_text())")
    path.write_text(path.read_text().replace("(ProcessorABC):\n", f"(ProcessorABC):{DECLARES}"))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.json").write_text("{}")
    (tmp_path / "sf.json").write_text("3")
    fileset = nanoaod.fileset(tt=[data])
    code = (
        "import agc_ml as agc, os, sys\n"
        "if __name__ == '__main__':\n"
        f"    os.chdir({str(tmp_path)!r})\n"
        "    with agc.connect('local', workers=1) as client:\n"
        f"        what = {f'{path}:Mine'!r}, {str(data)!r}\n"
        "        r = agc.run(*what, client=client, output='w', quiet=True)\n"
        "        print(r.outputs['n'], sorted(r.provenance.files), sorted(r.provenance.opened))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "300 ['more/c.json', 'sf.json'] []", done.stderr
    begin(path, data)
    (tmp_path / "sf.json").write_text("5")
    code_, n, says = go(path, data, "--resume")
    assert (code_, n) == (0, 5 * N), says
    (tmp_path / "sf.json").unlink()
    code_, _, says = go(path, data, "--overwrite")
    assert code_ == 2
    assert f"Mine.files: there is no file sf.json in {tmp_path}" in says
    assert len(fileset.datasets) == 1


def test_declared_files_that_changed_make_another_processor(tmp_path: Path) -> None:
    """A worker that lives on has the earlier one, and its module, which may keep what it read."""
    path = module(tmp_path, "", "1")
    path.write_text(path.read_text().replace("(ProcessorABC):\n", f"(ProcessorABC):{DECLARES}"))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.json").write_text("{}")
    keys, modules = set(), []
    for number in ("3", "3", "5"):
        (tmp_path / "sf.json").write_text(number)
        loaded = loading.load_processor(f"{path}:Mine")
        keys.add(loaded.key)
        folder = attachments.attachment_folder(loaded.files)
        modules.append(loading.load_source(f"{folder}/mine.py", loaded.source))
    assert len(keys) == 2
    assert modules[0] is not modules[2]
    assert Path(modules[2].HERE, "sf.json").read_text() == "5"


def test_declared_files_may_be_paths(tmp_path: Path) -> None:
    path = module(tmp_path, "", "1")
    text = path.read_text().replace("(ProcessorABC):\n", "(ProcessorABC):\n    files = FILES\n")
    path.write_text(f"import pathlib\nFILES = (pathlib.Path('sf.json'), 'c.json')\n{text}")
    for name in ("sf.json", "c.json"):
        (tmp_path / name).touch()
    assert set(loading.load_processor(f"{path}:Mine").files) == {"sf.json", "c.json"}


KEEPS = """
import functools, pathlib
HERE = pathlib.Path(__file__).parent
@functools.cache
def number():
    return int((HERE / 'sf.json').read_text())
"""


def test_what_a_loose_file_keeps_of_a_file_is_read_anew(data: Path, tmp_path: Path) -> None:
    path = module(tmp_path, KEEPS, "number()")
    for number in (1, 10):
        (tmp_path / "sf.json").write_text(str(number))
        code, n, says = go(path, data, "--overwrite")
        assert (code, n) == (0, number * N), says
        opened = agc.RunResult.load(tmp_path / "run").provenance.opened
        assert [Path(file).name for file in opened] == ["sf.json"]


def test_what_a_module_keeps_of_a_file_is_no_more_used_when_that_changes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keeps_in_a_test.py").write_text(KEEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sf.json").write_text("1")
    path = module(tmp_path, "from keeps_in_a_test import number", "number()")
    code, n, says = go(path, data)
    assert (code, n) == (0, N), says
    code, n, says = go(path, data, "--overwrite")  # opens nothing, and knows what it has
    opened = agc.RunResult.load(tmp_path / "run").provenance.opened
    assert (code, n, len(opened)) == (0, N, 1), says
    (tmp_path / "sf.json").write_text("10")
    code, _, says = go(path, data, "--overwrite")
    assert code == 1
    assert "sf.json: changed since this process opened it" in says
    del sys.modules["keeps_in_a_test"]


IMPORTS = {
    "namespace package": "from namespace_in_a_test.sf import SF as x",
    "by text": "import importlib; x = importlib.import_module('namespace_in_a_test.sf').SF",
    "under another name": "import namespace_in_a_test.sf as s; x = vars(s)['SF']",
}


@without_sources
@pytest.mark.parametrize("kind", IMPORTS)
def test_values_of_modules_that_are_imported_in_process(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "namespace_in_a_test"
    folder.mkdir()
    (folder / "sf.py").write_text(
        "import pathlib\nSF = int(pathlib.Path(__file__).with_name('sf.json').read_text())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    space: dict[str, Any] = {"__name__": "nowhere"}
    exec(f"class Mine:\n    def process(self, events):\n        {IMPORTS[kind]}", space)
    digests = []
    for number in ("1", "1", "2"):
        (folder / "sf.json").write_text(number)
        digests.append(identify_code(space["Mine"]()).chunks)
        for name in ("namespace_in_a_test", "namespace_in_a_test.sf"):
            sys.modules.pop(name)
        source_files._is_installed.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def test_a_change_of_postprocess_reads_no_chunk_again(data: Path, tmp_path: Path) -> None:
    marker = "with open(HERE / 'count', 'a') as f: f.write('x')"
    path = module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['nn'] * 2}")
    code, _, says = go(path, data)
    assert code == 1
    assert re.search(r"failed: KeyError\('nn'\), at \S+mine.py, line \d+; fix it and rerun", says)
    assert len((tmp_path / "count").read_text()) == 10
    module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['n'] * 2}")
    code, n, says = go(path, data, "--resume")
    assert (code, n) == (0, 2 * N), says
    assert len((tmp_path / "count").read_text()) == 10
    module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['n'] * 3}")
    code, _, says = go(path, data, "--resume")
    assert (code, "complete, but of another processor" in says) == (2, True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("class A:\n def postprocess(s): 1", "class A:\n def postprocess(s): 2", True),
        ("class A:\n x=1\n def postprocess(s): 1", "class A:\n x=2\n def postprocess(s): 1", False),
        ("class B:\n def postprocess(s): 1", "class B:\n def postprocess(s): 2", False),
        ("def postprocess(s): 1", "def postprocess(s): 2", False),
        (
            "class A:\n def process(s): s.postprocess()\n def postprocess(s): 1",
            "class A:\n def process(s): s.postprocess()\n def postprocess(s): 2",
            False,
        ),
        (
            "class A:\n def f(s): getattr(s, 'postprocess')\n def postprocess(s): 1",
            "class A:\n def f(s): getattr(s, 'postprocess')\n def postprocess(s): 2",
            False,
        ),
        ("class A:\n x=1", "class A:\n x = 1  # more", True),
    ],
)
def test_what_postprocess_alone_means(one: str, other: str, same: bool) -> None:
    digests = [digest_without_postprocess(text.encode(), frozenset({"A"})) for text in (one, other)]
    assert (digests[0] == digests[1]) == same


def test_a_patched_constant_is_not_another_one_on_workers(data: Path, tmp_path: Path) -> None:
    """A module's constant that is set here is what it was on a worker that imports the module."""
    package = tmp_path / "patched_only"
    package.mkdir()
    (package / "__init__.py").write_text("CUT = 30\n")
    (package / "main.py").write_text(
        "import patched_only\nclass Mine:\n    def process(self, events):\n"
        "        return {'n': patched_only.CUT}\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import agc_ml as agc, patched_only\n"
        "from patched_only.main import Mine\n"
        "if __name__ == '__main__':\n"
        "    patched_only.CUT = 40\n"
        "    try:\n"
        f"        agc.run(Mine(), {str(data)!r}, workers=1, output=sys.argv[1] + '/r')\n"
        "    except agc.AgcError as error:\n"
        "        print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "CUT is 30 on a worker, and 40 where the run was started" in done.stdout, done.stderr


REMEMBERS = """
CUT, CACHE, OPTIONS, calls = 30, {}, {}, 0
class Mine:
    warned, seen = False, []
    def process(self, events):
        global calls
        calls += 1
        CACHE["2016"] = 1.5
        self.seen.append(1)
        type(self).warned = True
        factor = OPTIONS.get("factor", 1)
        return {"n": len(events) * CACHE["2016"] * (CUT == 30) * factor}
    def postprocess(self, accumulator):
        self.result = accumulator
        return accumulator
"""


@pytest.fixture
def remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that each chunk leaves something in."""
    (tmp_path / "remembers_in_a_test.py").write_text(REMEMBERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("remembers_in_a_test")
    del sys.modules["remembers_in_a_test"]


def test_what_a_run_leaves_in_modules_makes_no_other_processor(
    data: Path, tmp_path: Path, remembers: ModuleType
) -> None:
    def run(processor: Any, **how: Any) -> Any:
        what = {"site": "inline", "quiet": True, "output": tmp_path / "run", **how}
        return agc.run(processor, str(data), **what).outputs["n"]

    processor = remembers.Mine()
    assert run(processor) == 1.5 * N
    assert remembers.CACHE
    assert run(processor, resume=True) == 1.5 * N
    assert run(remembers.Mine(), output=tmp_path / "other") == 1.5 * N
    remembers.CUT = 40
    with pytest.raises(UsageError, match="complete, but of another processor"):
        run(processor, resume=True)


@without_sources
def test_a_worker_forgets_what_earlier_runs_left_in_modules(remembers: ModuleType) -> None:
    def on_a_worker(loaded: loading.LoadedProcessor) -> Any:
        job = mock.Mock(
            key=loaded.key,
            processor=loaded.blob,
            modules={"remembers_in_a_test": ""},
            module=None,
            values=loaded.values,
        )
        with (
            mock.patch.dict(processors._templates, clear=True),
            mock.patch.object(processors, "require_same_modules"),
        ):
            return processors.template_of(job).copy()

    loaded = loading.load_processor(remembers.Mine())
    remembers.CACHE["2016"], remembers.calls = 2.5, 3
    remembers.Mine.warned = True
    process = type(on_a_worker(loaded)).process
    assert not process.__globals__["CACHE"]
    again = sys.modules["remembers_in_a_test"]
    again.CACHE["2016"] = 1.5  # where the run is started
    filled = loading.load_processor(again.Mine())
    again.CACHE.clear()
    on_a_worker(filled)
    again = sys.modules["remembers_in_a_test"]
    again.OPTIONS["factor"] = 2
    with_options = loading.load_processor(again.Mine())
    again.OPTIONS.clear()
    with pytest.raises(ProcessorError, match=r"OPTIONS is {} on a worker"):
        on_a_worker(with_options)
    again = sys.modules["remembers_in_a_test"]
    again.CUT = 40  # type: ignore[attr-defined]
    changed = loading.load_processor(again.Mine())
    again.CUT = 30  # type: ignore[attr-defined]
    with pytest.raises(ProcessorError, match=r"CUT is 30 on a worker, and 40 where the run"):
        on_a_worker(changed)


@without_sources
def test_what_can_not_be_compared_is_told() -> None:
    class Restless:
        def __reduce__(self) -> Any:
            return str, (os.urandom(4).hex(),)

    code = identify_code(Holds(Restless()))
    assert code.digest == identify_code(Holds(Restless())).digest
    (note,) = code.notes
    start = "self.held is a Restless that can't be compared: --resume does not notice"
    assert note.startswith(start)
    assert not identify_code(Holds({"a": np.arange(3)})).notes


@without_sources
def test_odd_objects_end_nothing() -> None:
    class Answers:
        """Has every attribute that it is asked for."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_: Answers()

    class Raises:
        """Is found by nothing but its type."""

        __slots__ = ()

        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    class Misleads:
        """Has names that other objects have for something else."""

        @property
        def func(self) -> Any:
            raise RuntimeError("not yet")

        def canonical(self, x: Any) -> Any:
            return x

    endless: list[Any] = []
    endless.append(endless)
    odd = [Answers(), endless, mock.MagicMock(), (n for n in range(2)), sys.stdout, Raises()]
    for one in odd:
        identify_code(Holds(one))
    assert loading.load_processor(Holds(Misleads())).parameters
    assert identify_code(Holds(odd)).notes


def test_code_of_any_length_and_origin_ends_nothing() -> None:
    space: dict[str, Any] = {}
    names = "".join(f"    x{i} = events.a{i} + {i}.5\n" for i in range(300))
    exec(f"def process(events):\n{names}    import consts_far_away\n", space)
    nowhere: dict[str, Any] = {}
    exec("def helper(x): return x", nowhere)
    unset: Any

    class Late:
        held = staticmethod(nowhere["helper"])
        long = staticmethod(space["process"])

        def process(self, events: Any) -> Any:
            return events

        def postprocess(self, accumulator: Any) -> Any:
            return unset

    assert loading.load_processor(Late()).code
    unset = 1
    assert loading.load_processor(Late()).code


class Holds:
    """A processor with something on it."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def process(self, events: Any) -> dict[str, int]:
        return {"n": len(events)}


def name_of_checkpoint(processor: Any) -> str:
    """What a finished chunk is found by."""
    store = CheckpointStore(Path(), provenance.deciding(loading.load_processor(processor)))
    return store.path(Chunk("d", "a.root", "Events", "u", 1, 0, 1), {}).name


def exactly(value: Any) -> str:
    """A value as text, with the types of all that is in it."""
    if isinstance(value, dict):
        inner = [f"{exactly(key)}: {exactly(item)}" for key, item in value.items()]
    elif isinstance(value, list | tuple | set | frozenset):
        inner = [exactly(item) for item in value]
        inner = inner if isinstance(value, list | tuple) else sorted(inner)
    else:
        inner = [repr(value)]
    return f"{type(value).__name__}({', '.join(inner)})"


NEIGHBOURS: list[Any] = [
    *(lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: OrderedDict(a=x)),
    *(lambda x: ["set", x], lambda x: ["tuple", x], lambda x: ["list", x], lambda x: ["float", x]),
    *(repr, str, lambda x: defaultdict(int, a=x), lambda x: Counter(a=x), lambda x: [x, x]),
    lambda x: x.encode() if isinstance(x, str) else x,
    lambda x: Path(x) if isinstance(x, str) and "\0" not in x else x,
    lambda x: bytearray(x) if isinstance(x, bytes) else x,
    lambda x: dict(reversed(x.items())) if isinstance(x, dict) else x,
    lambda x: dict(x) if isinstance(x, dict) else x,
    lambda x: tuple(x) if isinstance(x, list) else x,
    lambda x: list(x) if isinstance(x, tuple | dict) else x,
    lambda x: list(x.items()) if isinstance(x, dict) else x,
    lambda x: {1: x, "1": x},
    lambda x: {"1": x, 1: x},
    lambda x: x + 1 if isinstance(x, int | float) else x,
    lambda x: float(x) if isinstance(x, int) and abs(x) < 1e9 else x,
    lambda x: np.float64(x) if isinstance(x, float) else x,
    lambda x: -x if isinstance(x, float | bool) else x,
    lambda x: frozenset(x) if isinstance(x, set) else x,
]
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("na1", max_size=3)
    | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, "nan", "set", ..., b"a", range(2)])
    | st.sets(st.integers(0, 2)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@without_sources
@given(plain, st.lists(st.sampled_from(NEIGHBOURS), min_size=1, max_size=2))
def test_values_that_are_near_are_told_apart(value: Any, steps: list[Any]) -> None:
    other = copy.deepcopy(value)
    for step in steps:
        other = step(other)
    same = name_of_checkpoint(Holds(value)) == name_of_checkpoint(Holds(other))
    assert same == (exactly(value) == exactly(other))


def above(x: Any, cut: float) -> Any:
    return x > cut


def make_cut(value: float) -> Any:
    def cut(x: Any) -> Any:
        return x > value

    return cut


class Helper:
    """Something with a cut, that calls it as well."""

    def __init__(self, cut: float) -> None:
        self.cut = cut

    def __call__(self, events: Any) -> Any:
        return events > self.cut

    def selected(self, events: Any) -> Any:
        return self(events)


@dataclass
class Wraps:
    func: Any
    value: float


class Settings(dict):  # type: ignore[type-arg]
    def __init__(self, more: float) -> None:
        self.more = more


class InSlot:
    __slots__ = "__cut"  # noqa: PLC0205 - as people write it

    def __init__(self, cut: float) -> None:
        self.__cut = cut

    def process(self, events: Any) -> dict[str, int]:
        return {"n": int((events > self.__cut).sum())}


def with_method(cut: float) -> Any:
    class Mine:
        def select(self, x: Any, cut: float) -> Any:
            return x > cut

        selected = functools.partialmethod(select, cut=cut)

        def process(self, events: Any) -> Any:
            return self.selected(events)

    return Mine()


def with_its_own_methods(cut: float) -> Any:
    processor = Holds(None)
    processor.held = {"a": processor.process, "b": cut}
    return processor


def with_a_base(factor: float) -> Any:
    class Base:
        def postprocess(self, accumulator: Any) -> Any:
            return {"n": accumulator["n"] * factor}

    class Mine(Base):
        def process(self, events: Any) -> Any:
            return {"n": len(events)}

        def postprocess(self, accumulator: Any) -> Any:
            return super().postprocess(accumulator)

    return Mine()


def of_text(cut: float) -> Any:
    return Holds(eval(f"lambda x: x > {cut}"))


CONSTANTS = ModuleType("constants_of_a_test")


def with_a_module(cut: float, use: str) -> Any:
    """Uses a module of the user's under another name."""
    CONSTANTS.CUT = cut  # type: ignore[attr-defined]
    space: dict[str, Any] = {"__name__": "nowhere", "constants": CONSTANTS, "above": above}
    exec(use, space)
    made = space["Mine"]()
    made.held = CONSTANTS if "self.held" in use else None
    return made


OF_A_MODULE = {
    "a global's other name": "c = constants\n        return c.CUT",
    "handed on": "return above(events, constants)",
    "on self": "return self.held.CUT",
    "asked by name": "return getattr(constants, 'CUT')",
}
TWO: dict[str, Any] = {
    "partial": lambda cut: functools.partial(above, cut=cut),
    "callable object": Helper,
    "bound method": lambda cut: Helper(cut).selected,
    "attribute partial": lambda cut: Holds(functools.partial(above, cut=cut)),
    "attribute method": lambda cut: Holds(Helper(cut).selected),
    "second of two functions": lambda cut: Holds([make_cut(1), make_cut(cut)]),
    "their order": lambda cut: Holds([make_cut(cut), make_cut(3 - cut)]),
    "functions by name": lambda cut: Holds({"a": make_cut(1), "b": make_cut(cut)}),
    "which of two": lambda cut: Holds([above, make_cut] if cut == 1 else [make_cut, above]),
    "lambdas": lambda cut: Holds([lambda x, c=c: x > c for c in (1, cut)]),
    "set of functions": lambda cut: Holds({make_cut(1), make_cut(cut + 1)}),
    "a function on an object": lambda cut: Holds(Wraps(above, cut)),
    "vectorized": lambda cut: Holds(np.vectorize(make_cut(cut))),
    "enum": lambda cut: Holds(Enum("WP", {"TIGHT": cut}).TIGHT),
    "default of a mapping": lambda cut: Holds(defaultdict(make_cut(cut))),
    "masked array": lambda cut: Holds(np.ma.array([1, 2], mask=[cut == 1, cut == 2])),
    "names of fields": lambda cut: Holds(np.zeros(1, dtype=[(f"a{cut}", "i4")])),
    "attribute of a mapping": lambda cut: Holds(Settings(cut)),
    "slot": InSlot,
    "partial method": with_method,
    "its own method beside": with_its_own_methods,
    "postprocess of a base": with_a_base,
    "made of text": of_text,
    "attribute of a function": lambda cut: Holds(functools.wraps(Wraps(0, cut))(make_cut(1))),
    **{
        f"module, {name}": lambda cut, use=use: with_a_module(
            cut, f"class Mine:\n    def process(self, events):\n        {use}\n"
        )
        for name, use in OF_A_MODULE.items()
    },
}


@without_sources
@pytest.mark.parametrize("kind", TWO)
def test_what_decides_is_in_the_key(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, CONSTANTS.__name__, CONSTANTS)
    one, other = (loading.load_processor(TWO[kind](cut)) for cut in (1, 2))
    again = loading.load_processor(TWO[kind](1))
    assert not one.notes
    assert (one.code, one.parameters) == (again.code, again.parameters)
    assert (one.code, one.parameters) != (other.code, other.parameters)
    if kind != "postprocess of a base":
        same = [(x.identity.chunks, json.dumps(x.parameters)) for x in (one, other)]
        assert same[0] != same[1]


def test_canonical_forms_of_objects() -> None:
    with pytest.raises(NotPlainError):
        canonical([object()])
    with pytest.raises(NotPlainError):
        canonical(np.array([None]))
    assert canonical({3, 1, 2}) == ["set", 1, 2, 3]
    assert canonical(np.array([1, 2])) != canonical(np.array([1, 3]))


def in_thread(action: Callable[[], object]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


def test_files_that_other_threads_open_are_none_of_the_processors(web: Web, tmp_path: Path) -> None:
    """A notebook's was there before; a web server of the process starts one a connection."""
    names = ("own", "of its thread", "of that one's", "the notebook's")
    paths = {name: tmp_path / name for name in names}
    for path in (*paths.values(), web.folder / "served"):
        path.write_text("content")
    go = threading.Event()

    def look() -> None:
        go.wait()
        paths["the notebook's"].read_bytes()

    def work() -> None:
        paths["of its thread"].read_bytes()
        in_thread(paths["of that one's"].read_bytes)

    notebook = threading.Thread(target=look)
    notebook.start()
    with opened_files.watch_opened(lambda _: False) as seen:
        go.set()
        notebook.join()
        urllib3.request("GET", web.url("served"))
        paths["own"].read_bytes()
        in_thread(work)
        assert set(seen()) == {str(paths[name]) for name in names[:3]}


def test_threads_of_a_processor_work_on(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        for name in "ab":
            path = tmp_path / name
            path.touch()
            with opened_files.watch_opened(lambda _: False) as seen:
                pool.submit(path.read_bytes).result()
                assert set(seen()) == {str(path)}


def test_opened_files_are_seen_by_content(tmp_path: Path) -> None:
    small, gone = tmp_path / "small", tmp_path / "gone"
    small.write_text("a")
    before = opened_files.file_states([str(small)])
    os.utime(small, (5, 5))
    assert opened_files.changed_files(before, opened_files.file_states([str(small)])) == []
    small.write_text("b")
    assert opened_files.changed_files(before, opened_files.file_states([str(small)])) == [
        str(small)
    ]
    assert opened_files.file_states([str(gone), str(tmp_path)]) == {}
    assert opened_files.changed_files(before, {}) == [str(small)]
    large = opened_files.FileState(opened_files.LARGEST + 1, 1, None)
    assert large.differs(opened_files.FileState(opened_files.LARGEST + 1, 2, None))


@pytest.mark.parametrize(
    ("mode", "is_read"), [("r", True), ("r+", True), ("w+", False), ("a+", False), ("w", False)]
)
def test_opened_files_are_those_that_may_be_read(mode: str, is_read: bool, tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(bytes(80))
    with opened_files.watch_opened(lambda _: False) as opened:
        path.open(mode).close()
        assert bool(opened()) == is_read
    if mode == "r+":  # as numpy maps files if it is not told otherwise
        path.write_bytes(bytes(80))
        with opened_files.watch_opened(lambda _: False) as opened:
            np.memmap(path, np.float64)
            assert list(opened()) == [str(path)]


def test_files_in_shared_memory_are_seen() -> None:
    with (
        tempfile.NamedTemporaryFile(dir="/dev/shm") as file,
        opened_files.watch_opened(lambda _: False) as opened,
    ):
        Path(file.name).read_bytes()
        assert list(opened()) == [file.name]


NOTEBOOK = """
import functools, json
from pathlib import Path

def a(events):
    return {"n": len(events) * load()}

def b(events):
    return {"n": len(events)}

def c(events):
    return {"n": len(events) * table()["cut"]}

def d(events):
    return {"n": len(events) * table()["cut"] * 2}

def load():
    return json.loads(Path(PATH).read_text())["cut"]

@functools.cache
def table():
    return json.loads(Path(PATH).read_text())
"""


def test_processors_of_a_notebook_are_told_apart_by_what_they_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are of one module; a file that one of them read may be changed before another runs."""
    table = tmp_path / "sf.json"
    namespace: dict[str, Any] = {"__name__": "__main__", "PATH": str(table)}
    exec(compile(NOTEBOOK, "<cell>", "exec", dont_inherit=True), namespace)

    monkeypatch.setattr(sys.modules["__main__"], "table", namespace["table"], raising=False)

    def run(name: str) -> int:
        options = {"site": "inline", "quiet": True, "overwrite": True, "output": tmp_path / "run"}
        return agc.run(namespace[name], str(data), **options).outputs["n"]  # type: ignore[no-any-return]

    table.write_text('{"cut": 2}')
    assert (run("a"), run("b"), run("c")) == (2 * N, N, 2 * N)
    table.write_text('{"cut": 3}')
    assert (run("b"), run("a"), run("b")) == (N, 3 * N, N)
    for name in "cd":  # which use what is in memory still
        with pytest.raises(ProcessorError, match="changed since this process opened it"):
            run(name)
    namespace["table"].cache_clear()
    assert (run("c"), run("d")) == (3 * N, 6 * N)


def test_a_file_that_is_written_to_is_none_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    with opened_files.watch_opened(lambda _: False) as opened:
        with path.open("r+") as file:
            file.write("x")
        assert opened() == {}


def test_files_that_postprocess_opens_are_compared(tmp_path: Path, data: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "class Mine:\n"
        "    def process(self, events): return {'n': len(events)}\n"
        "    def postprocess(self, out):\n"
        "        out['n'] *= int(Path(__file__).with_name('lumi').read_text())\n"
    )
    path = tmp_path / "mine.py"
    path.write_text(code)
    (tmp_path / "lumi").write_text("2")
    assert go(path, data)[:2] == (0, 2 * N)
    assert go(path, data, "--resume")[:2] == (0, 2 * N)
    (tmp_path / "lumi").write_text("3")
    status, _, says = go(path, data, "--resume")
    assert status == 2
    assert "lumi: changed since the run, whose processor opened it" in says
    assert go(path, data, "--overwrite")[:2] == (0, 3 * N)


@dataclass
class Configured:
    cut: float = 30
    inner: Any = None
    _cache: Any = None


CONFIG, SETTINGS, FILE = Configured(inner=Configured()), {"cut": 30, "file": "/a/b.json"}, "/a/b"
LAZY = Configured(cut=0.0, inner=None)


class Reads:
    def process(self, events: Any) -> Any:
        return {"n": (CONFIG, SETTINGS, FILE, LAZY)}


CHANGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "an object": (lambda m: m.setattr(CONFIG, "cut", 100), "CONFIG.cut is 30 on a worker, and 100"),
    "one inside": (lambda m: m.setattr(CONFIG.inner, "cut", 5), "CONFIG.inner.cut is 30"),
    "beside a path": (lambda m: m.setitem(SETTINGS, "cut", 5), "SETTINGS is "),
    "a path": (lambda m: m.setitem(globals(), "FILE", "/c"), "FILE is '/a/b' on a worker"),
    "a cache": (lambda m: m.setattr(CONFIG, "_cache", 5), ""),
    "what comes late": (lambda m: m.setattr(LAZY, "inner", [1, 2]), ""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_worker_has_otherwise_is_told(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change, told = CHANGES[what]
    with monkeypatch.context() as patched:
        change(patched)
        values = identify_code(Reads()).plain
    found, _ = code_identity.compare_values(Reads(), values)
    assert found is None if not told else str(found).startswith(told) or told in str(found)
    is_path = what == "a path"
    elsewhere = json.dumps({**json.loads(values), "host": "elsewhere"}).encode()
    assert (code_identity.compare_values(Reads(), elsewhere)[0] is None) == (is_path or not told)
    moved, _ = code_identity.compare_values(Reads(), values, is_moved=True)
    assert (moved is None) == (is_path or not told)


OPTIONS: dict[str, int] = {}


class SetsDefaults:
    def process(self, events: Any) -> Any:
        return {"n": len(events) * OPTIONS.setdefault("cut", 30)}


def test_what_is_taken_for_a_cache_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setitem(OPTIONS, "cut", 100)
        values = identify_code(SetsDefaults()).plain
    problem, notes = code_identity.compare_values(SetsDefaults(), values)
    assert problem is None
    assert len(notes) == 1
    assert "taken for a cache" in notes[0]


class Leaves:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SystemExit(3)


class Proxy:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("not connected")


@pytest.mark.parametrize("kind", [Leaves, Proxy])
@pytest.mark.parametrize("where", ["self", "global"])
def test_values_that_can_not_be_looked_at_end_in_a_line(where: str, kind: type) -> None:
    value = kind()
    namespace: dict[str, Any] = {"__name__": "__main__", "VALUE": value}
    exec("class P:\n    def process(self, events): return {'n': VALUE}\n", namespace)
    made = namespace["P"]()
    if where == "self":
        made.value = value
    with pytest.raises(ProcessorError, match=r"can't be (examined|sent to workers)"):
        loading.load_processor(made)


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_too_long_for_decimal_text(sign: int) -> None:
    one, other = (json.dumps(canonical(sign * 10**5000 + n)) for n in (0, 1))
    assert one != other


OPENED_BY = {
    "a folder with a name like ours": ("agc_ml/mlstudy/p.py", "open(path).close()"),
    "a file with a name like Python's": ("tokenize.py", "open(path).close()"),
    "the loader of a package": ("p.py", "import pkgutil; pkgutil.get_data('of_a_test', 'sf.json')"),
    "a module as it is imported": ("p.py", "import of_a_test.reads"),
}


@pytest.mark.parametrize("who", OPENED_BY)
def test_opened_files_are_seen_whoever_opens_them(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "reads.py").write_text(
        "import pathlib\nSF = pathlib.Path(__file__).with_name('sf.json').read_text()\n"
    )
    (package / "sf.json").write_text("1")
    monkeypatch.syspath_prepend(str(tmp_path))
    name, source = OPENED_BY[who]
    code = compile(source, str(tmp_path / name), "exec")
    with opened_files.watch_opened(lambda _: False) as opened:
        exec(code, {"path": str(package / "sf.json")})
        found = opened()
    assert list(found) == [str(package / "sf.json")]
    for module in [name for name in sys.modules if name.startswith("of_a_test")]:
        del sys.modules[module]


def test_a_loose_file_is_loaded_anew_where_it_read_something_else(tmp_path: Path) -> None:
    path = module(tmp_path, "SF = int((HERE / 'sf').read_text())", "SF")
    found = []
    for number in ("1", "1", "2"):
        (tmp_path / "sf").write_text(number)
        found.append(type(loading.load_processor(f"{path}:Mine").instance))
    assert found[0] is found[1]
    assert found[1] is not found[2]
    shutil.rmtree(tmp_path)
