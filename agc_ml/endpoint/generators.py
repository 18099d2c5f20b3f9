"""Code generation: what a worker is to run, or why a query is refused."""

from __future__ import annotations

import ast
import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator

from agc_ml.endpoint.requests import ResultFormat, one_line
from agc_ml.errors import UsageError

FUNCTION: Final = "run_query"

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

    @field_validator("treename")
    @classmethod
    def _any_tree(cls, names: str | list[str] | dict[str, str]) -> Any:
        if not names:
            raise ValueError("no tree is named")
        return names

    @field_validator("cut")
    @classmethod
    def _is_expression(cls, cut: str | None) -> str | None:
        if cut is not None:
            _parse(cut, "eval")
        return cut

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
        return names


RawQuery = list[TreeQuery | HistogramQuery]
_RAW: Final[TypeAdapter[RawQuery]] = TypeAdapter(RawQuery)


def generate(codegen: str, selection: str, result_format: ResultFormat) -> str:
    """Make the program of a query: Python source, or for ``uproot-raw`` its checked JSON.

    Raises
    ------
    UsageError
        There is no such code generator, or it can't make anything of the query.
    """
    if codegen not in GENERATORS:
        known = ", ".join(GENERATORS)
        raise UsageError(f"{codegen}: no such code generator; there are {known}")
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
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error
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
    from func_adl_uproot.translation import generate_python_source  # noqa: PLC0415 - heavy
    from qastle import text_ast_to_python_ast  # noqa: PLC0415 - heavy

    try:
        statements = text_ast_to_python_ast(selection).body
        source = str(generate_python_source(statements[0].value, FUNCTION)) if statements else ""
    except Exception as error:  # both raise whatever comes up, of their parsers too
        raise ValueError(_first_line(error)) from error
    if len(statements) != 1:
        raise ValueError(f"one statement is needed, not {len(statements)}")
    _parse(source, "exec")
    return source


def _python(selection: str) -> str:
    try:
        source = base64.b64decode(selection, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("no base64 of a Python function's source") from error
    names = [node.name for node in _parse(source, "exec") if isinstance(node, ast.FunctionDef)]
    if FUNCTION not in names:
        found = f"it defines {', '.join(names)}" if names else "it defines no function"
        raise ValueError(f"the function must be called {FUNCTION}; {found}")
    return source


def _parse(source: str, mode: Literal["eval", "exec"]) -> list[ast.stmt]:
    """The statements of a source, none for an expression."""
    try:
        tree = ast.parse(source, mode=mode)
    except (SyntaxError, ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"no Python ({text}{place})") from error
    return tree.body if isinstance(tree, ast.Module) else []


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


GENERATORS: Final[dict[str, Callable[[str], str]]] = {
    "uproot": _func_adl,
    "uproot-raw": _raw,
    "python": _python,
}
