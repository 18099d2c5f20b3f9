"""Outputs as bytes without code: what comes back is what was packed, type for type."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date
from enum import StrEnum
from typing import Any, NamedTuple

import awkward as ak
import boost_histogram as bh
import hist
import lz4.frame
import numpy as np
import pytest
from coffea import processor
from coffea.analysis_tools import WeightStatistics
from hist import axis, storage
from hist.serialization import to_uhi
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.execution.state.packing import is_code, is_too_large, pack, unpack
from agc_ml.results import variances
from agc_ml.results.histogram_files import check_bins
from agc_ml.results.histograms import DenseHist
from agc_ml.results.tables import ColumnTable


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last bit, and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        is_same = one.dtype == other.dtype and one.shape == other.shape
        return is_same and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    if isinstance(one, float):
        return repr(one) == repr(other)  # -0.0 is not 0.0, and NaN is NaN
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(
            same(a, b) for a, b in zip(one.values(), other.values(), strict=True)
        )
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_come_back(value: Any) -> None:
    blob = pack(value)
    assert not is_code(blob)
    assert same(unpack(blob), value)


VALUES: list[Any] = [
    *(-0.0, math.inf, -math.inf, 10**400, 1 + 2j, "\ud800", b"\xff", bytearray(b"a")),
    *({1, 2}, frozenset({"a"}), deque([1, 2], maxlen=3), OrderedDict(b=1, a=2)),
    *(Counter(a=3, b=-1), defaultdict(int, a=1), defaultdict(list, {1: [2.0]}), defaultdict(None)),
    *(np.float32(0.1), np.int16(3), np.bool_(1), np.complex64(1j), np.str_("a"), np.bytes_(b"a")),
    *(np.datetime64("2026-01-02"), np.timedelta64(3, "s"), np.longdouble(1) / 3),
    *(np.arange(6.0).reshape(2, 3), np.array(3), np.array([]), np.array(["ab", "c"])),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array([(1, 2.0)], [("a", ">i4"), ("b", "f8")]),
    np.arange(10)[::2],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{value!r}")
def test_types_come_back(value: Any) -> None:
    blob = pack({"value": [value]})
    assert not is_code(blob)
    ((found,),) = unpack(blob).values()
    assert same(found, value)
    if isinstance(value, deque):
        assert found.maxlen == value.maxlen
    if isinstance(value, defaultdict):
        assert found.default_factory is value.default_factory
    if isinstance(value, np.ndarray):
        found[...] = value  # it can be added to in place


AXES = [
    axis.Regular(3, 0, 1, name="x", label="l"),
    axis.Regular(3, 1, 10, transform=axis.transform.log),
    axis.Regular(3, 1, 10, transform=axis.transform.Pow(2)),
    axis.Regular(4, 0, 1, circular=True),
    axis.Regular(4, 0, 1, growth=True),
    axis.Regular(4, 0, 1, underflow=False),
    axis.Variable([0, 1 / 3, 3.5], name="v"),
    axis.Variable([0, 1, 3.5], growth=True),
    axis.Integer(-1, 4, growth=True),
    axis.Integer(0, 4, flow=False),
    axis.Boolean(name="b"),
    axis.StrCategory(["a", "b"], growth=True, name="c"),
    axis.StrCategory([], growth=True),
    axis.StrCategory(["a"], overflow=False),
    axis.IntCategory([1, 5], growth=True),
]
STORAGES = [storage.Double, storage.Int64, storage.AtomicInt64, storage.Weight, storage.Mean,
            storage.WeightedMean]  # fmt: skip


def described(histogram: hist.Hist[Any]) -> list[Any]:
    parts = [
        (type(one), str(one.traits), one.__dict__, str(getattr(one, "transform", None)))
        for one in histogram.axes
    ]
    rest = {name: value for name, value in vars(histogram).items() if name != "_hist"}
    return [parts, histogram.storage_type, type(histogram), rest]


@pytest.mark.parametrize("kind", STORAGES)
@pytest.mark.parametrize("one", AXES, ids=repr)
def test_histograms_come_back(one: Any, kind: Any) -> None:
    histogram = hist.Hist(one, storage=kind(), name="n", label="Events")
    histogram.axes[0].__dict__["unit"] = "GeV"
    view: Any = histogram.view(flow=True)
    rng = np.random.default_rng(1)
    for name in view.dtype.names or [...]:
        kind = view.dtype if name is ... else view.dtype[name]
        view[name] = (rng.random(view.shape) * 1000).astype(kind)
    blob = pack({"a": histogram, "b": histogram.copy()})
    assert not is_code(blob)
    found = unpack(blob)
    for again in found.values():
        assert described(again) == described(histogram)
        assert again.axes[0] == histogram.axes[0]
        assert np.asarray(again.view(flow=True)).tobytes() == np.asarray(view).tobytes()
    assert (found["a"] + found["b"]).axes[0] == histogram.axes[0]


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1),
        np.array(3),
        np.array([(1, 2.0)], [("a", ">i4"), ("b", "f8")]),
        [np.array([])],
    ],
    ids=repr,
)
def test_what_is_noted_on_axes_comes_back(value: Any) -> None:
    histogram = hist.Hist(axis.Regular(2, 0, 1, name="x"), storage=storage.Weight())
    histogram.axes[0].__dict__["noted"] = value
    again = unpack(pack(histogram))
    assert same(again.axes[0].__dict__["noted"], value)
    again.axes[0].__dict__["noted"] = None
    assert same(unpack(pack(histogram)).axes[0].__dict__["noted"], value)  # not one that is kept


def test_axes_that_would_be_rounded_are_code() -> None:
    """UHI's form of a power has its ends, and their edges come from powers again."""
    kinds = {}
    for power in (0.5, 2, 3, 1.7, -1):
        one = axis.Regular(7, 1.3, 10.7, name="x", transform=axis.transform.Pow(power))
        histogram = hist.Hist(one, storage=storage.Double())
        blob = pack(histogram)
        assert unpack(blob) == histogram
        assert unpack(blob).axes[0].edges.tobytes() == one.edges.tobytes()
        kinds[is_code(blob)] = power
    assert set(kinds) == {True, False}


