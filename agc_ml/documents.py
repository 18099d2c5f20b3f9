"""JSON and YAML from untrusted files, read with limits.

Whatever the content, reading takes seconds and no gigabytes, and gives plain values: no duplicate
keys, no recursive aliases, no number too large for a float, no text that can't be written as UTF-8.
Every error is a ValueError of one line.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

try:
    from yaml.cyaml import CParser as Events  # type: ignore[attr-defined]
except ImportError:  # PyYAML without libyaml: the same, a few times slower
    from yaml.parser import Parser
    from yaml.reader import Reader
    from yaml.scanner import Scanner

    class Events(Reader, Scanner, Parser):  # type: ignore[no-redef]
        """Events of YAML."""

        def __init__(self, stream: str) -> None:
            Reader.__init__(self, stream)
            Scanner.__init__(self)
            Parser.__init__(self)


MOST_BYTES: Final = 1 << 27
"""Largest size of a file in bytes, also unpacked."""
MOST_YAML: Final = 1 << 25
"""Largest length of a YAML text in characters: it takes ten times as long to read as JSON."""
MOST_VALUES: Final = 10_000_000
"""Largest number of values in JSON."""
MOST_YAML_VALUES: Final = 1_000_000
"""Largest number of values in YAML, with all repetitions by anchors and merges."""
MOST_DEPTH: Final = 100
MOST_DIGITS: Final = 308
"""Largest number of digits of an integer, so that it is finite as a float."""

_MOST_UNKNOWN: Final = 1 << 20
"""Largest size in bytes of a file whose size is unknown."""
_LARGEST: Final = 10**MOST_DIGITS
_MERGE: Final = "tag:yaml.org,2002:merge"
_ODD: Final = re.compile("[\0\ud800-\udfff]")
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    yaml.YAMLError,
)
"""Exceptions of PyYAML for values that contradict their tags."""


class _BoundsError(ValueError):
    """Valid YAML value beyond our limits."""


def read(path: Path) -> Any:
    """Return the content of a file: JSON by its name, else YAML; perhaps compressed with gzip.

    Raises
    ------
    OSError
        It can't be read.
    ValueError
        It is not JSON or YAML, or beyond the limits.
    """
    is_json = path.name.lower().removesuffix(".gz").endswith(".json")
    return (json_of if is_json else yaml_of)(text(path))


def text(path: Path) -> str:
    """Return the text of a file, perhaps compressed with gzip.

    Raises
    ------
    OSError
        It can't be read.
    ValueError
        It is a pipe or a device, damaged, larger than ``MOST_BYTES``, or not text.
    """
    raw = content(path, MOST_BYTES)
    if raw.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(raw)) as packed:
                raw = packed.read(MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"damaged: {error}") from error
        if len(raw) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    return raw.decode("utf-8-sig")


def content(path: Path, most: int) -> bytes:
    """Return the content of a file of at most ``most`` bytes.

    Raises
    ------
    OSError
        It can't be read, or is a folder.
    ValueError
        It is larger, or a pipe or a device, which may never end.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        if size:
            return file.read(size)
        raw = file.read(_MOST_UNKNOWN + 1)  # some file systems don't report sizes
        if len(raw) > min(_MOST_UNKNOWN, most):
            raise ValueError("its size is unknown; copy it to another file system")
        return raw


