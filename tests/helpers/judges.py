"""What becomes of damaged files: looked at in a child that stays alive, and judged.

Each variant is *refused* with one line, *identical* in what it gives to the sound file, or, for
text that stays valid and means something else, *as edited*. All else is a fault: *wrong*,
*traceback*, *hung* for more than ten seconds, or ended by a *signal*.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self
from unittest import mock

import numpy as np
import yaml
from places import HELPERS, ROOT, TESTS

DEADLINE_S = 10.0
SERVE = "import judges; judges.serve()"
FAULTS = ("wrong", "traceback", "hung", "signal")


class Kind(NamedTuple):
    """How files of a kind are made, read and judged.

    ``make`` writes sound files to a folder and returns those to be damaged, each with the kind of
    its variants; ``act`` reads the folder and returns what it finds, as JSON; ``says``, of a file
    of text, returns what its content says of that, read plainly; None if it is no such text.
    ``commands`` is how many of the program's ``act`` stands for.
    """

    make: Callable[[Path], list[tuple[str, str]]]
    act: Callable[[Path], Any]
    says: Callable[[str, bytes, Any], Any] = lambda _name, _data, _found: None
    commands: int = 1


# -- in the child ----------------------------------------------------------------------------------


def serve() -> None:
    """Read folders, one a line, and say what is found in each."""
    from agc_ml.errors import AgcError  # noqa: PLC0415 - only in the child

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = KINDS[asked["kind"]].act(Path(asked["folder"]))
            answer = {"outcome": "read", "found": found}
        except AgcError as error:
            is_one_line = "\n" not in str(error).strip() and "a bug in agc-ml" not in str(error)
            answer = {"outcome": "refused" if is_one_line else "traceback", "text": str(error)}
        except Exception as error:  # noqa: BLE001 - what we look for
            answer = {"outcome": "traceback", "text": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Child:
    """A process that reads folders, started anew where one ended it."""

    def __init__(self, folder: Path) -> None:
        self._said = folder / "said"
        self._process: subprocess.Popen[str] | None = None
        self._folder = folder

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            paths = [str(HELPERS), str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "XDG_CACHE_HOME": str(self._folder / "cache"),
                "MPLBACKEND": "agg",
            }
            with self._said.open("ab") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", SERVE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    env=environment,
                )
            self.ask("nothing", self._folder, 120)
        return self._process

    def ask(self, kind: str, folder: Path, deadline: float = DEADLINE_S) -> dict[str, Any]:
        process = self._started()
        assert process.stdin
        assert process.stdout
        shutil.rmtree(self._folder / "cache", ignore_errors=True)
        before = self._said.stat().st_size
        process.stdin.write(json.dumps({"kind": kind, "folder": str(folder)}) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], deadline)
        line = process.stdout.readline() if ready else ""
        if not line:
            if not ready:
                process.kill()
            self._end()
            if not ready:
                return {"outcome": "hung"}
            return {"outcome": "signal", "text": f"exit code {process.returncode}"}
        answer: dict[str, Any] = json.loads(line)
        with self._said.open("rb") as said:
            said.seek(before)
            if b"Traceback" in (text := said.read()):
                return {"outcome": "traceback", "text": text.decode(errors="replace")[-500:]}
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            with (
                contextlib.suppress(BrokenPipeError),
                self._process,
            ):  # it closes what it is asked by
                pass
        self._process = None


class Outcome(NamedTuple):
    """What became of a variant: one of the words above, and what was said or read."""

    kind: str
    variant: str
    outcome: str
    text: str
    seconds: float


def judged(child: Child, kind: str, folder: Path, seed: int, n: int) -> Iterator[Outcome]:
    """Damage the files of a kind ``n`` times, in turns, and judge what becomes of it."""
    import damage  # noqa: PLC0415 - heavy, and not for the child

    about = KINDS[kind]
    folder.mkdir(parents=True)
    files = about.make(folder)
    sound = child.ask(kind, folder, 120)
    assert sound["outcome"] == "read", sound
    share = -(-n // len(files))
    made = [damage.variants((folder / f).read_bytes(), how, seed, share) for f, how in files]
    for number in range(n):
        name, _ = files[number % len(files)]
        variant, data = next(made[number % len(files)])
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(data)
        begun = time.monotonic()
        answer = child.ask(kind, folder, DEADLINE_S * about.commands)
        seconds = time.monotonic() - begun
        (folder / name).write_bytes(before)
        outcome, text = answer["outcome"], answer.get("text", "")
        if outcome == "read":
            outcome, text = "identical", ""
            if not same(answer["found"], sound["found"]):
                says = about.says(name, data, answer["found"])
                is_so = says is not None and same(says, answer["found"])
                outcome = "as edited" if is_so else "wrong"
                text = "" if is_so else _difference(says or sound["found"], answer["found"])
        yield Outcome(kind, f"{name}: {variant}", outcome, text, seconds)


def same(one: Any, other: Any) -> bool:
    """Whether two contents are the same JSON, NaN included."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _difference(one: Any, other: Any) -> str:
    """The first place at which two contents differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if not same(one[key], other[key]))
        return f"{key} -> {_difference(one[key], other[key])}"
    return f"{json.dumps(other)[:200]}, not {json.dumps(one)[:200]}"


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.outcome for outcome in outcomes).items()))


# -- filesets --------------------------------------------------------------------------------------

FILESET = {
    "schema": 1,
    "luminosity": {"value": 3378.0, "source": "CMS 2015"},
    "label": "made up",
    "datasets": {
        "tt": {
            "process": "ttbar",
            "variation": "scaleup",
            "xsec": {"value": 729.84, "source": "a paper"},
            "metadata": {"year": 2015, "tags": ["a", "b"]},
            "files": [
                {
                    "lfn": "/store/a.root",
                    "replicas": ["root://h//store/a.root", "https://g/store/a.root"],
                    "uuid": "3a554482-e0e1-11ea-875a-4a82e4a9beef",
                    "entries": 1334428,
                    "size": 1120034567,
                    "adler32": "8f2d11aa",
                },
                {"lfn": "/store/b.root", "replicas": ["root://h//store/b.root"], "entries": 12},
            ],
        },
        "data": {
            "process": "data",
            "is_data": True,
            "files": [{"lfn": "/d.root", "replicas": ["root://h//d.root"], "tree": "T"}],
        },
    },
}


def _make_fileset(ending: str) -> Callable[[Path], list[tuple[str, str]]]:
    def make(folder: Path) -> list[tuple[str, str]]:
        text = json.dumps(FILESET, indent=1) if ending == "json" else yaml.safe_dump(FILESET)
        (folder / f"f.{ending}").write_text(text)
        return [(f"f.{ending}", ending)]

    return make


def _read_fileset(folder: Path) -> Any:
    from agc_ml.inputs.fileset import Fileset  # noqa: PLC0415 - only in the child
    from agc_ml.inputs.formats.own import to_model  # noqa: PLC0415 - likewise

    (path,) = folder.glob("f.*")
    model = to_model(Fileset.load(path))
    return _plain(model.model_dump(mode="json", by_alias=True))


def _plain(content: Any) -> Any:
    """A fileset's content with what it means where it says nothing."""

    def number(value: Any) -> Any:
        return None if value is None else float(value)

    def quantity(value: Any) -> Any:
        return value and {"value": number(value["value"]), "source": value["source"]}

    def file(one: Any) -> Any:
        one = {"replicas": [one]} if isinstance(one, str) else one
        facts = {name: number(one.get(name)) for name in ("entries", "size", "generated")}
        first = one["replicas"][0]
        path = f"/{first.partition('://')[2].partition('/')[2]}" if "://" in first else first
        lfn = one.get("lfn") or path.replace("//", "/")
        uuid, adler = one.get("uuid"), one.get("adler32")
        places = [url if "://" in url else Path(url).name for url in one["replicas"]]
        return {
            "lfn": lfn,
            "replicas": places,
            "tree": one.get("tree", "Events"),
            **facts,
            "uuid": uuid and uuid.lower(),
            "adler32": adler and adler.lower().zfill(8),
        }

    return {
        "luminosity": quantity(content.get("luminosity")),
        "label": content.get("label"),
        "datasets": {
            name: {
                "process": d["process"],
                "variation": d.get("variation", "nominal"),
                "xsec": quantity(d.get("xsec")),
                "process_xsec": number(d.get("process_xsec")),
                "is_data": bool(d.get("is_data", False)),
                "metadata": d.get("metadata", {}),
                "files": list(map(file, d["files"])),
            }
            for name, d in content["datasets"].items()
        },
    }


