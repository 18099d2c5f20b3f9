"""Make processors of classes and functions, with parameters given as text."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from agc_ml.errors import AgcError, ProcessorError, UsageError
from agc_ml.execution.code.function_processor import FunctionProcessor
from agc_ml.execution.code.source_files import place_in_code
from agc_ml.models.loading import load_model


def make_processor(name: str, maker: Any, settings: Mapping[str, str], model: Any) -> Any:
    """Make a processor of a class, or of a function whose first parameter are the events.

    Raises
    ------
    UsageError
        A parameter is missing or unknown, or its value is of the wrong type.
    ProcessorError
        The constructor raised.
    """
    is_class = isinstance(maker, type)
    parameters = dict(inspect.signature(maker).parameters)
    if not is_class:
        if not parameters:
            raise UsageError(f"{name}: a function of the events is needed: def f(events)")
        del parameters[next(iter(parameters))]
    values: dict[str, Any] = {}
    if model is not None:
        if "model" not in parameters:
            raise UsageError(f"--model: {name} takes no model (a parameter of that name)")
        values["model"] = load_model(model) if isinstance(model, str | Path) else model
    for parameter, text in settings.items():
        if parameter not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"--set {parameter}: {name} has no such parameter; it has: {known}")
        if parameter == "model":
            raise UsageError("--set model: give a model with --model")
        values[parameter] = _value(parameter, text, _type_of(maker, parameters[parameter]))
    _refuse_missing(name, parameters, values)
    try:
        return maker(**values) if is_class else FunctionProcessor(maker, values)
    except AgcError:
        raise
    except (Exception, SystemExit) as error:  # a constructor may raise anything
        place = place_in_code(error)
        raise ProcessorError(f"{name}: can't be made: {error!r}{place}") from error


def _value(name: str, text: str, kind: Any) -> Any:
    """Value of a parameter; of one without a type a number, true, false or None, else text."""
    if text in {"None", "null"} and (kind is None or type(None) in get_args(kind)):
        return None
    if kind is None:
        try:
            value = json.loads(text.lower())
        except ValueError:
            return text
        return text if isinstance(value, str | list | dict) else value
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UsageError(f"--set {name}={text}: {message}") from error
    except PydanticUserError as error:
        raise UsageError(
            f"--set {name}: a value of its type can't be given as text; use Python"
        ) from error


def _refuse_missing(
    name: str, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
) -> None:
    for parameter in parameters.values():
        is_missing = parameter.default is parameter.empty and parameter.name not in values
        if is_missing and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            flag = "--model" if parameter.name == "model" else f"--set {parameter.name}=VALUE"
            raise UsageError(f"{name}: missing parameter {parameter.name}; set it with {flag}")


def _type_of(maker: Any, parameter: inspect.Parameter) -> Any:
    """Type of a parameter: as annotated, else that of its default, else None."""
    for hints, space in _annotations(maker):
        if parameter.name in hints:
            alone = SimpleNamespace(__annotations__={parameter.name: hints[parameter.name]})
            try:
                return get_type_hints(alone, space)[parameter.name]
            except (NameError, TypeError, AttributeError):  # for the type checker only
                break
    default = parameter.default
    return None if default is None or default is parameter.empty else type(default)


def _annotations(maker: Any) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Annotations of a class or function, with the names that they may refer to."""
    if not isinstance(maker, type):
        function = inspect.unwrap(maker)
        yield getattr(function, "__annotations__", {}), getattr(function, "__globals__", {})
        return
    for cls in maker.__mro__:
        if "__init__" in vars(cls):
            yield from _annotations(vars(cls)["__init__"])
        yield vars(cls).get("__annotations__", {}), vars(sys.modules[cls.__module__])