def opened(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises
    ------
    OSError
        It can't be read, or is a folder.
    ValueError
        It is a pipe or a device, which may never end.
    """
    return open(path, "rb", opener=_file)


def _file(path: str, flags: int) -> int:
    # without these flags a pipe would block, and a terminal become the controlling one
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise ValueError("it is a pipe or a device, not a file")


def json_of(content: str) -> Any:
    """Return the values of a JSON text.

    Raises
    ------
    ValueError
        It is not JSON, or beyond the limits.
    """
    if sum(map(content.count, ",[{")) > MOST_VALUES:  # counted before they take memory
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        values = json.loads(content, object_pairs_hook=_mapping, parse_int=_integer)
    except RecursionError as error:
        raise ValueError(f"more than {MOST_DEPTH} levels") from error
    _check(values, has_escapes="\\u" in content)
    return values


def yaml_of(content: str) -> Any:
    """Return the values of a YAML text with one document.

    Raises
    ------
    ValueError
        It is not YAML, or beyond the limits.
    """
    if len(content) > MOST_YAML:
        raise ValueError(f"more than {MOST_YAML >> 20} MiB of YAML; write it as JSON")
    try:
        return _Loader(content).get_single_data()
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
        raise ValueError(reason[:300] or type(error).__name__) from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        _reject_duplicates(key for key, _ in pairs)
    return mapping


def _reject_duplicates(keys: Iterable[Any], where: str = "") -> None:
    for key, times in Counter(keys).items():
        if times > 1:
            raise ValueError(f"{where}{key!r:.80} is there twice")


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python accepts 4300
        raise ValueError(f"an integer of {len(digits):,} digits: {digits[:20]}...") from error


def _check(value: Any, *, has_escapes: bool) -> None:
    """Reject nesting too deep, numbers too large, and text that escapes made invalid."""
    stack = [(value, 0)]
    while stack:
        inner, depth = stack.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} levels")
        if isinstance(inner, dict):
            inner = [*inner, *inner.values()]
        for item in inner if isinstance(inner, list) else [inner]:
            if isinstance(item, list | dict):
                stack.append((item, depth + 1))
            elif (has_escapes or not isinstance(item, str)) and (problem := _problem(item)):
                place = next(_places(value, item), "a key")
                raise ValueError(f"{place}: {problem}")


def _problem(value: Any) -> str | None:
    if isinstance(value, str) and _ODD.search(value):
        return f"{value!r:.80} has characters that are not UTF-8, or NUL"
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return f"an integer of more than {MOST_DIGITS} digits: {str(value)[:20]}..."
    return None


def _places(value: Any, wanted: Any) -> Iterator[str]:
    """Yield the paths of fields to a value, with arrows as in error messages."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if inner is wanted:
            yield str(key)[:80]
        elif isinstance(inner, dict | list):
            yield from (f"{str(key)[:80]} -> {place}" for place in _places(inner, wanted))


class _Loader(Composer, Events, SafeConstructor, Resolver):
    """Loader of plain YAML 1.1 values, which counts them before it constructs them.

    A mapping's own keys take precedence over merged ones (``<<: *base``), as in YAML. Nodes are
    composed in Python: libyaml's composer crashes on deep nesting.
    """

    def __init__(self, stream: str) -> None:
        Events.__init__(self, stream)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._depth = self._n = 0
        self._sizes: dict[int, int] = {}
        self._flat: set[int] = set()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a value; an alias counts with all the values that it repeats."""
        line = _line(self.peek_event())
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._n, self._depth = self._n, self._n + (not is_alias), self._depth + 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"{line}more than {MOST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise ValueError(f"{line}a recursive alias")
            self._n += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._n - before
        if self._n > MOST_YAML_VALUES:
            raise ValueError(
                f"{line}more than {MOST_YAML_VALUES:,} values, with repetitions by anchors and "
                "merges"
            )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Construct a value; errors give its line."""
        try:
            return super().construct_object(node, deep)
        except (_BoundsError, yaml.YAMLError):
            raise
        except _UNREADABLE as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            raise ValueError(f"{_line(node)}{node.value!r:.40} is not a valid {kind}") from error

    def construct_scalar(self, node: Any) -> Any:
        """Return the text of a scalar."""
        value = super().construct_scalar(node)
        if problem := _problem(value):
            raise _BoundsError(f"{_line(node)}{problem}")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        """Return an integer, decimal or not."""
        if len(node.value) <= MOST_DIGITS:
            value = int(super().construct_yaml_int(node))
            if -_LARGEST < value < _LARGEST:
                return value
        raise _BoundsError(
            f"{_line(node)}an integer of more than {MOST_DIGITS} digits: {node.value[:20]}..."
        )

    def flatten_mapping(self, node: Any) -> None:
        """Merge mappings into one, after its own keys were compared."""
        if id(node) in self._flat:  # merged by another one before: it already has both
            return
        self._flat.add(id(node))
        own = [key for key, _ in node.value if key.tag != _MERGE]
        _reject_duplicates((self.construct_object(key, deep=True) for key in own), _line(node))
        super().flatten_mapping(node)
        # keep the last of equal keys: otherwise a few lines could expand to billions
        node.value = list({(key.tag, str(key.value)): (key, of) for key, of in node.value}.values())


def _line(where: Any) -> str:
    """Return the line of an event or a node, for the beginning of an error."""
    return f"line {where.start_mark.line + 1}: "


# PyYAML looks up constructors by tag in this attribute of the class
_Loader.yaml_constructors = {
    **SafeConstructor.yaml_constructors,
    "tag:yaml.org,2002:int": _Loader.construct_yaml_int,
}
