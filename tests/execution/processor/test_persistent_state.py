"""What outlives a chunk is not returned by it, wherever it lives."""

from __future__ import annotations

import copy
import functools
from collections import Counter, OrderedDict, defaultdict, deque
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import boost_histogram as bh
import hist
import numpy as np
import pytest
from coffea.processor import (
    accumulate,
    column_accumulator,
    defaultdict_accumulator,
    dict_accumulator,
    value_accumulator,
)

from agc_ml.errors import ProcessorError
from agc_ml.execution.code.function_processor import FunctionProcessor
from agc_ml.execution.processor.copies import ProcessorTemplate
from agc_ml.execution.processor.persistent_state import returned_again

N = 5


def new() -> Any:
    return hist.Hist(hist.axis.Regular(3, 0, 100, name="x"), hist.storage.Double())


def filled(histogram: Any) -> Any:
    return histogram.fill(np.full(N, 50.0))


# -- functions -------------------------------------------------------------------------------------

MET = new()
COUNTS: Any = defaultdict(int)
NESTED: Any = defaultdict(lambda: defaultdict(int))  # which can't be pickled
HISTS = [new()]
BARE = bh.Histogram(bh.axis.Regular(3, 0, 100))
VALUE = value_accumulator(int)
ARRAY, OTHER_ARRAY = np.zeros(3), np.zeros(3)
ROWS: list[int] = []
TOTAL = 0
LATER: Any = None


def of_the_module(events: Any) -> Any:
    return filled(MET)


def counts(events: Any) -> Any:
    COUNTS["all"] += len(events)
    return {"cutflow": COUNTS}


def nested(events: Any) -> Any:
    NESTED["tt"]["all"] += len(events)
    return {"cutflow": NESTED}


def in_a_list(events: Any) -> Any:
    return {"met": filled(HISTS[0])}


def of_boost(events: Any) -> Any:
    return {"met": filled(BARE)}


def accumulator(events: Any) -> Any:
    global VALUE  # noqa: PLW0603 - as people do
    VALUE += len(events)
    return {"n": VALUE}


def view(events: Any) -> Any:
    ARRAY[0] += len(events)
    return {"n": ARRAY[:]}


def column(events: Any) -> Any:
    OTHER_ARRAY[0] += len(events)
    return {"n": column_accumulator(OTHER_ARRAY)}


def copied(events: Any) -> Any:
    ROWS.append(len(events))
    return {"rows": list(ROWS)}


def number(events: Any) -> Any:
    global TOTAL  # noqa: PLW0603 - as people do
    TOTAL += len(events)
    return {"n": TOTAL}


def made_late(events: Any) -> Any:
    global LATER  # noqa: PLW0603 - as people do
    LATER = LATER or new()
    return {"met": filled(LATER)}


def default(events: Any, out: Any = {"n": 0}) -> Any:  # noqa: B006 - as people do
    out["n"] += len(events)
    return out


@functools.cache
def book() -> Any:
    return {"met": new()}


def cached(events: Any) -> Any:
    filled(book()["met"])
    return book()


def attribute(events: Any) -> Any:
    attribute.h = getattr(attribute, "h", None) or new()  # type: ignore[attr-defined]
    return {"met": filled(attribute.h)}  # type: ignore[attr-defined]


def timed(function: Any) -> Any:
    @functools.wraps(function)
    def around(*arguments: Any) -> Any:
        return function(*arguments)

    return around


DECORATED = new()


@timed
def decorated(events: Any) -> Any:
    return filled(DECORATED).copy()


def closure() -> Any:
    histogram = new()

    def inside(events: Any) -> Any:
        return {"met": filled(histogram).copy()}

    return inside


class Counting:
    """An object of the user's, which a module keeps."""

    def __init__(self) -> None:
        self.n = 0
        self.met = new()
        self.cuts = {"all": 0}


STORE, OTHER_STORE, CUTS_STORE = Counting(), Counting(), Counting()


def number_of_an_object(events: Any) -> Any:
    STORE.n += len(events)
    return {"n": STORE.n}


def histogram_of_an_object(events: Any) -> Any:
    return {"met": filled(OTHER_STORE.met).copy()}


def cuts_of_an_object(events: Any) -> Any:
    CUTS_STORE.cuts["all"] += len(events)
    return {"cuts": dict(CUTS_STORE.cuts)}


ORDERED: Any = OrderedDict(all=0)
LAST: Any = deque()


def ordered(events: Any) -> Any:
    ORDERED["all"] += len(events)
    return {"cuts": ORDERED.copy()}


def in_a_deque(events: Any) -> Any:
    LAST.append(len(events))
    return {"rows": deque(LAST)}


PROJECTED, SUMMED, VALUES = new(), new(), new()


def projected(events: Any) -> Any:
    return {"met": filled(PROJECTED).project("x")}


def summed(events: Any) -> Any:
    return {"n": filled(SUMMED).sum()}


def contents(events: Any) -> Any:
    return {"n": filled(VALUES).values()}


