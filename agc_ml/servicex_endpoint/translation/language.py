"""The language of expressions: uproot's, with functions of awkward's, and nothing unchecked.

uproot evaluates what a query says, and what a file says too: the aliases of its trees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import awkward as ak
from uproot.language.python import PythonLanguage

from agc_ml.errors import InputFileError
from agc_ml.servicex_endpoint.translation.syntax import Refused, check_expression

# Functions in expressions beside numpy's. The first reduce or join, and do so in each event, not
# over all of them, unless a query wants awkward's own meaning.
_IN_EVENTS: Final = (
    "concatenate count count_nonzero sum nansum prod nanprod any all min nanmin max nanmax argmin"
    " nanargmin argmax nanargmax moment mean nanmean var nanvar std nanstd softmax"
)
_PLAIN: Final = (
    "where flatten num sort argsort mask is_none drop_none pad_none fill_none firsts singletons"
    " broadcast_arrays broadcast_fields cartesian argcartesian combinations argcombinations isclose"
    " almost_equal"
)
_GETTER: Final = "get"
# Arguments of awkward's that take functions, classes or dictionaries of them, or give no arrays.
_HOOKS: Final = {"behavior", "attrs", "highlevel", "parameters", "broadcast_parameters_rule"}

NAMES: Final = frozenset({*PythonLanguage.default_functions, *_IN_EVENTS.split(), *_PLAIN.split()})
KEYWORDS: Final = frozenset(
    {
        "decimals",
        *(
            parameter.name
            for name in (*_IN_EVENTS.split(), *_PLAIN.split())
            for parameter in inspect.signature(getattr(ak, name)).parameters.values()
            if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
        ),
    }
    - _HOOKS
)


def check(expression: str) -> None:
    """Check an expression before anything is made of it.

    Raises
    ------
    Refused
        It is none, or can do more than computing with columns.
    """
    check_expression(expression, {*NAMES, _GETTER}, KEYWORDS)


class Language(PythonLanguage):  # type: ignore[misc]  # uproot has no types
    """uproot's language, which checks all that it evaluates; ``standard`` is awkward's meaning."""

    def __init__(self, *, standard: bool) -> None:
        functions = dict(PythonLanguage.default_functions)
        functions |= {name: getattr(ak, name) for name in _PLAIN.split()}
        for name in _IN_EVENTS.split():
            function = getattr(ak, name)
            functions[name] = function if standard else _in_events(function)
        super().__init__(functions, _GETTER)

    def free_symbols(
        self, expression: str, keys: Iterable[str], *rest: Any, **named: Any
    ) -> list[str]:
        """Columns and aliases that an expression or an alias names.

        Raises
        ------
        InputFileError
            It may not be evaluated.
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
        """Evaluate expressions: arrays by expression.

        Raises
        ------
        InputFileError
            One may not be evaluated.
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
        except Refused as error:
            raise InputFileError(f"{expression[:200]} is no column, and {error}") from error


def _is_allowed(alias: str, keys: Iterable[str]) -> bool:
    """Return whether an alias may be evaluated; files hold others, in ROOT's language, unused."""
    try:
        _check_unless_column(alias, keys)
    except InputFileError:
        return False
    return True


def _in_events(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, axis: int = 1, **options: Any) -> Any:
        return function(*arguments, axis=axis, **options)

    return call
