"""Files of models that users name: their bytes and JSON, of limited size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from agc_ml import documents

MOST_BYTES: Final = 1_000_000_000
"""Largest file of a model."""

MOST_JSON_BYTES: Final = 500_000_000
"""Largest JSON; parsed, it takes several times as much memory."""

MOST_CONTAINERS: Final = 3_000_000
"""Most arrays and objects in JSON: an xgboost tree has 17; one byte of them can take 30."""

MOST_STRINGS: Final = 10_000_000
"""Most strings in JSON: an xgboost tree has about 30."""

MOST_FEATURES: Final = 1_000_000
"""Most features of a model."""


class UnreadableError(ValueError):
    """A file can't be read as a model; the message says why."""


def read(path: Path) -> bytes:
    """Content of a file.

    Raises
    ------
    UnreadableError
        The file is too large, or a device or pipe, which may never end.
    OSError
        The file can't be read: IsADirectoryError for a folder.
    """
    try:
        return documents.content(path, MOST_BYTES)
    except ValueError as error:
        raise UnreadableError(str(error)) from error


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8 without duplicate keys.

    Raises
    ------
    UnreadableError
        The data are not such JSON, or would take too much memory.
    """
    if len(data) > MOST_JSON_BYTES:
        raise UnreadableError(f"it is JSON of more than {MOST_JSON_BYTES / 1e6:g} MB")
    if data.count(b"[") + data.count(b"{") > MOST_CONTAINERS or data.count(b'"') > 2 * MOST_STRINGS:
        raise UnreadableError(
            f"it has more than {MOST_CONTAINERS:,} arrays and objects, or {MOST_STRINGS:,} strings"
        )
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except UnreadableError:
        raise
    except RecursionError as error:
        raise UnreadableError("its JSON is nested too deeply") from error
    except ValueError as error:  # also for wrong UTF-8, or a number of thousands of digits
        raise UnreadableError(f"it is not JSON, or truncated: {one_line(str(error))}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UnreadableError(f"it names {duplicate[:50]!r} twice in one object")
    return mapping


def one_line(text: str) -> str:
    """First 300 characters of a text from a file or a library, in one line."""
    return " ".join(text[:2000].split())[:300]
