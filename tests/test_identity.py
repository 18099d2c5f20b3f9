"""What decides a result is in its key: a resume never mixes old and new."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from agc_ml import opened_files, shipping
from agc_ml.identity import code_of, without_postprocess
from agc_ml.referred import NotPlainError, canonical

N = 100


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
    assert (code, "made with another processor" in says) == (2, True)


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
    assert "sf.json: the processor opens it, and it changed while the run was on" in says


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


def test_a_change_of_postprocess_reads_no_chunk_again(data: Path, tmp_path: Path) -> None:
    marker = "with open(HERE / 'count', 'a') as f: f.write('x')"
    path = module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['nn'] * 2}")
    code, _, says = go(path, data)
    assert code == 1
    assert "postprocess failed: KeyError('nn'); mend it and use --resume" in says
    assert len((tmp_path / "count").read_text()) == 10
    module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['n'] * 2}")
    code, n, says = go(path, data, "--resume")
    assert (code, n) == (0, 2 * N), says
    assert len((tmp_path / "count").read_text()) == 10
    module(tmp_path, "", "1", before=marker, after="return {'n': accumulator['n'] * 3}")
    code, _, says = go(path, data, "--resume")
    assert (code, "made with another processor" in says) == (2, True)


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
    digests = [without_postprocess(text.encode(), frozenset({"A"})) for text in (one, other)]
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


def test_what_can_not_be_compared_is_told() -> None:
    class Holds:
        def __init__(self, value: Any) -> None:
            self.value = value

        def process(self, events: Any) -> dict[str, int]:
            return {"n": len(events)}

    class Restless:
        def __reduce__(self) -> Any:
            return str, (os.urandom(4).hex(),)

    code = code_of(Holds(Restless()))
    assert code.digest == code_of(Holds(Restless())).digest
    (note,) = code.notes
    assert note.startswith("self.value is a Restless that can't be compared: a change of it")
    assert not code_of(Holds({"a": np.arange(3)})).notes


def test_odd_objects_end_nothing() -> None:
    class Answers:
        """Has every attribute that it is asked for."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_: Answers()

    endless: list[Any] = []
    endless.append(endless)

    class Holds:
        def __init__(self) -> None:
            self.values = [Answers(), endless, mock.MagicMock(), (n for n in range(2)), sys.stdout]

        def process(self, events: Any) -> dict[str, int]:
            return {"n": len(events)}

    assert code_of(Holds()).notes


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=6,
)


@given(plain, plain)
def test_canonical_forms_tell_values_apart(one: Any, other: Any) -> None:
    same = json.dumps(canonical(one)) == json.dumps(canonical(other))
    assert same == (repr(one) == repr(other))
    assert json.dumps(canonical(one)) == json.dumps(canonical(one))


def test_canonical_forms_of_objects() -> None:
    with pytest.raises(NotPlainError):
        canonical([object()])
    with pytest.raises(NotPlainError):
        canonical(np.array([None]))
    assert canonical({3, 1, 2}) == ["set", 1, 2, 3]
    assert canonical({1: 2}) != canonical({"1": 2})
    assert canonical(np.array([1, 2])) != canonical(np.array([1, 3]))
    assert canonical(True) is not canonical(1)


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
    with opened_files.watched(lambda _: False) as seen:
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
            with opened_files.watched(lambda _: False) as seen:
                pool.submit(path.read_bytes).result()
                assert set(seen()) == {str(path)}


def test_opened_files_are_seen_by_content(tmp_path: Path) -> None:
    small, gone = tmp_path / "small", tmp_path / "gone"
    small.write_text("a")
    before = opened_files.seen([str(small)])
    os.utime(small, (5, 5))
    assert opened_files.changed(before, opened_files.seen([str(small)])) == []
    small.write_text("b")
    assert opened_files.changed(before, opened_files.seen([str(small)])) == [str(small)]
    assert opened_files.seen([str(gone), str(tmp_path)]) == {}
    assert opened_files.changed(before, {}) == [str(small)]
    large = opened_files.Seen(opened_files.LARGEST + 1, 1, None)
    assert large.differs(opened_files.Seen(opened_files.LARGEST + 1, 2, None))


def test_a_loose_file_is_loaded_anew_where_it_read_something_else(tmp_path: Path) -> None:
    path = module(tmp_path, "SF = int((HERE / 'sf').read_text())", "SF")
    found = []
    for number in ("1", "1", "2"):
        (tmp_path / "sf").write_text(number)
        found.append(type(shipping.prepare(f"{path}:Mine").processor))
    assert found[0] is found[1]
    assert found[1] is not found[2]
    shutil.rmtree(tmp_path)
