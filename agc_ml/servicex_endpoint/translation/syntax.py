"""The allow-list of expressions: arithmetic, comparisons and slices of columns, and functions.

What passes can name columns, call functions of the language by their names, and reach nothing else:
uproot evaluates expressions as Python, where any attribute would lead to everything else.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection
from typing import Final

LONGEST: Final = 10_000  # characters of an expression
DEEPEST: Final = 200  # levels: a | b | c has three
MOST_NODES: Final = 5000
LONGEST_TEXT: Final = 1000  # characters of a string in an expression
MOST_BITS: Final = 63  # of an integer of constants: with more, numpy computes without limit

_OPERATORS: Final = (
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_VALUES: Final = (ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.List, ast.Tuple, ast.Dict)
_ALLOWED: Final = (
    *_OPERATORS,
    *_VALUES,
    *(ast.Expr, ast.Subscript, ast.Slice, ast.Call, ast.keyword),
)
# Where a string may be: what it is compared with, asked by or told; never what is computed with.
_HOLD_DISPLAYS: Final = (ast.Subscript, ast.Call, ast.keyword, ast.Dict, ast.List, ast.Tuple)
_HOLD_TEXT: Final = (*_HOLD_DISPLAYS, ast.Compare)
_COMPUTE: Final = (ast.BinOp, ast.UnaryOp)
_DISPLAYS: Final = (ast.List, ast.Tuple, ast.Dict)

_NAMES: Final[dict[type[ast.AST], str]] = {
    ast.Lambda: "lambda",
    ast.IfExp: "if ... else; where(condition, a, b) can be used",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "an f-string",
    ast.Starred: "*",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


class Refused(ValueError):  # noqa: N818 - an answer, no fault
    """A piece of code is not in the allow-list; its text says why."""


class NoExpression(Refused):
    """A text is no Python at all, and so can name a column at most."""


def check_expression(text: str, functions: Collection[str], keywords: Collection[str]) -> None:
    """Check an expression, which may call ``functions`` with ``keywords``.

    Raises
    ------
    NoExpression
        It is not one expression of Python.
    Refused
        It has more than an expression may have.
    """
    body = parsed(text, LONGEST).body
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise Refused("one expression is needed, no statements")
    for node, parent in limited(body[0], DEEPEST, MOST_NODES):
        check_node(node, _ALLOWED)
        check_values(node, parent)
        _check_place(node, parent)
        if isinstance(node, ast.Attribute):
            _check_dotted(node, functions)
        elif isinstance(node, ast.Name):
            check_name(node.id)
        elif isinstance(node, ast.Call):
            _check_call(node, functions, keywords)


def parsed(text: str, longest: int) -> ast.Module:
    """The syntax tree of a text, which is never executed here.

    Raises
    ------
    Refused
        It is longer than ``longest`` characters.
    NoExpression
        It is no Python.
    """
    if len(text) > longest:  # before anything else, for parsers crash on or dwell on long ones
        raise Refused(f"{len(text):,} characters, and {longest:,} are the most")
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        place = "" if line is None else f", line {line}"
        what = error.msg if isinstance(error, SyntaxError) else str(error) or "nested too deeply"
        raise NoExpression(f"no Python ({what}{place})") from error


def limited(root: ast.AST, deepest: int, most: int) -> list[tuple[ast.AST, ast.AST]]:
    """Nodes of a tree, each with the one that holds it.

    Raises
    ------
    Refused
        They are more than ``most``, or nested more than ``deepest`` levels.
    """
    found: list[tuple[ast.AST, ast.AST]] = []
    left = [(root, root, 0)]
    while left:
        node, parent, depth = left.pop()
        found.append((node, parent))
        if depth > deepest:
            raise Refused(f"nested too deeply; {deepest} levels are the most")
        if len(found) > most:
            raise Refused(f"too long; {most:,} names, numbers and operators are the most")
        left += [(child, node, depth + 1) for child in ast.iter_child_nodes(node)]
    return found


def check_node(node: ast.AST, allowed: tuple[type[ast.AST], ...]) -> None:
    """Check what a node is, and its size.

    Raises
    ------
    Refused
        It is of no allowed type, or a constant that is too large.
    """
    if not isinstance(node, allowed):
        what = _NAMES.get(type(node), type(node).__name__)
        raise Refused(f"not allowed here: {what}")
    if isinstance(node, ast.Constant):
        _check_constant(node.value)
    elif isinstance(node, ast.Dict) and None in node.keys:
        raise Refused("not allowed here: **")


def check_values(node: ast.AST, parent: ast.AST) -> None:
    """Check that numbers that constants give stay small, and that strings are not computed with.

    Those would grow without bounds, or format things.

    Raises
    ------
    Refused
        It is not so.
    """
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    if is_text and not isinstance(parent, _HOLD_TEXT):
        raise Refused("a string can be compared, be an index or an argument only")
    if isinstance(node, _COMPUTE) and not isinstance(parent, _COMPUTE):  # with all that is in it
        _bits(node)


def check_name(name: str) -> None:
    """Check a name of a column or a function.

    Raises
    ------
    Refused
        It is one of Python's own, such as ``__class__``.
    """
    if name.startswith("__"):
        raise Refused(f"not allowed here: the name {name}")


def _check_place(node: ast.AST, parent: ast.AST) -> None:
    if isinstance(node, _DISPLAYS) and not isinstance(parent, _HOLD_DISPLAYS):
        raise Refused("a list can be an argument or an index only")
    if isinstance(node, ast.Subscript) and not _names(node.value):
        raise Refused("only columns can be indexed")


def _names(node: ast.AST) -> bool:
    """Return whether a value depends on a column or a function."""
    return not isinstance(node, _DISPLAYS) and any(
        isinstance(one, ast.Name) for one in ast.walk(node)
    )


def _check_dotted(node: ast.Attribute, functions: Collection[str]) -> None:
    """Check that attributes are parts of a name, Muon.pt, which uproot looks up as one."""
    check_name(node.attr)
    if isinstance(node.value, ast.Name) and node.value.id in functions:
        raise Refused(f"{node.value.id} is a function, and no column's name begins with it")
    if not isinstance(node.value, (ast.Name, ast.Attribute)):
        raise Refused(f"only a column's name can have dots; .{node.attr} follows something else")


def _check_call(node: ast.Call, functions: Collection[str], keywords: Collection[str]) -> None:
    if not isinstance(node.func, ast.Name):
        raise Refused("only functions can be called, by their names")
    if node.func.id not in functions:
        raise Refused(f"there is no function {node.func.id}")
    for keyword in node.keywords:
        if keyword.arg not in keywords:
            what = "**" if keyword.arg is None else f"{keyword.arg}="
            raise Refused(f"not allowed here: {what} in a call of {node.func.id}")


def _check_constant(value: object) -> None:
    if isinstance(value, bytes):
        raise Refused("not allowed here: bytes")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise Refused(f"a number of {value.bit_length():,} bits")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise Refused(f"a string of {len(value):,} characters; {LONGEST_TEXT:,} are the most")


def _bits(node: ast.AST) -> int:
    """At most so many bits has the integer that constants give; 0 if it is none."""
    match node:
        case ast.Constant(value=int() as value):  # also True
            return value.bit_length()
        case ast.Compare():
            return 1
        case ast.BoolOp(values=values):
            return max(map(_bits, values))
        case ast.UnaryOp(operand=operand):
            return _bits(operand)
        case ast.BinOp():
            return _computed_bits(node)
    return 0


def _computed_bits(node: ast.BinOp) -> int:
    one, other = _bits(node.left), _bits(node.right)
    if not one or not other:
        return 0
    growth = _GROWTH.get(type(node.op))
    bits = growth(one, min(other, 64)) if growth else max(one, other) + 1
    if bits > MOST_BITS:
        raise Refused(f"a number of up to {bits:,} bits")
    return bits


_GROWTH: Final[dict[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Mult: lambda one, other: one + other,
    ast.Pow: lambda one, other: one * 2**other,
    ast.LShift: lambda one, other: one + 2**other,
}
