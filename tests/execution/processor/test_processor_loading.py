from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cloudpickle
import faulty
import nanoaod
import numpy as np
import pytest
from coffea.processor import ProcessorABC

import agc_ml as agc
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.code import code_identity, module_versions, source_files
from agc_ml.execution.processor import declarations, loading
from processors.ttbar import TtbarProcessor

SOURCE = """
import warnings
from dataclasses import dataclass
from typing import ClassVar
from coffea.processor import ProcessorABC

FACTOR = {factor}

@dataclass(frozen=True)
class Mine(ProcessorABC):
    cut: float = 3.0

    def process(self, events):
        return {{"n": len(events) * FACTOR}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's: a processor and a helper that it imports inside a function."""
    folder = tmp_path / "mine_and_only"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("CUT = 30\n")
    (folder / "main.py").write_text(
        "class Mine:\n"
        "    def process(self, events):\n"
        "        from mine_and_only.helper import CUT\n"
        "        return {'n': CUT}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()  # where an earlier test had it
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("mine_and_only")]:
        del sys.modules[name]
    module_versions._versions.clear()
    source_files.source_of.cache_clear()
    source_files._is_installed.cache_clear()
    importlib.invalidate_caches()


def test_digest_follows_what_the_processor_imports(package: Path) -> None:
    first = loading.load_processor("mine_and_only.main:Mine").code
    assert loading.load_processor("mine_and_only.main:Mine").code == first
    (package / "unrelated.py").write_text("CUT = 31\n")
    assert loading.load_processor("mine_and_only.main:Mine").code == first
    (package / "helper.py").write_text("CUT = 31\n")
    forget()
    assert loading.load_processor("mine_and_only.main:Mine").code != first


DECORATORS = """
def bare(function):
    def inner(*arguments): return function(*arguments)
    return inner
"""

MANY = """
import dataclasses, enum, functools, typing
from mine_and_only.decorators import bare

def around(function):
    @functools.wraps(function)
    def inner(*arguments): return function(*arguments)
    return inner

@dataclasses.dataclass
class Cut:
    low: float = 30.0

class Point(typing.NamedTuple):
    x: float

class Kind(enum.Enum):
    ONE = enum.auto()

half = lambda x: x / 2
CUTS = {"third": lambda x: x / 3}
fifth = functools.partial(lambda x: x / 5)

@functools.cache
def two(): return 2

@bare
def seven(): return 7

class Mine:
    class Inner:
        def f(self): return "inner"
    @staticmethod
    def cut(x): return x > 30
    @classmethod
    def name(cls): return [n for n in "mine"]
    @property
    def low(self): return Cut().low
    @around
    def process(self, events):
        return {"n": half(Point(60).x)}
"""


def imported(package: Path, content: str) -> ModuleType:
    (package / "decorators.py").write_text(DECORATORS)
    (package / "main.py").write_text(content)
    return importlib.import_module("mine_and_only.main")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x > 30", "x > 31"),
        ("x / 2", "x / 4"),
        ("x / 3", "x / 4"),
        ("x / 5", "x / 4"),
        ("return 2", "return 3"),
        ("return 7", "return 8"),
        ('"inner"', '"outer"'),
        ('"mine"', '"yours"'),
        ("Cut().low", "Cut().low + 1"),
        ("function(*arguments)", "function(*arguments) or None"),
        ("Point(60)", "Point(61)"),
        ("class Mine:", "class Mine"),
    ],
)
def test_code_that_was_edited_before_the_first_run_is_refused(
    before: str, after: str, package: Path
) -> None:
    """By the compiled functions: what a module holds now and what its file would make of them."""
    imported(package, MANY)
    (package / "main.py").write_text(MANY.replace(before, after, 1))
    with pytest.raises(ProcessorError, match=r"main\.py: edited after it was imported"):
        loading.load_processor("mine_and_only.main:Mine")


