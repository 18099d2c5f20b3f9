"""JSON and YAML that somebody else may have written, read within bounds.

Whatever is in them, reading takes seconds and no gigabytes, and gives plain values without holes:
no key twice, nothing that holds itself, no number too large for a float, no text that can't be
written as UTF-8. All that is wrong is a ValueError of one line.
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
"""A file has at most so many bytes, also when it is unpacked."""
MOST_YAML: Final = 1 << 25
"""A YAML text has at most so many characters: it takes ten times as long to read as JSON."""
MOST_VALUES: Final = 10_000_000
"""JSON holds at most so many values."""
MOST_YAML_VALUES: Final = 1_000_000
"""YAML holds at most so many, each as often as anchors and merges repeat it."""
MOST_DEPTH: Final = 100
MOST_DIGITS: Final = 308
"""Of an integer, so that it is one of floating point, too."""

_MOST_UNKNOWN: Final = 1 << 20
"""Bytes of a file of which the size is not known."""
_LARGEST: Final = 10**MOST_DIGITS
_MERGE: Final = "tag:yaml.org,2002:merge"
_ODD: Final = re.compile("[\0\ud800-\udfff]")
_UNREADABLE: Final = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    yaml.YAMLError,
)
"""What PyYAML raises where a value is not what its tag says."""


class _BoundsError(ValueError):
    """A value that is one of its kind, but not one that we take."""


def read(path: Path) -> Any:
    """Content of a file, JSON if it is called so and else YAML, perhaps compressed with gzip.

    Raises
    ------
    OSError
        It can't be read.
    ValueError
        It is no JSON or YAML, or out of bounds.
    """
    is_json = path.name.lower().removesuffix(".gz").endswith(".json")
    return (json_of if is_json else yaml_of)(text(path))


def text(path: Path) -> str:
    """Text of a file, perhaps compressed with gzip.

    Raises
    ------
    OSError
        It can't be read.
    ValueError
        It is a pipe or a device, damaged, larger than ``MOST_BYTES``, or no text.
    """
    found = content(path, MOST_BYTES)
    if found.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(found)) as packed:
                found = packed.read(MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"damaged: {error}") from error
        if len(found) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
    return found.decode("utf-8-sig")


def content(path: Path, most: int) -> bytes:
    """Content of a file of at most so many bytes.

    Raises
    ------
    OSError
        It can't be read, or is a folder.
    ValueError
        It has more, or is a pipe or a device, which may never end.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has more than {most:,} bytes")
        if size:
            return file.read(size)
        found = file.read(_MOST_UNKNOWN + 1)  # some file systems don't know sizes
        if len(found) > min(_MOST_UNKNOWN, most):
            raise ValueError("its size is not known; copy it to another file system")
        return found


def opened(path: Path) -> BinaryIO:
    """Open a file to read it.

    Raises
    ------
    OSError
        It can't be read, or is a folder.
    ValueError
        It is a pipe or a device, which may never end.
    """
    return open(path, "rb", opener=_file)


def _file(path: str, flags: int) -> int:
    # a pipe without a writer would be waited for, and a terminal become ours
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise ValueError("it is a pipe or a device, no file")


def json_of(content: str) -> Any:
    """Values of a JSON text.

    Raises
    ------
    ValueError
        It is none, or out of bounds.
    """
    if sum(map(content.count, ",[{")) > MOST_VALUES:  # before they take memory
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        found = json.loads(content, object_pairs_hook=_mapping, parse_int=_whole)
    except RecursionError as error:
        raise ValueError(f"more than {MOST_DEPTH} levels") from error
    _check(found, has_escapes="\\u" in content)
    return found


def yaml_of(content: str) -> Any:
    """Values of a YAML text: its only document.

    Raises
    ------
    ValueError
        It is none, or out of bounds.
    """
    if len(content) > MOST_YAML:
        raise ValueError(f"more than {MOST_YAML >> 20} MiB of YAML; write it as JSON")
    try:
        return _Loader(content).get_single_data()
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
        raise ValueError(reason[:300] or type(error).__name__) from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        _refuse_doubles(key for key, _ in pairs)
    return made


def _refuse_doubles(keys: Iterable[Any], where: str = "") -> None:
    for key, times in Counter(keys).items():
        if times > 1:
            raise ValueError(f"{where}{key!r:.80} is there twice")


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python takes 4300
        raise ValueError(f"an integer of {len(digits):,} digits: {digits[:20]}...") from error


