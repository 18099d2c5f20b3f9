"""Outputs of chunks, and units of generated events, as bytes without code: arrays and JSON.

Unpacking restores values and types exactly, so that adding them up gives the same bits. Some types
can't be separated from code, such as a user's class with its own addition: outputs with these are
pickled. Unpickling runs code, so the reader has to trust the writer (`is_code`).

The bytes are a mark, then an LZ4 frame: the length of the JSON, the JSON, and arrays in numpy's
format. In the JSON, numbers, text, true, false and null stand for themselves; other values are
objects with one key, the name of the type.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import math
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import boost_histogram as bh
import cloudpickle
import hist
import lz4.frame
import numpy as np

from agc_ml.results import variances
from agc_ml.results.histogram_files import check_bins
from agc_ml.results.histograms import DenseHist
from agc_ml.results.tables import ColumnTable

_ARRAYS: Final = b"agc1"
_PICKLE: Final = b"pick"
_LENGTH: Final = struct.Struct("<Q")
_MARK: Final = len(_ARRAYS)
_LARGE: Final = 1 << 28
_RATIO: Final = 20


class _NoFormError(TypeError):
    """The value has no exact form without code."""


def pack(value: Any) -> bytes:
    """Pack an output: without code if that restores it exactly, else as a pickle."""
    arrays: list[Any] = []
    try:
        text = json.dumps(_encoded(value, arrays), allow_nan=False).encode()
    except (
        _NoFormError,
        RecursionError,
        ValueError,
    ):  # ValueError for integers of thousands of digits
        pickled: bytes = _PICKLE + lz4.frame.compress(_pickled(value))
        return pickled
    content = io.BytesIO()
    content.write(_LENGTH.pack(len(text)))
    content.write(text)
    for array in arrays:
        np.lib.format.write_array(content, array, allow_pickle=False)
    packed: bytes = _ARRAYS + lz4.frame.compress(content.getbuffer())
    return packed


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError):  # defaultdict(lambda: ...)
        pickled: bytes = cloudpickle.dumps(value, protocol=5)
        return pickled


def is_code(blob: bytes) -> bool:
    """Return whether unpacking runs code, so that only trusted bytes may be unpacked."""
    return not blob.startswith(_ARRAYS)


def is_too_large(blob: bytes) -> bool:
    """Return whether the bytes would unpack to suspiciously more memory than they take."""
    try:
        size = _size(blob)
    except RuntimeError:
        return False  # they can't be unpacked
    return size > max(_LARGE, _RATIO * len(blob)) or not size


def _size(blob: bytes) -> int:
    return int(lz4.frame.get_frame_info(blob[_MARK:])["content_size"])


def _unpacked(blob: bytes) -> bytes:
    """Return the content of a frame, unpacked to at most its stated size."""
    frame = lz4.frame.LZ4FrameDecompressor()
    content: bytes = frame.decompress(blob[_MARK:], max_length=_size(blob))
    if not frame.eof:
        raise ValueError("it is cut off, or larger than stated")
    return content


def unpack(blob: bytes) -> Any:
    """Undo `pack`. Bytes with code (`is_code`) must come from a trusted writer.

    Raises
    ------
    ValueError
        They hold no code, and are not a result of `pack`.
    """
    if is_code(blob):
        return pickle.loads(_unpacked(blob))  # noqa: S301 - see above
    try:
        content = io.BytesIO(_unpacked(blob))
        (length,) = _LENGTH.unpack(content.read(_LENGTH.size))
        described = json.loads(content.read(length))
        arrays = []
        while content.tell() < len(content.getbuffer()):
            arrays.append(np.lib.format.read_array(content, allow_pickle=False))
        return _decoded(described, arrays)
    except Exception as error:  # numpy raises any kind
        raise ValueError(f"not a packed output ({type(error).__name__}: {error})") from error


def _encoded(value: Any, arrays: list[Any]) -> Any:
    """Return a value as JSON; its arrays are appended to ``arrays``."""
    kind = type(value)
    if kind in _THEMSELVES:
        return value
    if issubclass(kind, np.generic) and not value.dtype.hasobject:
        return {"scalar": _kept(np.asarray(value), arrays)}
    if kind not in _FORMS and kind.__module__.startswith(("awkward.", "coffea.")):
        return _encoded_of_coffea(value, arrays)
    if kind not in _FORMS:
        raise _NoFormError(kind)
    name, encode, _ = _FORMS[kind]
    return {name: encode(value, arrays)}


def _decoded(content: Any, arrays: list[Any]) -> Any:
    if not isinstance(content, dict):
        return content
    ((name, inner),) = content.items()
    return _READERS[name](inner, arrays)


_THEMSELVES: Final = frozenset({type(None), bool, int, str})


def _float(value: float, _: list[Any]) -> Any:
    return value if math.isfinite(value) else str(value)


def _kept(array: Any, arrays: list[Any]) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _array(value: Any, arrays: list[Any]) -> int:
    if value.dtype.hasobject:
        raise _NoFormError(value.dtype)
    return _kept(value, arrays)


def _items(value: Any, arrays: list[Any]) -> list[Any]:
    return [_encoded(item, arrays) for item in value]


def _pairs(value: Mapping[Any, Any], arrays: list[Any]) -> list[Any]:
    return [[_encoded(k, arrays), _encoded(v, arrays)] for k, v in value.items()]


def _of_pairs(content: Any, arrays: list[Any]) -> list[tuple[Any, Any]]:
    return [(_decoded(key, arrays), _decoded(value, arrays)) for key, value in content]


def _of_items(content: Any, arrays: list[Any]) -> list[Any]:
    return [_decoded(item, arrays) for item in content]


_FACTORIES: Final[dict[Any, str]] = {
    **{kind: kind.__name__ for kind in (int, float, complex, str, bool, list, dict, set)},
    None: "",
}
_BY_NAME: Final = {name: kind for kind, name in _FACTORIES.items()}


def _factory(value: Any) -> str:
    try:
        return _FACTORIES[value]
    except (KeyError, TypeError) as error:
        raise _NoFormError(value) from error


def _histogram(value: hist.Hist[Any], arrays: list[Any]) -> list[Any]:
    """Return the bins as they are in memory, and the rest of a histogram in UHI's form."""
    from hist.serialization import to_uhi  # noqa: PLC0415 - only here

    if value.storage_type not in _STORAGES:
        raise _NoFormError(value.storage_type)
    described: dict[str, Any] = dict(to_uhi(value))
    storage = described["storage"]
    described["storage"] = {name: storage[name] if name == "type" else None for name in storage}
    inside: list[Any] = []  # edges and the like, the same in all chunks
    text = json.dumps(_encoded(described, inside))
    bins = np.asarray(value.view(flow=True))
    flag = vars(value).get(variances.FLAG)
    # UHI's form rounds some axes, such as powers
    restored = _copied(text, inside, bins)
    if not all(map(_are_same_axes, value.axes, restored.axes)):
        raise _NoFormError(value)
    return [text, [_kept(array, arrays) for array in inside], _kept(bins, arrays), flag]


