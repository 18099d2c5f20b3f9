"""Code generators: the program of a query that transformers run, or why it is refused."""

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

from agc_ml.errors import UsageError, in_one_line
from agc_ml.servicex_endpoint.requests import ResultFormat, one_line, printable
from agc_ml.servicex_endpoint.translation.syntax import (
    FUNCTION,
    NotAllowedError,
    NotPythonError,
    parse_python,
)

# Characters of a query; the parser of func_adl takes some 40 ms for a thousand.
MAX_LENGTH: Final = {"uproot": 50_000, "uproot-raw": 1_000_000, "python": 1_000_000}
MAX_NAME: Final = 1000  # characters of a column, a tree or a pattern
MAX_NAMES: Final = 10_000

# Names that clients use -> names of --codegens.
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
    def _check_names(cls, value: Any, field: ValidationInfo) -> Any:
        _check_names(value)
        if field.field_name == "treename":
            if not value:
                raise ValueError("no tree is named")
            if isinstance(value, dict):
                _check_names(value.values())
        return value

    @field_validator("expressions", "cut", "aliases")
    @classmethod
    def _check_expressions(cls, value: Any, field: ValidationInfo) -> Any:
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
    def _check_names(cls, names: Names) -> Names:
        if not names:
            raise ValueError("no histogram is named")
        _check_names(names)
        return names


RawQuery = list[TreeQuery | HistogramQuery]
_RAW_QUERY: Final[TypeAdapter[RawQuery]] = TypeAdapter(RawQuery)


def _texts(value: str | Iterable[str] | None) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or [])
    if len(texts) > MAX_NAMES:
        raise ValueError(f"{len(texts):,} entries, at most {MAX_NAMES:,} are allowed")
    return texts


def _check_names(value: str | Iterable[str] | None) -> None:
    for name in _texts(value):
        if len(name) > MAX_NAME:
            raise ValueError(f"{len(name):,} characters, at most {MAX_NAME:,} are allowed")
        printable(name)


def _check_expression(text: str, *, may_be_column: bool) -> None:
    """Check an expression; a text that is not Python can be a column's name, as HLT-Mu/ is."""
    from agc_ml.servicex_endpoint.translation.language import check  # noqa: PLC0415 - heavy

    try:
        check(text)
    except NotPythonError:
        if not may_be_column:
            raise
        _check_names(text)
    except NotAllowedError as error:
        raise ValueError(f"{error} (in {text[:60]})") from error


def parse_codegens(names: Iterable[str]) -> tuple[str, ...]:
    """Return the generators of ``--codegens`` by the names that clients use; both are accepted.

    Raises
    ------
    UsageError
        There is no such code generator.
    """
    given = {name.strip() for name in names}
    chosen = tuple(name for name, flag in FLAGS.items() if {name, flag} & given)
    unknown = given - {*chosen, *(FLAGS[name] for name in chosen)}
    if unknown or not chosen:
        wrong = ", ".join(sorted(unknown)) or "none"
        raise UsageError(
            f"--codegens {wrong}: no such code generator; there are {', '.join(FLAGS.values())}"
        )
    return chosen


def check_length(codegen: str, selection: str) -> None:
    """Reject a query that is too long.

    Raises
    ------
    UsageError
        It is.
    """
    if len(selection) > MAX_LENGTH[codegen]:
        raise UsageError(
            f"the query for {codegen} can't be used: {len(selection):,} characters, at most"
            f" {MAX_LENGTH[codegen]:,} are allowed"
        )


def check_enabled(codegen: str, names: tuple[str, ...]) -> None:
    """Reject a code generator that is not enabled.

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
    """Return the program of a query: Python source, or for ``uproot-raw`` its validated JSON.

    Raises
    ------
    UsageError
        The query is not valid, or not allowed.
    """
    check_length(codegen, selection)
    try:
        program = GENERATORS[codegen](selection)
        if codegen == "uproot-raw" and result_format == "parquet":
            _check_parquet(program)
    except ValueError as error:
        raise UsageError(f"the query for {codegen} can't be used: {error}") from error
    return program


def raw_queries(program: str) -> RawQuery:
    """Return the queries of an ``uproot-raw`` program.

    Raises
    ------
    ValueError
        It is not one.
    """
    try:
        entries = json.loads(program)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({in_one_line(error)})") from error
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


def _generate_raw(selection: str) -> str:
    queries = raw_queries(selection)
    written = Counter(
        name for query in queries if isinstance(query, TreeQuery) for name in query.trees.values()
    )
    for name, count in written.items():
        if count > 1:
            raise ValueError(f"{count} parts write the tree {name}")
    return _RAW_QUERY.dump_json(queries, exclude_none=True).decode()


def _check_parquet(program: str) -> None:
    trees = [query.trees if isinstance(query, TreeQuery) else {} for query in raw_queries(program)]
    if [len(names) for names in trees] != [1]:
        raise ValueError("parquet holds one tree and no histograms; use root-file")


def _generate_func_adl(selection: str) -> str:
    from agc_ml.servicex_endpoint.translation.func_adl import translate  # noqa: PLC0415 - heavy

    return translate(selection)


def _generate_python(selection: str) -> str:
    try:
        source = base64.b64decode(selection, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("not the base64 of a Python function's source") from error
    body = parse_python(source, MAX_LENGTH["python"]).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    if FUNCTION not in names:
        defined = f"it defines {', '.join(names)}" if names else "it defines no function"
        raise ValueError(f"the function must be called {FUNCTION}; {defined}")
    return source


GENERATORS: Final[dict[str, Callable[[str], str]]] = {
    "uproot": _generate_func_adl,
    "uproot-raw": _generate_raw,
    "python": _generate_python,
}
