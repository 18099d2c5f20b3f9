"""Events as coffea's records, of columns that are compared with each other when they are read.

A schema puts columns together into lists of objects by one of them, such as a counter, and takes
it that the others are as long. They need not be: after a skim that made some of them anew, say.
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

    ``names`` are the branches that are set up, none: all; ``clock`` runs uproot's tasks. What is
    read of them raises `InputFileError` where it does not fit: it has another number of entries,
    or its lists are of other lengths than those of the collection that it is part of.

    Raises
    ------
    ProcessorError
        The schema makes no events of the branches: it has a fault, or is one of other files.
    """
    NanoAODSchema.warn_missing_crossrefs = False
    with warnings.catch_warnings():
        # The schema warns of what is common: branches it replaces, or cross-references it lacks.
        warnings.filterwarnings("ignore", module=r"coffea\.nanoevents\.schemas")
        factory = _CheckedFactory.from_root(
            file,
            treepath=tree,
            mode="virtual",
            entry_start=entries[0],
            entry_stop=entries[1],
            schemaclass=schema,
            metadata=metadata,
            # names as they are: uproot takes text with brackets or stars for a pattern
            iteritems_options={"filter_name": frozenset(names).__contains__} if names else {},
            decompression_executor=clock,
            interpretation_executor=clock,
        )
        with _made_by(schema):
            return factory.events()


@contextmanager
def _made_by(schema: Any) -> Iterator[None]:
    """Take any error in here for one of the schema: nothing of the file is read."""
    try:
        yield
    except (AgcError, MemoryError):
        raise
    except Exception as error:
        raise ProcessorError(
            f"schema {schema.__name__} makes no events of the branches ({in_one_line(error)}); "
            "correct it, or choose that of the file (--schema)"
        ) from error


def see_whole(events: Any) -> None:
    """Raise what reading columns of `events` raised first, whatever became of it.

    awkward makes an AttributeError of it, which ``hasattr`` takes for a column that is not there.
    """
    error = events.attrs["@events_factory"].mapping.error
    if error is not None:
        raise error


def lacking(file: Any, tree: str, names: Collection[str], schema: type) -> str | None:
    """Say what a schema can't make of the given branches of a tree, None if it can make all.

    coffea's vectors want coordinates, and some of them a charge, whatever is asked of them.
    """
    there = set(file[tree].keys()) - {*names}
    try:
        made = events(
            *(file, tree, (0, 0)),
            names=names,
            metadata={},
            clock=TrivialExecutor(),
            schema=schema,
        )
    except ProcessorError as error:
        return str(error)
    problems = [
        problem for field in made.fields if (problem := _problem(made, field, there)) is not None
    ]
    return "; ".join(problems) or None


def _problem(made: Any, field: str, there: set[str]) -> str | None:
    try:
        len(made[field])
    except Exception as error:  # noqa: BLE001 - behaviours raise anything; it is told
        more = [name for part in _PARTS if (name := f"{field}_{part}") in there]
        if not more:
            return f"the columns declared of {field} are not enough: {in_one_line(error)}"
        return (
            f"the processor's columns lack {', '.join(more)}, without which coffea makes no "
            f"{field}; add them (what is not used is not read)"
        )
    return None


_PARTS: Final = ("pt", "eta", "phi", "mass", "charge", "x", "y", "z", "t", "energy")


class _CheckedFactory(NanoEventsFactory):  # type: ignore[misc]
    """coffea's factory, with a mapping that compares what it reads."""

    @classmethod
    def _from_mapping(cls, mapping: Any, partition_key: Any, *others: Any, **named: Any) -> Any:
        checked = _CheckedMapping(mapping)
        _, schema, *_ = others
        with _made_by(schema):
            factory = super()._from_mapping(checked, partition_key, *others, **named)
            checked.know(factory._schema.form, factory._partition_key)  # noqa: SLF001 - no other way
        factory.mapping = checked
        return factory


class _CheckedMapping(UprootSourceMapping):  # type: ignore[misc]
    """Columns of a tree, each compared with the range of entries and the list that it is part of.

    A list is known by the key of its form, which tells how its offsets are made of columns.
    """

    def __init__(self, mapping: UprootSourceMapping) -> None:
        self.__dict__.update(mapping.__dict__)  # as the factory has made it
        self._lists: dict[str, dict[str, list[str]]] = {}
        self._sources: set[str] = set()
        self._kept: dict[str, Any] = {}
        self._offsets: dict[str, Any] = {}
        self._partition = ""
        self.error: Exception | None = None

    def know(self, form: Mapping[str, Any], partition: str) -> None:
        """Learn from a schema's form which columns are put into which lists."""
        self._partition = partition
        for key, branch, fields in _members(form):
            if _nodes(key) != [branch, "!load", *fields]:  # else the list is its own
                self._lists.setdefault(branch, {})[key] = fields
                self._sources.add(_nodes(key)[0])

    def get_column_handle(self, columnsource: Any, name: str, allow_missing: bool) -> Any:
        """A column and its name in the tree, by which the schema knows it."""
        return name, super().get_column_handle(columnsource, name, allow_missing)

    def extract_column(
        self, columnhandle: Any, start: int, stop: int, allow_missing: bool, **options: Any
    ) -> Any:
        """Read a column, and compare it; offsets are made of some of them: these are kept."""
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
        problem = uneven(handle)  # also where the range lies inside of it
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
                raise InputFileError(f"branch {name} counts less than nothing; it is damaged")
            self._kept[name] = array
        for key, fields in self._lists.get(name, {}).items():
            lists = array
            for field in fields[::2]:  # each is followed by !item
                lists = lists[field]
            if not np.array_equal(ak.num(lists), np.diff(self._offsets_of(key))):
                raise InputFileError(
                    f"branch {name}: its lists are not as long as {_nodes(key)[0]} says; it is "
                    "damaged, or was made anew without its counter"
                )

    def _offsets_of(self, key: str) -> Any:
        """Offsets of the list of a form, as coffea makes them."""
        if key not in self._offsets:
            self._offsets[key] = self[f"{self._partition}/offsets/{concat(key, '!offsets')}"]()
        return self._offsets[key]


def _nodes(key: str) -> list[str]:
    """Names and transforms that a key of a form is made of, beginning with a branch."""
    nodes: list[str] = unquote(key).split(",")
    return nodes


def _members(
    form: Mapping[str, Any], of: str | None = None
) -> Iterator[tuple[str, str, list[str]]]:
    """Lists of a schema's form, by key, with each branch that is in them, and the way into it.

    Only the outermost lists count events. What is made of columns has no branch of its own.
    """
    if of is not None and form.get("form_key"):
        branch, *way = _nodes(form["form_key"])
        if way[:1] == ["!load"] and "!content" in way:
            fields = way[1 : way.index("!content")]
            if len(fields) % 2 == 0 and set(fields[1::2]) <= {"!item"}:
                yield of, branch, fields
            return
    if form["class"].startswith("ListOffset"):
        if of is not None:
            return
        of = form["form_key"]
    for inner in form.get("contents", [form["content"]] if "content" in form else []):
        yield from _members(inner, of)