def _check(value: Any, *, has_escapes: bool) -> None:
    """Refuse nesting that is too deep, numbers that are too large, and text that escapes spoilt."""
    ahead = [(value, 0)]
    while ahead:
        inner, depth = ahead.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"more than {MOST_DEPTH} levels")
        if isinstance(inner, dict):
            inner = [*inner, *inner.values()]
        for one in inner if isinstance(inner, list) else [inner]:
            if isinstance(one, list | dict):
                ahead.append((one, depth + 1))
            elif (has_escapes or not isinstance(one, str)) and (problem := _problem(one)):
                place = next(_places(value, one), "a key")
                raise ValueError(f"{place}: {problem}")


def _problem(value: Any) -> str | None:
    if isinstance(value, str) and _ODD.search(value):
        return f"{value!r:.80} has signs that are not UTF-8, or NUL"
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return f"an integer of more than {MOST_DIGITS} digits: {str(value)[:20]}..."
    return None


def _places(value: Any, wanted: Any) -> Iterator[str]:
    """Fields that lead to a value, with the arrows that errors have between them."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if inner is wanted:
            yield str(key)[:80]
        elif isinstance(inner, dict | list):
            yield from (f"{str(key)[:80]} -> {place}" for place in _places(inner, wanted))


class _Loader(Composer, Events, SafeConstructor, Resolver):
    """Plain values of YAML 1.1, counted before they are made.

    What a merge (``<<: *base``) brings in gives way to a mapping's own keys, as YAML has it. Nodes
    are composed in Python: libyaml's own composer ends the process where nesting is deep.
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
        """Compose a value; an alias counts as all that it stands for."""
        line = _line(self.peek_event())
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._n, self._depth = self._n, self._n + (not is_alias), self._depth + 1
        if self._depth > MOST_DEPTH:
            raise ValueError(f"{line}more than {MOST_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._sizes:
                raise ValueError(f"{line}an alias of what it is in")
            self._n += self._sizes[id(node)]
        else:
            self._sizes[id(node)] = self._n - before
        if self._n > MOST_YAML_VALUES:
            raise ValueError(
                f"{line}more than {MOST_YAML_VALUES:,} values, counting what "
                "anchors and merges repeat"
            )
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Make a value of its text; say where that is none of its kind."""
        try:
            return super().construct_object(node, deep)
        except (_BoundsError, yaml.YAMLError):
            raise
        except _UNREADABLE as error:
            if not isinstance(node, yaml.ScalarNode):
                raise
            kind = node.tag.rpartition(":")[2]
            raise ValueError(f"{_line(node)}{node.value!r:.40} is no {kind}") from error

    def construct_scalar(self, node: Any) -> Any:
        """Text of a scalar."""
        value = super().construct_scalar(node)
        if problem := _problem(value):
            raise _BoundsError(f"{_line(node)}{problem}")
        return value

    def construct_yaml_int(self, node: Any) -> int:
        """Value of an integer, decimal or not."""
        if len(node.value) <= MOST_DIGITS:
            value = int(super().construct_yaml_int(node))
            if -_LARGEST < value < _LARGEST:
                return value
        raise _BoundsError(
            f"{_line(node)}an integer of more than {MOST_DIGITS} digits: {node.value[:20]}..."
        )

    def flatten_mapping(self, node: Any) -> None:
        """Merge what a mapping merges, after its own keys were compared."""
        if id(node) in self._flat:  # another one merges it, and both its own keys are in it now
            return
        self._flat.add(id(node))
        own = [key for key, _ in node.value if key.tag != _MERGE]
        _refuse_doubles((self.construct_object(key, deep=True) for key in own), _line(node))
        super().flatten_mapping(node)
        # the last one counts; if all were kept, a few lines could stand for billions
        node.value = list({(key.tag, str(key.value)): (key, of) for key, of in node.value}.values())


def _line(where: Any) -> str:
    """Line of an event or a node, for the beginning of an error."""
    return f"line {where.start_mark.line + 1}: "


# by PyYAML's own rule a constructor is of the whole class, and looked up by its tag
_Loader.yaml_constructors = {
    **SafeConstructor.yaml_constructors,
    "tag:yaml.org,2002:int": _Loader.construct_yaml_int,
}
