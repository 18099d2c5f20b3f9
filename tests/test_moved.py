"""Import paths of the release before."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import agc_ml as agc
from agc_ml import _moved
from processors.ttbar import features

MINE = """
from coffea.processor import ProcessorABC
from agc_ml.hists import book
from agc_ml.kernels.flat import blocks
from agc_ml.rows import Rows

class Mine(ProcessorABC):
    columns = ("Jet_pt",)
    flat = True

    def process(self, events):
        n = sum(len(block) for block in blocks(events))
        return {"n": n, "table": Rows({"n": [n]})}
"""


@pytest.mark.parametrize("old", _moved.MOVED)
def test_old_modules_give_what_the_new_ones_have(old: str) -> None:
    was, now = import_module(old), import_module(_moved.MOVED[old])
    public = [name for name in vars(now) if not name.startswith("_")]
    for name in public[:3]:
        with pytest.warns(DeprecationWarning, match=rf"{old}.{name} is now {now.__name__}.{name};"):
            assert getattr(was, name) is getattr(now, name)
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nonsense'"):
        was.nonsense  # noqa: B018


def test_renamed_names_have_their_new_ones() -> None:
    with pytest.warns(DeprecationWarning, match=r"agc_ml\.rows\.Rows is now .*ColumnTable;"):
        from agc_ml.rows import Rows  # type: ignore[import-not-found] # noqa: PLC0415
    assert Rows is agc.ColumnTable
    with pytest.warns(
        DeprecationWarning, match=r"n_permutations is now processors\.ttbar\.features\.n_"
    ):
        from agc_ml.kernels.combinatorics import (  # type: ignore[import-not-found] # noqa: PLC0415
            n_permutations,
        )
    assert n_permutations is features.n_permutations


def test_a_processor_of_the_release_before_runs(tmp_path: Path) -> None:
    """And its code is known: with what it imports, wherever that is now."""
    script = tmp_path / "mine.py"
    script.write_text(MINE)
    code = (
        "import agc_ml as agc\n"
        f"result = agc.run('{script}:Mine', 'demo', site='local', workers=1, quiet=True)\n"
        "print(result.outputs['n'], result.tables['table'].columns()['n'].sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    n, total = done.stdout.split()
    assert n == total != "0"


def test_code_of_what_moved_is_part_of_the_identity() -> None:
    from agc_ml.execution.code import source_files  # noqa: PLC0415 - heavy

    origin = source_files.source_of("agc_ml.kernels.flat")
    assert origin == source_files.source_of("agc_ml.columnar.events") is not None


def test_other_modules_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'agc_ml\.nonsense'"):
        import_module("agc_ml.nonsense")
