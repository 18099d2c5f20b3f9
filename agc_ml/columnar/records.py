"""Events as coffea's records, with columns compared with each other as they are read.

A schema combines columns into lists of objects by one of them, such as a counter, and assumes that
the others are as long. A skim that recomputed some columns may have broken that.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import awkward as ak
import numpy as np
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from coffea.nanoevents.mapping import UprootSourceMapping
from coffea.nanoevents.util import concat, unquote
from uproot.source.futures import TrivialExecutor

from agc_ml.columnar.baskets import uneven
from agc_ml.errors import AgcError, InputFileError, ProcessorError, in_one_line


def events(
    file: Any,
    tree: str,
    entries: tuple[int, int],
    *,
    names: Collection[str],
    metadata: Mapping[str, Any],
    clock: Any,
    schema: Any = NanoAODSchema,
) -> Any:
    """Entries [start, stop) of a tree of an `agc_ml.delivery.opening.open_file` file.

    ``names`` are the branches to set up, none for all; ``clock`` runs uproot's tasks. Reading a
    column raises `InputFileError` if it has another number of entries, or lists of other lengths
    than its collection.

    Raises
    ------
    ProcessorError
        The schema can't build events from the branches: it has a bug, or is for other files.
    """
    NanoAODSchema.warn_missing_crossrefs = False
    with warnings.catch_warnings():
        # The schema warns of common things: branches it replaces, missing cross-references.
        warnings.filterwarnings("ignore", module=r"coffea\.nanoevents\.schemas")
        factory = _CheckedFactory.from_root(
            file,
            treepath=tree,
            mode="virtual",
            entry_start=entries[0],
            entry_stop=entries[1],
            schemaclass=schema,
            metadata=metadata,
            # A function: uproot would take names with brackets or stars for patterns.
            iteritems_options={"filter_name": frozenset(names).__contains__} if names else {},
            decompression_executor=clock,
            interpretation_executor=clock,
        )
        with _schema_errors(schema):
            return factory.events()


@contextmanager
def _schema_errors(schema: Any) -> Iterator[None]:
    """Blame the schema for any error: no content of the file is read inside."""
    try:
        yield
    except (AgcError, MemoryError):
        raise
    except Exception as error:
        raise ProcessorError(
            f"schema {schema.__name__} can't build events from the branches "
            f"({in_one_line(error)}); correct it, or choose the schema of the file (--schema)"
        ) from error


def see_whole(events: Any) -> None:
    """Raise the first error of reading columns of `events`, even if it was caught.

    awkward turns it into an AttributeError, which ``hasattr`` takes for a missing column.
    """
    error = events.attrs["@events_factory"].mapping.error
    if error is not None:
        raise error


def lacking(file: Any, tree: str, names: Collection[str], schema: type) -> str | None:
    """Collections that a schema can't build from the given branches of a tree, None if it can.

    coffea's vectors need all coordinates, and some a charge, whatever is used of them.
    """
    others = set(file[tree].keys()) - {*names}
    clock = TrivialExecutor()
    try:
        empty = events(file, tree, (0, 0), names=names, metadata={}, clock=clock, schema=schema)
    except ProcessorError as error:
        return str(error)
    problems = [_problem(empty, field, others) for field in empty.fields]
    return "; ".join(problem for problem in problems if problem is not None) or None


def _problem(empty: Any, field: str, others: set[str]) -> str | None:
    try:
        len(empty[field])
    except Exception as error:  # noqa: BLE001 - behaviours raise anything; it is reported
        more = [name for part in _PARTS if (name := f"{field}_{part}") in others]
        if not more:
            return f"the columns declared for {field} are not enough: {in_one_line(error)}"
        return (
            f"the processor's columns lack {', '.join(more)}, which coffea needs for {field}; add "
            "them (unused columns are not read)"
        )
    return None


_PARTS: Final = ("pt", "eta", "phi", "mass", "charge", "x", "y", "z", "t", "energy")


class _CheckedFactory(NanoEventsFactory):  # type: ignore[misc]
    """coffea's factory, with a mapping that compares what it reads."""

    @classmethod
    def _from_mapping(cls, mapping: Any, partition_key: Any, *others: Any, **named: Any) -> Any:
        checked = _CheckedMapping(mapping)
        _, schema, *_ = others
        with _schema_errors(schema):
            factory = super()._from_mapping(checked, partition_key, *others, **named)
            checked.know(factory._schema.form, factory._partition_key)  # noqa: SLF001 - no other way
        factory.mapping = checked
        return factory


