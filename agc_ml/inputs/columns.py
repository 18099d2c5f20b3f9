"""Branches that a processor needs from a tree, with those that its schema adds."""

from __future__ import annotations

from typing import Final, NamedTuple

EVENT_ID: Final = ("run", "luminosityBlock", "event")
"""Branches that identify an event."""
NANOAOD: Final = "NanoAODSchema"
OF_NANOAOD: Final = (NANOAOD, "PFNanoAODSchema", "ScoutingNanoAODSchema")
"""Schemas whose files have the branches of EVENT_ID, and counters of collections."""


class ColumnRequest(NamedTuple):
    """Columns to read from a tree: ``columns`` are required, () means all that are there.

    ``optional`` ones are read where they exist. ``flat`` asks for flat columns instead of records
    of coffea's ``schema``.
    """

    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    flat: bool = False
    schema: str = NANOAOD

    @property
    def is_of_nanoaod(self) -> bool:
        """True if collections have counters, and events the branches of EVENT_ID."""
        return self.schema in OF_NANOAOD

    @property
    def identity(self) -> tuple[str, ...]:
        """Branches that identify an event, if the schema needs them."""
        return EVENT_ID if self.is_of_nanoaod and not self.flat else ()

    def with_counters(self) -> list[str]:
        """Return the columns, with the counters of their collections if the schema has them."""
        return with_counters(self.columns) if self.is_of_nanoaod else list(self.columns)

    def names(self) -> list[str]:
        """Return all branches to set up: the columns, and those that the schema adds."""
        needed = self.identity if self.columns else ()
        return list(dict.fromkeys([*needed, *self.with_counters()]))

    def of_file(self, lacking: tuple[str, ...]) -> ColumnRequest:
        """Return the request for a file without the ``lacking`` optional columns."""
        present = tuple(name for name in self.optional if name not in lacking)
        return self._replace(columns=(*self.columns, *present), optional=())


def with_counters(columns: tuple[str, ...]) -> list[str]:
    """Return columns and the counters of their collections: ``Jet_pt`` needs ``nJet``."""
    counters = {f"n{name.partition('_')[0]}" for name in columns if "_" in name}
    return [*columns, *sorted(counters)]
