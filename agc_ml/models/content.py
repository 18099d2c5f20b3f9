"""Content of models in this process: the bytes of their files, pinned by sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from numpy.typing import NDArray

from agc_ml.errors import ModelError

Array = NDArray[Any]
Format = Literal["xgboost", "onnx", "kserve"]

BATCH_ROWS: Final = 32_768
"""Rows scored at once; the cost of a row is constant above 4,000."""


class Golden(NamedTuple):
    """Rows, float32, shape ``(n, k)``, and the values of the model's own library, ``(n,)``.

    For forests the values are margins, before the sigmoid.
    """

    rows: Array
    values: Array


class Content(NamedTuple):
    """Bytes of a model's file, and rows to check its back end with.

    ``is_safe``: an isolated process has opened it already; receivers need not try again.
    """

    data: bytes
    golden: Golden | None = None
    is_safe: bool = False


_contents: dict[str, Content] = {}
_safe: set[str] = set()


def provide(contents: Mapping[str, Content]) -> None:
    """Store contents of models in this process, by sha256.

    Raises
    ------
    ModelError
        A content has another sha256.
    """
    for sha256, content in contents.items():
        if sha256 not in _contents:
            if hashlib.sha256(content.data).hexdigest() != sha256:
                raise ModelError(f"a model's content is not what its sha256 {sha256} says")
            _contents[sha256] = content
            if content.is_safe:
                mark_safe(sha256)


def mark_safe(sha256: str) -> None:
    """Remember that a content can be opened without harm."""
    _safe.add(sha256)


def is_safe(sha256: str) -> bool:
    """Return True if this process knows that a content can be opened without harm."""
    return sha256 in _safe


def forget(sha256: str) -> None:
    """Drop a content that nothing in this process uses any more."""
    _contents.pop(sha256, None)


def content_of(sha256: str) -> Content | None:
    """Content stored under a sha256; None if this process has none."""
    return _contents.get(sha256)
