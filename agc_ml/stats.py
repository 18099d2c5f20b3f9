"""From templates to a fit: workspace, maximum likelihood, impacts, goodness of fit.

`fit` does all of it; its parts are in the modules that are imported here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml import likelihood as lk
from agc_ml.carryover import carry_over, prepare_unfitted, shipped_observables
from agc_ml.errors import FitError
from agc_ml.fitconfig import Config, load_config, region_paths, shipped_config
from agc_ml.fitresult import (
    CarriedOver,
    FitRecord,
    FitResult,
    GoodnessOfFit,
    Impact,
    Parameter,
    RegionYields,
    chi2_test,
    load,
    save,
)
from agc_ml.minimum import Minimum, impacts, minimise
from agc_ml.prediction import before_and_after
from agc_ml.results import RunResult
from agc_ml.spread import check_alternatives, ml_config, with_spread
from agc_ml.templates import Pseudodata, digest
from agc_ml.templates import load as load_templates
from agc_ml.workspace import Workspace, build_workspace, prepare

__all__ = [
    "CarriedOver",
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
    "region_paths",
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
    ml_uncertainty: Sequence[RunResult | str | Path] = (),
) -> FitResult:
    """Fit templates: build the workspace, find the maximum of the likelihood, and the impacts.

    ``source`` is a run, its directory, a file of templates (`agc_ml.templates.load`), or templates.
    ``config`` is a configuration in cabinetry's format or the path of one; the default is the one
    that the run's processor ships, and for templates without a run the one of ttbar.
    ``ml_uncertainty`` are runs over the same events with other models: how their templates scatter
    becomes nuisance parameters; the default configuration then fits what depends on the model.

    Raises
    ------
    FitError
        The configuration is wrong, does not fit the templates, or the fit failed.
    HistogramError
        Templates are missing, damaged, or can't be merged to the configured bins.
    RunDirectoryError, UsageError
        ``source`` is damaged, or there is nothing there.
    """
    alternatives = [_run(one) for one in ml_uncertainty]
    if alternatives:
        source = _run(source)
        check_alternatives(source, alternatives)
    templates, processor, notes = _templates(source)
    if config is not None:
        settings: Config = load_config(config) if isinstance(config, str | Path) else config
    else:
        settings = ml_config(processor) if alternatives else shipped_config(processor)
    if alternatives:
        others = [one.templates for one in alternatives]
        templates, settings, more = with_spread(templates, settings, others)
        notes += more
    workspace = prepare(templates, settings, pseudodata)
    # now, so that what is wrong with their histograms is told before the fit
    observables = None if alternatives else shipped_observables(processor)
    unfitted = prepare_unfitted(templates, observables, settings, pseudodata)
    likelihood = lk.build(workspace.spec)
    minimum = minimise(likelihood)
    poi = settings["General"]["POI"]
    moved = impacts(likelihood, minimum, poi)
    notes += [*workspace.notes, *_left_out(likelihood, workspace), *minimum.notes]
    if unfitted is not None:
        notes += unfitted.notes
    quality = _goodness_of_fit(likelihood, minimum)
    if quality.p_value is not None and quality.p_value < POOR:
        notes.append(f"the model does not describe the data (p-value {quality.p_value:.1g})")
    lost = [n for n in minimum.names if n not in moved and n != poi and _is_free(likelihood, n)]
    if lost:
        notes.append(f"impacts could not be found for {', '.join(lost)}")
    for note in notes:
        _log.info(note)
    parameters = _parameters(likelihood, minimum)
    predictions = before_and_after(likelihood.model, minimum, workspace, settings["Regions"])
    prefit, postfit = (tuple(one.yields for one in regions) for regions in predictions)
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
            **({} if unfitted is None else {"observables": digest(unfitted.templates)}),
        },
        notes=tuple(notes),
        carried_over=() if unfitted is None else carry_over(unfitted, minimum),
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


def _run(source: Any) -> RunResult:
    """A run that alternatives are compared with, or one of them."""
    if isinstance(source, RunResult):
        return source
    if isinstance(source, str | Path) and Path(source).is_dir():
        return RunResult.load(source)
    raise FitError(
        f"{source if isinstance(source, str | Path) else 'these templates'}: not a run directory; "
        "the uncertainty of a model is found from runs"
    )


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
    unconstrained = int(np.sum(~likelihood.fixed & (likelihood.prefit == 0)))
    ndof = int(likelihood.bins.sum()) - unconstrained
    return chi2_test(max(minimum.chi2, 0.0), ndof)  # a perfect fit, but for rounding


def _digest_of_config(settings: Config) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
