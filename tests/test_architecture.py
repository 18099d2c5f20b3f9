"""The house: who may import whom, what is public, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import agc_ml

# Left may not import right.
ORDER = (
    *(
        "_version",
        "_moved",
        "errors",
        "documents",
        "analysis",
        "files",
        "columnar",
        "transports",
        "inputs",
        "models",
    ),
    *("results", "delivery", "execution", "statistics", "presentation", "training", "simulation"),
    *("measurement", "servicex_endpoint", "cli", "__main__"),
)
RANK = {room: rank for rank, room in enumerate(ORDER)}
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


def imports(path: Path, package: str) -> list[tuple[str, ast.AST]]:
    """Modules that a file imports anywhere, but for those that only the type checker sees."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found += [
                (f"{module}.{alias.name}" if module == package else module, node)
                for alias in node.names
            ]
    return found


def rooms() -> list[tuple[str, Path]]:
    files = sorted((ROOT / "agc_ml").glob("**/*.py"))
    return [
        (path.relative_to(ROOT / "agc_ml").parts[0].removesuffix(".py"), path) for path in files
    ]


def test_rooms_import_only_what_stands_left_of_them() -> None:
    for room, path in rooms():
        if room == "__init__":
            continue
        for module, _ in imports(path, "agc_ml"):
            package, _, rest = module.partition(".")
            if package != "agc_ml" or not rest:
                continue
            target = rest.partition(".")[0]
            if target == room or target.startswith("__"):
                continue
            assert RANK[target] <= RANK[room], f"{path.name} may not import agc_ml.{target}"


def test_every_room_has_its_place() -> None:
    assert {room for room, _ in rooms()} - {"__init__"} == set(RANK)


def test_the_framework_does_not_know_its_processors() -> None:
    for _, path in rooms():
        for module, _ in imports(path, "agc_ml"):
            assert module.partition(".")[0] != "processors", path


def test_processors_know_physics_only() -> None:
    public = {"", ".analysis", ".errors", ".inputs.variations", ".models.model"}
    allowed = {f"agc_ml{name}" for name in (*public, ".results.histograms", ".results.tables")}
    libraries = {"awkward", "numpy", "coffea", "correctionlib"}
    for path in (ROOT / "processors").glob("**/*.py"):
        for module, _ in imports(path, "processors"):
            top = module.partition(".")[0]
            known = top in libraries | sys.stdlib_module_names | {"processors"}
            is_kernel = module.startswith("agc_ml.columnar")
            assert known or is_kernel or module in allowed, f"{path}: {module}"


def test_only_a_few_rooms_know_dask() -> None:
    for _, path in rooms():
        if any(
            module.partition(".")[0] in {"dask", "distributed"} for module, _ in imports(path, "")
        ):
            assert path.parent.name == "cluster", path


def test_the_endpoint_stands_alone() -> None:
    allowed = {
        *("_version", "delivery", "documents", "errors", "files"),
        *("servicex_endpoint", "transports"),
    }
    for room, path in rooms():
        for module, _ in imports(path, "agc_ml"):
            package, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if package == "agc_ml" and room == "servicex_endpoint":
                assert target in allowed, f"{path.name} may not import agc_ml.{target}"
            if package == "agc_ml" and target == "servicex_endpoint":
                assert room in {"cli", "servicex_endpoint"}, f"{path} may not import the endpoint"


def test_physics_fits_on_a_few_screens() -> None:
    def code_lines(path: Path) -> int:
        tree = ast.parse(path.read_text())
        docstrings = {
            line
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = enumerate(path.read_text().splitlines(), 1)
        return sum(
            1
            for number, line in lines
            if number not in docstrings
            and line.strip()
            and not line.strip().startswith(("#", "import ", "from "))
        )

    physics = [
        ROOT / f"processors/ttbar/{name}.py" for name in ("selection", "observables", "systematics")
    ]
    assert sum(map(code_lines, physics)) < 150
    kernels = ("combinatorics", "compiled", "events", "histogram_filling", "jagged", "kinematics")
    paths = [ROOT / f"agc_ml/columnar/{name}.py" for name in kernels]
    forest = ROOT / "agc_ml/models/backends/forest.py"
    assert sum(map(code_lines, (*paths, forest))) < 445
    assert code_lines(ROOT / "processors/dimuon.py") < 30


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
