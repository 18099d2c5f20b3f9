"""What queries may say: nothing but columns, and functions of arrays, is ever reached."""

from __future__ import annotations

import ast
import builtins
import json
import shutil
import time
from pathlib import Path
from typing import Any

import awkward as ak
import dask
import dask_awkward
import nanoaod
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st
from uproot.language.python import PythonLanguage

from agc_ml.errors import AgcError, InputFileError, UsageError
from agc_ml.servicex_endpoint.transformation.reading import pieces
from agc_ml.servicex_endpoint.translation import func_adl, programs
from agc_ml.servicex_endpoint.translation.generators import generate
from agc_ml.servicex_endpoint.translation.language import KEYWORDS, NAMES, Language, check
from agc_ml.servicex_endpoint.translation.syntax import NotAllowedError, NotPythonError

ESCAPES = [
    "(1).__class__",
    "().__class__.__bases__",
    "nJet.__array__.__func__",
    "(nJet+0).__class__",
    "sum(nJet).behavior",
    "nJet[0].layout",
    "'{0.__class__}'.format(nJet)",
    "f'{nJet.__class__}'",
    "getattr(nJet, 'x')",
    "type(nJet)",
    "eval('1')",
    "exec('1')",
    "__import__('os')",
    "__builtins__",
    "np.load('x')",
    "fromfile('x')",
    "nJet('x')",
    "sqrt(nJet)(1)",
    "(lambda: 0)",
    "(lambda: 0).__globals__['__builtins__']",
    "[c for c in nJet]",
    "(y := nJet)",
    "sqrt(*nJet)",
    "sqrt(**nJet)",
    "sqrt(nJet, out=nJet)",
    "sum(nJet, behavior={})",
    "sum(nJet, attrs={})",
    "cartesian({**nJet})",
    "nJet if nJet else 1",
    "nJet in nJet",
    "nJet is nJet",
    "'a' * 1000000000",
    "'%0999999999d' % 1",
    "('a', 'b')[0]",
    "b'a'",
    "9**9**9",
    "(9**99)**9999",
    "1 << 99999999",
    "x + (True << 99999999)",
    "(1 < 2) << 99999999",
    "(1 and 3) << 99999999",
    "x + (abs(2**100) << 30000000000)",
    "abs(-(2**63)) << 30000000000",
    "(True + True) ** 99999999",
    "0x" + "f" * 4000,
    "'" + "a" * 1001 + "'",
    "a; b",
    "a = 1",
    "import os",
    "await a",
    "_x.__class__",
]
SOUND = [
    "nJet > 3",
    "Jet_pt[Jet_pt > 30]",
    "sqrt(px**2 + py**2)",
    "(Muon_pt > 20) & (abs(Muon_eta) < 2.4)",
    "sum(Jet_pt)",
    "Jet_pt[:, 0]",
    "Jet_pt[..., :2]",
    "where(nJet > 1, Jet_pt, 0)",
    "Muon.pt * 1e3",
    "Muons/pt",
    "get('HLT Mu-8') != 0",
    "any(Jet_pt > 60, axis=1)",
    "cartesian([a, b], axis=1, nested=True)",
    "cartesian({'x': a, 'y': b})['x']",
    "pad_none(Jet_pt, 2, clip=True)[:, 1]",
    "~a | -b ^ +c",
    "10**3 * x + 2**n - x**0.5",
    "(1 << 5) & flags",
    "name == 'e'",
    "not x",
    "x and y or z",
    "1j * x",
    "x[[0, 1]]",
    "x[:, None]",
    "fill_none(firsts(x), -1.)",
    "True",
    " | ".join(f"HLT_{i}" for i in range(150)),
]
# Texts that parsers crash on, or dwell on.
LONG = {
    "minus": "-" * 200_000 + "1",
    "some minus": "-" * 9000 + "1",
    "parentheses": "(" * 500 + "1" + ")" * 500,
    "dots": "a" + ".a" * 200_000,
    "some dots": "a" + ".a" * 4900,
    "plus": "1" + "+1" * 200_000,
    "some plus": "1" + "+1" * 4900,
    "brackets": "a" + "[a" * 3000 + "]" * 3000,
    "digits": "9" * 5000,
    "null": "1\0",
    "half": "'\ud800'",
}


