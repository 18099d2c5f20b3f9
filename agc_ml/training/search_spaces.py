"""Search spaces: parameters of a model with their ranges.

::

    max_depth: {low: 3, high: 10}               # integers; step: 2 for every other one
    learning_rate: {low: 0.02, high: 0.5, log: true}
    reg_alpha: [0, 0.25, 0.5]                   # one of these values
    gamma: 0                                    # fixed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from agc_ml import documents
from agc_ml.errors import UsageError

Kind = Literal["xgboost", "keras"]
Number = Annotated[int, Strict()] | Annotated[FiniteFloat, Strict()]


class Range(BaseModel):
    """Range from ``low`` to ``high``, both included; of integers if both are integers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    low: Number
    high: Number
    step: Number | None = Field(default=None, gt=0, description="step between values")
    log: bool = Field(default=False, description="uniform in the logarithm")

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.low > self.high or (self.log and (self.low <= 0 or self.step is not None)):
            raise ValueError(
                "low may not be above high; with log, low must be above 0 and there is no step"
            )
        return self


Parameter = Number | tuple[Number, ...] | Range
Space = dict[str, Parameter]
_SPACE: Final = TypeAdapter(Space)

# Parameters of each kind of model, with their smallest and largest values
_BOUNDS: Final[Mapping[Kind, Mapping[str, tuple[float, float]]]] = {
    "xgboost": {
        "n_estimators": (1, 5000),
        "max_depth": (1, 100),
        "learning_rate": (1e-6, 10),
        "min_child_weight": (0, 1e9),
        "reg_lambda": (0, 1e9),
        "reg_alpha": (0, 1e9),
        "gamma": (0, 1e9),
        "subsample": (1e-3, 1),
        "colsample_bytree": (1e-3, 1),
    },
    "keras": {
        "layers": (1, 10),
        "width": (1, 4096),
        "dropout": (0, 0.95),
        "learning_rate": (1e-6, 1),
        "batch_size": (16, 65536),
        "epochs": (1, 1000),
    },
}

_INTEGERS: Final = {"n_estimators", "max_depth", "layers", "width", "batch_size", "epochs"}


def _grid(start: float, stop: float, number: int, *, log: bool) -> tuple[float, ...]:
    values = np.logspace(start, stop, number) if log else np.linspace(start, stop, number)
    return tuple(float(value) for value in values)


PRESETS: Final[Mapping[str, tuple[Kind, Space]]] = {
    # moderate trees, for thousands of events
    "xgboost": (
        "xgboost",
        {
            "n_estimators": Range(low=50, high=300, step=50),
            "max_depth": Range(low=3, high=8),
            "learning_rate": Range(low=0.03, high=0.3, log=True),
            "min_child_weight": Range(low=0.1, high=10.0, log=True),
            "reg_lambda": Range(low=0.1, high=10.0, log=True),
            "subsample": Range(low=0.6, high=1.0),
            "colsample_bytree": Range(low=0.5, high=1.0),
        },
    ),
    # the published training of the Analysis Grand Challenge
    "reference": (
        "xgboost",
        {
            "max_depth": Range(low=1, high=71, step=10),
            "n_estimators": Range(low=1, high=451, step=50),
            "learning_rate": _grid(0.01, 1, 10, log=False),
            "min_child_weight": _grid(-1, 3, 20, log=True),
            "reg_lambda": (0, 0.25, 0.5, 0.75, 1),
            "reg_alpha": (0, 0.25, 0.5, 0.75, 1),
            "gamma": _grid(-4, 1, 20, log=True),
        },
    ),
    "keras": (
        "keras",
        {
            "layers": Range(low=1, high=3),
            "width": (32, 64, 128),
            "dropout": Range(low=0.0, high=0.3),
            "learning_rate": Range(low=3e-4, high=1e-2, log=True),
            "batch_size": (256, 1024),
            "epochs": (20, 40),
        },
    ),
}


_MOST_STEPS: Final = 1_000_000
_LARGEST: Final = 1e300
# Values in all lists of a space, which is stored and shown with each job
_MOST_VALUES: Final = 200