def _fileset_says(name: str, data: bytes, _found: Any) -> Any:
    try:
        return _plain(json.loads(data) if name.endswith("json") else yaml.safe_load(data))
    except (ValueError, TypeError, KeyError, LookupError, AttributeError, yaml.YAMLError):
        return None


# -- fit configurations ----------------------------------------------------------------------------


def _make_config(folder: Path) -> list[tuple[str, str]]:
    from processors import ttbar  # noqa: PLC0415 - heavy

    shipped = Path(ttbar.__file__).with_name("fit.yml")
    shutil.copy(shipped, folder / "fit.yml")
    return [("fit.yml", "yaml")]


def _read_config(folder: Path) -> Any:
    import factories  # noqa: PLC0415 - heavy

    from agc_ml.statistics.workspace.fit_config import load_config  # noqa: PLC0415 - likewise
    from agc_ml.statistics.workspace.workspace import prepare  # noqa: PLC0415 - likewise

    config = load_config(folder / "fit.yml")
    if not _templates:
        _templates.update(factories.true_templates(factories.ttbar_hists()))
    return {"config": config, "workspace": prepare(_templates, config).spec}


_templates: dict[str, Any] = {}


def _config_says(_name: str, data: bytes, found: Any) -> Any:
    try:
        return {"config": yaml.safe_load(data), "workspace": found["workspace"]}
    except (ValueError, yaml.YAMLError):
        return None