@pytest.mark.parametrize("text", ESCAPES)
def test_escapes_are_refused_wherever_they_are(text: str) -> None:
    with pytest.raises(NotAllowedError):
        check(text)
    for where in (
        {"expressions": ["nJet", text]},
        {"cut": text},
        {"expressions": "x", "aliases": {"x": text}},
    ):
        query = json.dumps([{"treename": "Events", **where}])
        with pytest.raises(UsageError, match="can't be used: part 1: ") as refused:
            generate("uproot-raw", query, "root-file")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", SOUND)
def test_what_physicists_write_is_taken(text: str) -> None:
    check(text)


@pytest.mark.parametrize("name", LONG)
def test_what_parsers_dwell_on_is_refused_at_once(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(NotAllowedError):
        check(LONG[name])
    with pytest.raises(UsageError):
        generate("uproot-raw", json.dumps([{"treename": "t", "cut": LONG[name]}]), "root-file")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "query",
    [
        {"treename": "a" * 1001},
        {"treename": {"a": "b\n"}},
        {"treename": "t", "filter_name": ["a", "b\0"]},
        {"treename": "t", "filter_typename": "/" + "a" * 1001},
        {"treename": "t", "filter_name": ["a"] * 10_001},
        {"treename": "t", "aliases": {"a" * 1001: "b"}},
        {"treename": "t", "expressions": ["a b\x1b[31m"]},
        {"copy_histograms": "h\ud800"},
    ],
)
def test_names_are_short_and_printable(query: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"part 1: \w+: .*(at most|can't be printed)"):
        generate("uproot-raw", json.dumps([query]), "root-file")


def test_the_functions_of_the_language_know_no_files() -> None:
    functions = Language(standard=False).functions
    assert set(functions) == NAMES
    assert not NAMES & {"load", "save", "fromfile", "memmap", "frompyfunc", "vectorize", "get"}
    origins = {getattr(f, "__module__", None) or "numpy" for f in functions.values()}
    ours = {"numpy", "uproot.language.python", "agc_ml.servicex_endpoint.translation.language"}
    assert {origin for origin in origins if not origin.startswith("awkward.operations")} <= ours
    assert {"axis", "keepdims", "mask_identity", "ddof"} <= KEYWORDS
    assert not KEYWORDS & {"out", "behavior", "attrs", "highlevel", "args", "kwargs"}
    assert PythonLanguage.default_functions["where"] is np.where  # uproot's own table stays


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("source") / "a.root"
    nanoaod.write(path, nanoaod.events(20, 1))
    with uproot.update(path) as file:
        columns = {"HLT-Mu/8": np.int64, "Muon.pt": np.float32, "sum": np.int64, "a b": np.int64}
        tree = file.mktree("Odd", columns)
        tree.extend({name: np.ones(3, kind) for name, kind in columns.items()})
    return str(path)


def test_what_a_file_says_is_checked_too(source: str) -> None:
    """uproot takes aliases from the file, and evaluates them as it does those of a query."""
    with uproot.open({source: "Events"}) as tree:
        language = Language(standard=False)
        aliases = {"evil": "(lambda: nJet)()", "root": "nJet > 3 && nJet < 5", "good": "nJet * 2"}
        got = tree.arrays(["good"], aliases=aliases, language=language)
        assert got.good.tolist() == (2 * tree["nJet"].array()).tolist()
        for name in ("evil", "root"):
            with pytest.raises(InputFileError, match="is not a column, and "):
                tree.arrays([name], aliases=aliases, language=language)
            with pytest.raises(InputFileError, match="is not a column, and "):
                tree.arrays(["nJet"], cut=name, aliases=aliases, language=language)


def test_columns_with_odd_names_can_be_had(source: str) -> None:
    def found(*expressions: str) -> list[Any]:
        query = [{"treename": "Odd", "expressions": list(expressions)}]
        program = generate("uproot-raw", json.dumps(query), "root-file")
        *_, rows = pieces("uproot-raw", program, source)
        return [rows.events[name].tolist() for name in rows.events.fields]

    assert found("a b", "sum", "Muon.pt", "Muon.pt + sum") == [[1] * 3] * 3 + [[2] * 3]
    assert found("get('HLT-Mu/8') + get('a b')") == [[2] * 3]
    for odd in ("no such", "x >", "HLT-"):
        with pytest.raises(InputFileError, match="is not a column, and not Python"):
            found(odd)


