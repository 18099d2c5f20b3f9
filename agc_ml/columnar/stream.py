"""Events of a chunk as a stream of blocks, for processors that take flat columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from agc_ml.columnar.columns import Columns
from agc_ml.columnar.events import FlatEvents
from agc_ml.columnar.jagged import Array


class Stream:
    """The events [start, stop) of a chunk in `blocks`, followed by those of ``dropped``.

    The dropped events, which a preselection removed, are not selected.
    """

    def __init__(
        self,
        columns: Columns,
        start: int,
        stop: int,
        metadata: Mapping[str, Any],
        dropped: Stream | None = None,
    ) -> None:
        self.metadata = metadata
        self._columns = columns
        self._range = (start, stop)
        self._dropped = dropped

    def __len__(self) -> int:
        start, stop = self._range
        return stop - start + len(self._dropped or ())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"no {name}: events of a flat processor come in blocks; take the columns of each: "
            "for block in agc_ml.columnar.events.blocks(events)"
        )

    def blocks(self) -> Iterator[FlatEvents]:
        """The events in blocks of some 50,000, or as many as are in one cluster of the file."""
        if self._range[0] < self._range[1]:
            yield from self._blocks(is_selected=True)
        if self._dropped is not None and len(self._dropped):
            yield from self._dropped._blocks(is_selected=False)  # noqa: SLF001 - of the same kind

    def _blocks(self, *, is_selected: bool) -> Iterator[FlatEvents]:
        columns = self._columns
        parts = list(itertools.pairwise(columns.cuts(*self._range)))
        columns.ask(*parts[0])
        for (start, stop), following in itertools.zip_longest(parts, parts[1:]):
            columns.take()
            if following is not None:  # fetch the next block while this one is processed
                columns.ask(*following)

            def column(name: str, start: int = start, stop: int = stop) -> Array:
                return columns.read(name, start, stop)

            def offsets(name: str, start: int = start, stop: int = stop) -> Array:
                return columns.offsets(name, start, stop)

            events = FlatEvents(stop - start, column, offsets, columns.names, self.metadata)
            events.is_selected = is_selected
            yield events
