"""A plain function as a processor, as coffea takes one: ``def analysis(events): return ...``.

And what a processor of either kind is called, and declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any, Final

from agc_ml.errors import ProcessorError

DECLARATIONS: Final = (
    *("columns", "simulation_columns", "optional_columns", "counted_columns", "preselection"),
    *("flat", "takes", "files", "schema", "normalised_to"),
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


def origin(processor: Any) -> Any:
    """Class or function that a processor is made of."""
    return processor.function if isinstance(processor, FunctionProcessor) else type(processor)


def declared(processor: Any, attribute: str, what: str) -> tuple[str, ...]:
    """Names that a processor declares, () if it declares none; ``what`` they are of.

    Raises
    ------
    ProcessorError
        It has something else under that name.
    """
    names = getattr(processor, attribute, None)
    if names is None:
        return ()
    is_other = isinstance(names, str | Mapping) or not isinstance(names, Iterable)
    if is_other or not all(isinstance(name, str | PurePath) for name in names):
        owner = origin(processor)
        raise ProcessorError(
            f"{getattr(owner, '__name__', type(owner).__name__)}.{attribute}: a tuple of {what} is "
            "needed; rename it if it is for something else"
        )
    return tuple(str(name) for name in names)
