"""Tables of a run: columns of equal length, such as the training set that a processor extracts.

On disk a table is a Parquet file. It says what it is, what it was made of, and the digest of its
content, which does not depend on how Parquet packs it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
_AT_ONCE: Final = 1 << 16
_UNPACKED: Final = 8
"""Times that what is in a file may be larger than what it takes as a table, before it is packed."""


class ColumnTable:
    """A table in memory, ``{column: values}``, of which all columns are equally long.

    Those of later chunks go behind those of earlier ones, in the order of the fileset. Text is kept
    as numpy's bytes (``S``). ``about`` says what it is, in what JSON can hold: the same in all
    chunks.
    """

    def __init__(self, columns: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        self._parts = [{name: np.asarray(values) for name, values in columns.items()}]
        self.about = dict(about or {})
        for name, values in self._parts[0].items():
            if values.ndim != 1 or values.dtype.kind not in _KINDS:
                raise ValueError(
                    f"column {name}: one number or bytes a row is needed, not {values.dtype} of "
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
        """All columns, each in one piece."""
        return {name: self[name] for name in self.names}

    def __iadd__(self, other: Any) -> Self:
        if not isinstance(other, ColumnTable) or self._kind() != other._kind():
            raise ValueError("tables of other columns, or about something else")
        self._parts += other._parts
        return self

    def __add__(self, other: Any) -> ColumnTable:
        total = ColumnTable(self._parts[0], self.about)
        total._parts = list(self._parts)
        total += other
        return total

    def _kind(self) -> tuple[Any, ...]:
        # numbers; the width of text is that of the longest one in a chunk
        kinds = [(name, v.dtype.kind if v.dtype.kind == "S" else v.dtype.str)
                 for name, v in self._parts[0].items()]  # fmt: skip
        return kinds, self.about

    @property
    def digest(self) -> str:
        """sha256 of what it is about and of all columns: names, types and values, in order."""
        return digest(self.columns(), self.about)


def is_name(name: str) -> bool:
    """Return whether a name is fit for a table: the name of a file, no path to another folder."""
    return re.fullmatch(r"[^/\\\0.][^/\\\0]{0,200}", name) is not None


def digest(columns: Mapping[str, Array], about: Mapping[str, Any]) -> str:
    """sha256 of a table's content; text counts without the padding of its column."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, values in columns.items():
        is_text = values.dtype.kind == "S"
        kind = "S" if is_text else values.dtype.newbyteorder("<").str
        found.update(json.dumps([name, kind, len(values)]).encode())
        if is_text:
            found.update(b"\0".join(values.tolist()))
        else:
            found.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    return found.hexdigest()


@dataclass(frozen=True)
class Table:
    """A table as it is on disk.

    ``provenance`` says what it was made of; ``digest`` is that of its content.
    """

    columns: Mapping[str, Array]
    about: Mapping[str, Any]
    provenance: Mapping[str, Any]
    digest: str


