"""Maximum-likelihood fit: from templates or a workspace to the result with impacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from agc_ml.results.run_result import RunResult
from agc_ml.statistics.fit_files import load, save
from agc_ml.statistics.fit_model import FitModel
from agc_ml.statistics.fit_result import (
    CarriedOver,
    CrossSection,
    FitResult,
    GoodnessOfFit,
    Impact,
    Parameter,
    RegionYields,
    chi2_test,
    versions,
)
from agc_ml.statistics.fit_setup import FitSetup, Source, set_up
from agc_ml.statistics.impacts import impacts
from agc_ml.statistics.likelihood.likelihood import Likelihood
from agc_ml.statistics.likelihood.minimization import Minimum, minimise
from agc_ml.statistics.likelihood.starts import with_starts
from agc_ml.statistics.unfitted_observables import carry_over
from agc_ml.statistics.workspace.fit_config import (
    Config,
    load_config,
    region_paths,
    shipped_config,
)
from agc_ml.statistics.workspace.workspace import build_workspace

__all__ = [
    "CarriedOver",
    "CrossSection",
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

MOST_NAMED: Final = 6
"""Bins named in a note."""
POOR: Final = 1e-3
"""p-value of the goodness of fit below which the result has a note."""

_log = logging.getLogger(__name__)


def fit(
    source: Source,
    config: str | Path | Config | None = None,
    *,
    pseudodata: str | None = None,
    ml_uncertainty: Sequence[RunResult | str | Path] = (),
    patch: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> FitResult:
    """Fit templates: build the workspace, find the maximum of the likelihood, and the impacts.

    ``source`` is a run, its directory, a file of templates (`agc_ml.results.templates.load`),
    templates, or a pyhf workspace, to which ``patch`` may add a signal (``FILE`` or ``FILE:NAME``).
    ``config`` is a configuration in cabinetry's format or the path of one; the default is the one
    that the run's processor ships, and for templates without a run the one of the default
    processor. ``pseudodata`` are of a kind that the analysis declares; the default is that of the
    run on disk, else the first one. ``ml_uncertainty`` are runs over the same events with other
    models: the deviations of their templates become nuisance parameters; the default configuration
    then fits what depends on the model. ``tell`` gets lines of progress.

    Raises
    ------
    FitError
        The configuration is wrong, does not fit the templates, or the fit failed.
    HistogramError
        Templates are missing, damaged, or can't be merged to the configured bins.
    RunDirectoryError, UsageError
        ``source`` is damaged, or there is nothing there.
    """
    tell("building the workspace")
    setup = set_up(source, config, pseudodata, ml_uncertainty, patch)
    model = FitModel.of(setup.workspace)
    n_bins = sum(int(mask.sum()) for mask in setup.workspace.kept.values())
    tell(f"compiling the likelihood of {n_bins} bins")
    likelihood = model.likelihood
    n_free = int(np.sum(likelihood.free))
    minimum = minimise(likelihood, lambda text: tell(f"fitting {n_free} parameters: {text}"))
    ranked = impacts(likelihood, minimum, tell)
    return _result(setup, model, minimum, ranked)


def _result(
    setup: FitSetup, model: FitModel, minimum: Minimum, ranked: tuple[Impact, ...]
) -> FitResult:
    """Collect the result of a fit, with predictions before and after it."""
    likelihood, workspace = model.likelihood, setup.workspace
    spec, moved_starts = with_starts(workspace.spec, model.pyhf_model, likelihood.start)
    parameters = _parameters(likelihood, minimum)
    quality = _goodness_of_fit(likelihood, minimum)
    prefit, postfit = (
        tuple(one.yields for one in regions)
        for regions in (model.predict(), model.predict(minimum))
    )
    notes = [*setup.notes, *moved_starts, *minimum.notes]
    if setup.unfitted is not None:
        notes += setup.unfitted.notes
    notes += [
        *_doubts(quality),
        *_without_impact(likelihood, ranked),
        *_negative_bins(postfit),
    ]
    for note in notes:
        _log.info(note)
    return FitResult(
        poi=parameters[likelihood.poi],
        parameters=parameters,
        correlation=minimum.correlation,
        goodness_of_fit=quality,
        twice_nll=minimum.twice_nll,
        minimizer=minimum.minimizer,
        converged=minimum.converged,
        pseudodata=workspace.data,
        impacts=ranked,
        prefit=prefit,
        postfit=postfit,
        workspace=spec,
        inputs=setup.inputs,
        notes=tuple(notes),
        carried_over=() if setup.unfitted is None else carry_over(setup.unfitted, minimum),
        states=_states(likelihood, minimum),
        cross_section=setup.cross_section,
        versions=versions(),
        is_closure=workspace.is_closure,
        widths={
            name: float(width)
            for name, width in zip(likelihood.names, likelihood.prefit, strict=True)
            if width > 0
        },
    )


def _parameters(likelihood: Likelihood, minimum: Minimum) -> tuple[Parameter, ...]:
    pulled = likelihood.prefit > 0
    return tuple(
        Parameter(
            name,
            float(minimum.values[i]),
            float(minimum.uncertainties[i]),
            float((minimum.values[i] - likelihood.centre[i]) / likelihood.prefit[i])
            if pulled[i]
            else None,
        )
        for i, name in enumerate(minimum.names)
    )


def _states(likelihood: Likelihood, minimum: Minimum) -> dict[str, str]:
    """Reasons why parameters have no uncertainty of their own, by name."""
    states = {}
    for i, name in enumerate(minimum.names):
        if likelihood.fixed[i]:
            states[name] = "fixed"
        elif minimum.uncertainties[i] == 0:
            value, low, high = minimum.values[i], likelihood.lower[i], likelihood.upper[i]
            states[name] = f"at its {'lower' if value - low < high - value else 'upper'} bound"
    return states


def _goodness_of_fit(likelihood: Likelihood, minimum: Minimum) -> GoodnessOfFit:
    """Compare with the saturated model; each free parameter without a constraint costs a bin."""
    unconstrained = int(np.sum(likelihood.free & (likelihood.prefit == 0)))
    ndof = len(likelihood.observed) - unconstrained
    return chi2_test(max(minimum.chi2, 0.0), ndof)  # a perfect fit, but for rounding


def _doubts(quality: GoodnessOfFit) -> Iterator[str]:
    if quality.p_value is not None and quality.p_value < POOR:
        yield f"the model does not describe the data (p-value {quality.p_value:.1g})"


def _without_impact(likelihood: Likelihood, ranked: Iterable[Impact]) -> Iterator[str]:
    """Name free parameters that no fit could follow."""
    known = {impact.parameter for impact in ranked} | {likelihood.names[likelihood.poi]}
    lost = [likelihood.names[i] for i in np.flatnonzero(likelihood.free)]
    lost = [name for name in lost if name not in known]
    if lost:
        yield f"impacts could not be found for {', '.join(lost)}"


def _negative_bins(regions: Sequence[RegionYields]) -> Iterator[str]:
    """Name bins in which the fitted model predicts a negative number of events."""
    for region in regions:
        edges, bad = region.edges, np.flatnonzero(region.total < 0)
        if len(bad):
            bins = ", ".join(f"[{edges[i]:g}, {edges[i + 1]:g})" for i in bad[:MOST_NAMED])
            more = f" and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
            yield (
                f"{region.region}: the fitted model predicts less than no events in the bins {bins}"
                f"{more}, which are counted as 0; uncertainties may be wrong"
            )
