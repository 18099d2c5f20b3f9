"""Model that a fit, its impacts and all predictions share: one workspace, built once.

Uncertainties of predictions are propagated as cabinetry does: a parameter moves the yields by half
of the difference between one standard deviation up and one down, and these moves are added with the
correlations of the parameters. Here that gives the covariance of all bins of a region.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.statistics.fit_result import RegionYields
from agc_ml.statistics.likelihood.likelihood import Likelihood, compile_likelihood
from agc_ml.statistics.likelihood.minimization import Minimum
from agc_ml.statistics.likelihood.pyhf_model import (
    backend,
    model_and_data,
    nominal_values,
    prefit_uncertainties,
    quiet,
)
from agc_ml.statistics.workspace.workspace import Workspace

_Array = NDArray[np.float64]


class Prediction(NamedTuple):
    """Model and data of a region, and the covariance of the total, shape ``(n_bins, n_bins)``."""

    yields: RegionYields
    covariance: _Array


class _Point(NamedTuple):
    """Values of the parameters and their uncertainties ``(n,)``, correlation ``(n, n)``."""

    values: _Array
    uncertainties: _Array
    correlation: _Array


@dataclass(frozen=True, eq=False)
class FitModel:
    """A workspace with its pyhf model and data; its likelihood is compiled on first use.

    ``data`` are those of all bins, then the auxiliary ones.
    """

    workspace: Workspace
    pyhf_model: Any
    data: _Array

    @classmethod
    def of(cls, workspace: Workspace) -> FitModel:
        """Build the model of a workspace.

        Raises
        ------
        FitError
            pyhf makes no model of it.
        """
        return cls(workspace, *model_and_data(workspace.spec))

    @cached_property
    def likelihood(self) -> Likelihood:
        """The compiled likelihood."""
        return compile_likelihood(self.pyhf_model, self.data)

    def predict(self, fitted: Minimum | None = None) -> tuple[Prediction, ...]:
        """Predict all regions before a fit, or with the parameters as ``fitted``.

        The fit may be that of another workspace: parameters that it lacks stay nominal, with their
        pre-fit uncertainty.
        """
        with backend("numpy"), quiet(), np.errstate(invalid="ignore"):
            point = self._point(fitted)
            by_sample = np.asarray(
                self.pyhf_model.main_model.expected_data(point.values, return_by_sample=True)
            )
            moves = np.array(list(self._moves(point)))
        return tuple(
            self._region(name, by_sample, moves, point.correlation)
            for name in self.workspace.labels
        )

    def _point(self, fitted: Minimum | None) -> _Point:
        """Return nominal parameters, uncorrelated, with those of a fit put in."""
        values = nominal_values(self.pyhf_model)
        uncertainties = prefit_uncertainties(self.pyhf_model)
        correlation = np.eye(len(values))
        if fitted is not None:
            names = self.pyhf_model.config.par_names
            index_of = {name: index for index, name in enumerate(fitted.names)}
            own = [index for index, name in enumerate(names) if name in index_of]
            theirs = [index_of[names[index]] for index in own]
            values[own] = fitted.values[theirs]
            uncertainties[own] = fitted.uncertainties[theirs]
            correlation[np.ix_(own, own)] = fitted.correlation[np.ix_(theirs, theirs)]
        return _Point(values, uncertainties, correlation)

    def _moves(self, point: _Point) -> Iterator[_Array]:
        """Yield the change of all bins by one standard deviation of each parameter."""
        predict = self.pyhf_model.expected_actualdata
        for index, size in enumerate(point.uncertainties):
            step = np.zeros_like(point.values)
            step[index] = size
            up, down = (np.asarray(predict(point.values + sign * step)) for sign in (1, -1))
            yield (up - down) / 2

    def _region(
        self, name: str, by_sample: _Array, moves: _Array, correlation: _Array
    ) -> Prediction:
        """Collect the prediction of a region, with zeros in bins where none is possible."""
        workspace, config = self.workspace, self.pyhf_model.config
        kept, bins = workspace.kept[name], config.channel_slices[name]
        channel = next(one for one in workspace.spec["channels"] if one["name"] == name)
        samples: Mapping[str, _Array] = dict(zip(config.samples, by_sample[:, bins], strict=True))

        def in_all_bins(values: _Array) -> _Array:
            full = np.zeros(len(kept))
            full[kept] = values
            return full

        covariance = np.zeros((len(kept), len(kept)))
        covariance[np.ix_(kept, kept)] = moves[:, bins].T @ correlation @ moves[:, bins]
        yields = RegionYields(
            region=name,
            label=workspace.labels[name],
            edges=workspace.edges[name],
            samples={one["name"]: in_all_bins(samples[one["name"]]) for one in channel["samples"]},
            # a variance of zero can come out just below it
            uncertainty=np.sqrt(np.maximum(np.diag(covariance), 0)),
            data=workspace.observed[name],
            unit=workspace.units[name],
        )
        return Prediction(yields, covariance)
