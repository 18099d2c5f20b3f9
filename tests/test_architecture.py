"""Rooms and their order: who may import whom, what is public, how large things are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import code_figures
import pytest
from places import ROOT

import agc_ml

PACKAGE = ROOT / "agc_ml"
HEAVY = {
    "coffea",
    "numpy",
    "pydantic",
    "urllib3",
    "distributed",
    "dask",
    "uproot",
    "matplotlib",
    "mplhep",
    "pyhf",
    "cabinetry",
    "jax",
    "numba",
    "awkward",
    "pythia8mc",
    "fastjet",
}


def order() -> list[str]:
    """Rooms in the order of the table in docs/architecture.md: left may not import right."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("\n| room | holds |\n")[2].partition("\n\n")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [
        name.rstrip("/").removesuffix(".py")
        for cell in first_cells
        for name in re.findall(r"`([^`]+)`", cell)
    ]


def modules(package: Path) -> dict[str, Path]:
    """Files of a package by their module's name."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(package.rglob("*.py"))
    }


def imported(path: Path, *, with_types: bool = True) -> Iterator[str]:
    """Names that a file imports anywhere: at its top, in functions, for the type checker."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not with_types
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def graph(package: Path) -> dict[str, set[str]]:
    """Modules of a package that each of them imports; its top `__init__` is left out."""
    files = modules(package)
    return {
        module: {
            name if name in files else name.rpartition(".")[0]
            for name in imported(path)
            if name.partition(".")[0] == package.name
        }
        - {module, package.name}
        for module, path in files.items()
        if module != package.name
    }


def circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; none if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_table_has_all_rooms() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
    assert sorted(order()) == sorted(rooms - {"__init__"})


def test_imports_go_one_way_between_rooms() -> None:
    rank = {room: position for position, room in enumerate(order())}
    wrong = [
        f"{module} imports {target}"
        for module, targets in graph(PACKAGE).items()
        for target in targets
        if rank[target.split(".")[1]] > rank[module.split(".")[1]]
    ]
    assert not wrong


def test_no_circle_of_files() -> None:
    assert circle(graph(PACKAGE)) == []
    assert circle(graph(ROOT / "processors")) == []


@pytest.mark.parametrize(
    "back",
    [
        "from package.room.one import a\n",
        "def lazy():\n    import package.room.one\n",
        "def lazy():\n    from package.room import one\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.room.one import A\n",
    ],
)
def test_circles_are_found(back: str, tmp_path: Path) -> None:
    room = tmp_path / "package" / "room"
    room.mkdir(parents=True)
    (room.parent / "__init__.py").touch()
    (room / "__init__.py").touch()
    (room / "one.py").write_text("from package.room.two import b\n")
    (room / "two.py").write_text("import json\n")
    assert circle(graph(tmp_path / "package")) == []
    (room / "two.py").write_text(back)
    assert set(circle(graph(tmp_path / "package"))) == {"package.room.one", "package.room.two"}


