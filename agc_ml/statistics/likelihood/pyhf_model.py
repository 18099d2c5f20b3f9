"""pyhf models of workspaces: how they are built, and their parameters before a fit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import FitError

_Array = NDArray[np.float64]


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Switch pyhf, whose backend is global, to another one for a while."""
    import pyhf  # noqa: PLC0415 - heavy

    before = pyhf.get_backend()
    pyhf.set_backend(name)
    try:
        yield
    finally:
        pyhf.set_backend(*before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs of cabinetry and pyhf, and a deprecation warning that is pyhf's to fix."""
    loggers = [logging.getLogger(name) for name in ("cabinetry", "pyhf")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # pyhf 0.7.6 validates with an interface that jsonschema is about to drop
            warnings.filterwarnings(
                "ignore", "jsonschema.RefResolver is deprecated", DeprecationWarning
            )
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def model_and_data(workspace: Mapping[str, Any]) -> tuple[Any, _Array]:
    """Build the pyhf model of a workspace, for numpy, and its data with the auxiliary ones.

    Raises
    ------
    FitError
        The workspace is not valid.
    """
    import cabinetry  # noqa: PLC0415 - heavy
    import pyhf.exceptions as problems  # noqa: PLC0415 - heavy

    try:
        with backend("numpy"), quiet():
            model, data = cabinetry.model_utils.model_and_data(workspace)
    except (
        problems.InvalidSpecification,
        problems.InvalidModel,
        problems.InvalidModifier,
        problems.InvalidNameReuse,
    ) as error:
        reason = " ".join(str(error).split())
        raise FitError(f"pyhf makes no model of the workspace ({reason})") from error
    return model, np.asarray(data, dtype=np.float64)


def nominal_values(model: Any) -> _Array:
    """Nominal values of a pyhf model's parameters: results of the auxiliary measurements.

    Parameters without one, and fixed ones, have their initial value. (cabinetry's nominal values
    ignore auxiliary data that a workspace states.)
    """
    nominal: list[float] = []
    for parameters in map(model.config.param_set, model.config.par_order):
        values = parameters.suggested_init
        if parameters.constrained:
            scales = parameters.factors if parameters.pdf_type == "poisson" else [1.0] * len(values)
            measured = (aux / scale for aux, scale in zip(parameters.auxdata, scales, strict=True))
            fixed = parameters.suggested_fixed
            values = [v if f else m for v, m, f in zip(values, measured, fixed, strict=True)]
        nominal += values
    return np.asarray(nominal, dtype=np.float64)


def prefit_uncertainties(model: Any) -> _Array:
    """Pre-fit uncertainties of a pyhf model's parameters; 0 without a constraint and if fixed."""
    uncertainties: list[float] = []
    for parameters in map(model.config.param_set, model.config.par_order):
        sizes = [0.0] * parameters.n_parameters
        if parameters.constrained:
            sizes = parameters.width()
            if parameters.pdf_type == "poisson":
                # of the counts that were measured; where there were none, of those expected
                counts = zip(parameters.auxdata, parameters.factors, sizes, strict=True)
                sizes = [np.sqrt(n) / per_unit if n else size for n, per_unit, size in counts]
            fixed = parameters.suggested_fixed
            sizes = [0.0 if f else size for size, f in zip(sizes, fixed, strict=True)]
        uncertainties += sizes
    return np.asarray(uncertainties, dtype=np.float64)
