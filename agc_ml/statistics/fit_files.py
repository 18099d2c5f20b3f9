"""Files of a fit: ``fit.json``, and ``workspace.json`` in pyhf's format."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from agc_ml import documents
from agc_ml.errors import FitError
from agc_ml.files import store_errors, write
from agc_ml.statistics.fit_result import FitResult

SCHEMA: Final = 1
"""Version of the format of ``fit.json``."""


@functools.cache
def _format() -> TypeAdapter[FitResult]:
    return TypeAdapter(FitResult)


def save(result: FitResult, directory: str | Path) -> None:
    """Write ``fit.json`` and ``workspace.json`` into a folder, created if needed.

    Raises
    ------
    FitError
        A number of the result is not finite.
    StoreError
        The folder can't be written, or the disk is full.
    """
    folder = Path(directory)
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = _format().dump_python(result, exclude={"workspace": True, "poi": {"pull"}})
    _validated(content, folder / "fit.json", "look at the data and the configuration")
    if result.cross_section is not None:
        predicted = result.cross_section.predicted
        content["cross_section"] |= {
            "value": predicted * result.poi.value,
            "uncertainty": predicted * result.poi.uncertainty,
        }
    workspace = json.dumps(result.workspace, indent=1) + "\n"
    record = to_json({"schema": SCHEMA, **content}, indent=1) + b"\n"
    write(folder / "workspace.json", lambda path: path.write_text(workspace))
    write(folder / "fit.json", lambda path: path.write_bytes(record))


def load(path: str | Path) -> FitResult:
    """Read a fit from its folder or its ``fit.json``.

    Raises
    ------
    FitError
        There is no fit, or it is cut off, or not of this format.
    """
    file = Path(path) / "fit.json" if Path(path).is_dir() else Path(path)
    result = _validated(_load_json(file), file, "run 'agc-ml fit' again with this version")
    workspace = _load_json(file.with_name("workspace.json"))
    # the POI of the file lacks its pull
    poi = next((p for p in result.parameters if p.name == result.poi.name), None)
    if poi is None:
        raise FitError(
            f"{file}: {result.poi.name!r} is not one of its parameters; run 'agc-ml fit' again"
        )
    return replace(result, poi=poi, workspace=workspace)


def _load_json(path: Path) -> Any:
    try:
        return documents.json_of(documents.text(path))
    except FileNotFoundError as error:
        raise FitError(f"{path}: no such file; 'agc-ml fit' writes it") from error
    except (OSError, ValueError) as error:
        raise FitError(f"{path}: cut off or not JSON ({error}); run 'agc-ml fit' again") from error


def _validated(content: Any, path: Path, remedy: str) -> FitResult:
    """Validate the content of ``fit.json``; the workspace is in another file."""
    if isinstance(content, dict):
        schema = content.pop("schema", SCHEMA)
        if schema != SCHEMA:
            raise FitError(f"{path}: field schema: {schema!r} is not {SCHEMA}; {remedy}")
        content = {**content, "workspace": {}}
    try:
        result = _format().validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = " -> ".join(str(part) for part in first["loc"]) or "(all)"
        message = first["msg"].removeprefix("Value error, ")
        raise FitError(f"{path}: field {where}: {message}; {remedy}") from error
    problem = next(_contradictions(result), None)
    if problem is not None:
        raise FitError(f"{path}: field (all): {problem}; {remedy}")
    return result


def _contradictions(result: FitResult) -> Iterator[str]:
    names = [parameter.name for parameter in result.parameters]
    # a matrix of no rows has one dimension
    if {len(result.correlation), *map(len, result.correlation)} != {len(names)}:
        yield "correlation needs a row and a column of each parameter"
    unknown = {*(impact.parameter for impact in result.impacts), *result.states} - {*names}
    if unknown:
        yield f"parameters: {min(unknown)!r} is none"
    if len({*names}) < len(names):
        yield "parameters: one is there twice"
    before, after = ([r.region for r in regions] for regions in (result.prefit, result.postfit))
    if before != after:
        yield "prefit and postfit have other regions"