UNEDITED = {
    "nothing": "",
    "functions that are made by exec": "exec(compile('def two(): return 1', __file__, 'exec'))",
    "code that is replaced": "half.__code__ = half.__code__.replace(co_name='x')",
    "what is not a number": "def huge(): return 1e999 - 1e999",
    "text of which Python warns": r"PATTERN = '\d+'",
    "an object that is around itself": "Odd = type('Odd', (), {}); o = Odd(); o.__wrapped__ = o",
    "an object that can't be looked at": (
        "class Odd:\n    @property\n    def __dict__(self): raise RuntimeError\no = Odd()"
    ),
}


@pytest.mark.parametrize("what", UNEDITED)
def test_code_that_was_not_edited_is_taken(
    what: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported(package, f"{MANY}\n{UNEDITED[what]}\n")
    assert loading.load_processor("mine_and_only.main:Mine")


def test_functions_that_are_gone_from_a_file_stay_where_it_was_reloaded(package: Path) -> None:
    module = imported(package, MANY)
    loading.load_processor("mine_and_only.main:Mine")
    (package / "main.py").write_text(MANY.replace("half", "one_half"))
    importlib.reload(module)
    assert module.half
    assert loading.load_processor("mine_and_only.main:Mine")


def test_a_line_more_is_no_other_code(package: Path) -> None:
    imported(package, MANY)
    (package / "main.py").write_text(f"# a comment\n{MANY}")
    assert loading.load_processor("mine_and_only.main:Mine")


@pytest.mark.parametrize("is_first", [True, False])
def test_functions_that_a_notebook_reloads_are_taken(is_first: bool, package: Path) -> None:
    """IPython's autoreload sets them, and nothing else of a module."""
    module = imported(package, MANY)
    if not is_first:
        loading.load_processor("mine_and_only.main:Mine")
    content = MANY.replace("x / 2", "x / 4")
    (package / "main.py").write_text(content)
    exec(compile(content, str(module.__file__), "exec", dont_inherit=True), vars(module))
    assert loading.load_processor("mine_and_only.main:Mine")


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("if TYPE_CHECKING:\n    {}\n", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    {}\n", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    {}\n", True),
        ("if not TYPE_CHECKING:\n    {}\n", True),
        ("if TYPE_CHECKING or True:\n    {}\n", True),
        ("import sys\nif sys.version_info > (3,):\n    {}\n", True),
        ("try:\n    {}\nexcept ImportError:\n    pass\n", True),
    ],
)
def test_digest_leaves_out_what_only_a_type_checker_imports(
    text: str, counts: bool, package: Path
) -> None:
    begin = "from typing import TYPE_CHECKING\n"
    body = text.format("from mine_and_only.helper import CUT")
    end = "class Mine:\n    def process(self, events):\n        return {'n': 1}\n"
    (package / "main.py").write_text(begin + body + end)
    first = loading.load_processor("mine_and_only.main:Mine")
    assert ("mine_and_only.helper" in first.modules) == counts
    (package / "helper.py").write_text("CUT = 31\n")
    forget()
    assert (loading.load_processor("mine_and_only.main:Mine").code != first.code) == counts


def test_code_that_was_edited_after_it_was_imported_is_refused(package: Path) -> None:
    first = loading.load_processor("mine_and_only.main:Mine").code
    text = (package / "main.py").read_text()
    (package / "main.py").write_text(text.replace("'n': CUT", "'n': 2 * CUT"))
    with pytest.raises(ProcessorError, match=r"main\.py: edited after it was imported"):
        loading.load_processor("mine_and_only.main:Mine")
    importlib.reload(sys.modules["mine_and_only.main"])
    assert loading.load_processor("mine_and_only.main:Mine").code != first


def test_long_lived_worker_runs_the_code_that_is_meant(package: Path, tmp_path: Path) -> None:
    data = nanoaod.write(tmp_path / "a.root", nanoaod.events(50, 1))
    counts = []
    with agc.connect("local", workers=1) as client:
        for cut in (30, 4000):
            (package / "helper.py").write_text(f"CUT = {cut}\n")
            forget()
            result = agc.run(
                *("mine_and_only.main:Mine", str(data)),
                client=client,
                output=tmp_path / f"run{cut}",
                quiet=True,
            )
            counts.append(result.outputs["n"])
    assert counts == [30, 4000]


