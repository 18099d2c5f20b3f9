"""Folders have one owner at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest

from agc_ml import files
from agc_ml.errors import UsageError
from agc_ml.execution.state import signing


def refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="another agc-ml is at work in it"), files.owned(folder):
        pass


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with files.owned(tmp_path):
        refused(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with files.owned(tmp_path):
        refused(tmp_path)


def test_an_owner_that_leaves_while_another_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one must not hold a lock on a file that is gone: a third would get another."""
    real, calls = fcntl.flock, []

    def flock(lock: Any, operation: int) -> None:
        if not calls:
            (tmp_path / files.LOCK).unlink()
        calls.append(operation)
        real(lock, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.owned(tmp_path):
        refused(tmp_path)
    assert len(calls) == 3


def test_what_is_unused(tmp_path: Path) -> None:
    assert files.is_unused(tmp_path / "none")
    (tmp_path / ".half.root").touch()
    assert files.is_unused(tmp_path)
    (tmp_path / "whole.root").touch()
    assert not files.is_unused(tmp_path)


def test_a_user_without_a_home_has_no_cache_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers whose user has a number only."""
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert not files.cache().exists()
    assert not signing.key_file().exists()
