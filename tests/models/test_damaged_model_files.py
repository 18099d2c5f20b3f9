"""Seeded damage to sound models: a line, or the very scores that their library gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_models import MOST_S, sound
from places import HELPERS
from variants import as_ubj, read_ubj, variants

N = 20
SEED = 1


@pytest.mark.parametrize("kind", ["json", "ubj", "protobuf"])
def test_damaged_models(kind: str, tmp_path: Path) -> None:
    """In one process, which stays alive."""
    script = HELPERS / "damaged_models.py"
    done = subprocess.run(
        [sys.executable, script, kind, str(N), str(SEED)],
        input=sound(kind, tmp_path),
        capture_output=True,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert [one["number"] for one in told] == list(range(N))
    assert {one["outcome"] for one in told} <= {"refused", "scored"}, told
    assert Counter(one["outcome"] for one in told)["refused"] > N // 4
    assert max(one["seconds"] for one in told) < MOST_S


@pytest.mark.parametrize("kind", ["bytes", "json", "ubj", "protobuf"])
def test_damage_is_seeded_and_is_damage(kind: str, tmp_path: Path) -> None:
    data = sound("json" if kind == "bytes" else kind, tmp_path)
    first = variants(data, kind, 3, 12)
    assert first == variants(data, kind, 3, 12)
    assert first[:5] == variants(data, kind, 3, 5)
    assert first != variants(data, kind, 4, 12)
    assert data not in first


def test_ubj_is_read_and_written(tmp_path: Path) -> None:
    """So that what is wrong with a variant is its damage."""
    import xgboost  # noqa: PLC0415 - heavy

    data = sound("ubj", tmp_path)
    booster: Any = xgboost.Booster()
    booster.load_model(bytearray(as_ubj(read_ubj(data))))
    right: Any = xgboost.Booster()
    right.load_model(bytearray(data))
    rows = np.random.default_rng(1).normal(size=(20, 3))
    np.testing.assert_array_equal(booster.inplace_predict(rows), right.inplace_predict(rows))
