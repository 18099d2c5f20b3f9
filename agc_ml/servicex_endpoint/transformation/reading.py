"""Reading in a transformer: the pieces of output that a program makes of one input file."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import awkward as ak
import uproot
from uproot.source.coalesce import CoalesceConfig

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.translation.generators import HistogramQuery, TreeQuery, raw_queries
from agc_ml.servicex_endpoint.translation.language import Language
from agc_ml.servicex_endpoint.translation.syntax import FUNCTION

STEP: Final = 50_000  # events; uproot can't split remote files by memory
TREE: Final = "servicex"
COLUMN: Final = "branch"


class EventBatch(NamedTuple):
    """Some events of a tree: its name in the output, and a record array of its columns."""

    tree: str
    events: Any


class CopiedObject(NamedTuple):
    """An object to be copied as it is."""

    name: str
    content: Any


OutputPiece = EventBatch | CopiedObject


def pieces(codegen: str, program: str, source: str) -> Iterator[OutputPiece]:
    """Run a program on the file at ``source``.

    Raises
    ------
    InputFileError
        The file lacks what the program reads.
    """
    if codegen == "uproot-raw":
        yield from _raw(program, source)
    else:
        if codegen == "uproot":
            from agc_ml.servicex_endpoint.translation.programs import check  # noqa: PLC0415 - heavy, for this one only

            check(program)
            if "://" not in source:  # a path is a pattern for uproot.dask
                if "{" in source:  # there is no escape for it
                    raise InputFileError("func_adl can't read a path with {; uproot-raw can")
                source = glob.escape(source)
        yield from _batches(_function(program)(source))


def _function(program: str) -> Callable[[str], Any]:
    namespace: dict[str, Any] = {"__name__": FUNCTION}
    exec(compile(program, "<query>", "exec"), namespace)  # noqa: S102 - the purpose of a transformer
    function: Callable[[str], Any] = namespace[FUNCTION]
    return function


def _batches(result: Any) -> Iterator[EventBatch]:
    """Return the trees of a function's result: an array, or a dictionary of arrays."""
    trees = result if isinstance(result, dict) else {TREE: result}
    for name, events in trees.items():
        array = ak.Array(events)
        yield EventBatch(
            str(name), array if array.fields else ak.zip({COLUMN: array}, depth_limit=1)
        )


def _raw(program: str, source: str) -> Iterator[OutputPiece]:
    options: dict[str, Any] = {}
    if source.startswith("root://"):  # XRootD refuses some requests of as many ranges as uproot's
        options["coalesce_config"] = CoalesceConfig(max_request_ranges=1000)
    with uproot.open({source: None}, array_cache=None, **options) as file:
        for query in raw_queries(program):
            if isinstance(query, HistogramQuery):
                yield from _histograms(file, query)
            else:
                yield from _trees(file, query)


def _histograms(file: Any, query: HistogramQuery) -> Iterator[CopiedObject]:
    names = file.keys(filter_name=query.copy_histograms, cycle=False)
    if not names:
        raise InputFileError(f"the file has no object {query.copy_histograms}")
    for name in names:
        yield CopiedObject(name, file[name])


def _trees(file: Any, query: TreeQuery) -> Iterator[EventBatch]:
    for name, target in query.trees.items():
        tree = file.get(name)
        if hasattr(tree, "iterate"):
            yield from _tree(tree, target, query)
        elif query.fail_on_missing_trees is not False:
            trees = file.keys(filter_classname=["TTree", "ROOT::RNTuple"], cycle=False)
            present = ", ".join(trees) or "no tree at all"
            raise InputFileError(f"the file has no tree {name}; it has {present}")


def _tree(tree: Any, target: str, query: TreeQuery) -> Iterator[EventBatch]:
    columns = query.model_dump(
        include={"expressions", "filter_name", "filter_typename", "aliases"}, exclude_none=True
    )
    columns["language"] = Language(standard=bool(query.use_standard_awkward_axis))
    empty = tree.arrays(entry_stop=0, **columns)
    if not empty.fields and query.fail_on_missing_trees is False:
        return
    if not empty.fields:
        raise InputFileError(f"the query selects no column of the tree {tree.name}")
    yield EventBatch(target, empty)  # the output has the tree, even without events
    for events in tree.iterate(step_size=STEP, cut=query.cut, **columns):
        yield EventBatch(target, events)
