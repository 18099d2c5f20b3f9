"""Result of a fit carried over to observables that were not fitted.

Each such observable gets the model of a region of the fit, from its own templates: the same
samples, parameter of interest and nuisance parameters, with their fitted values, uncertainties and
correlations. Only the parameters of the simulation's statistics are its own, and stay nominal. The
agreement of data and model before and after the fit then tests the fit on independent shapes.

All bins are kept, without flow: nothing is fitted to them, and with OFFSET none is empty.

The tests are chi2 = d C^-1 d, where d is the difference of data and model, and C the covariance of
the model (with all correlations between bins) plus the predicted number of events on its diagonal.
Neighbouring bins are merged until ENOUGH events are predicted before the fit, and as many were
simulated, for a Gaussian to describe them. Every such group counts as a degree of freedom, as no
parameter is fitted to the observable. chi2 is on the small side after a fit to the
same events, and far too small with pseudodata that are mixed from variations of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import hist
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml import documents
from agc_ml.analysis import Pseudodata, shipped_file
from agc_ml.errors import FitError
from agc_ml.results import variances
from agc_ml.statistics.fit_model import FitModel, Prediction
from agc_ml.statistics.fit_result import CarriedOver, GoodnessOfFit, chi2_test
from agc_ml.statistics.likelihood.minimization import Minimum
from agc_ml.statistics.workspace.fit_config import Config, names_in, region_paths
from agc_ml.statistics.workspace.workspace import Workspace, prepare

FILE_NAME: Final = "carryover.yml"
"""Name of the file with its observables that a processor ships beside its code."""
OFFSET: Final = 1e-6
"""Events that are added to each bin, as the Analysis Grand Challenge does."""
ENOUGH: Final = 5
"""Events in a group of bins of a chi2 test."""

_Array = NDArray[np.float64]


class Observables(BaseModel):
    """The content of ``carryover.yml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str = Field(description="RegionPath of the region whose events they are of")
    histograms: tuple[str, ...] = Field(min_length=1, description="names, in order of appearance")
    drawn: tuple[str, ...] = Field((), description="others of these events, which are not tested")


class Unfitted(NamedTuple):
    """Observables as the regions of a workspace.

    ``templates`` are their histograms as they came, ``notes`` caveats for the reader.
    """

    workspace: Workspace
    templates: dict[str, hist.Hist[Any]]
    notes: tuple[str, ...]


