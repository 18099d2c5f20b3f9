"""Damaged files of each kind: refused with a line, or right; never silence, never a crash."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
import factories
import judges
import pytest

from agc_ml.errors import FitError, HistogramError
from agc_ml.results import histogram_files
from agc_ml.statistics import fit_files


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[judges.Child]:
    """A process that reads what is damaged, and stays alive."""
    with judges.Child(tmp_path_factory.mktemp("child")) as made:
        yield made


@pytest.mark.parametrize(
    "kind",
    [
        *("fileset-json", "fileset-yaml", "fit-configuration"),
        *("run-directory", "root-tree", "root-rntuple"),
    ],
)
def test_twenty_of_each_kind(kind: str, child: judges.Child, tmp_path: Path) -> None:
    outcomes = list(judges.judged(child, kind, tmp_path / "files", seed=17, n=20))
    assert [one for one in outcomes if one.outcome in judges.FAULTS] == []
    assert judges.counts(outcomes)["refused"]


@pytest.mark.parametrize("kind", ["chunks", "chunks-pickled"])
def test_finished_chunks_that_are_damaged_are_done_again(
    kind: str, child: judges.Child, tmp_path: Path
) -> None:
    """A run that goes on with them gives what it would have given."""
    outcomes = list(judges.judged(child, kind, tmp_path / "files", seed=17, n=20))
    assert judges.counts(outcomes) == {"identical": 20}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda fit: fit["prefit"][0]["edges"].pop(), "prefit -> 0: one number a bin is needed"),
        (lambda fit: fit["postfit"][0]["data"].pop(), "postfit -> 0: one number a bin is needed"),
        (lambda fit: fit["prefit"][0]["edges"].reverse(), "prefit -> 0: edges of"),
        (lambda fit: fit["correlation"].pop(), "(all): correlation needs a row"),
        (lambda fit: fit["parameters"].append(fit["parameters"][0]), "(all): correlation needs"),
        (lambda fit: fit["impacts"][0].update(parameter="x"), "(all): parameters: 'x' is none"),
        (lambda fit: fit["prefit"].pop(), "(all): prefit and postfit have other regions"),
    ],
)
def test_a_fit_whose_parts_do_not_fit_together(
    change: Callable[[Any], object], says: str, tmp_path: Path
) -> None:
    fit_files.save(factories.fit_result(), tmp_path)
    fit = json.loads((tmp_path / "fit.json").read_text())
    change(fit)
    (tmp_path / "fit.json").write_text(json.dumps(fit))
    with pytest.raises(FitError, match=re.escape(f"fit.json: field {says}")):
        fit_files.load(tmp_path)


def test_compressed_histograms_with_a_wrong_bit(tmp_path: Path) -> None:
    """What libraries raise of them is an error of ours."""
    templates = factories.true_templates(factories.ttbar_hists())
    histogram_files.write_root(tmp_path / "h.root", templates)
    histogram_files.write_zip(tmp_path / "h.zip", templates)
    for name, read in {
        "h.root": histogram_files.read_root,
        "h.zip": histogram_files.read_zip,
    }.items():
        path = tmp_path / name
        refused = 0
        for _, data in damage.variants(path.read_bytes(), "bytes", 5, 12):
            path.write_bytes(data)
            with contextlib.suppress(HistogramError):
                read(path)
                refused -= 1
            refused += 1
        assert refused


def test_faults_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads what is not there, raises what is no error of ours, hangs, and dies."""
    lines = {
        "wrong": "len((folder / 'x').read_bytes())",
        "traceback": "int('x') if (folder / 'x').read_bytes() != b'abcd' else 1",
        "hung": "time.sleep(99) if (folder / 'x').read_bytes() != b'abcd' else 1",
        "signal": "os.abort() if (folder / 'x').read_bytes() != b'abcd' else 1",
    }
    (tmp_path / "wanting.py").write_text(
        "import os, time\nimport judges\n"
        + "".join(
            f"judges.KINDS[{name!r}] = judges.Kind(None, lambda folder: {text})\n"
            for name, text in lines.items()
        )
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(judges, "SERVE", "import judges, wanting; judges.serve()")
    monkeypatch.setattr(judges, "DEADLINE_S", 0.5)

    def make(folder: Path) -> list[tuple[str, str]]:
        (folder / "x").write_bytes(b"abcd")
        return [("x", "bytes")]

    with judges.Child(tmp_path) as child:
        for name in lines:
            monkeypatch.setitem(judges.KINDS, name, judges.Kind(make, lambda _: None))
            found = list(judges.judged(child, name, tmp_path / name, 3, 2))
            assert name in {one.outcome for one in found}


def test_variants_are_the_same_for_a_seed() -> None:
    for kind, data in {"json": b'{"a": [1, {"b": "c"}]}', "bytes": b"abcdefgh"}.items():
        first, again, other = (list(damage.variants(data, kind, seed, 30)) for seed in (1, 1, 2))
        assert first == again != other
        assert all(made != data for _, made in first)
        assert len({made for _, made in first}) > 15