class Scaled:
    """State beyond the fields of a dataclass: what decides must be in the identity."""

    factor = 1

    def process(self, events):
        return {"n": self.factor}


def closing_over(value: int) -> type:
    class Made:
        def process(self, events):
            return {"n": value}

    return Made


def test_identity_covers_state_outside_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Base:
        cut: float = 1.0

        def process(self, events): ...

    one, two = Base(), Base()
    two.table = {"cut": 2}  # set beside the fields, as a __post_init__ would
    parameters = [loading.load_processor(processor).parameters for processor in (one, two)]
    assert parameters[0] != parameters[1]
    one, two = (code_identity.identify_code(closing_over(value)()).digest for value in (1, 2))
    assert one != two
    assert code_identity.identify_code(closing_over(1)()).digest == one
    before = code_identity.identify_code(Scaled()).digest
    monkeypatch.setattr(Scaled, "factor", 1000)
    assert code_identity.identify_code(Scaled()).digest != before


def test_identity_is_the_same_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from agc_ml.execution.processor import loading\n"
        "namespace = {'__name__': '__main__'}\n"
        'code = \'class P:\\n    names = {"a", "b", "c"}\\n\'\n'
        "code += '    def process(self, events): return {\"n\": 1}\\n'\n"
        "exec(code, namespace)\n"
        "p = namespace['P']()\n"
        "p.chosen = {'x', 'y', 'z'}\n"
        "s = loading.load_processor(p)\n"
        "print(s.code, s.parameters)\n"
    )
    outputs = {
        subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(outputs) == 1


def test_digest_covers_all_of_the_ttbar_physics() -> None:
    files = source_files.imported_sources({"processors.ttbar"})[0].values()
    names = {path.name for path in files}
    assert names >= {
        "selection.py",
        "observables.py",
        "systematics.py",
        "assignment.py",
        "jagged.py",
        "combinatorics.py",
        "kinematics.py",
        "forest.py",
        "xgboost_file.py",
        "model.py",
        "backends.py",
        "histograms.py",
        "events.py",
        "variations.py",
    }
    assert not any("site-packages" in str(path) for path in files)


def test_digest_of_a_class_without_a_file() -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    code = "class P:\n    cut = {}\n    def process(self, events): return {{'n': self.cut}}\n"
    digests = set()
    for cut in (1, 2):
        exec(code.format(cut), namespace)
        digests.add(code_identity.identify_code(namespace["P"]()).digest)
    assert len(digests) == 2


def test_parameters_are_typed() -> None:
    loaded = loading.load_processor("ttbar", {"compat": "yes", "seed": "7"})
    assert loaded.instance == TtbarProcessor(compat=True, seed=7)
    assert loaded.parameters == {"compat": True, "model": None, "muons": True, "seed": 7}
    assert cloudpickle.loads(loaded.blob) == (loaded.instance, None)


def test_parameters_without_a_default_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n"
        "    def __init__(self, cut: float, *more, **others): self.cut = cut\n"
        "    def process(self, events): return {}\n"
    )
    with pytest.raises(
        UsageError, match=r"Mine: missing parameter cut; set it with --set cut=VALUE"
    ):
        loading.load_processor(f"{path}:Mine")
    assert loading.load_processor(f"{path}:Mine", {"cut": "2.5"}).instance.cut == 2.5


HINTED = """
from __future__ import annotations
from typing import TYPE_CHECKING, Optional
if TYPE_CHECKING:
    from nowhere import Unknown
class Base:
    def __init__(self, other: Unknown = None, name: str = "x", cut: Optional[float] = 1.5, n=None):
        self.name, self.cut, self.n = name, cut, n
    def process(self, events): return {}
class Mine(Base):
    year: int
def function(events, other: Unknown = None, name: str = "x", cut: float | None = 1.5, n=None):
    return {}
"""