def shipped_observables(processor: str) -> Observables | None:
    """Read the observables that a processor ships beside its code; None where it ships none.

    Raises
    ------
    FitError
        The file is damaged.
    """
    file = shipped_file(processor, FILE_NAME)
    if file is None:
        return None
    try:
        return Observables.model_validate(documents.read(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = " -> ".join(str(part) for part in first["loc"]) or "(top)"
        raise FitError(
            f"{file}: field {where}: {first['msg']}; it has a region and a list of histograms"
        ) from error
    except ValueError as error:
        raise FitError(f"{file}: can't be read as YAML ({error})") from error


def prepare_unfitted(
    templates: Mapping[str, hist.Hist[Any]],
    observables: Observables | None,
    settings: Config,
    recipe: Pseudodata | None,
) -> Unfitted | None:
    """Build the workspace of observables under the configuration of a fit; None if none is there.

    Those that are fitted are left out.

    Raises
    ------
    FitError
        An observable that is there lacks a histogram that the configuration asks for.
    HistogramError
        A histogram holds NaN.
    """
    if observables is None:
        return None
    # an observable that the fit uses is not tested
    fitted = {*region_paths(settings), *(region["Name"] for region in settings["Regions"])}
    names = [name for name in observables.histograms if name not in fitted]
    histograms = {
        name: own
        for name in names
        if (own := {key: h for key, h in templates.items() if key.startswith(f"{name}_")})
    }
    if not histograms:
        return None
    regions = [
        {"Name": name, "RegionPath": name, "Variable": str(next(iter(own.values())).axes[0].label)}
        for name, own in histograms.items()
    ]
    # the offset is in the model only; digests are those of the histograms as they came
    content = {key: h for own in histograms.values() for key, h in own.items()}
    raised = {key: raised_by_offset(h) for key, h in content.items()}
    config = extended(settings, regions, observables.region)
    workspace = prepare({**templates, **raised}, config, recipe, histograms)
    notes = list(workspace.notes)
    lacking = [name for name in names if name not in histograms]
    if lacking:
        notes.append(
            f"carried over to {len(histograms)} of {len(names)} observables: there are no "
            f"histograms of {', '.join(lacking)}"
        )
    entering = {key: content[key] for key in workspace.templates}
    return Unfitted(workspace, entering, tuple(notes))


def raised_by_offset(histogram: hist.Hist[Any]) -> hist.Hist[Any]:
    """Add OFFSET to each bin, so that none is empty."""
    values, variance = histogram.values(flow=True), variances.of(histogram, flow=True)
    raised = variances.filled(histogram.axes, values, variance) + OFFSET
    raised.label = getattr(histogram, "label", None)
    return raised


def extended(settings: Config, added: Sequence[Config], region: str) -> dict[str, Any]:
    """Add observables to the regions of a configuration, as regions.

    Samples and modifiers restricted to the region with the RegionPath ``region`` act on them, too.
    """
    same = {item["Name"] for item in settings["Regions"] if item.get("RegionPath") == region}
    names = [item["Name"] for item in added]

    def widened(item: Config) -> Config:
        regions = names_in(item, "Regions")
        return {**item, "Regions": [*regions, *names]} if same & set(regions) else item

    kinds = [kind for kind in ("Samples", "Systematics", "NormFactors") if kind in settings]
    return {
        **settings,
        "Regions": [*settings["Regions"], *added],
        **{kind: [widened(item) for item in settings[kind]] for kind in kinds},
    }


def carry_over(unfitted: Unfitted, minimum: Minimum) -> tuple[CarriedOver, ...]:
    """Predict the observables before and after a fit, and compare the data with both.

    Raises
    ------
    FitError
        pyhf makes no model of the workspace.
    """
    model = FitModel.of(unfitted.workspace)
    return tuple(
        _compared(prefit, postfit, unfitted.workspace.spec)
        for prefit, postfit in zip(model.predict(), model.predict(minimum), strict=True)
    )


def _compared(before: Prediction, after: Prediction, spec: Mapping[str, Any]) -> CarriedOver:
    name = before.yields.region
    channel = next(one for one in spec["channels"] if one["name"] == name)
    starts = _groups(before.yields.total, _simulation_variance(channel))
    tests = [_test(prediction, starts) for prediction in (before, after)]
    return CarriedOver(before.yields, after.yields, *tests)


def _simulation_variance(channel: Mapping[str, Any]) -> _Array:
    """Variance of the nominal prediction of each bin from the number of simulated events."""
    variance = np.zeros(len(channel["samples"][0]["data"]))
    for sample in channel["samples"]:
        for modifier in sample["modifiers"]:
            if modifier["type"] == "staterror":
                variance += np.square(modifier["data"])
    return variance


def _groups(events: _Array, variance: _Array) -> list[int]:
    """First bins of the groups of neighbours with ENOUGH events; the last one has the rest."""
    starts, first = [], 0
    for end in range(1, len(events) + 1):
        content, uncertain = events[first:end].sum(), variance[first:end].sum()
        if content >= ENOUGH and content**2 >= ENOUGH * uncertain:
            starts.append(first)
            first = end
    return starts


def _test(prediction: Prediction, starts: list[int]) -> GoodnessOfFit:
    if not starts:
        return chi2_test(0.0, 0)
    model = np.add.reduceat(prediction.yields.total, starts)
    difference = np.add.reduceat(prediction.yields.data, starts) - model
    covariance = np.add.reduceat(prediction.covariance, starts, axis=0)
    covariance = np.add.reduceat(covariance, starts, axis=1)
    covariance += np.diag(np.maximum(model, 1))  # a fit may leave less than what was predicted
    return chi2_test(float(difference @ np.linalg.solve(covariance, difference)), len(starts))
