"""Damaged variants of files, seeded: bytes that change, are lost or come twice; edits of what is in
JSON, UBJ and protocol buffers, so that the damage is read as content.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63), 10**30)
REALS = (0.0, -0.0, 0.5, 1e-45, -1e30, 1e38, 1e300, float("nan"), float("inf"), float("-inf"))
TEXTS = ("", "x", "0", "-1", "1", "2", "1e9", "10000000", "nan", "[0.5]", "9" * 5000, "é\0")
LITERALS = (
    *("1e400", "-1e400", "1e-400", "1E99999999", "1E-99999999", "-0", "-0.0", "1.", ".5", "01"),
    *("+1", "0x1", "1_0", "NaN", "Infinity", "1" * 20, "1" * 400, "1" * 5000, "0." + "1" * 5000),
    *("0." + "1" * 30, "1" * 400 + ".5", "9223372036854775808", "-9223372036854775809", "1e5"),
)
DEEP = 100_000


def variants(data: bytes, kind: str, seed: int, n: int) -> list[bytes]:
    """Make n damaged variants of a file: ``kind`` is bytes, json, ubj or protobuf.

    Half of those of another kind than bytes are edits of the content.
    """
    found = []
    edits = {"json": _in_json, "ubj": _in_ubj, "protobuf": _in_protobuf}
    for number in range(n):
        rng = random.Random(f"{kind} {seed} {number}")
        edit = edits.get(kind) if number % 2 else None
        variant = data
        while variant == data:
            variant = (edit or _in_bytes)(data, rng)
        found.append(variant)
    return found


def _in_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    size = min(len(data) - at, rng.choice((1, 2, 4, 16, 200)))
    what = rng.choice(("flip", "flip", "flip", "set", "cut", "lost", "twice", "zero", "moved"))
    if what == "flip":
        many = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            many[rng.randrange(len(many))] ^= 1 << rng.randrange(8)
        return bytes(many)
    if what == "set":
        return data[:at] + bytes([rng.choice((0, 1, 127, 128, 255, 48, 57))]) + data[at + 1 :]
    if what == "cut":
        return data[:at]
    if what == "moved":
        to = rng.randrange(len(data))
        return data[:at] + data[to : to + size] + data[at + size :]
    middle = {"lost": b"", "twice": data[at : at + size] * 2, "zero": bytes(size)}[what]
    return data[:at] + middle + data[at + size :]


# --- trees of lists and objects -------------------------------------------------------------------


def _edit(tree: Any, rng: random.Random, other: Callable[[Any], Any]) -> None:
    """Change one place in a tree; ``other`` gives another value for one."""
    owner, key = tree, _place(tree, rng)
    while rng.random() > 0.05:
        inner = owner[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        owner, key = inner, _place(inner, rng)
    what = rng.choice(("value", "value", "value", "value", "lost", "twice", "other place"))
    if what == "lost":
        del owner[key]
    elif what == "twice" and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif what == "other place":
        place = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        owner[key], owner[place] = owner[place], owner[key]
    else:
        owner[key] = other(owner[key])


def _place(owner: Any, rng: random.Random) -> Any:
    """A key or an index: sooner one with much under it."""
    places = list(owner) if isinstance(owner, dict) else range(len(owner))
    return rng.choices(places, [_size(owner[place]) ** 0.5 for place in places])[0]


def _size(value: Any) -> int:
    if isinstance(value, Array):
        return len(value.values) + 1
    inner = value.values() if isinstance(value, dict) else value
    return 1 + sum(map(_size, inner)) if isinstance(value, dict | list) else 1


def _in_json(data: bytes, rng: random.Random) -> bytes:
    tree = json.loads(data)

    def other(value: Any) -> Any:
        near = [value + 1, value - 1, -value, value * 2] if type(value) in {int, float} else []
        texts = [rng.choice(TEXTS), str(rng.choice(NUMBERS))]
        same = {int: [rng.choice(NUMBERS)], float: [rng.choice(REALS)], str: texts}
        strange = [None, True, [], {}, [value], {"x": value}, rng.choice(NUMBERS), *texts]
        return rng.choice([*near, *same.get(type(value), []) * 4, rng.choice(strange)])

    for _ in range(rng.choice((1, 1, 2))):
        _edit(tree, rng, other)
    text = json.dumps(tree, separators=(",", ":"))
    if rng.random() < 0.05:  # named twice
        at = text.index('":') + 2
        name_at = text.rindex('"', 0, at - 2)
        text = text[:at] + text[at:] if name_at < 0 else "{" + text[name_at:at] + "0," + text[1:]
    if rng.random() < 0.03:
        text = text.replace("[]", "[" * DEEP + "]" * DEEP, 1)
    if rng.random() < 0.15:
        number = rng.choice(list(re.finditer(r"(?<=[\[,:])-?[0-9.E-]+", text)))
        text = text[: number.start()] + rng.choice(LITERALS) + text[number.end() :]
    return text.encode()


class Marked(NamedTuple):
    """A value of UBJ with the letter of its type."""

    marker: str
    value: Any


class Array(NamedTuple):
    """Values of UBJ that share a type."""

    marker: str
    values: list[Any]


_UBJ = {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d", "u": "H"}


def _in_ubj(data: bytes, rng: random.Random) -> bytes:
    tree = read_ubj(data)
    for _ in range(rng.choice((1, 1, 2))):
        _edit(tree, rng, lambda value: _other_of_ubj(value, rng))
    if rng.random() < 0.03:
        tree["deep"] = Marked("[" * DEEP, b"]" * DEEP)
    return as_ubj(tree)


def _other_of_ubj(value: Any, rng: random.Random) -> Any:
    if isinstance(value, Array):
        return _other_array(value, rng)
    if isinstance(value, Marked) and value.marker == "S":
        return Marked("S", rng.choice([*TEXTS, str(rng.choice(NUMBERS))]).encode())
    if isinstance(value, Marked) and value.marker in _UBJ:
        return Marked(rng.choice([value.marker] * 4 + list(_UBJ)), rng.choice(NUMBERS))
    return rng.choice((Marked("Z", b""), Marked("T", b""), Marked("L", 3), [], {}))


def _other_array(array: Array, rng: random.Random) -> Array:
    values = list(array.values)
    at = rng.randrange(len(values)) if values else 0
    what = rng.choice(("value", "value", "value", "lost", "twice", "type"))
    if not values or what == "type":
        return Array(rng.choice(list(_UBJ)), values or [1])
    if what == "lost":
        del values[at]
    elif what == "twice":
        values.insert(at, values[at])
    else:
        near = [values[at] + 1, values[at] - 1, -values[at]]
        values[at] = rng.choice([*near, *(NUMBERS if array.marker not in "dD" else REALS)])
    return Array(array.marker, values)


def read_ubj(data: bytes) -> Any:
    """Content of UBJ: objects and lists, and values with their types."""
    return _value_of_ubj(data, 0)[0]


def _value_of_ubj(data: bytes, at: int) -> tuple[Any, int]:
    marker, at = chr(data[at]), at + 1
    if marker in _UBJ:
        size = struct.calcsize(">" + _UBJ[marker])
        return Marked(marker, struct.unpack(">" + _UBJ[marker], data[at : at + size])[0]), at + size
    if marker == "S":
        size, at = _value_of_ubj(data, at)
        return Marked("S", data[at : at + size.value]), at + size.value
    if marker == "{":
        found: dict[str, Any] = {}
        while data[at] != ord("}"):
            size, at = _value_of_ubj(data, at)
            name, at = data[at : at + size.value].decode(), at + size.value
            found[name], at = _value_of_ubj(data, at)
        return found, at + 1
    return _read_array(data, at) if marker == "[" else (Marked(marker, b""), at)


def _read_array(data: bytes, at: int) -> tuple[Any, int]:
    """Items that share a type, items with their number, or items until the end."""
    if data[at] == ord("$"):
        kind = chr(data[at + 1])
        size, at = _value_of_ubj(data, at + 3)  # after the kind and #
        code = f">{size.value}{_UBJ[kind]}"
        end = at + struct.calcsize(code)
        return Array(kind, list(struct.unpack(code, data[at:end]))), end
    items: list[Any] = []
    most = len(data)
    if data[at] == ord("#"):
        size, at = _value_of_ubj(data, at + 1)
        most = size.value
    while len(items) < most and data[at] != ord("]"):
        item, at = _value_of_ubj(data, at)
        items.append(item)
    return items, at + (most == len(data))


def _packed(marker: str, value: Any) -> bytes:
    """As many bytes as its type has, whatever the value."""
    code = ">" + _UBJ[marker]
    if marker in "dD":
        try:
            return struct.pack(code, value)
        except OverflowError:
            return struct.pack(code, float("inf"))
    size = struct.calcsize(code)
    number = int(value) if value == value and abs(value) < 2**64 else -1  # noqa: PLR0124 - NaN
    return (number % 2 ** (8 * size)).to_bytes(size, "big")


def as_ubj(value: Any) -> bytes:
    """Write what `read_ubj` gave."""
    if isinstance(value, dict):
        parts = (b"L" + struct.pack(">q", len(name.encode())) + name.encode() + as_ubj(inner)
                 for name, inner in value.items())  # fmt: skip
        return b"{" + b"".join(parts) + b"}"
    if isinstance(value, Array):
        size = b"L" + struct.pack(">q", len(value.values))
        numbers = b"".join(_packed(value.marker, one) for one in value.values)
        return b"[$" + value.marker.encode() + b"#" + size + numbers
    if isinstance(value, list):
        size = b"L" + struct.pack(">q", len(value))
        return b"[#" + size + b"".join(map(as_ubj, value))
    if value.marker == "S":
        return b"SL" + struct.pack(">q", len(value.value)) + value.value
    if value.marker in _UBJ:
        return value.marker.encode() + _packed(value.marker, value.value)
    return value.marker.encode() + bytes(value.value)


# --- protocol buffers ----------------------------------------------------------------------------


def _in_protobuf(data: bytes, rng: random.Random) -> bytes:
    fields = _fields(data)
    if not fields:
        return _in_bytes(data, rng) if data else bytes([rng.randrange(256)])
    at = rng.randrange(len(fields))
    tag, value = fields[at]
    what = rng.choice(("value",) * 6 + ("lost", "twice", "moved", "tag"))
    if what == "lost":
        del fields[at]
    elif what == "twice":
        fields.insert(at, fields[at])
    elif what == "moved":
        fields.insert(rng.randrange(len(fields)), fields.pop(at))
    elif what == "tag":
        fields[at] = (tag ^ (8 << rng.randrange(3)), value)
    elif isinstance(value, int):
        fields[at] = (tag, rng.choice([*NUMBERS, value + 1, value - 1, value * 2]) % 2**64)
    else:
        fields[at] = (tag, _in_protobuf(value, rng))
    return b"".join(map(_as_field, fields))


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """Fields of a message, by tag: numbers, or bytes. None if it is none."""
    found: list[tuple[int, Any]] = []
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        value: Any
        if at < 0 or tag >> 3 not in range(1, 64):
            return []
        if tag & 7 == 0:
            value, at = _varint(data, at)
        elif tag & 7 == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif tag & 7 in {1, 5}:
            size = 8 if tag & 7 == 1 else 4
            value, at = data[at : at + size], at + size
        else:
            return []
        if at < 0 or at > len(data):
            return []
        found.append((tag, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends; -1 for nowhere."""
    number = 0
    for i, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number, at + i + 1
    return 0, -1 - len(data)


def _as_varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _as_field(field: tuple[int, Any]) -> bytes:
    tag, value = field
    if isinstance(value, int):
        return _as_varint(tag & ~7) + _as_varint(value)
    size = _as_varint(len(value)) if tag & 7 not in {1, 5} else b""
    return _as_varint(tag) + size + value
