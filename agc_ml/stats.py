"""From templates to a fit: workspace, maximum likelihood, impacts, goodness of fit.

`fit` does all of it; its parts are in the modules that are imported here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml import likelihood as lk
from agc_ml.fitconfig import Config, load_config, shipped_config
from agc_ml.fitresult import (
    FitRecord,
    FitResult,
    GoodnessOfFit,
    Impact,
    Parameter,
    RegionYields,
    load,
    save,
)
from agc_ml.minimum import Minimum, impacts, minimise
from agc_ml.results import RunResult
from agc_ml.templates import Pseudodata, digest
from agc_ml.templates import load as load_templates
from agc_ml.workspace import Workspace, build_workspace, prepare

__all__ = [
    "FitRecord",
    "FitResult",
    "GoodnessOfFit",
    "Impact",
    "Parameter",
    "RegionYields",
    "build_workspace",
    "fit",
    "load",
    "load_config",
    "save",
    "shipped_config",
]

DEFAULT_PROCESSOR: Final = "ttbar"
"""Whose configuration is taken for templates that come without a run."""
POOR: Final = 1e-3
"""Below this p-value of the goodness of fit the result says so."""

_log = logging.getLogger(__name__)


def fit(
    source: RunResult | str | Path | Mapping[str, hist.Hist[Any]],
    config: str | Path | Config | None = None,
    *,
    pseudodata: Pseudodata = "published",
) -> FitResult:
    """Fit templates: build the workspace, find the maximum of the likelihood, and the impacts.

    ``source`` is a run, its directory, a file of templates (`agc_ml.templates.load`), or templates.
    ``config`` is a configuration in cabinetry's format or the path of one; the default is the one
    that the run's processor ships, and for templates without a run the one of ttbar.

    Raises
    ------
    FitError
        The configuration is wrong, does not fit the templates, or the fit failed.
    HistogramError
        Templates are missing, damaged, or can't be merged to the configured bins.
    RunDirectoryError, UsageError
        ``source`` is damaged, or there is nothing there.
    """
    templates, processor, notes = _templates(source)
    if config is None:
        settings: Config = shipped_config(processor)
    else:
        settings = load_config(config) if isinstance(config, str | Path) else config
    workspace = prepare(templates, settings, pseudodata)
    likelihood = lk.build(workspace.spec)
    minimum = minimise(likelihood)
    poi = settings["General"]["POI"]
    moved = impacts(likelihood, minimum, poi)
    notes += [*workspace.notes, *_left_out(likelihood, workspace), *minimum.notes]
    quality = _goodness_of_fit(likelihood, minimum)
    if quality.p_value is not None and quality.p_value < POOR:
        notes.append(f"the model does not describe the data (p-value {quality.p_value:.1g})")
    lost = [n for n in minimum.names if n not in moved and n != poi and _is_free(likelihood, n)]
    if lost:
        notes.append(f"impacts could not be found for {', '.join(lost)}")
    for note in notes:
        _log.info(note)
    parameters = _parameters(likelihood, minimum)
    prefit, postfit = _yields(likelihood, minimum, workspace, settings)
    return FitResult(
        poi=next(parameter for parameter in parameters if parameter.name == poi),
        parameters=parameters,
        correlation=minimum.correlation,
        goodness_of_fit=quality,
        twice_nll=minimum.twice_nll,
        minimizer=minimum.minimizer,
        converged=minimum.converged,
        pseudodata=workspace.data,
        impacts=_sorted_impacts(moved),
        prefit=prefit,
        postfit=postfit,
        workspace=workspace.spec,
        inputs={
            "templates": digest(workspace.templates),
            "config": _digest_of_config(settings),
        },
        notes=tuple(notes),
    )


def _templates(
    source: RunResult | str | Path | Mapping[str, hist.Hist[Any]],
) -> tuple[Mapping[str, hist.Hist[Any]], str, list[str]]:
    """Templates, the processor whose configuration is the default, and notes on the input."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        source = RunResult.load(source)
    if isinstance(source, RunResult):
        notes = []
        if source.status != "complete":
            missing = len(source.ledger.missing)
            notes.append(f"the run is {source.status}: {missing} ranges of events are missing")
        return source.templates, source.provenance.processor.name, notes
    if isinstance(source, str | Path):
        return load_templates(source), DEFAULT_PROCESSOR, []
    return source, DEFAULT_PROCESSOR, []


