"""Language of expressions: uproot's, with awkward's functions; every expression is checked.

uproot evaluates expressions of a query, and also of a file: the aliases of its trees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import awkward as ak
from uproot.language.python import PythonLanguage

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.translation.syntax import NotAllowedError, check_expression

# Functions beside numpy's. The first reduce or join within each event, not over all of them,
# unless a query asks for awkward's own default axis.
_PER_EVENT: Final = (
    "concatenate count count_nonzero sum nansum prod nanprod any all min nanmin max nanmax argmin"
    " nanargmin argmax nanargmax moment mean nanmean var nanvar std nanstd softmax"
)
_PLAIN: Final = (
    "where flatten num sort argsort mask is_none drop_none pad_none fill_none firsts singletons"
    " broadcast_arrays broadcast_fields cartesian argcartesian combinations argcombinations isclose"
    " almost_equal"
)
_GETTER: Final = "get"
# awkward's arguments that take functions, classes or dictionaries of them, or return no arrays.
_UNSAFE_KEYWORDS: Final = {
    "behavior",
    "attrs",
    "highlevel",
    "parameters",
    "broadcast_parameters_rule",
}

NAMES: Final = frozenset({*PythonLanguage.default_functions, *_PER_EVENT.split(), *_PLAIN.split()})
KEYWORDS: Final = frozenset(
    {
        "decimals",
        *(
            parameter.name
            for name in (*_PER_EVENT.split(), *_PLAIN.split())
            for parameter in inspect.signature(getattr(ak, name)).parameters.values()
            if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        ),
    }
    - _UNSAFE_KEYWORDS
)


def check(expression: str) -> None:
    """Check an expression before it is used.

    Raises
    ------
    NotAllowedError
        It is not an expression, or not allowed.
    """
    check_expression(expression, {*NAMES, _GETTER}, KEYWORDS)


class Language(PythonLanguage):  # type: ignore[misc]  # uproot has no types
    """uproot's language with checks; ``standard`` keeps awkward's default axis."""

    def __init__(self, *, standard: bool) -> None:
        functions = dict(PythonLanguage.default_functions)
        functions |= {name: getattr(ak, name) for name in _PLAIN.split()}
        for name in _PER_EVENT.split():
            function = getattr(ak, name)
            functions[name] = function if standard else _per_event(function)
        super().__init__(functions, _GETTER)

    def free_symbols(
        self, expression: str, keys: Iterable[str], *rest: Any, **named: Any
    ) -> list[str]:
        """Return the columns and aliases that an expression or an alias uses.

        Raises
        ------
        InputFileError
            It is not allowed.
        """
        _check_unless_column(expression, keys)
        symbols: list[str] = super().free_symbols(expression, keys, *rest, **named)
        return symbols

    def compute_expressions(
        self,
        hasbranches: Any,
        arrays: Any,
        expression_context: list[tuple[str, dict[str, Any]]],
        keys: Iterable[str],
        aliases: Mapping[str, str],
        *rest: Any,
        **named: Any,
    ) -> dict[str, Any]:
        """Evaluate expressions; return arrays by expression.

        Raises
        ------
        InputFileError
            One is not allowed.
        """
        for expression, context in expression_context:
            if context["is_primary"]:
                _check_unless_column(expression, keys)
        allowed = {name: text for name, text in aliases.items() if _is_allowed(text, keys)}
        computed: dict[str, Any] = super().compute_expressions(
            hasbranches, arrays, expression_context, keys, allowed, *rest, **named
        )
        return computed


def _check_unless_column(expression: str, columns: Iterable[str]) -> None:
    if expression not in columns:
        try:
            check(expression)
        except NotAllowedError as error:
            raise InputFileError(f"{expression[:200]} is not a column, and {error}") from error


def _is_allowed(alias: str, keys: Iterable[str]) -> bool:
    """Return whether an alias may be evaluated; files also have unused ones in ROOT's language."""
    try:
        _check_unless_column(alias, keys)
    except InputFileError:
        return False
    return True


def _per_event(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, axis: int = 1, **options: Any) -> Any:
        return function(*arguments, axis=axis, **options)

    return call
