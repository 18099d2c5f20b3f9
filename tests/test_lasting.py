"""What outlives a chunk is not returned by it, wherever it lives."""

from __future__ import annotations

import functools
from collections import OrderedDict, defaultdict, deque
from typing import Any

import boost_histogram as bh
import hist
import numpy as np
import pytest
from coffea.processor import column_accumulator, dict_accumulator, value_accumulator

from agc_ml.errors import ProcessorError
from agc_ml.function_processor import FunctionProcessor
from agc_ml.instances import Original
from agc_ml.lasting import returned_again

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


FUNCTIONS = [
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


def run(original: Original, chunks: int) -> None:
    for _ in range(chunks):
        original.check(original.copy().process(range(N)))


@pytest.mark.parametrize(
    "processor", PROCESSORS, ids=lambda p: getattr(getattr(p, "function", p), "__name__", "")
)
def test_what_outlives_a_chunk_is_refused(processor: Any) -> None:
    original = Original(processor)
    with pytest.raises(ProcessorError, match="which all chunks of a worker fill"):
        run(original, 3)


@functools.cache
def other_book() -> Any:
    return {"met": new()}


def again(events: Any) -> Any:
    return {"met": filled(other_book()["met"])}


def test_a_second_run_in_a_process_is_refused_too() -> None:
    run(Original(FunctionProcessor(again, {})), 1)
    with pytest.raises(ProcessorError, match=r"in output\['met'\] what an earlier chunk returned"):
        run(Original(FunctionProcessor(again, {})), 1)


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
    run(Original(Right()), 6)


WAITING = 0


def late(events: Any, dataset: str) -> Any:
    global WAITING  # noqa: PLW0603 - as people do
    WAITING += len(events) if dataset == "signal" else 0
    return {"n": WAITING}


def test_what_begins_with_another_dataset_is_seen() -> None:
    original = Original(FunctionProcessor(late, {}))

    def chunks(n: int, dataset: str) -> None:
        for _ in range(n):
            original.check(late(range(N), dataset), dataset)

    chunks(9, "background")
    with pytest.raises(ProcessorError, match="it returns WAITING, which all chunks"):
        chunks(3, "signal")


def test_what_is_gone_is_not_remembered() -> None:
    """Things of new chunks are made where those of old ones were."""
    for _ in range(1000):
        assert returned_again({"met": np.ones(3), "cuts": {"all": 1}, "rows": [1.0]}) is None
