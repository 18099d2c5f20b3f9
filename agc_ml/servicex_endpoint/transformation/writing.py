"""Writing in a transformer: trees and histograms into one file of the requested format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import awkward as ak
import numpy as np
import uproot

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.requests import ResultFormat
from agc_ml.servicex_endpoint.transformation.reading import CopiedObject, EventBatch, OutputPiece

_NOTHING: Final = "the file has nothing that the query selects"


class _UnequalCountsError(Exception):
    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self.collection = collection


class _Counters(NamedTuple):
    """Names of counters: ``nJet`` for all ``Jet_...``, as in NanoAOD.

    Each column of a collection in ``separate`` has a counter of its own, as their counts differ.
    """

    separate: frozenset[str]

    def __call__(self, column: str) -> str:
        collection = _collection(column)
        return f"n{column if collection in self.separate else collection}"

    def check(self, columns: dict[str, Any]) -> None:
        counts = {
            name: np.asarray(values)
            for name, values in columns.items()
            if name[:1] == "n" and values.ndim == 1
        }
        for name, values in columns.items():
            if _is_jagged(values):
                lengths = np.asarray(ak.num(values))
                if not np.array_equal(counts.setdefault(self(name), lengths), lengths):
                    raise _UnequalCountsError(_collection(name))


def write(
    pieces: Callable[[], Iterator[OutputPiece]], output: Path, result_format: ResultFormat
) -> int:
    """Write the pieces to a file; return the number of events.

    ``pieces`` is called again where columns of a collection turn out to differ in their counts.

    Raises
    ------
    InputFileError
        There is nothing to write.
    """
    if result_format == "parquet":
        return _write_parquet(pieces(), output)
    separate: frozenset[str] = frozenset()
    while True:
        counters = _Counters(separate) if result_format == "root-file" else None
        try:
            return _write_root(pieces(), output, counters)
        except _UnequalCountsError as error:
            separate |= {error.collection}


def _write_root(pieces: Iterator[OutputPiece], output: Path, counters: _Counters | None) -> int:
    """Write trees if there are counters, else RNTuples; zlib, since it detects damage."""
    total = 0
    trees: dict[str, Any] = {}
    has_copied = False
    with uproot.recreate(output, compression=uproot.ZLIB(1)) as file:
        for piece in pieces:
            if isinstance(piece, CopiedObject):
                file[piece.name] = piece.content
                has_copied = True
                continue
            columns = _columns(piece.events)
            if counters is not None:
                counters.check(columns)
            # a tree needs named counters, an RNTuple one array of records
            table = ak.zip(columns, depth_limit=1) if counters is None else columns
            if piece.tree not in trees:
                trees[piece.tree] = _create(file, piece.tree, table, counters)
            if len(piece.events):
                trees[piece.tree].extend(table)
            total += len(piece.events)
    if not trees and not has_copied:
        raise InputFileError(_NOTHING)
    return total


def _create(file: Any, name: str, table: Any, counters: _Counters | None) -> Any:
    if counters is None:
        return file.mkrntuple(name, table[:0])
    types = {column: ak.type(values).content for column, values in table.items()}
    return file.mktree(name, types, counter_name=counters)


def _write_parquet(pieces: Iterator[OutputPiece], output: Path) -> int:
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415 - for this format only

    first = next(pieces, None)
    if not isinstance(first, EventBatch):
        raise InputFileError(_NOTHING)
    table = ak.to_arrow_table(first.events, extensionarray=False)
    total = len(first.events)
    with ParquetWriter(output, table.schema) as writer:
        writer.write_table(table)
        for piece in pieces:
            if not isinstance(piece, EventBatch) or piece.tree != first.tree:
                raise InputFileError("parquet holds only one tree; use root-file")
            table = ak.to_arrow_table(piece.events, extensionarray=False)
            writer.write_table(table.cast(writer.schema))
            total += len(piece.events)
    return total


def _collection(column: str) -> str:
    return column.partition("_")[0] or column


def _columns(events: Any) -> dict[str, Any]:
    """Return columns that a tree can hold; a record of columns becomes several."""
    columns = {}
    for name in events.fields:
        values = events[name]
        if isinstance(ak.type(values).content, ak.types.RecordType):
            columns.update({f"{name}_{x}": inner for x, inner in _columns(values).items()})
        else:
            columns[name] = _without_none(name, values)
    return columns


def _without_none(name: str, values: Any) -> Any:
    """Return values without the option type, such as of a ``max``, which ROOT can't hold."""
    if not isinstance(ak.type(values).content, ak.types.OptionType):
        return values
    if ak.any(ak.is_none(values)):
        raise InputFileError(
            f"{name} is missing in some events, which ROOT can't hold; use fill_none"
        )
    return ak.drop_none(values, axis=0)


def _is_jagged(values: Any) -> bool:
    return isinstance(ak.type(values).content, ak.types.ListType)
