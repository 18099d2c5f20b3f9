"""Cache of file inspections on disk: a tree is parsed once, not once a run.

The cache saves time and decides nothing. It keeps only inspections with which all chunks of the
file were read. Workers compare size, UUID, stamp and number of entries, and doubt the cache before
the file, which is then inspected again. A local file is forgotten as soon as its size or time of
modification changes. The cache is agc-ml/files.sqlite in XDG_CACHE_HOME (~/.cache), and may be
deleted at any time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import lz4.frame
import numpy as np

from agc_ml import files as folders
from agc_ml.columnar import baskets, columns
from agc_ml.columnar.baskets import Baskets, Directory, Dropped, EntriesPlace
from agc_ml.execution import inspection
from agc_ml.execution.code.source_files import version_of
from agc_ml.execution.inspection import FileInfo
from agc_ml.inputs.columns import ColumnRequest
from agc_ml.inputs.datasets import File
from agc_ml.transports.base import local_path

logger = logging.getLogger(__name__)

UNUSED_S: Final = 90 * 86_400
_TABLE: Final = "CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, used REAL, content BLOB)"


class InspectionCache:
    """Cache of inspections in the database at ``path``; empty if that can't be written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or folders.cache() / "files.sqlite"
        self._is_usable = True

    def recall(self, file: File, wanted: ColumnRequest) -> FileInfo | None:
        """Inspection of a file for these columns; None if it has to be opened."""
        key, row = _key(file, wanted), None
        with self._database() as database:
            if database is None:
                return None
            row = database.execute("SELECT content FROM files WHERE key = ?", (key,)).fetchone()
            if row is not None:
                database.execute("UPDATE files SET used = ? WHERE key = ?", (time.time(), key))
        if row is None:
            return None
        try:
            info = _unpack_info(row[0])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:  # lz4's, and of JSON
            logger.debug("%s: the entry of %s is damaged (%s)", self._path, file.lfn, error)
            return None
        return info if _is_sound(info) and _is_unchanged(file, info) else None

    def keep(self, file: File, wanted: ColumnRequest, info: FileInfo) -> None:
        """Keep an inspection, unless a replica failed; drop entries unused for 3 months."""
        if info.failures:
            return
        content = pack_info(info)
        key = _key(file, wanted)
        with self._database() as database:
            if database is not None:
                database.execute("DELETE FROM files WHERE used < ?", (time.time() - UNUSED_S,))
                database.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (key, time.time(), content)
                )

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection | None]:
        if not self._is_usable:  # another process has it locked: each try would take seconds
            yield None
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(self._path, timeout=5)
            database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            logger.debug("%s: no cache of files (%s)", self._path, error)
            self._is_usable = False
            yield None
            return
        try:
            with database:
                yield database
        except (sqlite3.Error, OSError) as error:
            logger.debug("%s: the cache of files is not used (%s)", self._path, error)
            self._is_usable = False
        finally:
            database.close()


def pack_info(info: FileInfo) -> bytes:
    """Return an inspection as bytes, without the failures of replicas."""
    directory = None if info.directory is None else _plain_directory(info.directory)
    dropped = info.dropped and info.dropped._replace(
        directory=_plain_directory(info.dropped.directory)
    )
    plain = replace(info, failures=(), directory=None, dropped=None)
    content = json.dumps({**asdict(plain), "directory": directory, "dropped": dropped})
    packed: bytes = lz4.frame.compress(content.encode())
    return packed


def _plain_directory(directory: Directory) -> dict[str, Any]:
    return {
        name: None
        if baskets is None
        else [
            *(places.tolist() for places in (baskets.seeks, baskets.sizes, baskets.bounds)),
            baskets.dtype.str,
            baskets.is_jagged,
        ]
        for name, baskets in directory.items()
    }


def _unpack_info(content: bytes) -> FileInfo:
    known = json.loads(lz4.frame.decompress(content))
    directory, dropped = known.pop("directory"), known.pop("dropped")
    if dropped is not None:
        tree, plain, entries = dropped
        dropped = Dropped(tree, _directory(plain), entries)
    place = known["place"] and EntriesPlace(*known["place"])
    lists = {name: tuple(known[name]) for name in ("misread", "uneven", "lacking")}
    return FileInfo(
        **{**known, "failures": (), "place": place, **lists},
        directory=None if directory is None else _directory(directory),
        dropped=dropped,
    )


def _directory(directory: dict[str, Any]) -> Directory:
    return {n: None if plain is None else _baskets(*plain) for n, plain in directory.items()}


def _baskets(
    seeks: list[int], sizes: list[int], bounds: list[int], dtype: str, is_jagged: bool
) -> Baskets:
    return Baskets(
        seeks=np.array(seeks, np.int64),
        sizes=np.array(sizes, np.int64),
        bounds=np.array(bounds, np.int64),
        dtype=np.dtype(dtype),
        is_jagged=is_jagged,
    )


def _key(file: File, wanted: ColumnRequest) -> str:
    """Digest of all that decides an inspection: the fileset's file, the columns, and the code."""
    stated = {name: value for name, value in asdict(file).items() if name != "replicas"}
    content = repr([sorted(stated.items()), wanted, _code(), version_of("uproot")])
    return hashlib.sha256(content.encode()).hexdigest()


@functools.cache
def _code() -> str:
    files = (__file__, baskets.__file__, inspection.__file__, columns.__file__)
    sources = b"".join(Path(file).read_bytes() for file in files)
    return hashlib.sha256(sources).hexdigest()


def _is_sound(info: FileInfo) -> bool:
    """Return whether baskets and entries fit together."""
    kept = info.entries - (0 if info.dropped is None else info.dropped.entries)
    parts = [(info.directory or {}, kept)]
    if info.dropped is not None:
        parts.append((info.dropped.directory, info.dropped.entries))
    return all(
        len(b.seeks) == len(b.sizes) == len(b.bounds) - 1
        and (b.bounds[0], b.bounds[-1]) == (0, entries)
        and bool(np.all(np.diff(b.bounds) >= 0))
        for directory, entries in parts
        for b in directory.values()
        if b is not None
    )


def _is_unchanged(file: File, info: FileInfo) -> bool:
    path = local_path(file.url)
    if path is None:
        return True  # a worker that reads it finds out
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_size, str(status.st_mtime_ns)) == (info.size, info.stamp)
