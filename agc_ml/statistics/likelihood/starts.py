"""Starts of a fit at which the model predicts events wherever there are data."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

STARTS: Final = (1.0, 0.1, 10.0, 0.01, 100.0)
"""Values of free factors with which a fit starts where the configured ones predict no data."""
SHAPE_STARTS: Final = (0.1, -0.1)
"""Starting values of shapes, in standard deviations."""
MOST_NAMED: Final = 6
"""Parameters named in a note."""


def find_start(model: Any, observed: _Array, start: _Array) -> _Array:
    """Find a start at which the model predicts events wherever there are data.

    A signal that starts at zero leaves bins empty that only it fills, and so does a shape that is
    zero but for its variations. Free factors are moved first, then shapes.
    """

    def lacking(parameters: _Array) -> int:
        rates = np.asarray(model.expected_actualdata(parameters))
        return int(np.sum(rates[observed > 0] <= 0))

    config = model.config
    lower, upper = np.asarray(config.suggested_bounds(), dtype=np.float64).T
    is_fixed = np.asarray(config.suggested_fixed(), dtype=np.bool_)
    best, fewest = start, lacking(start)
    # free factors without a constraint, those at zero first
    is_factor = ~is_fixed
    for name in config.par_order:
        is_factor[config.par_slice(name)] &= not config.param_set(name).constrained
    for selected in (is_factor & (start <= 0), is_factor):
        for value in STARTS:
            moved = np.where(selected, np.clip(value, lower, upper), start)
            if fewest and lacking(moved) < fewest:
                best, fewest = moved, lacking(moved)
    # then shapes, one by one
    shapes = [config.par_slice(name).start for name, kind in config.modifiers if kind == "histosys"]
    for index, value in itertools.product(shapes, SHAPE_STARTS):
        moved = best.copy()
        moved[index] = value
        if fewest and not is_fixed[index] and lacking(moved) < fewest:
            best, fewest = moved, lacking(moved)
    return best


def with_starts(
    spec: dict[str, Any], model: Any, start: _Array
) -> tuple[dict[str, Any], list[str]]:
    """Write the start of a fit into its workspace, so that other programs can fit it, too.

    Return the workspace, and a note that names the parameters that start elsewhere than stated.
    """
    config = model.config
    before = np.asarray(config.suggested_init(), dtype=np.float64)
    is_moved = start != before
    if not is_moved.any():
        return spec, []
    # settings of a parameter hold for all of its bins
    inits = {
        name: start[config.par_slice(name)].tolist()
        for name in config.par_order
        if is_moved[config.par_slice(name)].any()
    }
    first, *others = spec["measurements"]
    given = {parameter["name"]: parameter for parameter in first["config"]["parameters"]}
    starts = {name: {**given.get(name, {"name": name}), "inits": v} for name, v in inits.items()}
    parameters = list({**given, **starts}.values())
    measurement = {**first, "config": {**first["config"], "parameters": parameters}}
    moved = [(config.par_names[index], start[index]) for index in np.flatnonzero(is_moved)]
    named = ", ".join(f"{name} = {value:g}" for name, value in moved[:MOST_NAMED])
    more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    note = (
        f"the fit starts at {named}{more}: the start that was given is out of bounds, or leaves "
        "bins with data without prediction"
    )
    return {**spec, "measurements": [measurement, *others]}, [note]
