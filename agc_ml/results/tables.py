"""Tables of a run: columns of equal length, such as the training set that a processor extracts.

On disk a table is a Parquet file. Its header has a description, the provenance, and a digest of the
content that does not depend on Parquet's encoding.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.typing import NDArray

from agc_ml import documents
from agc_ml.errors import RunDirectoryError

Array = NDArray[Any]

SCHEMA: Final = 1
_KEY: Final = b"agc_ml"
_KINDS: Final = "biufS"
_BATCH: Final = 1 << 16
_UNPACKED: Final = 8
"""Largest ratio of the unpacked Parquet pages to the table in memory."""


class ColumnTable:
    """Table in memory, ``{column: values}``, with columns of equal length.

    Tables of chunks are concatenated in the order of the fileset. Text is stored as numpy's bytes
    (``S``). ``about`` describes the table in JSON values, the same in all chunks.
    """

    def __init__(self, columns: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        self._parts = [{name: np.asarray(values) for name, values in columns.items()}]
        self.about = dict(about or {})
        for name, values in self._parts[0].items():
            if values.ndim != 1 or values.dtype.kind not in _KINDS:
                raise ValueError(
                    f"column {name}: one number or bytes per row is needed, not {values.dtype} of "
                    f"shape {values.shape}"
                )
        lengths = {len(values) for values in self._parts[0].values()}
        if len(lengths) != 1:
            raise ValueError(f"columns of one length are needed, not of {sorted(lengths)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._parts[0])

    def __len__(self) -> int:
        first = self.names[0]
        return sum(len(part[first]) for part in self._parts)

    def __getitem__(self, name: str) -> Array:
        return np.concatenate([part[name] for part in self._parts])

    def columns(self) -> dict[str, Array]:
        """Return all columns, each as one array."""
        return {name: self[name] for name in self.names}

    def __iadd__(self, other: Any) -> Self:
        if not isinstance(other, ColumnTable) or self._kind() != other._kind():
            raise ValueError("tables have different columns or descriptions")
        self._parts += other._parts
        return self

    def __add__(self, other: Any) -> ColumnTable:
        total = ColumnTable(self._parts[0], self.about)
        total._parts = list(self._parts)
        total += other
        return total

    def _kind(self) -> tuple[Any, ...]:
        # without the width of text, which is that of the longest one in a chunk
        kinds = [
            (name, "S" if values.dtype.kind == "S" else values.dtype.str)
            for name, values in self._parts[0].items()
        ]
        return kinds, self.about

    @property
    def digest(self) -> str:
        """Sha256 of ``about`` and of all columns: names, types and values, in order."""
        return digest(self.columns(), self.about)


def is_name(name: str) -> bool:
    """Return whether a name is valid for a table: a file name, not a path to another folder."""
    return re.fullmatch(r"[^/\\\0.][^/\\\0]{0,200}", name) is not None


def digest(columns: Mapping[str, Array], about: Mapping[str, Any]) -> str:
    """Return the sha256 of a table's content; text counts without the padding of its column."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, values in columns.items():
        is_text = values.dtype.kind == "S"
        kind = "S" if is_text else values.dtype.newbyteorder("<").str
        total.update(json.dumps([name, kind, len(values)]).encode())
        if is_text:
            total.update(b"\0".join(values.tolist()))
        else:
            total.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    return total.hexdigest()


@dataclass(frozen=True)
class StoredTable:
    """Table as read from a file; ``provenance`` says what it was made of."""

    columns: Mapping[str, Array]
    about: Mapping[str, Any]
    provenance: Mapping[str, Any]
    digest: str


class _TableError(ValueError):
    """Problem of a table, without the name of its file."""


@contextmanager
def _errors(label: object, error: Callable[[str], Exception]) -> Iterator[None]:
    """Turn problems of a table into one ``error`` that begins with ``label``."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    try:
        yield
    except FileNotFoundError:
        raise error(f"{label}: there is no such file") from None
    except _TableError as problem:
        raise error(f"{label}: {problem}") from problem.__cause__
    except (OSError, ValueError, pa.ArrowException) as cause:
        reason = " ".join(str(cause).split())[:200]
        raise error(f"{label}: can't be read as Parquet ({reason}); extract it anew") from cause


def write(path: Path, table: ColumnTable, provenance: Mapping[str, Any]) -> None:
    """Write a table as Parquet, compressed with zstd."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    columns = table.columns()
    header = {
        "schema": SCHEMA,
        "digest": digest(columns, table.about),
        "about": table.about,
        "provenance": provenance,
    }
    arrays = {
        name: pa.array(np.strings.decode(values, "utf-8") if values.dtype.kind == "S" else values)
        for name, values in columns.items()
    }
    packed = pa.table(arrays).replace_schema_metadata({_KEY: json.dumps(header).encode()})
    pq.write_table(packed, path, compression="zstd")