def test_known_variances_stay_known() -> None:
    histogram = hist.Hist(axis.Regular(2, 0, 1, name="x"), storage=storage.Double())
    histogram.fill([0.1, 0.2])
    for known in (True, False):
        marked = variances.mark(histogram.copy(), known=known)
        again = unpack(pack(marked))
        assert (variances.of(again) is not None) == known
    weighted = histogram.copy().fill([0.3], weight=[0.5])
    assert variances.of(unpack(pack(weighted))) is None


def test_categories_that_grow_are_merged() -> None:
    def booked(label: str) -> hist.Hist[Any]:
        made = hist.Hist.new.Reg(2, 0, 1, name="x").StrCat([], growth=True, name="c").Weight()
        return made.fill([0.1], [label])

    total = unpack(pack(booked("a"))) + unpack(pack(booked("b")))
    assert list(total.axes["c"]) == ["a", "b"]
    assert total == booked("a") + booked("b")


def test_ours_and_coffeas_types_come_back() -> None:
    dense = DenseHist(3, 0, 1, label="x", process="p", variations=("nominal", "up"), counts="Jets")
    dense.fill("up", [0.1, 0.5], 2.0)
    columns = {"a": np.arange(3), "t": np.array([b"x", b"yy", b""])}
    rows = ColumnTable(columns, {"task": "t", "k": (1, 2)})
    value = {
        "dense": dense,
        "rows": rows,
        "column": processor.column_accumulator(np.arange(3, dtype=np.float32)),
        "awkward": processor.column_accumulator(ak.Array([[1, 2], [], [3]])),
        "value": processor.value_accumulator(float, 2.5),
        "dict": processor.dict_accumulator({"a": processor.value_accumulator(int, 1)}),
        "default": processor.defaultdict_accumulator(float, {"a": 1.0}),
        "set": processor.set_accumulator({"a"}),
        "list": processor.list_accumulator([1]),
        "sum": bh.accumulators.WeightedSum(1.5, 0.5),
        "statistics": WeightStatistics(1.0, 2.0, 0.5, 0.75, 3),
        "records": ak.Array([{"x": 1, "y": [1.5]}, {"x": 2, "y": []}]),
    }
    blob = pack(value)
    assert not is_code(blob)
    found = unpack(blob)
    assert [type(one) for one in found.values()] == [type(one) for one in value.values()]
    assert (found["dense"] + dense).bins.tolist() == (dense + dense).bins.tolist()
    assert found["dense"].hist() == dense.hist()
    assert found["rows"].digest == rows.digest
    assert len(found["rows"] + rows) == 6
    assert (found["column"] + value["column"]).value.tolist() == [0, 1, 2, 0, 1, 2]
    assert found["awkward"].value.to_list() == [[1, 2], [], [3]]
    assert (found["value"] + value["value"]).value == 5
    assert found["dict"]["a"].value == 1
    assert found["default"]["b"] == 0.0
    assert (found["sum"] + value["sum"]) == bh.accumulators.WeightedSum(3.0, 1.0)
    assert found["statistics"].identity() is not None
    assert (found["statistics"] + value["statistics"]).n == 6
    assert found["records"].to_list() == value["records"].to_list()