def space_of(kind: Kind, given: str | Mapping[str, Any] | None) -> Space:
    """Return a search space: a preset by name, parameters, or the default of the kind.

    Raises
    ------
    UsageError
        There is no such preset, or a parameter is unknown, of a wrong type or out of range.
    """
    if given is None:
        given = kind
    if isinstance(given, str):
        names = [name for name, (of, _) in PRESETS.items() if of == kind]
        if given not in names:
            raise UsageError(f"space {given!r}: for {kind} there are {', '.join(names)}, or a file")
        return dict(PRESETS[given][1])
    bounds = _BOUNDS[kind]
    if not given:
        raise UsageError(f"search space: it has no parameters; there are {', '.join(bounds)}")
    for name in given:
        if name not in bounds:
            raise UsageError(
                f"search space: {name!r} is no parameter of {kind}; there are {', '.join(bounds)}"
            )
    try:
        space = _SPACE.validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0]) if first["loc"] else "it"
        raise UsageError(
            f"search space: {where}: a number, a list of them, or {{low, high}} is needed "
            f"({first['msg']})"
        ) from error
    for name, parameter in space.items():
        _check(name, parameter, *bounds[name])
    n_values = sum(len(one) for one in space.values() if isinstance(one, tuple))
    if n_values > _MOST_VALUES:
        raise UsageError(
            f"search space: {n_values:,} values in its lists; at most {_MOST_VALUES} are taken: "
            "give ranges with low and high"
        )
    return space


def _check(name: str, parameter: Parameter, least: float, most: float) -> None:
    values: tuple[Number, ...]
    if isinstance(parameter, Range):
        values = (parameter.low, parameter.high, *([parameter.step] if parameter.step else ()))
    else:
        values = parameter if isinstance(parameter, tuple) else (parameter,)
    if not values:
        raise UsageError(f"search space: {name}: the list is empty; name at least one value")
    if name in _INTEGERS and not all(isinstance(value, int) for value in values):
        raise UsageError(f"search space: {name}: whole numbers are needed")
    ends = values[:2] if isinstance(parameter, Range) else values
    if min(ends) < least or max(ends) > most:
        raise UsageError(f"search space: {name}: from {least:g} to {most:g} is possible")
    if isinstance(parameter, Range) and parameter.step is not None:
        # a whole number may be larger than any that can be divided by
        steps = (parameter.high - parameter.low) / min(parameter.step, _LARGEST)
        if not 1 <= steps <= _MOST_STEPS:
            raise UsageError(
                f"search space: {name}: the step makes {steps:g} steps of the range; 1 to "
                f"{_MOST_STEPS:,} are possible"
            )


def load_space(kind: Kind, spec: str | None) -> Space:
    """Return a preset by name, or the space in a YAML or JSON file.

    Raises
    ------
    UsageError
        There is no such preset or file, or it is not a search space.
    """
    if spec is None or spec in PRESETS:
        return space_of(kind, spec)
    path = Path(spec)
    try:
        content = documents.read(path)
    except FileNotFoundError:
        return space_of(kind, spec)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"search space {spec}: can't be read ({reason})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"search space {spec}: parameters by name are needed")
    return space_of(kind, content)


def space_as_json(space: Space) -> dict[str, Any]:
    """Return a space as JSON, which `space_of` accepts."""
    content: dict[str, Any] = json.loads(_SPACE.dump_json(space, exclude_none=True))
    return content


def suggest(trial: Any, space: Space) -> dict[str, Number]:
    """Return the parameters of an Optuna trial."""
    return {name: _suggested(trial, name, parameter) for name, parameter in space.items()}


def _suggested(trial: Any, name: str, parameter: Parameter) -> Number:
    value: Number
    if isinstance(parameter, tuple):
        value = trial.suggest_categorical(name, parameter)
    elif not isinstance(parameter, Range):
        value = parameter
    elif all(isinstance(x, int) for x in (parameter.low, parameter.high, parameter.step or 1)):
        value = trial.suggest_int(
            name, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log
        )
    else:
        value = trial.suggest_float(
            name, parameter.low, parameter.high, step=parameter.step, log=parameter.log
        )
    return value