def read(
    source: Path | BinaryIO,
    error: Callable[[str], Exception] = RunDirectoryError,
    most_bytes: int | None = None,
    label: object = None,
) -> StoredTable:
    """Read a table from a file or its content, and compare it with its digest.

    Errors begin with ``label``, by default the path.

    Raises
    ------
    RunDirectoryError
        Or what ``error`` makes of a line: it can't be read, is not a table of agc-ml, was changed,
        or would take more than ``most_bytes`` of memory.
    """
    if label is None:
        label = source if isinstance(source, Path) else "table"
    with _errors(label, error):
        return _read(source, most_bytes)


def _read(source: Path | BinaryIO, most_bytes: int | None) -> StoredTable:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    with documents.opened(source) if isinstance(source, Path) else nullcontext(source) as file:
        schema = pq.read_schema(file)
        _check_types(schema)
        text = [field.name for field in schema if pa.types.is_string(field.type)]
        parquet = pq.ParquetFile(file, read_dictionary=text)
        # sizes are checked before anything is unpacked
        if most_bytes is not None:
            _check_row_groups(parquet.metadata, schema.names, most_bytes)
        widths = [max(f.type.bit_width // 8, 1) for f in schema if f.name not in text]
        n_bytes = parquet.metadata.num_rows * sum(widths)
        _check_size(n_bytes, most_bytes)
        table = parquet.read()
    # content, compared with the digest of the header
    table.validate(full=True)
    about, provenance, stated = _header(table.schema.metadata)
    columns = {}
    for name in table.column_names:
        if table[name].null_count:
            raise _TableError(f"column {name} has rows without a value; extract it anew")
        values = table[name].combine_chunks()
        if name in text:
            words = _words(f"column {name}: ", values.dictionary, most_bytes)
            n_bytes += words.itemsize * len(values)
            _check_size(n_bytes, most_bytes)
            columns[name] = words[values.indices.to_numpy()]
        else:
            columns[name] = values.to_numpy(zero_copy_only=False)
    actual = digest(columns, about)
    if actual != stated:
        raise _TableError(
            f"its content has the digest {actual[:12]}, not the stated {stated[:12]}; it was "
            "changed or is damaged: extract it anew"
        )
    return StoredTable(columns, about, provenance, stated)


def _check_types(schema: Any) -> None:
    """Reject columns that are not numbers or text, and duplicate names."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    kinds = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    for field in schema:
        if not any(is_kind(field.type) for is_kind in kinds):
            raise _TableError(
                f"column {field.name} is of type {field.type}, neither numbers nor text; extract "
                "it anew"
            )
        if len(schema.get_all_field_indices(field.name)) > 1:
            raise _TableError(f"there are two columns {field.name}; extract it anew")


def _check_row_groups(metadata: Any, names: Sequence[str], most: int) -> None:
    """Reject row groups that don't add up to the stated number of rows, or unpack to too much.

    Some damaged footers end the process here, by a bug of pyarrow, while reading would report them:
    so this is for processes that may end.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise _TableError("it states two different numbers of rows; it is damaged: extract it anew")
    for number, name in enumerate(names):
        parts = [group.column(number) for group in groups]
        if any(p.num_values != g.num_rows for p, g in zip(parts, groups, strict=True)):
            raise _TableError(f"column {name} is not as long as the table; extract it anew")
        # twice the size of numbers of one byte, which take four there, or of single letters
        unpacked = sum(part.total_uncompressed_size for part in parts)
        _check_size(unpacked, _UNPACKED * most, f"column {name}: ")


def _words(label: str, dictionary: Any, most: int | None) -> Array:
    """Return words as numpy's bytes, each as wide as the longest one."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.compute as pc  # noqa: PLC0415 - heavy

    longest = max(pc.max(pc.binary_length(dictionary)).as_py() or 1, 1)
    _check_size(longest * len(dictionary), most, label)
    words = np.zeros(len(dictionary), f"S{longest}")
    for start in range(0, len(words), _BATCH):  # limits the number of Python objects
        part = dictionary.slice(start, _BATCH).cast(pa.binary()).to_pylist()
        words[start : start + len(part)] = part
    return words


def _check_size(n_bytes: int, most: int | None, label: str = "") -> None:
    if most is not None and n_bytes > most:
        raise _TableError(
            f"{label}takes {n_bytes / 1e6:,.0f} MB of memory; at most {most / 1e6:,.0f} MB are "
            "taken: extract fewer events into it, or start the service with a larger --max-upload"
        )


def digest_of(path: Path, error: Callable[[str], Exception] = RunDirectoryError) -> str:
    """Return the digest that a table states, without reading its columns.

    Raises
    ------
    RunDirectoryError
        As of `read`.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    with _errors(path, error), documents.opened(path) as file:
        return _header(pq.read_schema(file).metadata)[2]


def _header(
    metadata: Mapping[bytes, bytes] | None,
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return what a table states: about, provenance, digest."""
    try:
        header = json.loads((metadata or {})[_KEY])
        version, stated = header["schema"], str(header["digest"])
        about, provenance = dict(header["about"]), dict(header["provenance"])
    except (KeyError, ValueError, TypeError, RecursionError) as cause:
        raise _TableError(
            "it has no header of agc-ml; tables are what 'agc-ml run' writes"
        ) from cause
    if version != SCHEMA:
        raise _TableError(f"schema {version!r}, this version reads {SCHEMA}; extract it anew")
    return about, provenance, stated