# -- run directories -------------------------------------------------------------------------------


def _make_run(folder: Path) -> list[tuple[str, str]]:
    import jets  # noqa: PLC0415 - heavy
    import nanoaod  # noqa: PLC0415 - heavy

    import agc_ml as agc  # noqa: PLC0415 - heavy

    path = nanoaod.write(folder / "x.root", nanoaod.events(500, 1), cluster=100)
    agc.run(
        jets.Everything(),
        nanoaod.fileset(tt=[path]),
        site="inline",
        output=folder / "run",
        quiet=True,
    )
    kinds = {".json": "json", ".jsonl": "bytes"}
    names = sorted(file.name for file in (folder / "run").iterdir() if file.is_file())
    return [(f"run/{name}", kinds.get(Path(name).suffix, "bytes")) for name in names]


def _read_run(folder: Path) -> Any:
    from agc_ml.cli import tables  # noqa: PLC0415 - only in the child
    from agc_ml.results import histogram_files, saved_outputs  # noqa: PLC0415 - only in the child
    from agc_ml.results.run_record import load_record  # noqa: PLC0415 - likewise
    from agc_ml.results.run_result import RunResult  # noqa: PLC0415 - likewise

    run = folder / "run"
    result = RunResult.load(run)
    kept = saved_outputs.encode(result.outputs)
    return {
        "run.json": load_record(run).model_dump(mode="json", by_alias=True),
        "ledger.jsonl": result.ledger.to_jsonl(),
        "templates": {name: _bins(one) for name, one in result.templates.items()},
        "root": {
            name: _bins(one)
            for name, one in histogram_files.read_root(run / "histograms.root").items()
        },
        "outputs": [
            kept.content,
            {name: [str(a.dtype), a.shape, a.tobytes().hex()] for name, a in kept.arrays.items()},
            {name: _bins(one) for name, one in kept.histograms.items()},
        ],
        "tables": {
            name: {column: values.tobytes().hex() for column, values in table.columns().items()}
            for name, table in result.tables.items()
        },
        "shown": tables.run(load_record(run), None) is not None,
    }