class _CheckedMapping(UprootSourceMapping):  # type: ignore[misc]
    """Columns of a tree, each compared with its range of entries and its list of objects.

    Lists are identified by the key of their form, which says how columns give their offsets.
    """

    def __init__(self, mapping: UprootSourceMapping) -> None:
        self.__dict__.update(mapping.__dict__)  # as built by the factory
        self._lists: dict[str, dict[str, list[str]]] = {}
        self._sources: set[str] = set()
        self._kept: dict[str, Any] = {}
        self._offsets: dict[str, Any] = {}
        self._partition = ""
        self.error: Exception | None = None

    def know(self, form: Mapping[str, Any], partition: str) -> None:
        """Record the columns of each list, from a schema's form."""
        self._partition = partition
        for key, branch, fields in _members(form):
            if _nodes(key) != [branch, "!load", *fields]:  # otherwise it is its own list
                self._lists.setdefault(branch, {})[key] = fields
                self._sources.add(_nodes(key)[0])

    def get_column_handle(self, columnsource: Any, name: str, allow_missing: bool) -> Any:
        """A column and its name in the tree, by which the schema knows it."""
        return name, super().get_column_handle(columnsource, name, allow_missing)

    def extract_column(
        self, columnhandle: Any, start: int, stop: int, allow_missing: bool, **options: Any
    ) -> Any:
        """Read a column, and compare it; columns that give offsets are cached."""
        name, handle = columnhandle
        if name in self._kept:
            return self._kept[name]
        try:
            array = self._read(name, handle, start, stop, allow_missing, **options)
            self._compare(name, array)
        except Exception as error:
            self.error = self.error or error
            raise
        return array

    def _read(self, name: str, handle: Any, *where: Any, **options: Any) -> Any:
        start, stop, _ = where
        problem = uneven(handle)  # even if the range lies within the branch
        if problem is not None:
            raise InputFileError(problem)
        try:
            array = super().extract_column(handle, *where, **options)
        except (AgcError, MemoryError):
            raise
        except Exception as error:  # uproot raises anything on damaged input
            raise InputFileError(f"branch {name}: {in_one_line(error)}") from error
        if len(array) != stop - start:
            raise InputFileError(
                f"branch {name}: {len(array)} entries were read of {stop - start}; it is damaged"
            )
        return array

    def _compare(self, name: str, array: Any) -> None:
        if name in self._sources:
            if array.ndim == 1 and (np.asarray(array) < 0).any():
                raise InputFileError(f"branch {name} has negative counts; it is damaged")
            self._kept[name] = array
        for key, fields in self._lists.get(name, {}).items():
            lists = array
            for field in fields[::2]:  # each is followed by !item
                lists = lists[field]
            if not np.array_equal(ak.num(lists), np.diff(self._offsets_of(key))):
                raise InputFileError(
                    f"branch {name}: its lists are not as long as {_nodes(key)[0]} says; it is "
                    "damaged, or was recomputed without its counter"
                )

    def _offsets_of(self, key: str) -> Any:
        """Offsets of the list of a form, as coffea computes them."""
        if key not in self._offsets:
            self._offsets[key] = self[f"{self._partition}/offsets/{concat(key, '!offsets')}"]()
        return self._offsets[key]


def _nodes(key: str) -> list[str]:
    """Names and transforms in a key of a form, beginning with a branch."""
    nodes: list[str] = unquote(key).split(",")
    return nodes


def _members(
    form: Mapping[str, Any], owner: str | None = None
) -> Iterator[tuple[str, str, list[str]]]:
    """Key, branch and path for each branch in the lists of a schema's form.

    Only the outermost lists count events. Derived columns have no branch of their own.
    """
    if owner is not None and form.get("form_key"):
        branch, *path = _nodes(form["form_key"])
        if path[:1] == ["!load"] and "!content" in path:
            fields = path[1 : path.index("!content")]
            if len(fields) % 2 == 0 and set(fields[1::2]) <= {"!item"}:
                yield owner, branch, fields
            return
    if form["class"].startswith("ListOffset"):
        if owner is not None:
            return
        owner = form["form_key"]
    for inner in form.get("contents", [form["content"]] if "content" in form else []):
        yield from _members(inner, owner)