def _left_out(likelihood: lk.Likelihood, workspace: Workspace) -> list[str]:
    """Say which bins have no likelihood, because the samples together predict no events there."""
    notes = []
    for region, edges in workspace.edges.items():
        used = likelihood.bins[likelihood.model.config.channel_slices[region]]
        names = [
            f"[{low:g}, {high:g})"
            for low, high, is_used in zip(edges[:-1], edges[1:], used, strict=True)
            if not is_used
        ]
        if names:
            notes.append(
                f"{region}: the bins {', '.join(names)} are left out: no events are predicted there"
            )
    return notes


def _is_free(likelihood: lk.Likelihood, name: str) -> bool:
    return not likelihood.fixed[likelihood.names.index(name)]


def _parameters(likelihood: lk.Likelihood, minimum: Minimum) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name,
            float(value),
            float(uncertainty),
            float((value - start) / prefit) if prefit > 0 else None,
        )
        for name, value, uncertainty, start, prefit in zip(
            minimum.names,
            minimum.values,
            minimum.uncertainties,
            likelihood.start,
            likelihood.prefit,
            strict=True,
        )
    )


def _sorted_impacts(moved: Mapping[str, NDArray[np.float64]]) -> tuple[Impact, ...]:
    """Impacts, the largest post-fit one first."""
    found = [Impact(name, *(float(value) for value in values)) for name, values in moved.items()]
    return tuple(
        sorted(found, key=lambda i: max(abs(i.postfit_up), abs(i.postfit_down)), reverse=True)
    )


def _goodness_of_fit(likelihood: lk.Likelihood, minimum: Minimum) -> GoodnessOfFit:
    """Compare with the saturated model; each free parameter without a constraint costs a bin."""
    from scipy.special import gammaincc  # noqa: PLC0415 - heavy

    unconstrained = int(np.sum(~likelihood.fixed & (likelihood.prefit == 0)))
    ndof = int(likelihood.bins.sum()) - unconstrained
    chi2 = max(minimum.chi2, 0.0)  # a perfect fit, but for rounding
    p_value = float(gammaincc(ndof / 2, chi2 / 2)) if ndof > 0 else None
    return GoodnessOfFit(chi2=chi2, ndof=ndof, p_value=p_value)


def _yields(
    likelihood: lk.Likelihood, minimum: Minimum, workspace: Workspace, settings: Config
) -> tuple[tuple[RegionYields, ...], tuple[RegionYields, ...]]:
    """Model and data of each region before and after the fit, as cabinetry predicts them."""
    import cabinetry  # noqa: PLC0415 - heavy

    model = likelihood.model
    results = cabinetry.fit.FitResults(
        minimum.values,
        minimum.uncertainties,
        list(minimum.names),
        minimum.correlation,
        minimum.twice_nll,
    )
    with lk.backend("numpy"), lk.quiet(), np.errstate(invalid="ignore"):
        before = cabinetry.model_utils.prediction(model)
        after = cabinetry.model_utils.prediction(model, fit_results=results)
    prefit, postfit = (
        tuple(_region(prediction, workspace, region, settings) for region in settings["Regions"])
        for prediction in (before, after)
    )
    return prefit, postfit


def _region(
    prediction: Any, workspace: Workspace, region: Config, settings: Config
) -> RegionYields:
    name = region["Name"]
    config = prediction.model.config
    channel = config.channels.index(name)
    entering = {
        sample["name"]
        for one in workspace.spec["channels"]
        for sample in one["samples"]
        if one["name"] == name
    }
    data = next(one["data"] for one in workspace.spec["observations"] if one["name"] == name)
    return RegionYields(
        region=name,
        label=region.get("Variable", name),
        edges=workspace.edges[name],
        samples={
            sample["Name"]: np.asarray(
                prediction.model_yields[channel][config.samples.index(sample["Name"])]
            )
            for sample in settings["Samples"]
            if sample["Name"] in entering
        },
        # a variance of zero can come out just below it
        uncertainty=np.nan_to_num(np.asarray(prediction.total_stdev_model_bins[channel][-1])),
        data=np.asarray(data, dtype=np.float64),
    )


def _digest_of_config(settings: Config) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