def _are_same_axes(a: Any, b: Any) -> bool:
    same_edges = np.asarray(a.edges).tobytes() == np.asarray(b.edges).tobytes()
    return type(a) is type(b) and a == b and same_edges


_STORAGES: Final = {
    bh.storage.Double,
    bh.storage.Int64,
    bh.storage.AtomicInt64,
    bh.storage.Weight,
    bh.storage.Mean,
    bh.storage.WeightedMean,
}


def _of_histogram(content: Any, arrays: list[Any]) -> hist.Hist[Any]:
    text, inside, index, flag = content
    bins = arrays[index]
    histogram = _copied(text, [arrays[i] for i in inside], bins)
    histogram.view(flow=True)[...] = bins
    if flag is not None:
        setattr(histogram, variances.FLAG, bool(flag))
    return histogram


def _copied(text: str, inside: list[Any], bins: Any) -> hist.Hist[Any]:
    """Return an empty histogram of this description: copying is faster than creating one."""
    if bins.nbytes > _SMALL:
        return _booked(text, inside, bins.shape)
    return _kept_booked(text, tuple(map(_npy, inside)), bins.shape).copy()


_SMALL: Final = 1 << 18


@functools.lru_cache(maxsize=256)
def _kept_booked(text: str, inside: tuple[bytes, ...], shape: tuple[int, ...]) -> hist.Hist[Any]:
    arrays = [np.lib.format.read_array(io.BytesIO(npy), allow_pickle=False) for npy in inside]
    return _booked(text, arrays, shape)


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _booked(text: str, inside: list[Any], shape: tuple[int, ...]) -> hist.Hist[Any]:
    described = _decoded(json.loads(text), inside)
    check_bins(described, math.prod(shape))
    zeros = {name: np.zeros(shape) for name, of in described["storage"].items() if of is None}
    described["storage"] |= zeros
    return hist.Hist(described)