class Column:
    """A column that tells of all that must not be done with it."""

    def __getattr__(self, name: str) -> Column:
        assert not name.startswith("__"), name
        return Column()

    def __getitem__(self, index: Any) -> Column:
        return Column()

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        raise AssertionError("a column is gone through")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a column is called")


def _computed(*_: Any) -> Column:
    return Column()


_TWO = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul"
_ONE = "lt le gt ge eq ne neg pos invert"
for _name in _TWO.split():
    for _form in (f"__{_name}__", f"__r{_name}__"):
        setattr(Column, _form, _computed)
for _name in _ONE.split():
    setattr(Column, f"__{_name}__", _computed)


class Function:
    """A function of arrays."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **named: Any) -> Column:
        assert self.name in {*NAMES, "get"}
        assert set(named) <= KEYWORDS
        return Column()


class Names(dict[str, Any]):
    """Names of expressions."""

    def __missing__(self, name: str) -> Any:
        assert not name.startswith("__"), name
        return Function(name) if name in NAMES or name == "get" else Column()


def _nested(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(parts, parts)
    safe = st.one_of(
        st.tuples(parts, st.sampled_from(["+", "*", "<", "==", "&", "and"]), parts).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        ),
        st.tuples(st.sampled_from(["sum", "where", "sqrt"]), parts, parts).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        ),
        parts.map(lambda p: f"sum(Jet_pt, axis={p})"),
        two.map(lambda p: f"Jet_pt[{p[0]}:, {p[1]}]"),
        two.map(lambda p: f"concatenate([{p[0]}, {p[1]}])"),
        parts.map(lambda p: f"~({p})"),
    )
    names = st.sampled_from(["axis", "out", "behavior", "weight", "real", "__class__", "pt"])
    unsafe = st.one_of(
        st.tuples(parts, st.sampled_from(["**", "%", "in", "is", "<<"]), parts).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        ),
        st.tuples(st.sampled_from(["get", "eval", "getattr", "open"]), parts, parts).map(
            lambda p: f"{p[0]}({p[1]}, {p[2]})"
        ),
        two.map(lambda p: f"({p[0]})({p[1]})"),
        st.tuples(parts, names).map(lambda p: f"({p[0]}).{p[1]}"),
        st.tuples(names, parts).map(lambda p: f"sum(x, {p[0]}={p[1]})"),
        two.map(lambda p: f"({p[0]})[{p[1]}:]"),
        two.map(lambda p: f"({p[0]} if {p[1]} else {p[0]})"),
        parts.map(lambda p: f"(lambda: {p})()"),
        parts.map(lambda p: f"[{p} for x in (1,)]"),
        parts.map(lambda p: f"f'{{{p}!r:>9}}'" if "'" not in p else p),
    )
    return st.one_of(safe, safe, safe, unsafe)


LEAVES = ["nJet", "Muon.pt", "Jet_pt", "1", "2.5", "7", "'a'", "True", "None", "sum"]
TEXTS = st.recursive(st.sampled_from(LEAVES), _nested, max_leaves=6)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(TEXTS)
def test_expressions_that_pass_reach_columns_and_functions_only(text: str) -> None:
    try:
        check(text)
    except NotAllowedError:
        return
    try:
        value = eval(text, {"__builtins__": {}}, Names())
    except (TypeError, ValueError, ZeroDivisionError):
        return  # numbers that can't be indexed, say
    assert isinstance(value, Column | Function | bool | int | float | complex | str | None)


def test_the_grammar_of_that_test_makes_both_kinds() -> None:
    passed = []

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(TEXTS)
    def count(text: str) -> None:
        try:
            check(text)
        except NotPythonError:
            pytest.fail(f"no Python: {text}")
        except NotAllowedError:
            passed.append(False)
        else:
            passed.append(True)

    count()
    assert 20 < sum(passed) < len(passed) - 20


def adl_query(body: str) -> str:
    return f"(call Select (call EventDataset 'f' 'Events') (lambda (list e) {body}))"


ADL_ESCAPES = [
    adl_query(body)
    for body in [
        "(attr e '__class__')",
        "(attr e '\uff3f\uff3fclass')",
        "(attr e '\uff43ompute')",  # a parser would make it plain
        "(attr e 'x.__class__')",
        "(attr e 'x, __import__(\"os\").getcwd()')",
        "(attr e 'x\\n')",
        "(attr e 'compute')",
        "(attr e 'dask')",
        "(attr np 'ctypeslib')",
        "(attr (attr np 'add') 'reduce')",
        "(call eval '1')",
        "(call exec '1')",
        "(call open '/etc/passwd')",
        "(call __import__ 'os')",
        "(call getattr e 'x')",
        "(call type e)",
        "(call (attr np 'load') 'x')",
        "(call (attr np 'fromfile') 'x')",
        "(call (attr np 'frompyfunc') e 1 1)",
        "(call (attr e 'visualize') 'x')",
        "(call (attr e 'to_parquet') 'x')",
        "(call (attr e 'map_partitions') abs)",
        "(call (attr e 'items'))",
        "(call (attr '{0.__class__}' 'format') e)",
        "(call (lambda (list f) (call f 'x')) (attr e 'x'))",
        "(call (subscript e 0) 1)",
        "(lambda (list dak) dak)",
        "(lambda (list isinstance) isinstance)",
        "(lambda (list __x) __x)",
        "uproot",
        "np",
        "abs",
        "input_filenames",
        "_remove_not_interpretable",
        "__builtins__",
        "(** 9 (** 9 9))",
        "(* 'a' 1000000000)",
        "(% '%0999999999d' 1)",
        "(dict (list (call eval '1')) (list 1))",
        "'\\\\' + eval(\"1\") #'",
        f"{'(subscript ' * 14}(attr e 'x'){' 0)' * 14}",
        f"{'(- ' * 160}(attr e 'x'){')' * 160}",
    ]
] + [
    "(call EventDataset 'f' (call eval '1'))",
    "(call EventDataset (list 'f' (call eval '1')))",
    "(call Where (call EventDataset 'f') 'lambda e: __import__(\"os\").getcwd()')",
    "(call (attr (call EventDataset 'f') 'Where') 'lambda e: e.__class__')",
    "(call (attr (call EventDataset 'f') 'Select') 'lambda e: [c for c in e]')",
    "(- " * 12_000 + "1" + ")" * 12_000,
    "(" * 50_000,
]


@pytest.mark.parametrize("query", ADL_ESCAPES)
def test_queries_of_func_adl_can_not_escape(query: str) -> None:
    begin = time.process_time()
    with pytest.raises(UsageError, match="the query for uproot can't be used: ") as refused:
        generate("uproot", query, "root-file")
    assert "\n" not in str(refused.value)
    assert time.process_time() - begin < 2


ADL_SOUND = [
    [("Where", "lambda e: e.genWeight > 0"), ("Select", "lambda e: {'a': e.event, 'b': e.Jet_pt}")],
    [("Select", "lambda e: {'x': e.Jet_pt.Where(lambda p: p > 30)}")],
    [("Select", "lambda e: {'n': e.Jet_pt.Count(), 'z': abs(e.MET_pt), 'w': e.Jet_pt.First()}")],
    [("Select", "lambda e: {'x': np.sqrt(e.MET_pt ** 2), 'pi': np.pi * e.MET_pt}")],
    [("Where", "lambda e: e.nJet > 3 and e.MET_pt > 20"), ("Select", "lambda e: e.MET_pt")],
    [("Where", "lambda e: e.nJet in [1, 2, 3]"), ("Select", "lambda e: e['Jet_pt'][0]")],
    [("Select", "lambda e: {'pt': e.Jet_pt}"), ("Select", "lambda r: r.pt")],
    [("Select", "lambda e: e.MET_pt if e.nJet > 0 else 3")],
    [("Select", "lambda e: e.Jet_pt.OrderByDescending(lambda p: -p).First()")],
    [("Select", "lambda e: {'any': e.Jet_pt.Any(lambda p: p > 30), 's': e.Jet_pt.Sum()}")],
    [("Select", "lambda e: {'a': e.Jet_pt.Select(lambda p: e.Mu_pt.Select(lambda m: m + p))}")],
    [("SelectMany", "lambda e: e.Jet_pt")],
    [("Select", "lambda e: e.Jet_pt.Choose(2)")],
    [("Where", "lambda e: e['name'] == 'e'"), ("Select", "lambda e: (e.x, e.y.Concat(e.z))")],
    [("Select", "lambda e: e.p.ToFourMomenta()"), ("Select", "lambda v: v.deltaR(v)")],
]


@pytest.mark.filterwarnings("ignore")  # the client's, about names that it does not know
@pytest.mark.parametrize("steps", ADL_SOUND)
def test_queries_of_func_adl_that_are_sound_are_taken(steps: list[tuple[str, str]]) -> None:
    from servicex import query  # noqa: PLC0415 - heavy

    asked = query.FuncADL_Uproot().FromTree("Events")
    for name, argument in steps:
        asked = getattr(asked, name)(argument)
    program = generate("uproot", asked.generate_selection_string(), "root-file")
    loaded = {node.id for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Name)}
    used = loaded & set(dir(builtins)) - {"_"}  # which a prompt leaves
    assert used <= programs.BUILTINS | {"isinstance", "getattr", "list", "repr", "type", "dict"} | {
        *("int", "slice", "str", "None", "True", "False", "__name__"),
    }


def test_paths_are_no_patterns(source: str, tmp_path: Path) -> None:
    """One that is a pattern, too, is the file of that name, for each code generator."""
    program = generate("uproot", adl_query("(dict (list 'r') (list (attr e 'run')))"), "root-file")
    with dask.config.set({"scheduler": "sync", "awkward.optimization.which": ["columns"]}):
        for name in ("x[1].root", "x*.root"):
            shutil.copy(source, tmp_path / name)
            (rows,) = pieces("uproot", program, str(tmp_path / name))
            assert len(rows.events) > 0
            (tmp_path / name).unlink()
        shutil.copy(source, tmp_path / "x1.root")
        for name in ("x[1].root", "x*.root", "{x1,x2}.root"):
            with pytest.raises((OSError, AgcError)):
                list(pieces("uproot", program, str(tmp_path / name)))


def test_programs_are_checked_again_where_they_run(source: str) -> None:
    query = adl_query("(dict (list 'run' 'n') (list (attr e 'run') (call abs (attr e 'nJet'))))")
    program = generate("uproot", query, "root-file")
    with dask.config.set({"scheduler": "sync", "awkward.optimization.which": ["columns"]}):
        (rows,) = pieces("uproot", program, source)
    assert ak.fields(rows.events) == ["run", "n"]
    for old, new in [
        ("abs(", "eval("),
        (".run", ".__class__"),
        (".compute()", ".to_parquet()"),
        ("    vector.register", "    import os\n    vector.register"),
        ("import functools", "import os, functools"),
        ("return ", "return __import__('os') or "),
        ("input_filenames=None", "input_filenames=print()"),
        ("dak.zip(", "dak.to_parquet("),
        ("uproot.dask(", "uproot.recreate("),
        ("lambda e:", "lambda dak:"),
        ("def run_query", "import os\ndef run_query"),
        ("{", "{**{}, "),
    ]:
        assert old in program
        with pytest.raises(NotAllowedError):
            list(pieces("uproot", program.replace(old, new), source))


def test_all_that_arrays_have_of_their_own_is_known() -> None:
    own = {name for name in dir(dask_awkward.Array) if not name.startswith("_")}
    assert own - func_adl.ARRAY_ATTRIBUTES == {"mask"}
    assert not own & programs.METHODS
    assert {"deltaR", "boost", "unit"} <= programs.METHODS
    assert {"sqrt", "pi", "float32", "maximum"} <= programs.NUMPY
    assert not programs.NUMPY & {"load", "save", "fromfile", "memmap", "frompyfunc", "vectorize"}


def test_no_program_is_loaded_from_a_file_name(tmp_path: Path) -> None:
    """Names of files and trees are text in programs, whatever quotes they have."""
    for quote in ("\\'", '"', "\\\\"):
        query = f"(call EventDataset 'x{quote}+eval(1)+{quote}' 'b')"
        strings = [
            node.value
            for node in ast.walk(ast.parse(generate("uproot", query, "root-file")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert any("+eval(1)+" in text for text in strings)
