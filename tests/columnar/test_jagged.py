from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agc_ml.columnar.jagged import Collection, chosen, count, lies_at, offsets_of, total

counts_of_events = st.lists(st.integers(0, 7), max_size=30).map(lambda x: np.array(x, np.int64))


def made(counts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    offsets = offsets_of(counts)
    return offsets, rng.random(offsets[-1]) < 0.5, rng.random(offsets[-1]).astype(np.float32)


@given(counts=counts_of_events, seed=st.integers(0, 99))
def test_counting_and_adding_are_those_of_awkward(counts: np.ndarray, seed: int) -> None:
    offsets, passed, values = made(counts, seed)
    lists = ak.unflatten(values, counts)
    assert count(offsets, passed).tolist() == ak.sum(ak.unflatten(passed, counts), axis=1).tolist()
    sums = total(offsets, values)
    assert sums.dtype == np.float32
    assert sums.tolist() == ak.sum(lists, axis=1).tolist()  # to the last bit: the same order


@given(counts=counts_of_events, seed=st.integers(0, 99))
def test_taking_some_objects_of_some_events(counts: np.ndarray, seed: int) -> None:
    offsets, passed, values = made(counts, seed)
    events = np.flatnonzero(np.random.default_rng(seed).random(len(counts)) < 0.5)
    kept, index = chosen(offsets, events, passed)
    lists = ak.unflatten(values, counts)[ak.unflatten(passed, counts)]
    assert ak.unflatten(values[index], np.diff(kept)).tolist() == lists[events].tolist()


@given(
    counts=counts_of_events,
    width=st.sampled_from([1, 2, 4, 8]),
    header=st.integers(0, 999),
    shift=st.integers(0, 3),
    data=st.data(),
)
def test_where_lists_lie(
    counts: np.ndarray, width: int, header: int, shift: int, data: st.DataObject
) -> None:
    offsets = offsets_of(counts)
    begins = (offsets[:-1] * width + header).astype(">u4")
    raw = bytearray(bytes(shift) + begins.tobytes())
    as_read = np.frombuffer(raw, np.uint32, len(counts), shift)
    assert lies_at(as_read, offsets + 7, width, header)
    if len(counts):
        raw[shift + data.draw(st.integers(0, 4 * len(counts) - 1))] ^= 1 << data.draw(
            st.integers(0, 7)
        )
        assert not lies_at(as_read, offsets, width, header)


def test_a_collection_reads_what_it_is_asked_for() -> None:
    read = []

    def column(field: str) -> np.ndarray:
        read.append(field)
        return np.arange(6, dtype=np.float32)

    jets = Collection(np.array([0, 2, 2, 6]), column)
    some = jets.take(np.array([True, False, True]), np.array([1, 0, 1, 1, 0, 1], bool))
    assert len(jets) == 3
    assert some.counts.tolist() == [1, 3]
    assert read == []
    assert some.pt.tolist() == [0, 2, 3, 5]
    assert some.pt is some.pt
    assert read == ["pt"]
    assert some.index.tolist() == [0, 2, 3, 5]


def test_parts_replacements_and_precision() -> None:
    fields = {"pt": np.arange(6, dtype=np.float32), "eta": np.ones(6, np.float32)}
    jets = Collection(np.array([0, 2, 2, 6]), fields.__getitem__)
    part = jets.part(1, 3)
    assert part.offsets.tolist() == [0, 0, 4]
    assert part.pt.tolist() == [2, 3, 4, 5]
    assert jets.replaced(pt=fields["pt"] * 2).part(0, 1).pt.tolist() == [0, 2]
    precise = jets.converted(np.float64, "pt")
    assert (precise.pt.dtype, precise.eta.dtype) == (np.float64, np.float32)
    assert jets.pt.dtype == np.float32


def test_other_lengths_are_refused() -> None:
    offsets = np.array([0, 2, 5])
    for n in (0, 4, 6):
        for call in (
            lambda n=n: count(offsets, np.ones(n, bool)),
            lambda n=n: total(offsets, np.ones(n)),
            lambda n=n: chosen(offsets, np.array([0]), np.ones(n, bool)),
        ):
            with pytest.raises(ValueError, match="as many values are needed"):
                call()
