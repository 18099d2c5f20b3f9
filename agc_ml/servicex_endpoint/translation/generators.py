"""Code generation: what a worker is to run, or why a query is refused."""

from __future__ import annotations

import ast
import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.requests import ResultFormat, one_line, printable
from agc_ml.servicex_endpoint.translation.syntax import NoExpression, Refused, parsed

FUNCTION: Final = "run_query"
# Characters of a query; the parser of func_adl takes some 40 ms for a thousand.
LONGEST: Final = {"uproot": 50_000, "uproot-raw": 1_000_000, "python": 1_000_000}
LONGEST_NAME: Final = 1000  # characters of a column, a tree or a pattern of some
MOST_NAMES: Final = 10_000

# What clients call a generator -> how --codegens names it.
FLAGS: Final = {"uproot": "func_adl", "uproot-raw": "uproot-raw", "python": "python"}
DEFAULT: Final = ("uproot-raw", "uproot")

Names = str | list[str]


class TreeQuery(BaseModel):
    """Columns of trees; all but the trees' names as in uproot's ``arrays``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    treename: str | list[str] | dict[str, str]
    expressions: Names | None = None
    cut: str | None = None
    filter_name: Names | None = None
    filter_typename: Names | None = None
    aliases: dict[str, str] | None = None
    fail_on_missing_trees: bool | None = None
    use_standard_awkward_axis: bool | None = None

    @field_validator("treename", "filter_name", "filter_typename", "aliases")
    @classmethod
    def _are_names(cls, value: Any) -> Any:
        _check_names(value)
        return value

    @field_validator("treename")
    @classmethod
    def _any_tree(cls, names: Any) -> Any:
        if not names:
            raise ValueError("no tree is named")
        _check_names(names.values() if isinstance(names, dict) else names)
        return names

    @field_validator("expressions", "cut", "aliases")
    @classmethod
    def _are_expressions(cls, value: Any, field: ValidationInfo) -> Any:
        for text in _texts(value.values() if isinstance(value, dict) else value):
            _check_expression(text, may_be_column=field.field_name == "expressions")
        return value

    @property
    def trees(self) -> dict[str, str]:
        """Names in the input -> names in the output."""
        if isinstance(self.treename, dict):
            return self.treename
        names = [self.treename] if isinstance(self.treename, str) else self.treename
        return {name: name for name in names}


class HistogramQuery(BaseModel):
    """Objects that are copied as they are; names may hold wildcards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    copy_histograms: Names

    @field_validator("copy_histograms")
    @classmethod
    def _any_name(cls, names: Names) -> Names:
        if not names:
            raise ValueError("no histogram is named")
        _check_names(names)
        return names


def _texts(value: str | Iterable[str] | None) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if len(texts) > MOST_NAMES:
        raise ValueError(f"{len(texts):,} are given, and {MOST_NAMES:,} are the most")
    return texts


def _check_names(value: str | Iterable[str] | None) -> None:
    for name in _texts(value):
        if len(name) > LONGEST_NAME:
            raise ValueError(f"{len(name):,} characters, and {LONGEST_NAME:,} are the most")
        printable(name)


def _check_expression(text: str, *, may_be_column: bool) -> None:
    """Check an expression; a text that is no Python can be a column's name, as HLT-Mu/ is."""
    from agc_ml.servicex_endpoint.translation.language import check  # noqa: PLC0415 - heavy

    try:
        check(text)
    except NoExpression:
        if not may_be_column:
            raise
        _check_names(text)
    except Refused as error:
        raise ValueError(f"{error} (in {text[:60]})") from error


RawQuery = list[TreeQuery | HistogramQuery]
_RAW: Final[TypeAdapter[RawQuery]] = TypeAdapter(RawQuery)


def enabled(names: Iterable[str]) -> tuple[str, ...]:
    """The generators of ``--codegens``, as clients call them; func_adl's may be called so, too.

    Raises
    ------
    UsageError
        There is no such code generator.
    """
    chosen = {name.strip() for name in names}
    found = {name for name, flag in FLAGS.items() if {name, flag} & chosen}
    unknown = chosen - found - {FLAGS[name] for name in found}
    if unknown or not found:
        known = ", ".join(FLAGS.values())
        wrong = ", ".join(sorted(unknown)) or "none"
        raise UsageError(f"--codegens {wrong}: no such code generator; there are {known}")
    return tuple(name for name in FLAGS if name in found)


