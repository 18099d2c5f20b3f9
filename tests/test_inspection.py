"""Files looked into before any of them is processed: lengths of branches."""

from __future__ import annotations

from pathlib import Path

import damage
import numpy as np
import pytest

from agc_ml.checking import check
from agc_ml.datasets import Dataset, File, Fileset
from agc_ml.inspection import FileInfo, inspect_file
from agc_ml.worker import Failure

COUNTS = np.array([1, 2, 3, 0] * 20)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = damage.own_counters(tmp_path / "x.root", COUNTS, COUNTS)
    return damage.shorten(path, "Hit_pt", "nHit", "run")


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize(
    ("columns", "named"), [(("Hit_pt",), "Hit_pt"), (("run",), "run"), (("nHit",), "nHit")]
)
def test_needed_branches_of_another_length_are_refused(
    short: Path, columns: tuple[str, ...], named: str, *, flat: bool
) -> None:
    outcome = inspect_file(File("x.root", (str(short),)), columns, flat=flat)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "definite"
    assert outcome.reason.startswith(f"branch {named} has 40 entries, but the tree has 80; ")


def test_others_are_not(short: Path) -> None:
    outcome = inspect_file(File("x.root", (str(short),)), ("event",))
    assert isinstance(outcome, FileInfo)
    assert outcome.uneven == ()


def test_a_check_names_them(short: Path) -> None:
    fileset = Fileset((Dataset("d", "d", (File("x.root", (str(short),)),)),))
    (found,) = check(fileset, site="inline", quiet=True)
    assert found.problem is not None
    assert found.problem.startswith("branch run has 40 entries, but the tree has 80; ")
    assert found.problem.endswith(" (and 2 more branches)")
