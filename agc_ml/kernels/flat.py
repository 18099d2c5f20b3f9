"""Events as flat columns, whatever they were read with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from agc_ml.kernels.jagged import Array, Collection, offsets_of


class FlatEvents:
    """Flat columns: ``events.event`` has shape ``(n_events,)``, ``events.Jet.pt`` ``(n_jets,)``.

    ``column(name)`` gives a branch; ``collections`` are the names that have a counter. Where
    ``is_selected`` is false, the processor's preselection dropped the events, and they have its
    ``counted_columns`` only.
    """

    is_selected = True

    def __init__(
        self,
        length: int,
        column: Callable[[str], Array],
        collections: Iterable[str],
        metadata: Mapping[str, Any],
    ) -> None:
        self.metadata = metadata
        self._length = length
        self._column = column
        self._collections = frozenset(collections)

    def __len__(self) -> int:
        return self._length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._collections:
            offsets = offsets_of(self._column(f"n{name}"))
            found: Any = Collection(offsets, lambda field: self._column(f"{name}_{field}"))
        else:
            found = self._column(name)
        setattr(self, name, found)
        return found


def blocks(events: Any) -> Iterator[FlatEvents]:
    """Events as flat columns, a part at a time that fits into memory.

    ``events`` are those of a worker that streams them, or any NanoEvents: these are one part.
    """
    is_stream = callable(getattr(events, "blocks", None))
    yield from events.blocks() if is_stream else [_of_records(events)]


def _of_records(events: Any) -> FlatEvents:
    import awkward as ak  # noqa: PLC0415 - only for events that are records

    def column(name: str) -> Array:
        if name in events.fields:
            return np.asarray(events[name])
        if name[1:] in collections:
            return np.asarray(ak.num(events[name[1:]]))
        collection, _, field = name.partition("_")
        if collection not in events.fields or field not in events[collection].fields:
            raise AttributeError(f"there is no column {name}")
        values = events[collection][field]
        return np.asarray(ak.flatten(values) if collection in collections else values)

    collections = [name for name in events.fields if events[name].ndim > 1]
    return FlatEvents(len(events), column, collections, events.metadata)