def test_files_that_the_document_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:agc_ml|processors|tests|benchmarks|deploy)/[\w/.*]+)`", text))
    assert named
    assert [name for name in sorted(named) if not list(ROOT.glob(name.rstrip("/")))] == []


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_folders_are_small_and_flat() -> None:
    folders = {path.parent for path in files()}
    sizes = {
        str(folder.relative_to(ROOT)): sum(
            path.is_file() and path.suffix != ".pyc" for path in folder.iterdir()
        )
        for folder in folders
    }
    assert {folder: size for folder, size in sizes.items() if size > 14} == {}
    assert max(len(folder.relative_to(ROOT).parts) for folder in folders) <= 3


@pytest.fixture(scope="module")
def figures() -> code_figures.Figures:
    return code_figures.figures(ROOT)


def test_files_and_functions_fit_on_few_screens(figures: code_figures.Figures) -> None:
    assert {path: n for path, n in figures.lines.items() if n > 420} == {}
    assert {place: n for place, n in figures.functions.items() if n > 95} == {}


def test_docstrings_name_their_object(figures: code_figures.Figures) -> None:
    most = len(figures.first_lines)
    assert len(figures.docstrings(code_figures.CLAUSE)) < 0.02 * most
    assert len(figures.docstrings(code_figures.PRONOUN)) < 0.1 * most


def test_comments_name_steps_and_reasons(figures: code_figures.Figures) -> None:
    assert figures.comment_share >= 0.025


def test_no_starred_tuples(figures: code_figures.Figures) -> None:
    """Arguments are written one by one."""
    assert figures.starred == []


def test_figures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "agc_ml").mkdir()
    (tmp_path / "agc_ml" / "a.py").write_text(
        '"""What is here."""\n\n# a comment\n\n\ndef double(x):\n'
        '    """Double of x; it is exact."""\n'
        "    return (\n        2 * x  # exact\n    )\n\n\nprint(*(1, 2))\n"
    )
    counted = code_figures.figures(tmp_path, ("agc_ml",))
    assert counted.statements == {"agc_ml": 3}
    assert counted.comments == 2
    assert list(counted.lines.values()) == [13]
    assert list(counted.functions.values()) == [5]
    assert counted.docstrings(code_figures.CLAUSE) == ["agc_ml/a.py:1"]
    assert counted.docstrings(code_figures.PRONOUN) == ["agc_ml/a.py:1", "agc_ml/a.py:6"]
    assert counted.starred == ["agc_ml/a.py:13"]


def test_the_framework_does_not_know_its_processors() -> None:
    for path in files():
        for name in imported(path):
            assert name.partition(".")[0] != "processors", path


def test_ttbar_is_one_analysis_among_others() -> None:
    """Only defaults, published data and the simulation name it."""
    allowed = {"cli", "inputs", "simulation"}
    naming = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.suffix in {".py", ".j2"} and re.search("ttbar", path.read_text(), re.IGNORECASE)
    }
    assert {name for name in naming if name.partition("/")[0] not in allowed} <= {
        "__init__.py",
        "_moved.py",
        "analysis.py",
    }


def test_processors_know_physics_only() -> None:
    allowed = ("analysis", "columnar", "errors", "inputs.variations", "models", "results")
    libraries = {"awkward", "numpy", "coffea", "correctionlib"}
    for path in (ROOT / "processors").glob("**/*.py"):
        for name in imported(path):
            package, _, rest = name.partition(".")
            if package == "agc_ml":
                known = rest in agc_ml.__all__ or rest.startswith(allowed)
            else:
                known = package in libraries | sys.stdlib_module_names | {"processors"}
            assert known, f"{path}: {name}"


def test_only_the_cluster_knows_dask() -> None:
    for path in files():
        if {name.partition(".")[0] for name in imported(path, with_types=False)} & {
            "dask",
            "distributed",
        }:
            assert path.parent == PACKAGE / "execution" / "cluster", path


def test_the_endpoint_stands_alone() -> None:
    allowed = {"_version", "delivery", "documents", "errors", "files", "transports"}
    own = "servicex_endpoint"
    for module, targets in graph(PACKAGE).items():
        rooms = {target.split(".")[1] for target in targets}
        if module.split(".")[1] == own:
            assert rooms <= allowed | {own}, module
        elif own in rooms:
            assert module.split(".")[1] == "cli", module


def test_public_names() -> None:
    assert agc_ml.__all__ == [
        "NOMINAL",
        "AgcError",
        "Batches",
        "Bundle",
        "ColumnTable",
        "Dataset",
        "DenseHist",
        "File",
        "Fileset",
        "FitResult",
        "Model",
        "RunResult",
        "__version__",
        "blocks",
        "book",
        "compare",
        "connect",
        "connect_training",
        "fit",
        "load_model",
        "materialised",
        "measure",
        "plan",
        "run",
    ]
    for name in agc_ml.__all__:
        assert getattr(agc_ml, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        agc_ml.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("import agc_ml", 0.3),
        (
            "import sys; sys.argv = ['agc-ml', '--help']; from agc_ml.cli.main import main; main()",
            0.5,
        ),
    ],
)
def test_start_is_cheap(code: str, limit: float) -> None:
    """CPU seconds of a whole process; the best of three, for the machine may be busy."""
    script = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print('CPU', sum(os.times()[:2]), "
        f"*({HEAVY!r} & sys.modules.keys())))\n{code}"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        for _ in range(3)
    ]
    seconds = []
    for run in runs:
        _, cpu, *heavy = run.stdout.splitlines()[-1].split()
        assert heavy == []
        seconds.append(float(cpu))
    assert min(seconds) < limit