IN_A_TUPLE, SPACE = (new(),), SimpleNamespace(met=new(), n=0)
BOOK_OF_COFFEA = dict_accumulator({"met": new(), "n": value_accumulator(int)})
SUM: Any = None
ARRAYS: Any = np.zeros(3)
CUTFLOW: Any = Counter()


class Pair(NamedTuple):
    met: Any


class Book(dict):  # type: ignore[type-arg]
    """As people do."""


A_PAIR, A_BOOK = Pair(new()), Book(met=new())


def in_a_tuple(events: Any) -> Any:
    return {"met": filled(IN_A_TUPLE[0]).copy()}


def in_a_namespace(events: Any) -> Any:
    SPACE.n += len(events)
    return {"n": SPACE.n, "met": filled(SPACE.met).copy()}


def in_a_named_tuple(events: Any) -> Any:
    return {"met": filled(A_PAIR.met).copy()}


def in_a_subclass(events: Any) -> Any:
    return {"met": filled(A_BOOK["met"]).copy()}


def in_coffeas(events: Any) -> Any:
    return {"met": filled(BOOK_OF_COFFEA["met"]).copy()}


@functools.cache
def copied_book() -> Any:
    return {"met": new()}


@functools.lru_cache(maxsize=3)
def bounded_book() -> Any:
    return {"met": new()}


def behind_a_cache(events: Any) -> Any:
    return {"met": filled(copied_book()["met"]).copy()}


def behind_a_bounded_cache(events: Any) -> Any:
    return {"met": filled(bounded_book()["met"]).copy()}


def made_anew(events: Any) -> Any:
    global SUM  # noqa: PLW0603 - as people do
    SUM = filled(new()) if SUM is None else SUM + filled(new())
    return {"met": SUM}


def arrays_made_anew(events: Any) -> Any:
    global ARRAYS  # noqa: PLW0603 - as people do
    ARRAYS = ARRAYS + np.array([1, 0, len(events)])
    return {"n": ARRAYS}


def counters_made_anew(events: Any) -> Any:
    global CUTFLOW  # noqa: PLW0603 - as people do
    CUTFLOW = CUTFLOW + Counter(all=len(events))
    return {"cutflow": CUTFLOW}


def accumulated(events: Any) -> Any:
    accumulated.total = accumulate(  # type: ignore[attr-defined]
        [getattr(accumulated, "total", {}), {"n": len(events)}]
    )
    return accumulated.total  # type: ignore[attr-defined]


def grows(events: Any, out: Any = column_accumulator(np.array([]))) -> Any:  # noqa: B008 - as above
    out += column_accumulator(np.ones(len(events)))
    return {"n": out}


PROXY = MappingProxyType({"met": new()})


def behind_a_proxy(events: Any) -> Any:
    return {"met": filled(PROXY["met"]).copy()}


AS_A_DICT: Any = defaultdict_accumulator(int)


def as_a_dict(events: Any) -> Any:
    AS_A_DICT["all"] += len(events)
    return {"cutflow": dict(AS_A_DICT)}


class OfAnotherType:
    sumw = np.float32(0)
    pts = column_accumulator(np.array([]))
    n = value_accumulator(int)


def of_another_type(events: Any) -> Any:
    OfAnotherType.sumw += np.float32(len(events))
    return {"sumw": float(OfAnotherType.sumw)}


def column_of_a_class(events: Any) -> Any:
    OfAnotherType.pts += column_accumulator(np.ones(len(events)))
    return {"pts": copy.deepcopy(OfAnotherType.pts)}


def value_of_a_class(events: Any) -> Any:
    OfAnotherType.n += len(events)
    return {"n": OfAnotherType.n.value}


FUNCTIONS = [
    *(as_a_dict, grows, behind_a_proxy, of_another_type, column_of_a_class, value_of_a_class),
    *(in_a_tuple, in_a_namespace, in_a_named_tuple, in_a_subclass, in_coffeas, behind_a_cache),
    *(behind_a_bounded_cache, made_anew, arrays_made_anew, counters_made_anew, accumulated),
    *(number_of_an_object, histogram_of_an_object, cuts_of_an_object, ordered, in_a_deque),
    *(projected, summed, contents),
    *(of_the_module, counts, nested, in_a_list, of_boost, accumulator, view, column, copied),
    *(number, made_late, default, cached, attribute, decorated),
]

# -- classes ---------------------------------------------------------------------------------------


class Store:
    met = new()


class OfAnotherClass:
    def process(self, events: Any) -> Any:
        return {"met": filled(Store.met)}


class Copied:
    met = new()

    def process(self, events: Any) -> Any:
        return {"met": filled(self.met).copy()}


class Base:
    met = new()

    def process(self, events: Any) -> Any:
        return {"met": filled(self.met)}


class Inherits(Base):
    def process(self, events: Any) -> Any:
        return super().process(events)


class MadeLate:
    met: Any = None

    def process(self, events: Any) -> Any:
        type(self).met = type(self).met or new()
        return {"met": filled(self.met)}


class Number:
    n = 0

    def process(self, events: Any) -> Any:
        type(self).n += len(events)
        return {"n": self.n}