@pytest.mark.parametrize("made", ["Base", "Mine", "function"])
def test_a_hint_that_can_not_be_resolved_leaves_the_others(made: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HINTED)

    def given(**settings: str) -> dict[str, object]:
        processor = loading.load_processor(f"{path}:{made}", settings).instance
        return vars(processor) if made != "function" else processor.values

    assert given(name="2018", cut="3", n="5").items() >= {"name": "2018", "cut": 3, "n": 5}.items()
    assert isinstance(given(cut="3")["cut"], float)
    found = given(name="None", cut="None", n="None")
    assert (found["name"], found["cut"], found["n"]) == ("None", None, None)


def test_parameters_that_are_no_json_are_known_by_digest() -> None:
    @dataclass
    class Table:
        values: object

        def process(self, events: object) -> None: ...

    one, two = (loading.load_processor(Table(values)).parameters for values in ({1, 2}, {1, 3}))
    assert one != two
    assert one["values"] == ["set", 1, 2]
    table, other = (loading.load_processor(Table(np.arange(n))).parameters for n in (3, 4))
    assert table != other
    assert table["values"][:3] == ["array", "<i8", [3]]


def test_registered_processors() -> None:
    assert set(loading.registered()) >= {"ttbar", "dimuon"}


@pytest.mark.parametrize("site", ["inline", "local"])
def test_loose_file_travels_and_an_edited_one_is_another(tmp_path: Path, site: str) -> None:
    data = nanoaod.write(tmp_path / "a.root", nanoaod.events(50, 1))
    path = tmp_path / "mine.py"
    counts = []
    for factor in (1, 10):
        path.write_text(SOURCE.format(factor=factor))
        result = agc.run(
            f"{path}:Mine",
            str(data),
            site=site,
            workers=1 if site == "local" else None,
            settings={"cut": "4"},
            output=tmp_path / f"run{factor}",
            quiet=True,
        )
        assert result.provenance.processor.parameters == {"cut": 4.0}
        counts.append(result.outputs["n"])
    assert counts == [50, 500]


def test_plain_coffea_processor_needs_nothing_of_ours(tmp_path: Path) -> None:
    data = nanoaod.write(tmp_path / "a.root", nanoaod.events(50, 1))
    result = agc.run(
        faulty.Plain(), str(data), site="inline", output=tmp_path / "run", chunk_size=20, quiet=True
    )
    assert list(result.templates) == ["a/pt"]
    assert result.templates["a/pt"].sum(flow=True).value > 0
    loaded = agc.RunResult.load(tmp_path / "run")
    assert list(loaded.templates) == ["a/pt"]
    assert loaded.outputs == result.outputs == {"a": {"entries": 50}}


def test_class_defined_here_travels_by_value(tmp_path: Path) -> None:
    class Local(ProcessorABC):
        def process(self, events):
            return {"n": len(events)}

    data = nanoaod.write(tmp_path / "a.root", nanoaod.events(50, 1))
    with agc.connect("local", workers=1) as client:
        result = agc.run(
            Local(), str(data), client=client, output=tmp_path / "run", chunk_size=20, quiet=True
        )
    assert result.outputs["n"] == 50


def test_what_is_needed_of_a_dataset() -> None:
    made = TtbarProcessor()
    needs = declarations.needs_of(made, is_data=False)
    assert needs.columns == declarations.declared_columns(made, is_data=False)
    assert "Electron_cutBased" in needs.preselection
    assert needs.counted == ("genWeight", "Muon_tightId")
    assert declarations.needs_of(made, is_data=True).counted == ("Muon_tightId",)
    # the reference's random numbers are drawn for all events
    assert declarations.needs_of(TtbarProcessor(compat=True), is_data=False).preselection == ""


def test_a_preselection_is_of_flat_columns_and_text() -> None:
    class Records:
        columns = ("Jet_pt",)
        preselection = "any(Jet_pt > 30, axis=1)"

    assert declarations.needs_of(Records(), is_data=False) == (("Jet_pt",), "", ())

    class Wrong(Records):
        flat = True
        preselection = ("Jet_pt > 30",)  # type: ignore[assignment]

    with pytest.raises(ProcessorError, match=r"Wrong\.preselection: an expression"):
        declarations.needs_of(Wrong(), is_data=False)
