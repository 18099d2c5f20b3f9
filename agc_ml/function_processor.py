"""A plain function as a processor, as coffea takes one: ``def analysis(events): return ...``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

DECLARATIONS: Final = (
    *("columns", "simulation_columns", "optional_columns", "counted_columns", "preselection"),
    *("flat", "takes", "files", "schema"),
)
"""What a processor may declare; a function does it by attributes: ``analysis.columns = (...)``."""


class FunctionProcessor:
    """A function of the events of a chunk, with the values of its other parameters."""

    def __init__(self, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
        self.function = function
        self.values = dict(values)
        for name in DECLARATIONS:
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))

    def process(self, events: Any) -> Any:
        """Output of a chunk."""
        return self.function(events, **self.values)