class Helper:
    def add(self, events: Any, out: Any = {"n": 0}) -> Any:  # noqa: B006 - as people do
        out["n"] += len(events)
        return out

    def process(self, events: Any) -> Any:
        return self.add(events)


class Accumulators:
    out = dict_accumulator({"n": value_accumulator(int)})

    def process(self, events: Any) -> Any:
        self.out["n"] += len(events)
        return {"n": self.out["n"]}


CLASSES = [OfAnotherClass, Copied, Inherits, MadeLate, Number, Helper, Accumulators]


class Called:
    """An object that is called."""

    met = new()

    def __call__(self, events: Any) -> Any:
        return {"met": filled(self.met).copy()}


PROCESSORS = [
    *(FunctionProcessor(function, {}) for function in FUNCTIONS),
    FunctionProcessor(functools.partial(default), {}),
    FunctionProcessor(Called(), {}),
    *(made() for made in CLASSES),
]


def run(original: ProcessorTemplate, chunks: int, n: int = N, dataset: str = "d") -> None:
    def process(made: Any) -> Any:
        return made.process(range(n))

    for _ in range(chunks):
        original.check(process(original.copy()), dataset, process)


@pytest.mark.parametrize(
    "processor", PROCESSORS, ids=lambda p: getattr(getattr(p, "function", p), "__name__", "")
)
def test_what_outlives_a_chunk_is_refused(processor: Any) -> None:
    original = ProcessorTemplate(processor)
    with pytest.raises(ProcessorError, match="which all chunks of a worker fill"):
        run(original, 3)


@functools.cache
def other_book() -> Any:
    return {"met": new()}


def again(events: Any) -> Any:
    return {"met": filled(other_book()["met"])}


def test_a_second_run_in_a_process_is_refused_too() -> None:
    run(ProcessorTemplate(FunctionProcessor(again, {})), 1)
    with pytest.raises(ProcessorError, match=r"other_book\(\)\['met'\] \(output\['met'\]\), which"):
        run(ProcessorTemplate(FunctionProcessor(again, {})), 1)


# -- what may be done ------------------------------------------------------------------------------

EDGES = {"low": 0, "high": 100}
NAMES = ["a", "b"]
EMPTY = new()
TABLE = np.arange(3)
TABLE.flags.writeable = False
MEMO: dict[str, Any] = {}
CHUNKS = 0
KEPT: dict[str, Any] = {}
ALL: list[Any] = []
OUT: Any = None


SCRATCH, MONITOR = new(), new()
BUFFER = np.zeros(3)


class Monitor:
    def __init__(self) -> None:
        self.n_chunks = 0
        self.last_n = 0

    def see(self, n: int) -> None:
        self.n_chunks += 1
        self.last_n = n


MON = Monitor()


def monitored(events: Any) -> Any:
    MON.see(len(events))
    filled(MONITOR)
    filled(SCRATCH.reset())
    BUFFER[:] = len(events)
    out = {"met": SCRATCH.copy(), "n": len(events), "chunks": 1, "x": BUFFER.copy()}
    return out | {"small": {cut: cut for cut in range(9)}}


def test_what_a_module_only_notes_may_change() -> None:
    """Of chunks of any size: what is returned does not depend on it."""
    original = ProcessorTemplate(FunctionProcessor(monitored, {}))
    for n in (5, 3, 4, 7, 2):
        run(original, 1, n)


class Right:
    def __init__(self) -> None:
        self.met = new()
        self.counts = defaultdict(int)
        self.array = np.zeros(3)

    def process(self, events: Any) -> Any:
        global CHUNKS  # noqa: PLW0603 - as people do
        CHUNKS += 1
        MEMO.setdefault("scale", 1.5)
        MEMO[f"chunk {CHUNKS}"] = np.ones(3)
        self.counts["all"] += len(events)
        self.array += 1
        filled(self.met)
        own = {"met": self.met, "counts": self.counts, "array": self.array}
        constant = {"edges": EDGES, "names": NAMES, "none": EMPTY, "table": TABLE}
        out = own | constant | {"n": len(events), "scale": MEMO["scale"], "view": self.array[1:]}
        # as people do to look at it
        global OUT  # noqa: PLW0603 - as above
        OUT = KEPT["out"] = out
        ALL.append(out)
        return out


def test_what_belongs_to_a_chunk_may_be_returned() -> None:
    run(ProcessorTemplate(Right()), 6)


WAITING = 0


def late(events: Any) -> Any:
    global WAITING  # noqa: PLW0603 - as people do
    WAITING += len(events) if len(events) > N else 0
    return {"n": WAITING}


def test_what_begins_with_another_dataset_is_seen() -> None:
    original = ProcessorTemplate(FunctionProcessor(late, {}))
    run(original, 9, N, "background")
    with pytest.raises(ProcessorError, match="has the content of WAITING, which all chunks"):
        run(original, 3, 2 * N, "signal")


def test_what_is_gone_is_not_remembered() -> None:
    """Things of new chunks are made where those of old ones were."""
    for _ in range(1000):
        assert returned_again({"met": np.ones(3), "cuts": {"all": 1}, "rows": [1.0]}) is None
