"""What users name: the bytes of a regular file, of a limited size; JSON that can't fill memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from agc_ml import documents

MOST_BYTES: Final = 1_000_000_000
"""Of a model's file."""

MOST_JSON_BYTES: Final = 500_000_000
"""Of JSON, which takes several times as much in memory."""

MOST_CONTAINERS: Final = 3_000_000
"""Arrays and objects of JSON: a tree of xgboost has 17, and a byte of them can take 30."""

MOST_STRINGS: Final = 10_000_000
"""Strings of JSON, of which a tree of xgboost has about 30."""


class NotTakenError(ValueError):
    """It is not what can be read: the message says why."""


def read(path: Path) -> bytes:
    """Content of a file.

    Raises
    ------
    NotTakenError
        It is no regular file, but a device or a pipe, which may never end; or too large.
    OSError
        It can't be read: IsADirectoryError for a folder.
    """
    try:
        return documents.content(path, MOST_BYTES)
    except ValueError as error:
        raise NotTakenError(str(error)) from error


def parse_json(data: bytes) -> Any:
    """Content of JSON in UTF-8, which names nothing twice.

    Raises
    ------
    NotTakenError
        It is not, or would take too much memory.
    """
    if len(data) > MOST_JSON_BYTES:
        raise NotTakenError(f"it is JSON of more than {MOST_JSON_BYTES / 1e6:g} MB")
    if data.count(b"[") + data.count(b"{") > MOST_CONTAINERS or data.count(b'"') > 2 * MOST_STRINGS:
        raise NotTakenError(
            f"it has more than {MOST_CONTAINERS:,} arrays and objects, or {MOST_STRINGS:,} strings"
        )
    try:
        return json.loads(data.decode(), object_pairs_hook=_named_once)
    except NotTakenError:
        raise
    except RecursionError as error:
        raise NotTakenError("its JSON is nested too deeply") from error
    except ValueError as error:  # not UTF-8 either, or a number of thousands of digits
        reason = " ".join(str(error).split())[:120]
        raise NotTakenError(f"it is not JSON, or cut off: {reason}") from error


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NotTakenError(f"it names {twice[:50]!r} twice in one object")
    return found
