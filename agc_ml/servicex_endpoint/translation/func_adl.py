"""Queries of func_adl: their syntax tree is checked before it is translated to a program.

The translator pastes names into source, and lets a query use all Python built-ins. So a query may
have only column names, arithmetic, numpy's functions of arrays and vector's methods.
"""

from __future__ import annotations

import ast
import re
from typing import Final
from unicodedata import normalize

import qastle
from func_adl_uproot.translation import generate_python_source
from qastle.linq_util import linq_operator_names

from agc_ml.errors import in_one_line
from agc_ml.servicex_endpoint.translation import programs, syntax
from agc_ml.servicex_endpoint.translation.programs import BUILTINS, EVENTS, METHODS, NUMPY
from agc_ml.servicex_endpoint.translation.syntax import FUNCTION, NotAllowedError

MAX_DEPTH: Final = 150  # levels of a query
MAX_NODES: Final = 20_000

# Attributes of dask-awkward's arrays, which hide columns of these names.
_ARRAY_ATTRIBUTES: Final = (
    "attrs behavior clear_divisions compute dask defined_divisions divisions"
    " eager_compute_divisions fields form head keys keys_array known_divisions layout"
    " map_partitions name ndim npartitions partitions persist repartition reset_meta"
    " to_dask_array to_dask_bag to_delayed to_parquet type visualize"
)
ARRAY_ATTRIBUTES: Final = frozenset(_ARRAY_ATTRIBUTES.split())
_PARENTHESES: Final = re.compile(r"[()]|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_RECORDS: Final = ("ToFourMomentum", "ToFourMomenta")

_RESERVED: Final = programs.NAMES | BUILTINS

_LINQ_OPERATORS: Final = tuple(getattr(qastle, name) for name in linq_operator_names)
_ALLOWED: Final = (*programs.QUERY_NODES, *_LINQ_OPERATORS)


def translate(selection: str) -> str:
    """Return the program of a query in func_adl's textual form.

    Raises
    ------
    ValueError
        It is not a query, or not allowed.
    """
    _check_depth(selection)
    try:
        query = _parse(selection)
        check_query(query)
        source = str(generate_python_source(query, FUNCTION))
    except NotAllowedError:
        raise
    except Exception as error:  # both raise anything, also errors of their parsers
        raise ValueError(in_one_line(error)) from error
    programs.check(source)
    return source


def _parse(selection: str) -> ast.AST:
    statements = qastle.text_ast_to_python_ast(selection).body
    if len(statements) != 1:
        raise NotAllowedError(f"one statement is needed, not {len(statements)}")
    query: ast.AST = qastle.insert_linq_nodes(statements[0].value)
    return query


def _check_depth(selection: str) -> None:
    """Reject deeply nested parentheses, which a parser would take minutes for."""
    depth = 0
    for match in _PARENTHESES.finditer(selection):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth > 2 * MAX_DEPTH:  # lists of arguments are no levels of the tree
            raise NotAllowedError(f"nested too deeply; at most {MAX_DEPTH} levels are allowed")


def check_query(query: ast.AST) -> None:
    """Check the syntax tree of a query, with qastle's nodes for operators.

    Raises
    ------
    NotAllowedError
        It is not in the allow-list.
    """
    nodes = syntax.walk(query, MAX_DEPTH, MAX_NODES)
    bound = {node.arg for node, _ in nodes if isinstance(node, ast.arg)}
    for node, parent in nodes:
        syntax.check_node(node, _ALLOWED)
        syntax.check_values(node, parent)
        match node:
            case ast.arg(arg=name):
                syntax.check_name(name)
                if name in _RESERVED:
                    raise NotAllowedError(f"a variable can't be called {name}")
            case ast.Name(id=name):
                _check_variable(name, parent, bound)
            case ast.Attribute():
                _check_attribute(node, parent)
            case ast.Call():
                _check_call(node)
    if _length(query) > programs.MAX_NODES:
        raise NotAllowedError("too many nested indices; its program would be too long")


def _check_variable(name: str, parent: ast.AST, bound: set[str]) -> None:
    is_called = isinstance(parent, ast.Call) and getattr(parent.func, "id", None) == name
    if name == "np":
        if not isinstance(parent, ast.Attribute):
            raise NotAllowedError("np needs a function: np.sqrt")
    elif not (name in bound or (is_called and name in BUILTINS | {EVENTS})):
        raise NotAllowedError(f"there is no {name}")


def _check_attribute(node: ast.Attribute, parent: ast.AST) -> None:
    name = node.attr
    is_called = isinstance(parent, ast.Call) and parent.func is node
    is_plain = name.isidentifier() and name == normalize("NFKC", name)  # as Python's parser does
    if not is_plain or name.startswith("_"):
        raise NotAllowedError(
            f"a column's name after a dot can't be {name!r:.100}; write it in [...]"
        )
    if _is_numpy(node.value):
        if name not in NUMPY:
            raise NotAllowedError(f"np.{name} can't be used; only functions of arrays can")
    elif isinstance(node.value, ast.Attribute) and _is_numpy(node.value.value):
        raise NotAllowedError(f"np.{node.value.attr} can only be called")
    elif is_called and name not in METHODS and name not in _RECORDS:
        raise NotAllowedError(f"there is no method {name}")
    elif name in ARRAY_ATTRIBUTES:
        raise NotAllowedError(f'.{name} is not a column; a column of that name is ["{name}"]')


def _is_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "np"


def _check_call(node: ast.Call) -> None:
    if node.keywords:
        raise NotAllowedError("calls can't have keywords")
    match node.func:
        case ast.Name(id=name) if name in BUILTINS | {EVENTS}:
            return
        case ast.Name(id=name):
            raise NotAllowedError(f"there is no function {name}")
        case ast.Attribute() | ast.Lambda():
            return
    raise NotAllowedError("only functions and methods can be called, by their names")


def _length(node: ast.AST) -> int:
    """Estimate the number of nodes of a node's program, which repeats indexed expressions."""
    length = 1 + sum(map(_length, ast.iter_child_nodes(node)))
    match node:
        case ast.Subscript(slice=ast.Constant(value=str())):
            return length
        case ast.Subscript() | qastle.Contains():
            return 5 * length
        case ast.Call(func=ast.Attribute(attr="ToFourMomentum")):
            return 3 * length
    return length