def _dense(value: DenseHist, arrays: list[Any]) -> Any:
    return _encoded({**vars(value)}, arrays)


def _of_dense(content: Any, arrays: list[Any]) -> DenseHist:
    fields = _decoded(content, arrays)
    booking = {name: fields[name] for name in ("label", "process", "variations", "counts")}
    dense, bins = DenseHist(*fields["axis"], **booking), fields["bins"]
    if bins.shape != dense.bins.shape:
        raise ValueError("bins of another shape than booked")
    dense.bins = bins
    return dense


def _table(value: ColumnTable, arrays: list[Any]) -> list[Any]:
    return [_encoded(value.columns(), arrays), _encoded(value.about, arrays)]


# Name, encoder and decoder of each type.
_FORMS: Final[dict[type, tuple[str, Callable[..., Any], Callable[..., Any]]]] = {
    float: ("float", _float, lambda number, _: float(number)),
    complex: (
        "complex",
        lambda value, arrays: _items((value.real, value.imag), arrays),
        lambda parts, arrays: complex(*_of_items(parts, arrays)),
    ),
    bytes: (
        "bytes",
        lambda value, _: base64.b64encode(value).decode(),
        lambda text, _: base64.b64decode(text),
    ),
    bytearray: (
        "bytearray",
        lambda value, _: base64.b64encode(value).decode(),
        lambda text, _: bytearray(base64.b64decode(text)),
    ),
    list: ("list", _items, _of_items),
    **{
        kind: (kind.__name__, _items, lambda c, arrays, kind=kind: kind(_of_items(c, arrays)))
        for kind in (tuple, set, frozenset)
    },
    deque: (
        "deque",
        lambda value, arrays: [_items(value, arrays), value.maxlen],
        lambda content, arrays: deque(_of_items(content[0], arrays), content[1]),
    ),
    **{
        kind: (kind.__name__, _pairs, lambda c, arrays, kind=kind: kind(_of_pairs(c, arrays)))
        for kind in (dict, OrderedDict)
    },
    # Counter(pairs) would count the pairs
    Counter: ("Counter", _pairs, lambda pairs, arrays: Counter(dict(_of_pairs(pairs, arrays)))),
    defaultdict: (
        "defaultdict",
        lambda value, arrays: [_factory(value.default_factory), _pairs(value, arrays)],
        lambda content, arrays: defaultdict(_BY_NAME[content[0]], _of_pairs(content[1], arrays)),
    ),
    np.ndarray: ("array", _array, lambda index, arrays: arrays[index]),
    hist.Hist: ("Hist", _histogram, _of_histogram),
    DenseHist: ("DenseHist", _dense, _of_dense),
    ColumnTable: (
        "Rows",
        _table,
        lambda content, arrays: ColumnTable(*(_decoded(part, arrays) for part in content)),
    ),
    bh.accumulators.WeightedSum: (
        "WeightedSum",
        lambda value, arrays: _items((value.value, value.variance), arrays),
        lambda parts, arrays: bh.accumulators.WeightedSum(*_of_items(parts, arrays)),
    ),
}


