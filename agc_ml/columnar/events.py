"""Events as flat columns, read from baskets or taken from NanoEvents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from agc_ml.columnar.jagged import Array, Collection, Group, offsets_of


class FlatEvents:
    """Flat columns: ``events.event`` has shape ``(n_events,)``, ``events.Jet.pt`` ``(n_jets,)``.

    ``column(name)`` reads a branch, ``offsets(name)`` the offsets of a collection; ``names`` are
    all branches: a collection has a counter among them, a group such as ``events.MET`` has none. A
    branch without fields is a column, even beside a branch that seems to count it. If
    ``is_selected`` is False, the processor's preselection dropped the events, and they have only
    its ``counted_columns``.
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
        """Names of columns, groups and collections, without counters, as in NanoEvents."""
        return [n for n in self._fields if n[:1] != "n" or n[1:] not in self._fields]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        fields = self._fields.get(name, [])

        def column(field: str) -> Array:
            return self._column(f"{name}_{field}")

        if f"n{name}" in self._names and (fields or name not in self._names):
            value: Any = Collection(self._offsets(name), column, fields=fields)
        elif name not in self._names and fields:
            value = Group(column, fields)
        else:
            value = self._column(name)
        setattr(self, name, value)
        return value


def blocks(events: Any) -> Iterator[FlatEvents]:
    """Events as flat columns, in blocks that fit into memory.

    ``events`` are a `Stream`, or any NanoEvents, which become one block.
    """
    is_stream = callable(getattr(events, "blocks", None))
    yield from events.blocks() if is_stream else [_of_records(events)]


def _of_records(events: Any) -> FlatEvents:
    import awkward as ak  # noqa: PLC0415 - only for NanoEvents

    def column(name: str) -> Array:
        if name not in names:
            raise AttributeError(f"there is no column {name}")
        if name[1:] in collections:
            return np.asarray(ak.num(events[name[1:]]))
        if name in collections:
            raise AttributeError(f"{name} has lists, so it is not a flat column; use records")
        group, _, field = name.partition("_")
        values = events[name] if name in events.fields else events[group][field]
        return np.asarray(ak.flatten(values) if group in collections else values)

    def offsets(name: str) -> Array:
        starts: Array = offsets_of(np.asarray(ak.num(events[name])))
        return starts

    # Fixed-size lists are columns, not collections: they have no counter.
    several = [name for name in events.fields if events[name].ndim > 1]
    collections = [name for name in several if not events[name].layout.purelist_isregular]
    names = [f"n{name}" for name in collections]
    for name in events.fields:
        inner = events[name].fields
        names += [f"{name}_{field}" for field in inner] if inner else [name]
    return FlatEvents(len(events), column, offsets, names, events.metadata)
