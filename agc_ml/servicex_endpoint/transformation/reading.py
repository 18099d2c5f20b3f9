"""In a worker: what a program takes out of one input file."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import awkward as ak
import uproot
from uproot.source.coalesce import CoalesceConfig

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.translation.generators import (
    FUNCTION,
    HistogramQuery,
    TreeQuery,
    raw_queries,
)
from agc_ml.servicex_endpoint.translation.language import Language

STEP: Final = 50_000  # events; a number, as uproot can't cut remote files by memory
TREE: Final = "servicex"
COLUMN: Final = "branch"


class Rows(NamedTuple):
    """Some events of a tree: its name in the output, and a record array of its columns."""

    tree: str
    events: Any


class Copied(NamedTuple):
    """An object that is copied as it is."""

    name: str
    content: Any


Piece = Rows | Copied


def pieces(codegen: str, program: str, source: str) -> Iterator[Piece]:
    """Run a program on the file at ``source``.

    Raises
    ------
    InputFileError
        The file lacks what the program wants.
    """
    if codegen == "uproot-raw":
        yield from _raw(program, source)
    else:
        if codegen == "uproot":
            from agc_ml.servicex_endpoint.translation.programs import check  # noqa: PLC0415 - heavy, for this one only

            check(program)
            if "://" not in source:  # it looks for files of which a path is the pattern
                if "{" in source:  # of which there is no escape
                    raise InputFileError("func_adl reads no path with {; uproot-raw does")
                source = glob.escape(source)
        yield from _called(_function(program)(source))


def _function(program: str) -> Callable[[str], Any]:
    namespace: dict[str, Any] = {"__name__": FUNCTION}
    exec(compile(program, "<query>", "exec"), namespace)  # noqa: S102 - what the service is for
    function: Callable[[str], Any] = namespace[FUNCTION]
    return function


def _called(result: Any) -> Iterator[Rows]:
    """Trees of what a function gave: an array, or a dictionary of some."""
    trees = result if isinstance(result, dict) else {TREE: result}
    for name, events in trees.items():
        array = ak.Array(events)
        yield Rows(str(name), array if array.fields else ak.zip({COLUMN: array}, depth_limit=1))


def _raw(program: str, source: str) -> Iterator[Piece]:
    with uproot.open({source: None}, array_cache=None, **_options(source)) as file:
        for query in raw_queries(program):
            if isinstance(query, HistogramQuery):
                yield from _histograms(file, query)
            else:
                yield from _trees(file, query)


def _options(source: str) -> dict[str, Any]:
    if not source.startswith("root://"):
        return {}
    # XRootD refuses some requests of as many ranges as uproot would make
    return {"coalesce_config": CoalesceConfig(max_request_ranges=1000)}


def _histograms(file: Any, query: HistogramQuery) -> Iterator[Copied]:
    names = file.keys(filter_name=query.copy_histograms, cycle=False)
    if not names:
        raise InputFileError(f"the file has no object {query.copy_histograms}")
    for name in names:
        yield Copied(name, file[name])


def _trees(file: Any, query: TreeQuery) -> Iterator[Rows]:
    for name, target in query.trees.items():
        tree = file.get(name)
        if hasattr(tree, "iterate"):
            yield from _rows(tree, target, query)
        elif query.fail_on_missing_trees is not False:
            trees = file.keys(filter_classname=["TTree", "ROOT::RNTuple"], cycle=False)
            known = ", ".join(trees) or "no tree at all"
            raise InputFileError(f"the file has no tree {name}; it has {known}")


def _rows(tree: Any, target: str, query: TreeQuery) -> Iterator[Rows]:
    columns = query.model_dump(
        include={"expressions", "filter_name", "filter_typename", "aliases"}, exclude_none=True
    )
    columns["language"] = Language(standard=bool(query.use_standard_awkward_axis))
    empty = tree.arrays(entry_stop=0, **columns)
    if not empty.fields and query.fail_on_missing_trees is False:
        return
    if not empty.fields:
        raise InputFileError(f"no column of the tree {tree.name} is wanted by the query")
    yield Rows(target, empty)  # the tree is there even if no event is
    for events in tree.iterate(step_size=STEP, cut=query.cut, **columns):
        yield Rows(target, events)
