"""Allow-list of expressions: arithmetic, comparisons and slices of columns, and functions.

An allowed expression can name columns, call functions of the language by their names, and reach
nothing else: uproot evaluates expressions as Python, where any attribute leads to everything.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import Final

FUNCTION: Final = "run_query"  # the function that every program defines
MAX_LENGTH: Final = 10_000  # characters of an expression
MAX_DEPTH: Final = 200  # levels: a | b | c has three
MAX_NODES: Final = 5000
MAX_TEXT: Final = 1000  # characters of a string in an expression
MAX_BITS: Final = 63  # of an integer of constants: with more, numpy computes without limit

OPERATORS: Final = (ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop)
VALUES: Final = (ast.Name, ast.Load, ast.Constant, ast.Attribute, ast.List, ast.Tuple, ast.Dict)
_COMPARISONS: Final = (ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_STRUCTURE: Final = (ast.Expr, ast.Subscript, ast.Slice, ast.Call, ast.keyword)
_ALLOWED: Final = (*OPERATORS, *_COMPARISONS, *VALUES, *_STRUCTURE)
# A string may be compared, an index or an argument; it may not be computed with.
_HOLD_DISPLAYS: Final = (ast.Subscript, ast.Call, ast.keyword, ast.Dict, ast.List, ast.Tuple)
_HOLD_TEXT: Final = (*_HOLD_DISPLAYS, ast.Compare)
_COMPUTE: Final = (ast.BinOp, ast.UnaryOp)
_DISPLAYS: Final = (ast.List, ast.Tuple, ast.Dict)

_DESCRIPTIONS: Final[dict[type[ast.AST], str]] = {
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


class NotAllowedError(ValueError):
    """Code that is not in the allow-list; the message says why."""


class NotPythonError(NotAllowedError):
    """A text that is not Python, and so can only be the name of a column."""


def check_expression(text: str, functions: Collection[str], keywords: Collection[str]) -> None:
    """Check an expression, which may call ``functions`` with ``keywords``.

    Raises
    ------
    NotPythonError
        It is not a Python expression.
    NotAllowedError
        It is not in the allow-list.
    """
    body = parse_python(text, MAX_LENGTH).body
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise NotAllowedError("one expression is needed, not statements")
    for node, parent in walk(body[0], MAX_DEPTH, MAX_NODES):
        check_node(node, _ALLOWED)
        check_values(node, parent)
        if isinstance(node, _DISPLAYS) and not isinstance(parent, _HOLD_DISPLAYS):
            raise NotAllowedError("a list can only be an argument or an index")
        match node:
            case ast.Subscript(value=value) if not _has_name(value):
                raise NotAllowedError("only columns can be indexed")
            case ast.Attribute():
                _check_dotted(node, functions)
            case ast.Name(id=name):
                check_name(name)
            case ast.Call():
                _check_call(node, functions, keywords)


def parse_python(text: str, max_length: int) -> ast.Module:
    """Return the syntax tree of a text, without executing it.

    Raises
    ------
    NotAllowedError
        It is longer than ``max_length`` characters.
    NotPythonError
        It is not Python.
    """
    if len(text) > max_length:  # first, since parsers crash or hang on long texts
        raise NotAllowedError(f"{len(text):,} characters, at most {max_length:,} are allowed")
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        place = "" if line is None else f", line {line}"
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "nested too deeply"
        raise NotPythonError(f"not Python ({reason}{place})") from error


def walk(root: ast.AST, max_depth: int, max_nodes: int) -> list[tuple[ast.AST, ast.AST]]:
    """Return the nodes of a tree, each with its parent.

    Raises
    ------
    NotAllowedError
        The tree has more than ``max_nodes`` nodes, or more than ``max_depth`` levels.
    """
    nodes: list[tuple[ast.AST, ast.AST]] = []
    pending = [(root, root, 0)]
    while pending:
        node, parent, depth = pending.pop()
        nodes.append((node, parent))
        if depth > max_depth:
            raise NotAllowedError(f"nested too deeply; at most {max_depth} levels are allowed")
        if len(nodes) > max_nodes:
            raise NotAllowedError(
                f"too long; at most {max_nodes:,} names, numbers and operators are allowed"
            )
        pending += [(child, node, depth + 1) for child in ast.iter_child_nodes(node)]
    return nodes


def check_node(node: ast.AST, allowed: tuple[type[ast.AST], ...]) -> None:
    """Check the type of a node, and the size of a constant.

    Raises
    ------
    NotAllowedError
        The type is not allowed, or a constant is too large.
    """
    if not isinstance(node, allowed):
        description = _DESCRIPTIONS.get(type(node), type(node).__name__)
        raise NotAllowedError(f"not allowed here: {description}")
    if isinstance(node, ast.Constant):
        _check_constant(node.value)
    elif isinstance(node, ast.Dict) and None in node.keys:
        raise NotAllowedError("not allowed here: **")


def check_values(node: ast.AST, parent: ast.AST) -> None:
    """Reject large integers computed from constants, and strings that are computed with.

    They would grow without bounds, or format values.

    Raises
    ------
    NotAllowedError
        The node has either.
    """
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    if is_text and not isinstance(parent, _HOLD_TEXT):
        raise NotAllowedError("a string can only be compared, an index or an argument")
    if isinstance(node, _COMPUTE) and not isinstance(parent, _COMPUTE):  # with all that is in it
        _count_bits(node)


def check_name(name: str) -> None:
    """Reject Python's own names, such as ``__class__``.

    Raises
    ------
    NotAllowedError
        The name is one of those.
    """
    if name.startswith("__"):
        raise NotAllowedError(f"not allowed here: the name {name}")


def _has_name(node: ast.AST) -> bool:
    """Return whether a value depends on a column or a function."""
    return not isinstance(node, _DISPLAYS) and any(
        isinstance(inner, ast.Name) for inner in ast.walk(node)
    )


def _check_dotted(node: ast.Attribute, functions: Collection[str]) -> None:
    """Allow attributes only in dotted names, as Muon.pt, which uproot looks up as one name."""
    check_name(node.attr)
    if isinstance(node.value, ast.Name) and node.value.id in functions:
        raise NotAllowedError(
            f"{node.value.id} is a function, so no column's name can begin with it"
        )
    if not isinstance(node.value, (ast.Name, ast.Attribute)):
        raise NotAllowedError(
            f"only a column's name can have dots; .{node.attr} follows something else"
        )


def _check_call(node: ast.Call, functions: Collection[str], keywords: Collection[str]) -> None:
    if not isinstance(node.func, ast.Name):
        raise NotAllowedError("only functions can be called, by their names")
    if node.func.id not in functions:
        raise NotAllowedError(f"there is no function {node.func.id}")
    for keyword in node.keywords:
        if keyword.arg not in keywords:
            argument = "**" if keyword.arg is None else f"{keyword.arg}="
            raise NotAllowedError(f"not allowed here: {argument} in a call of {node.func.id}")


def _check_constant(value: object) -> None:
    if isinstance(value, bytes):
        raise NotAllowedError("not allowed here: bytes")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NotAllowedError(f"a number of {value.bit_length():,} bits")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise NotAllowedError(
            f"a string of {len(value):,} characters; at most {MAX_TEXT:,} are allowed"
        )


def _count_bits(node: ast.AST) -> int:
    """Return an upper limit of the bits of an integer computed from constants; 0 for others."""
    match node:
        case ast.Constant(value=int() as value):  # also True
            return value.bit_length()
        case ast.Compare():
            return 1
        case ast.BoolOp(values=values):
            return max(map(_count_bits, values))
        case ast.UnaryOp(operand=operand):
            return _count_bits(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            bits = _computed_bits(operator, _count_bits(left), _count_bits(right))
            if bits > MAX_BITS:
                raise NotAllowedError(f"a number of up to {bits:,} bits")
            return bits
    return 0


def _computed_bits(operator: ast.operator, left: int, right: int) -> int:
    if not left or not right:
        return 0
    match operator:
        case ast.Mult():
            return left + right
        case ast.Pow():
            return left << min(right, 64)  # a larger power would not be computable here
        case ast.LShift():
            return left + (1 << min(right, 64))
    return max(left, right) + 1