def write(path: Path, rows: ColumnTable, provenance: Mapping[str, Any]) -> None:
    """Write a table as Parquet, compressed with zstd."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    columns = rows.columns()
    text = json.dumps(
        {
            "schema": SCHEMA,
            "digest": digest(columns, rows.about),
            "about": rows.about,
            "provenance": provenance,
        }
    )
    arrays = {
        name: pa.array(np.strings.decode(values, "utf-8"))
        if values.dtype.kind == "S"
        else pa.array(values)
        for name, values in columns.items()
    }
    table = pa.table(arrays).replace_schema_metadata({_KEY: text.encode()})
    pq.write_table(table, path, compression="zstd")


def read(
    source: Path | BinaryIO,
    error: Callable[[str], Exception] = RunDirectoryError,
    most_bytes: int | None = None,
    label: object = None,
) -> Table:
    """Read a table, from a file or its content; check that it is what its digest says.

    ``label`` is what errors call it.

    Raises
    ------
    RunDirectoryError
        Or what ``error`` makes of a line: it can't be read, is no table of agc-ml, was changed, or
        would take more than ``most_bytes`` of memory.
    """
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    if label is None:
        label = source if isinstance(source, Path) else "table"
    try:
        with _open(source) as opened:
            schema = pq.read_schema(opened)
            _check_types(label, schema, error)
            text = [field.name for field in schema if pa.types.is_string(field.type)]
            file = pq.ParquetFile(opened, read_dictionary=text)
            if most_bytes is not None:
                _check_footer(label, file.metadata, schema.names, most_bytes, error)
            widths = [max(f.type.bit_width // 8, 1) for f in schema if f.name not in text]
            n_bytes = file.metadata.num_rows * sum(widths)
            _check_size(label, n_bytes, most_bytes, error)
            table = file.read()
        table.validate(full=True)
    except FileNotFoundError:
        raise error(f"{label}: there is no such file") from None
    except (OSError, ValueError, pa.ArrowException) as cause:
        reason = " ".join(str(cause).split())[:200]
        raise error(f"{label}: can't be read as Parquet ({reason}); extract it anew") from cause
    about, provenance, content = _stated(label, table.schema.metadata, error)
    columns = {}
    for name in table.column_names:
        if table[name].null_count:
            raise error(f"{label}: column {name} has rows without a value; extract it anew")
        values = table[name].combine_chunks()
        if name in text:
            words = _words(f"{label}: column {name}", values.dictionary, most_bytes, error)
            n_bytes += words.itemsize * len(values)
            _check_size(label, n_bytes, most_bytes, error)
            columns[name] = words[values.indices.to_numpy()]
        else:
            columns[name] = values.to_numpy(zero_copy_only=False)
    found = digest(columns, about)
    if found != content:
        raise error(
            f"{label}: its content has the digest {found[:12]}, not {content[:12]} as it says; it "
            "was changed or is damaged: extract it anew"
        )
    return Table(columns, about, provenance, content)


def _open(source: Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return documents.opened(source) if isinstance(source, Path) else nullcontext(source)


def _check_types(label: object, schema: Any, error: Callable[[str], Exception]) -> None:
    """Numbers and text only, each column under a name of its own."""
    import pyarrow as pa  # noqa: PLC0415 - heavy

    kinds = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    for field in schema:
        if not any(is_kind(field.type) for is_kind in kinds):
            raise error(
                f"{label}: column {field.name} is of type {field.type}, neither numbers nor text; "
                "extract it anew"
            )
        if len(schema.get_all_field_indices(field.name)) > 1:
            raise error(f"{label}: there are two columns {field.name}; extract it anew")


def _check_footer(
    label: object,
    metadata: Any,
    names: Sequence[str],
    most: int,
    error: Callable[[str], Exception],
) -> None:
    """A file is read row group by row group: each has to be as large as the whole says.

    Some footers of which reading says in words what is wrong end the process here, by a fault of
    pyarrow: so this is for processes that may end.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if sum(group.num_rows for group in groups) != metadata.num_rows:
        raise error(f"{label}: says of itself two numbers of rows; it is damaged: extract it anew")
    for number, name in enumerate(names):
        parts = [group.column(number) for group in groups]
        if any(p.num_values != g.num_rows for p, g in zip(parts, groups, strict=True)):
            raise error(f"{label}: column {name} is not as long as the table; extract it anew")
        # twice what it takes of numbers of a byte, which are four there, or of single letters
        unpacked = sum(part.total_uncompressed_size for part in parts)
        _check_size(f"{label}: column {name}", unpacked, _UNPACKED * most, error)


def _words(
    label: object, dictionary: Any, most: int | None, error: Callable[[str], Exception]
) -> Array:
    """Words as numpy's bytes, each as wide as the longest one."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.compute as pc  # noqa: PLC0415 - heavy

    longest = max(pc.max(pc.binary_length(dictionary)).as_py() or 1, 1)
    _check_size(label, longest * len(dictionary), most, error)
    words = np.zeros(len(dictionary), f"S{longest}")
    for start in range(0, len(words), _AT_ONCE):  # each is an object for a moment
        part = dictionary.slice(start, _AT_ONCE).cast(pa.binary()).to_pylist()
        words[start : start + len(part)] = part
    return words


def _check_size(
    label: object, n_bytes: int, most: int | None, error: Callable[[str], Exception]
) -> None:
    if most is not None and n_bytes > most:
        raise error(
            f"{label}: takes {n_bytes / 1e6:,.0f} MB of memory; at most {most / 1e6:,.0f} MB are "
            "taken: extract fewer events into it, or start the service with a larger --max-upload"
        )


def digest_of(path: Path, error: Callable[[str], Exception] = RunDirectoryError) -> str:
    """The digest that a table states, without reading it.

    Raises
    ------
    RunDirectoryError
        As of `read`.
    """
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy

    try:
        with documents.opened(path) as file:
            metadata = pq.read_schema(file).metadata
    except (OSError, ValueError, pa.ArrowException) as cause:
        reason = " ".join(str(cause).split())[:200]
        raise error(f"{path}: can't be read as Parquet ({reason}); extract it anew") from cause
    return _stated(path, metadata, error)[2]


def _stated(
    label: object, metadata: Mapping[bytes, bytes] | None, error: Callable[[str], Exception]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What a table says of itself: about, provenance, digest."""
    try:
        stated = json.loads((metadata or {})[_KEY])
        version, content = stated["schema"], str(stated["digest"])
        about, provenance = dict(stated["about"]), dict(stated["provenance"])
    except (KeyError, ValueError, TypeError, RecursionError) as cause:
        raise error(
            f"{label}: it does not say what it is; tables are what 'agc-ml run' writes"
        ) from cause
    if version != SCHEMA:
        raise error(f"{label}: schema {version!r}, this agc-ml reads {SCHEMA}; extract it anew")
    return about, provenance, content