def _bins(histogram: Any) -> Any:
    view = histogram.view(flow=True)
    return [str(histogram.axes), np.asarray(view).tobytes().hex()]


def _run_says(name: str, data: bytes, found: Any) -> Any:
    """The same but for the text itself: its fields as it says, others as they are by default."""
    part = Path(name).name
    try:
        if part == "run.json":
            return {**found, part: _filled(json.loads(data), found[part])}
        if part == "ledger.jsonl":
            lines = [json.loads(line) for line in data.decode().splitlines()]
            mine = [json.loads(line) for line in found[part].splitlines()]
            whole = [_filled(a, b) for a, b in zip(lines, mine, strict=True)]
            return {**found, part: "".join(json.dumps(line) + "\n" for line in whole)}
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def _filled(stated: Any, found: Any) -> Any:
    """What is stated, with what was found beside it where nothing is, and of the types found."""
    if isinstance(stated, dict) and isinstance(found, dict):
        return {**found, **{k: _filled(v, found.get(k)) for k, v in stated.items()}}
    if isinstance(stated, list) and isinstance(found, list) and len(stated) == len(found):
        return [_filled(a, b) for a, b in zip(stated, found, strict=True)]
    if isinstance(found, float | int) and isinstance(stated, float | int | str):
        return found if float(stated) == found else stated
    return stated


def _make_commands(folder: Path) -> list[tuple[str, str]]:
    from commandline import agc  # noqa: PLC0415 - only in the child

    from agc_ml.results import run_record  # noqa: PLC0415 - likewise
    from agc_ml.statistics import fit_files  # noqa: PLC0415 - likewise

    files = _make_run(folder)
    import factories  # noqa: PLC0415 - heavy

    assert agc("plot", folder / "run").code == 0
    assert run_record.load_record(folder / "run")
    fit_files.save(factories.fit_result(), folder / "fit")
    more = ("fit/fit.json", "fit/workspace.json", "run/figures/figures.json")
    return [*files, *((name, "json") for name in more)]


def _command(folder: Path) -> Any:
    """What the commands say that read a run directory, and which figures they draw."""
    from commandline import agc  # noqa: PLC0415 - only in the child

    from agc_ml.errors import RunDirectoryError  # noqa: PLC0415 - likewise

    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("run", "fit"):
        shutil.copytree(folder / name, copy / name)
    run, fit = copy / "run", copy / "fit"
    found = []
    for words in (("show", run, "--json"), ("report", run), ("plot", run), ("report", fit)):
        called = agc(*words)
        if called.code:
            raise RunDirectoryError(called.error)
        found.append(called.out)
    return [*found, sorted(file.name for file in (run / "figures").iterdir())]


def _command_says(_name: str, data: bytes, found: Any) -> Any:
    """Whatever was found in text that is still JSON: `_run_says` compares the fields."""
    try:
        [json.loads(line) for line in data.decode().splitlines() or [""]]
    except ValueError:
        try:
            json.loads(data)
        except ValueError:
            return None
    return found


# -- finished chunks of a run that goes on ---------------------------------------------------------


def _make_chunks(name: str) -> Callable[[Path], list[tuple[str, str]]]:
    def make(folder: Path) -> list[tuple[str, str]]:
        import jets  # noqa: PLC0415 - heavy
        import nanoaod  # noqa: PLC0415 - heavy

        import agc_ml as agc  # noqa: PLC0415 - heavy
        from agc_ml.execution import run as running  # noqa: PLC0415 - likewise

        path = nanoaod.write(folder / "x.root", nanoaod.events(300, 1), cluster=100)
        listed, run = nanoaod.fileset(tt=[path]), folder / "run"
        with mock.patch.object(running, "_remove"):  # it was stopped before it could
            agc.run(
                getattr(jets, name)(),
                listed,
                site="inline",
                output=run,
                chunk_size=100,
                quiet=True,
            )
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "partial"}))
        return [(f"run/chunks/{file.name}", "bytes") for file in sorted(run.glob("chunks/*"))]

    return make


