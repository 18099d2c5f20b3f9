"""Events as flat columns, whatever they were read with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from agc_ml.columnar.jagged import Array, Collection, Group, offsets_of


class FlatEvents:
    """Flat columns: ``events.event`` has shape ``(n_events,)``, ``events.Jet.pt`` ``(n_jets,)``.

    ``column(name)`` gives a branch and ``offsets(name)`` those of a collection; ``names`` are the
    branches that there are: a collection has a counter among them, a group such as ``events.MET``
    has none. A branch without fields is a column, also beside a branch that seems to count it.
    Where ``is_selected`` is false, the processor's preselection dropped the events, and they have
    its ``counted_columns`` only.
    """

    is_selected = True

    def __init__(
        self,
        length: int,
        column: Callable[[str], Array],
        offsets: Callable[[str], Array],
        names: Iterable[str],
        metadata: Mapping[str, Any],
    ) -> None:
        self.metadata = metadata
        self._length = length
        self._column = column
        self._offsets = offsets
        self._names = dict.fromkeys(names)
        self._fields: dict[str, list[str]] = {}
        for name in self._names:
            group, _, field = name.partition("_")
            self._fields.setdefault(group, []).extend([field] if field else [])

    def __len__(self) -> int:
        return self._length

    @property
    def fields(self) -> list[str]:
        """Names of what there is, as NanoEvents has them: counters are left out."""
        return [n for n in self._fields if n[:1] != "n" or n[1:] not in self._fields]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        fields = self._fields.get(name, [])

        def column(field: str) -> Array:
            return self._column(f"{name}_{field}")

        if f"n{name}" in self._names and (fields or name not in self._names):
            found: Any = Collection(self._offsets(name), column, fields=fields)
        elif name not in self._names and fields:
            found = Group(column, fields)
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
        if name not in names:
            raise AttributeError(f"there is no column {name}")
        if name[1:] in collections:
            return np.asarray(ak.num(events[name[1:]]))
        if name in collections:
            raise AttributeError(f"{name} has lists, so it is no flat column; take it from records")
        group, _, field = name.partition("_")
        values = events[name] if name in events.fields else events[group][field]
        return np.asarray(ak.flatten(values) if group in collections else values)

    def offsets(name: str) -> Array:
        found: Array = offsets_of(np.asarray(ak.num(events[name])))
        return found

    several = [name for name in events.fields if events[name].ndim > 1]
    collections = [name for name in several if not events[name].layout.purelist_isregular]
    names = [f"n{name}" for name in collections]
    for name in events.fields:
        inner = events[name].fields
        names += [f"{name}_{field}" for field in inner] if inner else [name]
    return FlatEvents(len(events), column, offsets, names, events.metadata)
