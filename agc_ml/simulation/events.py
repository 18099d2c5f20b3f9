"""Events in memory as flat arrays: values, one an event, and collections of objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Collection:
    """Objects of many events: ``counts``, one an event, and fields concatenated over events."""

    counts: Array
    fields: Mapping[str, Array]

    def select(self, mask: Array) -> Collection:
        """The objects of the events in ``mask``, shape ``(n_events,)``."""
        inside = np.repeat(mask, self.counts)
        return Collection(
            self.counts[mask], {name: values[inside] for name, values in self.fields.items()}
        )


@dataclass(frozen=True)
class Events:
    """Columns of NanoAOD: ``values``, one an event, and ``collections`` of objects."""

    values: Mapping[str, Array]
    collections: Mapping[str, Collection]

    def __len__(self) -> int:
        return len(self.values["event"])

    def select(self, mask: Array) -> Events:
        """The events in ``mask``, shape ``(n_events,)``."""
        return Events(
            {name: values[mask] for name, values in self.values.items()},
            {name: c.select(mask) for name, c in self.collections.items()},
        )

    def mapped(self, function: Callable[[str, Array], Array]) -> Events:
        """Apply ``function(field, values)`` to all columns; MET_pt has the field pt."""
        return Events(
            {name: function(name.rpartition("_")[2], v) for name, v in self.values.items()},
            {
                name: Collection(c.counts, {f: function(f, v) for f, v in c.fields.items()})
                for name, c in self.collections.items()
            },
        )

    def plain(self) -> dict[str, Any]:
        """The same as dictionaries of arrays, for `of_plain`."""
        collections = {n: [c.counts, dict(c.fields)] for n, c in self.collections.items()}
        return {"values": dict(self.values), "collections": collections}


def of_plain(plain: Mapping[str, Any]) -> Events:
    """Events from what `Events.plain` returned."""
    collections = {name: Collection(*parts) for name, parts in plain["collections"].items()}
    return Events(plain["values"], collections)


def concatenate(parts: Sequence[Events]) -> Events:
    """Concatenate events with the same columns."""
    first = parts[0]
    return Events(
        {name: np.concatenate([part.values[name] for part in parts]) for name in first.values},
        {
            name: Collection(
                np.concatenate([part.collections[name].counts for part in parts]),
                {
                    field: np.concatenate([p.collections[name].fields[field] for p in parts])
                    for field in collection.fields
                },
            )
            for name, collection in first.collections.items()
        },
    )


def collect(
    fields: Mapping[str, Array], event: Array, n_events: int, keep: Array, order: str | None = None
) -> Collection:
    """Collection of the objects in ``keep``, sorted by falling ``order`` within each event.

    ``event`` is the index of each object's event, ascending.
    """
    index = np.flatnonzero(keep)
    if order is not None:
        index = index[np.lexsort((-fields[order][index], event[index]))]
    counts = np.bincount(event[index], minlength=n_events)
    return Collection(counts, {name: values[index] for name, values in fields.items()})
