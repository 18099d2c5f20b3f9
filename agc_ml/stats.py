"""From templates to a fit: workspace, maximum likelihood, impacts, goodness of fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Parameter(NamedTuple):
    """A fitted parameter; ``pull`` is (value - initial value) / pre-fit uncertainty.

    ``pull`` is None for parameters without a constraint, such as the parameter of interest.
    """

    name: str
    value: float
    uncertainty: float
    pull: float | None


class Impact(NamedTuple):
    """Change of the POI when a parameter moves by its pre-fit or post-fit uncertainty."""

    parameter: str
    prefit_up: float
    prefit_down: float
    postfit_up: float
    postfit_down: float


class GoodnessOfFit(NamedTuple):
    """Likelihood-ratio test against the saturated model."""

    chi2: float
    ndof: int
    p_value: float | None


class RegionYields(NamedTuple):
    """Model and data of one region: arrays of shape ``(n_bins,)``, edges ``(n_bins + 1,)``.

    ``uncertainty`` is the one of the total prediction, with correlations.
    """

    region: str
    label: str
    edges: NDArray[np.float64]
    samples: dict[str, NDArray[np.float64]]
    uncertainty: NDArray[np.float64]
    data: NDArray[np.float64]


class FitResult(NamedTuple):
    """The result of a fit, with all that its figures need."""

    poi: Parameter
    parameters: tuple[Parameter, ...]
    correlation: NDArray[np.float64]
    goodness_of_fit: GoodnessOfFit
    twice_nll: float
    minimizer: str
    converged: bool
    pseudodata: str
    impacts: tuple[Impact, ...]
    prefit: tuple[RegionYields, ...]
    postfit: tuple[RegionYields, ...]
    workspace: dict[str, Any]
    inputs: dict[str, str]
    notes: tuple[str, ...]
