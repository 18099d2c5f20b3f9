"""A plain function as a processor, as coffea takes one: ``def analysis(events): return ...``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from agc_ml.execution.code.code_objects import attributes_of

DECLARATIONS: Final = (
    "columns",
    "simulation_columns",
    "optional_columns",
    "counted_columns",
    "preselection",
    "flat",
    "takes",
    "files",
    "schema",
    "normalised_to",
)
"""Attributes by which a processor, or a function (``analysis.columns = ...``), declares things."""


class FunctionProcessor:
    """A function of the events of a chunk, with the values of its other parameters."""

    def __init__(self, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
        self.function = function
        self.values = dict(values)
        for name in DECLARATIONS:
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))

    def process(self, events: Any) -> Any:
        """Return the output of a chunk."""
        return self.function(events, **self.values)


def origin(processor: Any) -> Any:
    """Class or function of a processor."""
    return processor.function if isinstance(processor, FunctionProcessor) else type(processor)


def origin_name(processor: Any) -> str:
    """Name of a processor's class or function, for messages."""
    made_of = origin(processor)
    return str(getattr(made_of, "__name__", type(made_of).__name__))


def state_of(processor: Any) -> dict[str, Any]:
    """Attributes of an object, those in slots too; of a function the values of its parameters."""
    is_function = isinstance(processor, FunctionProcessor)
    return processor.values if is_function else attributes_of(processor)