def _encoded_of_coffea(value: Any, arrays: list[Any]) -> Any:
    """Encode types that are heavy to import, recognised by their names."""
    kind = type(value)
    if kind.__name__ == "Array" and kind.__module__ == "awkward.highlevel":
        return {"awkward": _awkward(value, arrays)}
    if kind.__module__ not in _OF_COFFEA or kind.__name__ not in _ACCUMULATORS:
        raise _NoFormError(kind)
    encode, _ = _ACCUMULATORS[kind.__name__]
    return {kind.__name__: encode(value, arrays)}


_OF_COFFEA: Final = ("coffea.processor.accumulator", "coffea.analysis_tools")
_STATISTICS: Final = ("sumw", "sumw2", "minw", "maxw", "n")

# Encoder of each coffea type, and the arguments of its constructor from the encoded content.
_ACCUMULATORS: Final[dict[str, tuple[Callable[..., Any], Callable[..., list[Any]]]]] = {
    "column_accumulator": (
        lambda value, arrays: _encoded(value.value, arrays),
        lambda content, arrays: [_decoded(content, arrays)],
    ),
    "value_accumulator": (
        lambda value, arrays: [_factory(value.default_factory), _encoded(value.value, arrays)],
        lambda content, arrays: [_BY_NAME[content[0]], _decoded(content[1], arrays)],
    ),
    "defaultdict_accumulator": (
        lambda value, arrays: [_factory(value.default_factory), _pairs(value, arrays)],
        lambda content, arrays: [_BY_NAME[content[0]], _of_pairs(content[1], arrays)],
    ),
    "dict_accumulator": (_pairs, lambda content, arrays: [_of_pairs(content, arrays)]),
    "list_accumulator": (_items, lambda content, arrays: [_of_items(content, arrays)]),
    "set_accumulator": (_items, lambda content, arrays: [_of_items(content, arrays)]),
    "WeightStatistics": (
        lambda value, arrays: _items([getattr(value, part) for part in _STATISTICS], arrays),
        _of_items,
    ),
}


def _awkward(value: Any, arrays: list[Any]) -> Any:
    """Return form, length and buffers of an array without behaviours, which may be code."""
    import awkward as ak  # noqa: PLC0415 - heavy

    form, length, buffers = ak.to_buffers(ak.to_packed(value, highlevel=False))
    text = form.to_json()
    if '"__record__"' in text or '"__list__"' in text or any(value.attrs):
        raise _NoFormError(type(value))
    kept = {key: _array(np.asarray(array), arrays) for key, array in buffers.items()}
    return [text, length, kept]


def _of_awkward(content: Any, arrays: list[Any]) -> Any:
    import awkward as ak  # noqa: PLC0415 - heavy

    text, length, buffers = content
    form = ak.forms.from_json(text)
    return ak.from_buffers(form, length, {key: arrays[index] for key, index in buffers.items()})


def _coffea(name: str) -> Callable[[Any, list[Any]], Any]:
    """Return the decoder of a coffea type."""

    def made(content: Any, arrays: list[Any]) -> Any:
        from coffea import analysis_tools, processor  # noqa: PLC0415 - heavy

        kind = getattr(processor, name, None) or getattr(analysis_tools, name)
        return kind(*_ACCUMULATORS[name][1](content, arrays))

    return made


_READERS: Final[dict[str, Callable[[Any, list[Any]], Any]]] = {
    "scalar": lambda index, arrays: arrays[index][()],
    "awkward": _of_awkward,
    **{name: _coffea(name) for name in _ACCUMULATORS},
    **{name: decode for name, _, decode in _FORMS.values()},
}