def check_length(codegen: str, selection: str) -> None:
    """Refuse a query that nobody writes.

    Raises
    ------
    UsageError
        It is too long.
    """
    if len(selection) > LONGEST[codegen]:
        raise UsageError(
            f"the query for {codegen} can't be used: {len(selection):,} characters, and"
            f" {LONGEST[codegen]:,} are the most"
        )


def check_enabled(codegen: str, names: tuple[str, ...]) -> None:
    """Refuse a generator that is not enabled.

    Raises
    ------
    UsageError
        The message names the flag that would enable it, if there is such a generator.
    """
    if codegen in names:
        return
    if codegen in FLAGS:
        flags = ",".join(FLAGS[name] for name in FLAGS if name in {*names, codegen})
        raise UsageError(
            f"{codegen}: this code generator is off here; the endpoint can be started with"
            f" --codegens {flags}"
        )
    raise UsageError(f"{codegen:.100}: no such code generator; there are {', '.join(names)}")


def generate(codegen: str, selection: str, result_format: ResultFormat) -> str:
    """Make the program of a query: Python source, or for ``uproot-raw`` its checked JSON.

    Raises
    ------
    UsageError
        The code generator can't make anything of the query, or may not.
    """
    check_length(codegen, selection)
    try:
        program = GENERATORS[codegen](selection)
        if codegen == "uproot-raw" and result_format == "parquet":
            _refuse_what_parquet_cannot_hold(program)
    except ValueError as error:
        raise UsageError(f"the query for {codegen} can't be used: {error}") from error
    return program


def raw_queries(program: str) -> RawQuery:
    """The queries of an ``uproot-raw`` program.

    Raises
    ------
    ValueError
        It is none.
    """
    try:
        entries = json.loads(program)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"no JSON ({first_line(error)})") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError("a list of queries is needed")
    queries: RawQuery = []
    for number, entry in enumerate(entries, 1):
        is_histogram = isinstance(entry, dict) and "copy_histograms" in entry
        model = HistogramQuery if is_histogram else TreeQuery
        try:
            queries.append(model.model_validate(entry))
        except ValidationError as error:
            raise ValueError(f"part {number}: {one_line(error)}") from error
    return queries


def _raw(selection: str) -> str:
    queries = raw_queries(selection)
    written = Counter(
        name for query in queries if isinstance(query, TreeQuery) for name in query.trees.values()
    )
    for name, count in written.items():
        if count > 1:
            raise ValueError(f"{count} parts write the tree {name}")
    return _RAW.dump_json(queries, exclude_none=True).decode()


def _refuse_what_parquet_cannot_hold(program: str) -> None:
    trees = [query.trees if isinstance(query, TreeQuery) else {} for query in raw_queries(program)]
    if [len(names) for names in trees] != [1]:
        raise ValueError("parquet holds one tree and no histograms; ask for root-file")


def _func_adl(selection: str) -> str:
    from agc_ml.servicex_endpoint.translation.func_adl import translate  # noqa: PLC0415 - heavy

    return translate(selection)


def _python(selection: str) -> str:
    try:
        source = base64.b64decode(selection, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("no base64 of a Python function's source") from error
    names = [
        node.name
        for node in parsed(source, LONGEST["python"]).body
        if isinstance(node, ast.FunctionDef)
    ]
    if FUNCTION not in names:
        found = f"it defines {', '.join(names)}" if names else "it defines no function"
        raise ValueError(f"the function must be called {FUNCTION}; {found}")
    return source


def first_line(error: Exception) -> str:
    """The type of an error, and the first line of what it says."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


GENERATORS: Final[dict[str, Callable[[str], str]]] = {
    "uproot": _func_adl,
    "uproot-raw": _raw,
    "python": _python,
}
