"""func_adl: a query's syntax tree, checked before a program is made of it.

The translator pastes names into source, and lets a query name all that is built into Python. So
nothing reaches it but column names, arithmetic, numpy's functions of arrays and vector's methods.
"""

from __future__ import annotations

import ast
import re
from typing import Final
from unicodedata import normalize

import qastle
from func_adl_uproot.translation import generate_python_source
from qastle.linq_util import linq_operator_names

from agc_ml.servicex_endpoint.translation import programs, syntax
from agc_ml.servicex_endpoint.translation.generators import FUNCTION, first_line
from agc_ml.servicex_endpoint.translation.programs import BUILTINS, EVENTS, METHODS, NUMPY
from agc_ml.servicex_endpoint.translation.syntax import Refused

DEEPEST: Final = 150  # levels of a query
MOST_NODES: Final = 20_000

# Of dask-awkward's arrays, where a column of that name can't be had as an attribute anyway.
_OF_ARRAYS: Final = (
    "attrs behavior clear_divisions compute dask defined_divisions divisions"
    " eager_compute_divisions fields form head keys keys_array known_divisions layout"
    " map_partitions name ndim npartitions partitions persist repartition reset_meta"
    " to_dask_array to_dask_bag to_delayed to_parquet type visualize"
)
OF_ARRAYS: Final = frozenset(_OF_ARRAYS.split())
_PARENTHESES: Final = re.compile(r"[()]|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_RECORDS: Final = ("ToFourMomentum", "ToFourMomenta")

_RESERVED: Final = programs.NAMES | BUILTINS

_IN_QUERIES: Final = (
    *(ast.BoolOp, ast.boolop, ast.BinOp, ast.operator, ast.UnaryOp, ast.unaryop),
    *(ast.Compare, ast.cmpop, ast.Name, ast.Load, ast.Constant, ast.Attribute),
    *(ast.List, ast.Tuple, ast.Dict, ast.Subscript, ast.Slice, ast.IfExp),
    *(ast.Call, ast.Lambda, ast.arguments, ast.arg),
    *(getattr(qastle, name) for name in linq_operator_names),
)


def translate(selection: str) -> str:
    """Make the program of a query in func_adl's textual form.

    Raises
    ------
    ValueError
        It is no query, or would do more than computing with columns.
    """
    _check_depth(selection)
    try:
        query = qastle.insert_linq_nodes(_statement(selection))
        check_query(query)
        source = str(generate_python_source(query, FUNCTION))
    except Refused:
        raise
    except Exception as error:  # both raise whatever comes up, of their parsers too
        raise ValueError(first_line(error)) from error
    programs.check(source)
    return source


def _statement(selection: str) -> ast.AST:
    statements = qastle.text_ast_to_python_ast(selection).body
    if len(statements) != 1:
        raise Refused(f"one statement is needed, not {len(statements)}")
    statement: ast.AST = statements[0].value
    return statement


def _check_depth(selection: str) -> None:
    """Check how deep parentheses are nested, on which a parser would dwell for minutes."""
    depth = 0
    for found in _PARENTHESES.finditer(selection):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth > 2 * DEEPEST:  # lists of arguments are no levels of the tree
            raise Refused(f"nested too deeply; {DEEPEST} levels are the most")


def check_query(query: ast.AST) -> None:
    """Check a query's tree, in which operators are nodes of qastle's.

    Raises
    ------
    Refused
        It has more than a query may have.
    """
    nodes = syntax.limited(query, DEEPEST, MOST_NODES)
    bound = {node.arg for node, _ in nodes if isinstance(node, ast.arg)}
    for node, parent in nodes:
        syntax.check_node(node, _IN_QUERIES)
        syntax.check_values(node, parent)
        match node:
            case ast.arg(arg=name):
                syntax.check_name(name)
                if name in _RESERVED:
                    raise Refused(f"a variable can't be called {name}")
            case ast.Name(id=name):
                _check_variable(name, parent, bound)
            case ast.Attribute():
                _check_attribute(node, parent)
            case ast.Call():
                _check_call(node)
    if _length(query) > programs.MOST_NODES:
        raise Refused("too many indices in each other; its program would be too long")


def _check_variable(name: str, parent: ast.AST, bound: set[str]) -> None:
    is_called = isinstance(parent, ast.Call) and getattr(parent.func, "id", None) == name
    if name == "np":
        if not isinstance(parent, ast.Attribute):
            raise Refused("np needs a function: np.sqrt")
    elif not (name in bound or (is_called and name in BUILTINS | {EVENTS})):
        raise Refused(f"there is no {name}")


def _check_attribute(node: ast.Attribute, parent: ast.AST) -> None:
    name = node.attr
    is_called = isinstance(parent, ast.Call) and parent.func is node
    is_plain = name.isidentifier() and name == normalize("NFKC", name)  # as Python's parser does
    if not is_plain or name.startswith("_"):
        raise Refused(f"a column's name can't be {name!r:.100} behind a dot; it can in [...]")
    if _is_numpy(node.value):
        if name not in NUMPY:
            raise Refused(f"np.{name} can't be used; functions of arrays can")
    elif isinstance(node.value, ast.Attribute) and _is_numpy(node.value.value):
        raise Refused(f"np.{node.value.attr} can be called only")
    elif is_called and name not in METHODS and name not in _RECORDS:
        raise Refused(f"there is no method {name}")
    elif name in OF_ARRAYS:
        raise Refused(f'.{name} is no column; of one that is called so, ["{name}"] can be asked')


def _is_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "np"


def _check_call(node: ast.Call) -> None:
    if node.keywords:
        raise Refused("calls have no keywords")
    match node.func:
        case ast.Name(id=name) if name in BUILTINS | {EVENTS}:
            return
        case ast.Name(id=name):
            raise Refused(f"there is no function {name}")
        case ast.Attribute() | ast.Lambda():
            return
    raise Refused("only functions and methods can be called, by their names")


def _length(node: ast.AST) -> int:
    """About how many parts the program of a node has: what is indexed is written several times."""
    length = 1 + sum(map(_length, ast.iter_child_nodes(node)))
    match node:
        case ast.Subscript(slice=ast.Constant(value=str())):
            return length
        case ast.Subscript() | qastle.Contains():
            return 5 * length
        case ast.Call(func=ast.Attribute(attr="ToFourMomentum")):
            return 3 * length
    return length
