"""Events in memory: one value an event, and collections of objects, as flat arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Collection:
    """Objects of many events: ``counts`` an event, and each field flat, event after event."""

    counts: Array
    fields: Mapping[str, Array]

    def select(self, mask: Array) -> Collection:
        """The objects of the events that ``mask``, shape ``(n_events,)``, picks."""
        inside = np.repeat(mask, self.counts)
        return Collection(
            self.counts[mask], {name: values[inside] for name, values in self.fields.items()}
        )


@dataclass(frozen=True)
class Events:
    """Columns as NanoAOD has them: ``values`` one an event, ``collections`` many."""

    values: Mapping[str, Array]
    collections: Mapping[str, Collection]

    def __len__(self) -> int:
        return len(self.values["event"])

    def select(self, mask: Array) -> Events:
        """The events that ``mask``, shape ``(n_events,)``, picks."""
        return Events(
            {name: values[mask] for name, values in self.values.items()},
            {name: c.select(mask) for name, c in self.collections.items()},
        )

    def plain(self) -> dict[str, Any]:
        """The same as dictionaries of arrays, which `of_plain` takes."""
        collections = {n: [c.counts, dict(c.fields)] for n, c in self.collections.items()}
        return {"values": dict(self.values), "collections": collections}


def of_plain(plain: Mapping[str, Any]) -> Events:
    """Undo `Events.plain`."""
    collections = {name: Collection(*parts) for name, parts in plain["collections"].items()}
    return Events(plain["values"], collections)


def concatenate(parts: Sequence[Events]) -> Events:
    """Events one after the other; all parts have the same columns."""
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
    """Make a collection of the objects that ``keep`` picks, by falling ``order`` in each event.

    ``event`` is the index of each object's event, rising.
    """
    index = np.flatnonzero(keep)
    if order is not None:
        index = index[np.lexsort((-fields[order][index], event[index]))]
    counts = np.bincount(event[index], minlength=n_events)
    return Collection(counts, {name: values[index] for name, values in fields.items()})
