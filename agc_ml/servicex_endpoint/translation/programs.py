"""Programs of func_adl's translator: checked against the few shapes that it writes.

Queries are checked before translation (`agc_ml.servicex_endpoint.translation.func_adl`), and these
programs before they are executed.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import Any, Final

import numpy as np
import vector
from func_adl_uproot.translation import generate_python_source

from agc_ml.servicex_endpoint.translation import syntax
from agc_ml.servicex_endpoint.translation.syntax import FUNCTION, NotAllowedError

EVENTS: Final = "EventDataset"
MAX_LENGTH: Final = 1_000_000  # characters
MAX_NODES: Final = 200_000
_MAX_DEPTH: Final = 1000

_BUILTINS: Final = "abs all any bool float int len max min round sum"
BUILTINS: Final = frozenset(_BUILTINS.split())
METHODS: Final = frozenset(
    name
    for name, method in inspect.getmembers(vector.MomentumObject4D, inspect.isfunction)
    if not name.startswith("_")
)
NUMPY: Final = frozenset(
    name
    for name, member in vars(np).items()
    if isinstance(member, (np.ufunc, float))
    or (isinstance(member, type) and issubclass(member, (np.number, np.bool_)))
)
# Names that the translator itself writes.
_DASK_AWKWARD: Final = (
    "Array all any argsort cartesian combinations concatenate flatten full_like max min num"
    " singletons sum unzip where with_name zip"
)
_MODULES: Final[dict[str, frozenset[str]]] = {
    "np": NUMPY | {"atleast_2d", "hstack"},
    "dak": frozenset(_DASK_AWKWARD.split()),
    "uproot": frozenset({"dask", "open"}),
    "functools": frozenset({"reduce"}),
    "logging": frozenset({"getLogger"}),
}
_CALLED: Final = BUILTINS | {"isinstance", "getattr", "list", "repr", "type"}
_FILTER: Final = "_remove_not_interpretable"
_VARIABLES: Final = frozenset({"input_filenames", "tree_name", _FILTER, "__name__"})
_TYPES: Final = frozenset({"dict", "int", "slice", "str"})
_WRITTEN_METHODS: Final = METHODS | {"classnames", "compute", "info", "items", "keys", "values"}
_WRITTEN_KEYWORDS: Final = frozenset(
    ["ascending", "axis", "depth_limit", "dtype", "filter_branch", "nested"]
)
NAMES: Final = frozenset(_MODULES) | _CALLED | _VARIABLES | _TYPES | {"vector", FUNCTION}

_CALLS: Final = (ast.Subscript, ast.Slice, ast.IfExp, ast.Call, ast.Lambda, ast.arguments, ast.arg)
QUERY_NODES: Final = (*syntax.OPERATORS, ast.Compare, ast.cmpop, *syntax.VALUES, *_CALLS)
_LOOPS: Final = (ast.Starred, ast.ListComp, ast.DictComp, ast.comprehension)
_ALLOWED: Final = (*QUERY_NODES, *_LOOPS, ast.keyword, ast.Store)


def check(source: str) -> None:
    """Check a program of the translator.

    Raises
    ------
    NotAllowedError
        It does not have the shape of such programs.
    """
    body = syntax.parse_python(source, MAX_LENGTH).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise NotAllowedError("the program is not a single function")
    *before, last = body[0].body
    head = ast.dump(ast.Module([body[0].args, *before], []))  # type: ignore[list-item]
    if head != _expected_head() or not isinstance(last, ast.Return) or last.value is None:
        raise NotAllowedError("the program does not begin as it should")
    # Loop variables and arguments may be used; the translator's own names may not be redefined.
    nodes = syntax.walk(last.value, _MAX_DEPTH, MAX_NODES)
    bound = {node.arg for node, _ in nodes if isinstance(node, ast.arg)}
    bound |= {
        node.id
        for node, _ in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if taken := bound & NAMES:
        raise NotAllowedError(f"the program redefines {', '.join(sorted(taken))}")
    for node, parent in nodes:
        syntax.check_node(node, _ALLOWED)
        match node:
            case ast.Name(id=name):
                _check_written_name(name, parent, bound)
            case ast.Attribute(value=ast.Name(id=module), attr=attribute) if module in _MODULES:
                if attribute not in _MODULES[module]:
                    raise NotAllowedError(f"the program uses {module}.{attribute}")
            case ast.Attribute(attr=attribute):
                _check_written_attribute(attribute, node, parent)
            case ast.Call():
                _check_written_call(node)


def _check_written_name(name: str, parent: ast.AST, bound: set[str]) -> None:
    is_called = isinstance(parent, ast.Call) and getattr(parent.func, "id", None) == name
    is_module = isinstance(parent, ast.Attribute) and name in _MODULES
    is_type = name in _TYPES | {"int"} and isinstance(parent, ast.Call)
    if not (is_module or is_type or name in bound | _VARIABLES or (is_called and name in _CALLED)):
        raise NotAllowedError(f"the program uses {name}")


def _check_written_attribute(name: str, node: ast.Attribute, parent: ast.AST) -> None:
    is_called = isinstance(parent, ast.Call) and parent.func is node
    if name.startswith("_") or (is_called and name not in _WRITTEN_METHODS):
        raise NotAllowedError(f"the program uses .{name}")


def _check_written_call(node: ast.Call) -> None:
    if any(keyword.arg not in _WRITTEN_KEYWORDS for keyword in node.keywords):
        raise NotAllowedError("the program has a call with an unknown keyword")
    match node:
        case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value="ndim")]):
            return
        case ast.Call(func=ast.Name(id="type"), args=[_]):
            return
        case ast.Call(func=ast.Name(id=name)) if name in _CALLED - {"getattr", "type"}:
            return
        case ast.Call(func=ast.Attribute() | ast.Lambda()):
            return
    raise NotAllowedError("the program calls something unexpected")


@cache
def _expected_head() -> str:
    source = generate_python_source(f"(call {EVENTS} '' '')", FUNCTION)
    function: Any = ast.parse(source).body[0]
    return ast.dump(ast.Module([function.args, *function.body[:-1]], []))
