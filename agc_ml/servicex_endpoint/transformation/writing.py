"""In a worker: trees and histograms into one file of the format that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
import uproot

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.requests import ResultFormat
from agc_ml.servicex_endpoint.transformation.reading import Copied, Piece, Rows


class _UnequalCounts(Exception):  # noqa: N818 - a finding, no fault
    def __init__(self, collection: str) -> None:
        super().__init__(collection)
        self.collection = collection


class _Counters(NamedTuple):
    """Names of counters: ``nJet`` for all ``Jet_...``, as NanoAOD has it.

    Columns of collections in ``separate`` have each their own, as they differ in their numbers.
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
                these = np.asarray(ak.num(values))
                if not np.array_equal(counts.setdefault(self(name), these), these):
                    raise _UnequalCounts(_collection(name))


def write(pieces: Callable[[], Iterator[Piece]], output: Path, form: ResultFormat) -> int:
    """Write what ``pieces`` gives to a file; the number of events comes back.

    ``pieces`` is called again where columns of a collection turn out to be of different lengths.

    Raises
    ------
    InputFileError
        There is nothing to be written.
    """
    if form == "parquet":
        return _write_parquet(pieces(), output)
    separate: frozenset[str] = frozenset()
    while True:
        counters = _Counters(separate) if form == "root-file" else None
        try:
            return _write_root(pieces(), output, counters)
        except _UnequalCounts as found:
            separate |= {found.collection}


def _write_root(pieces: Iterator[Piece], output: Path, counters: _Counters | None) -> int:
    """Trees if there are counters, else RNTuples; zlib, for it notices damage."""
    total = 0
    made: dict[str, Any] = {}
    copied = False
    with uproot.recreate(output, compression=uproot.ZLIB(1)) as file:
        for piece in pieces:
            if isinstance(piece, Copied):
                file[piece.name] = piece.content
                copied = True
                continue
            columns = _columns(piece.events)
            if counters is not None:
                counters.check(columns)
            if piece.tree not in made:
                made[piece.tree] = _make(file, piece.tree, columns, counters)
            if len(piece.events):
                _extend(made[piece.tree], columns, counters)
            total += len(piece.events)
    if not made and not copied:
        raise InputFileError("the file has nothing of what the query wants")
    return total


def _make(file: Any, name: str, columns: dict[str, Any], counters: _Counters | None) -> Any:
    if counters is None:
        return file.mkrntuple(name, ak.zip(columns, depth_limit=1)[:0])
    types = {name: ak.type(values).content for name, values in columns.items()}
    return file.mktree(name, types, counter_name=counters)


def _extend(tree: Any, columns: dict[str, Any], counters: _Counters | None) -> None:
    tree.extend(ak.zip(columns, depth_limit=1) if counters is None else columns)


def _write_parquet(pieces: Iterator[Piece], output: Path) -> int:
    from pyarrow.parquet import ParquetWriter  # noqa: PLC0415 - for this format only

    first = next(pieces, None)
    if not isinstance(first, Rows):
        raise InputFileError("the file has nothing of what the query wants")
    table = ak.to_arrow_table(first.events, extensionarray=False)
    total = len(first.events)
    with ParquetWriter(output, table.schema) as writer:
        writer.write_table(table)
        for piece in pieces:
            if not isinstance(piece, Rows) or piece.tree != first.tree:
                raise InputFileError("parquet holds one tree only; ask for root-file")
            table = ak.to_arrow_table(piece.events, extensionarray=False)
            writer.write_table(table.cast(writer.schema))
            total += len(piece.events)
    return total


def _collection(column: str) -> str:
    return column.partition("_")[0] or column


def _columns(events: Any) -> dict[str, Any]:
    """Columns that a tree can hold; a record of columns becomes several."""
    columns = {}
    for name in events.fields:
        values = events[name]
        if isinstance(ak.type(values).content, ak.types.RecordType):
            columns.update({f"{name}_{x}": inner for x, inner in _columns(values).items()})
        else:
            columns[name] = _without_none(name, values)
    return columns


def _without_none(name: str, values: Any) -> Any:
    """Values as ROOT can hold them: ``max`` of a list, say, may be missing, even if none is."""
    if not isinstance(ak.type(values).content, ak.types.OptionType):
        return values
    if ak.any(ak.is_none(values)):
        raise InputFileError(f"{name} is missing in some events, which ROOT can't hold; fill_none")
    return ak.drop_none(values, axis=0)


def _is_jagged(values: Any) -> bool:
    return isinstance(ak.type(values).content, ak.types.ListType)