def _resumed(name: str) -> Callable[[Path], Any]:
    def resume(folder: Path) -> Any:
        import jets  # noqa: PLC0415 - heavy
        import nanoaod  # noqa: PLC0415 - heavy

        import agc_ml as agc  # noqa: PLC0415 - heavy

        run = folder / "again"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "run", run)
        listed = nanoaod.fileset(tt=[folder / "x.root"])
        result = agc.run(
            getattr(jets, name)(), listed, site="inline", output=run, resume=True, quiet=True
        )
        return {
            "bins": {name: _bins(histogram) for name, histogram in result.hists.items()},
            "cutflow": {name: dict(cuts) for name, cuts in result.cutflow.items()},
            "tables": {name: table.digest for name, table in result.tables.items()},
            "array": str(result.outputs.get("array")),
            "events": result.metrics.events,
        }

    return resume


# -- ROOT files ------------------------------------------------------------------------------------


def _make_tree(folder: Path) -> list[tuple[str, str]]:
    import nanoaod  # noqa: PLC0415 - heavy

    events = nanoaod.events(400, 1)
    kept = {name: events[name] for name in ("run", "luminosityBlock", "event", "genWeight")}
    jets = events["Jet"]
    nanoaod.write(folder / "x.root", {**kept, "Jet": jets[["pt", "eta"]]}, cluster=100)
    return [("x.root", "bytes")]


def _make_rntuple(folder: Path) -> list[tuple[str, str]]:
    import awkward as ak  # noqa: PLC0415 - heavy
    import nanoaod  # noqa: PLC0415 - likewise
    import uproot  # noqa: PLC0415 - likewise

    events = nanoaod.events(400, 1)
    kept = {name: events[name] for name in ("run", "luminosityBlock", "event", "genWeight")}
    jets = events["Jet"]
    content = {**kept, "nJet": np.asarray(ak.num(jets), np.int32), "Jet_pt": jets.pt}
    with uproot.recreate(folder / "x.root") as file:
        file.mkrntuple("Events", content)
    return [("x.root", "bytes")]


def _run_over(folder: Path) -> Any:
    import jets  # noqa: PLC0415 - heavy
    import nanoaod  # noqa: PLC0415 - likewise

    import agc_ml as agc  # noqa: PLC0415 - likewise
    from agc_ml.delivery import replica_source  # noqa: PLC0415 - likewise
    from agc_ml.execution import rounds  # noqa: PLC0415 - likewise
    from agc_ml.transports import server_health  # noqa: PLC0415 - likewise

    server_health.forget()
    rounds.FIRST_WAIT_S, replica_source.PAUSE_S = 0.01, 0.05  # type: ignore[misc]
    shutil.rmtree(folder / "run", ignore_errors=True)
    listed = nanoaod.fileset(tt=[folder / "x.root"])
    result = agc.run(jets.Spectrum(), listed, site="inline", output=folder / "run", quiet=True)
    return {
        "bins": {name: _bins(histogram) for name, histogram in result.hists.items()},
        "cutflow": {name: dict(cuts) for name, cuts in result.cutflow.items()},
    }


KINDS = {
    "nothing": Kind(lambda _: [], lambda _: None),
    "fileset-json": Kind(_make_fileset("json"), _read_fileset, _fileset_says),
    "fileset-yaml": Kind(_make_fileset("yaml"), _read_fileset, _fileset_says),
    "fit-configuration": Kind(_make_config, _read_config, _config_says),
    "run-directory": Kind(_make_run, _read_run, _run_says),
    "run-commands": Kind(_make_commands, _command, _command_says, commands=4),
    "chunks": Kind(_make_chunks("Everything"), _resumed("Everything")),
    "chunks-pickled": Kind(_make_chunks("Owner"), _resumed("Owner")),
    "root-tree": Kind(_make_tree, _run_over),
    "root-rntuple": Kind(_make_rntuple, _run_over),
}