class Colour(StrEnum):
    """Text that is more than text."""

    RED = "red"


class Pair(NamedTuple):
    """A tuple with names."""

    a: int


class OwnDict(dict[str, int]):
    """A mapping that adds in a way of its own."""


@pytest.mark.parametrize(
    "value",
    [
        *(Colour.RED, Pair(1), OwnDict(a=1), date(2026, 1, 1), {Colour.RED: 1}),
        np.array([None, 1]),
        defaultdict(lambda: 3, a=1),
        ak.zip({"x": [1.0]}, with_name="Own"),
        hist.Hist(axis.Regular(2, 0, 1), storage=storage.Unlimited()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_code(value: Any) -> None:
    blob = pack([value])
    assert is_code(blob)
    assert type(unpack(blob)[0]) is type(value)


@given(st.data())
def test_what_is_damaged_is_an_error(data: st.DataObject) -> None:
    whole = lz4.frame.decompress(pack({"h": HISTOGRAM, "n": [1.5, np.arange(3)]})[4:])
    content = bytearray(whole)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):  # and nothing else
        unpack(b"agc1" + lz4.frame.compress(bytes(content)))


def test_bins_that_are_not_there_take_no_memory() -> None:
    blob = lz4.frame.decompress(
        pack(hist.Hist(axis.Regular(2, 0, 1), storage=storage.Double()))[4:]
    )
    length = int.from_bytes(blob[:8], "little")
    text = blob[8 : 8 + length].replace(b'[\\"bins\\", 2]', b'[\\"bins\\", 2000000000]')
    assert len(text) > length
    crafted = len(text).to_bytes(8, "little") + text + blob[8 + length :]
    with pytest.raises(ValueError, match="axes with more bins than contents"):
        unpack(b"agc1" + lz4.frame.compress(crafted))


@pytest.mark.parametrize(
    "made",
    [
        axis.Regular(30_000, 0, 1),
        axis.Regular(30_000, 1, 2, transform=axis.transform.log),
        axis.Integer(0, 30_000),
        axis.Variable(np.linspace(0, 1, 30_001), flow=False),
        axis.StrCategory(map(str, range(30_000))),
    ],
)
def test_bins_of_all_axes_count(made: Any) -> None:
    one = to_uhi(hist.Hist(made, axis.StrCategory([], growth=True), storage=storage.Double()))
    check_bins(one, 0)
    check_bins({"axes": [one["axes"][0]]}, made.extent)
    for axes in ([one["axes"][0]], [one["axes"][0]] * 2):
        with pytest.raises(ValueError, match="axes with more bins than contents"):
            check_bins({"axes": axes}, made.extent * len(axes) - 1)


def test_what_would_fill_the_memory_is_known_before() -> None:
    zeros, noise = np.zeros(1 << 26), np.random.default_rng(1).random(1 << 10)
    assert is_too_large(pack(zeros))
    assert not is_too_large(pack(noise))
    assert not is_too_large(pack(zeros[: 1 << 20]))
    assert is_too_large(b"agc1" + lz4.frame.compress(b"", store_size=False))


def test_no_more_is_unpacked_than_is_stated() -> None:
    frame = lz4.frame.LZ4FrameCompressor()
    lies = frame.begin(source_size=1000) + frame.compress(bytes(1 << 28)) + bytes(4)
    tracemalloc.start()
    with pytest.raises(ValueError, match="it is cut off, or larger than stated"):
        unpack(b"agc1" + lies)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


HISTOGRAM = hist.Hist(axis.Regular(2, 0, 1, name="x"), storage=storage.Weight())


def test_a_pickle_inside_is_not_read() -> None:
    array = np.array([{"a": 1}], dtype=object)
    text = b'{"array": 0}'
    content = len(text).to_bytes(8, "little") + text
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        unpack(b"agc1" + lz4.frame.compress(content + file.getvalue()))
    assert pickle.loads(pickle.dumps(array))[0] == {"a": 1}
