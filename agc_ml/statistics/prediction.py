"""What a model predicts for each region before and after a fit, with the uncertainty of the sum.

The uncertainty is propagated as cabinetry does: a parameter moves the yields by half of what they
differ between one standard deviation up and one down, and these moves are added with the
correlations of the parameters. Here that gives the covariance of all bins of a region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.statistics.fit_result import RegionYields
from agc_ml.statistics.likelihood import likelihood as lk
from agc_ml.statistics.likelihood.minimization import Minimum
from agc_ml.statistics.workspace.fit_config import Config
from agc_ml.statistics.workspace.workspace import Workspace

_Array = NDArray[np.float64]


class Prediction(NamedTuple):
    """Model and data of a region, and the covariance of the total, shape ``(n_bins, n_bins)``."""

    yields: RegionYields
    covariance: _Array


def before_and_after(
    model: Any, minimum: Minimum, workspace: Workspace, regions: Sequence[Config]
) -> tuple[tuple[Prediction, ...], tuple[Prediction, ...]]:
    """Predict regions of a workspace before and after a fit.

    ``model`` is the pyhf model of the workspace; the one that was fitted may be another. Parameters
    that were not fitted stay nominal, with the uncertainty that they had before.
    """
    with lk.backend("numpy"), lk.quiet(), np.errstate(invalid="ignore"):
        nominal, fitted = (
            _predict(model, point, workspace, regions)
            for point in (_nominal(model), _fitted(model, minimum))
        )
    return nominal, fitted


def before(model: Any, workspace: Workspace, regions: Sequence[Config]) -> tuple[Prediction, ...]:
    """Predict regions of a workspace before any fit."""
    with lk.backend("numpy"), lk.quiet(), np.errstate(invalid="ignore"):
        return _predict(model, _nominal(model), workspace, regions)


class _Point(NamedTuple):
    """Values of a model's parameters and their uncertainties ``(n,)``, correlation ``(n, n)``."""

    values: _Array
    uncertainties: _Array
    correlation: _Array


def _nominal(model: Any) -> _Point:
    values = lk.nominal(model)
    return _Point(values, lk.widths(model), np.eye(len(values)))


def _fitted(model: Any, minimum: Minimum) -> _Point:
    """Parameters as they were fitted; others of the model stay nominal, uncorrelated."""
    values, uncertainties, correlation = _nominal(model)
    there = {name: index for index, name in enumerate(minimum.names)}
    own = [index for index, name in enumerate(model.config.par_names) if name in there]
    theirs = [there[model.config.par_names[index]] for index in own]
    values[own] = minimum.values[theirs]
    uncertainties[own] = minimum.uncertainties[theirs]
    correlation[np.ix_(own, own)] = minimum.correlation[np.ix_(theirs, theirs)]
    return _Point(values, uncertainties, correlation)


def _predict(
    model: Any, point: _Point, workspace: Workspace, regions: Sequence[Config]
) -> tuple[Prediction, ...]:
    by_sample = np.asarray(model.main_model.expected_data(point.values, return_by_sample=True))
    moves = np.array(list(_moves(model, point)))
    found = []
    for region in regions:
        bins = model.config.channel_slices[region["Name"]]
        samples = dict(zip(model.config.samples, by_sample[:, bins], strict=True))
        covariance = moves[:, bins].T @ point.correlation @ moves[:, bins]
        found.append(_in_all_bins(region, samples, covariance, workspace))
    return tuple(found)


def _moves(model: Any, point: _Point) -> Iterator[_Array]:
    """Change of all bins by one standard deviation of each parameter, shape ``(n_bins,)``."""
    for index, size in enumerate(point.uncertainties):
        step = np.zeros_like(point.values)
        step[index] = size
        up, down = (model.expected_actualdata(point.values + sign * step) for sign in (1, -1))
        yield (np.asarray(up) - np.asarray(down)) / 2


def _in_all_bins(
    region: Config, samples: Mapping[str, _Array], covariance: _Array, workspace: Workspace
) -> Prediction:
    """Put the prediction of a workspace's bins among those in which nothing can be predicted."""
    name = region["Name"]
    channel = next(one for one in workspace.spec["channels"] if one["name"] == name)
    kept = workspace.kept[name]

    def spread(values: _Array) -> _Array:
        full = np.zeros(len(kept))
        full[kept] = values
        return full

    everywhere = np.zeros((len(kept), len(kept)))
    everywhere[np.ix_(kept, kept)] = covariance
    yields = RegionYields(
        region=name,
        label=region.get("Variable", name),
        edges=workspace.edges[name],
        samples={one["name"]: spread(samples[one["name"]]) for one in channel["samples"]},
        # a variance of zero can come out just below it
        uncertainty=np.sqrt(np.maximum(np.diag(everywhere), 0)),
        data=workspace.observed[name],
        unit=workspace.units[name],
    )
    return Prediction(yields, everywhere)
