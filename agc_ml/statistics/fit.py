"""From templates to a fit: workspace, maximum likelihood, impacts, goodness of fit.

`fit` does all of it; its parts are in the modules that are imported here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml.analysis import DEFAULT, Analysis, Pseudodata, analysis_of
from agc_ml.errors import FitError, UsageError
from agc_ml.results import pseudodata_choice
from agc_ml.results.run_result import RunResult
from agc_ml.results.templates import digest
from agc_ml.results.templates import load as load_templates
from agc_ml.statistics.cross_section import measured_cross_section
from agc_ml.statistics.fit_files import FitRecord, load, save
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
from agc_ml.statistics.impacts import impacts
from agc_ml.statistics.likelihood import likelihood as lk
from agc_ml.statistics.likelihood.minimization import Minimum, minimise
from agc_ml.statistics.model_uncertainty import check_alternatives, ml_config, with_spread
from agc_ml.statistics.prediction import before_and_after
from agc_ml.statistics.unfitted_observables import (
    Unfitted,
    carry_over,
    prepare_unfitted,
    shipped_observables,
)
from agc_ml.statistics.workspace import histfactory
from agc_ml.statistics.workspace.fit_config import (
    Config,
    check_config,
    load_config,
    region_paths,
    shipped_config,
)
from agc_ml.statistics.workspace.fit_inputs import collect, names_files
from agc_ml.statistics.workspace.workspace import (
    Workspace,
    build_workspace,
    prepare,
    wants_pseudodata,
)

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

MOST: Final = 6
"""Bins or parameters that are named at once."""
POOR: Final = 1e-3
"""Below this p-value of the goodness of fit the result says so."""

_log = logging.getLogger(__name__)


class _Problem(NamedTuple):
    """Problem to fit: a workspace, its regions, and where it comes from."""

    workspace: Workspace
    regions: Sequence[Config]
    inputs: dict[str, str]
    notes: list[str]
    unfitted: Unfitted | None
    cross_section: CrossSection | None


def fit(
    source: RunResult | str | Path | Mapping[str, hist.Hist[Any]],
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
    run on disk, else the first one. ``ml_uncertainty`` are runs over the same
    events with other models: how their templates scatter becomes nuisance parameters; the default
    configuration then fits what depends on the model. ``tell`` is told what is being done.

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
    if isinstance(source, str | Path) and histfactory.is_workspace(Path(source)):
        if config is not None or pseudodata is not None or ml_uncertainty:
            raise UsageError(
                f"{source}: a pyhf workspace says itself what is fitted; it takes no "
                "configuration, no --pseudodata and no --ml-uncertainty"
            )
        problem = _of_workspace(source, patch)
    else:
        if patch is not None:
            raise UsageError(f"--patch {patch}: only a pyhf workspace can be patched")
        problem = _of_templates(source, config, pseudodata, ml_uncertainty)
    workspace = problem.workspace
    n_bins = sum(int(mask.sum()) for mask in workspace.kept.values())
    tell(f"compiling the likelihood of {n_bins} bins")
    likelihood = lk.build(workspace.spec)
    spec, moved_starts = _with_starts(workspace.spec, likelihood)
    n_free = int(np.sum(~likelihood.fixed))
    minimum = minimise(likelihood, lambda text: tell(f"fitting {n_free} parameters: {text}"))
    poi = likelihood.names[likelihood.model.config.poi_index]
    moved = impacts(likelihood, minimum, poi, tell)
    notes = [*problem.notes, *workspace.notes, *moved_starts, *minimum.notes]
    if problem.unfitted is not None:
        notes += problem.unfitted.notes
    notes += _doubts(likelihood, minimum, poi, moved)
    parameters = _parameters(likelihood, minimum)
    predictions = before_and_after(likelihood.model, minimum, workspace, problem.regions)
    prefit, postfit = (tuple(one.yields for one in regions) for regions in predictions)
    notes += _negative(postfit)
    for note in notes:
        _log.info(note)
    return FitResult(
        poi=next(parameter for parameter in parameters if parameter.name == poi),
        parameters=parameters,
        correlation=minimum.correlation,
        goodness_of_fit=_goodness_of_fit(likelihood, minimum),
        twice_nll=minimum.twice_nll,
        minimizer=minimum.minimizer,
        converged=minimum.converged,
        pseudodata=workspace.data,
        impacts=_sorted_impacts(moved),
        prefit=prefit,
        postfit=postfit,
        workspace=spec,
        inputs=problem.inputs,
        notes=tuple(notes),
        carried_over=() if problem.unfitted is None else carry_over(problem.unfitted, minimum),
        states=_states(likelihood, minimum),
        cross_section=problem.cross_section,
        versions=versions(),
        is_closure=workspace.is_closure,
        widths={
            name: float(width)
            for name, width in zip(likelihood.names, likelihood.prefit, strict=True)
            if width > 0
        },
    )


def _of_workspace(source: str | Path, patch: str | None) -> _Problem:
    brought = histfactory.read(source, patch)
    spec = brought.workspace.spec
    return _Problem(
        workspace=brought.workspace,
        regions=[{"Name": one["name"], "Variable": "bin"} for one in spec["channels"]],
        inputs=brought.inputs,
        notes=[],
        unfitted=None,
        cross_section=None,
    )


def _of_templates(
    source: RunResult | str | Path | Mapping[str, hist.Hist[Any]],
    config: str | Path | Config | None,
    pseudodata: str | None,
    ml_uncertainty: Sequence[RunResult | str | Path],
) -> _Problem:
    alternatives = [_run(one) for one in ml_uncertainty]
    if alternatives:
        source = _run(source)
        check_alternatives(source, alternatives)
    settings = load_config(config) if isinstance(config, str | Path) else config
    if isinstance(config, Mapping):
        check_config(config, "fit configuration")
    is_own_source = settings is None or not names_files(settings)
    if is_own_source and isinstance(source, str | Path) and Path(source).is_dir():
        source = RunResult.load(source)
    templates, processor, notes = _templates(source, settings)
    if settings is None:
        settings = ml_config(processor) if alternatives else shipped_config(processor)
    if alternatives:
        others = [one.templates for one in alternatives]
        templates, settings, more = with_spread(templates, settings, others)
        notes += more
    if isinstance(source, RunResult) and not source.templates:
        raise FitError(
            f"{source.path or 'this run'}: a {source.status} run without histograms, nothing to fit"
        )
    if isinstance(source, RunResult) and not source.is_scaled and wants_pseudodata(settings):
        raise FitError(
            f"{source.path or 'this run'}: nothing in it is scaled to cross-section x luminosity, "
            "so no pseudodata can be made of it; return 'sumw' from the processor, and state "
            "'xsec' and 'luminosity' in the fileset"
        )
    analysis = analysis_of(processor)
    recipe = _recipe(source, analysis, pseudodata) if wants_pseudodata(settings) else None
    workspace = prepare(templates, settings, recipe)
    if pseudodata is not None and workspace.data == "data":
        notes.append(f"no {pseudodata} pseudodata are made: the configuration names data")
    # now, so that what is wrong with their histograms is told before the fit
    observables = None if alternatives else shipped_observables(processor)
    unfitted = prepare_unfitted(templates, observables, settings, recipe)
    return _Problem(
        workspace=workspace,
        regions=settings["Regions"],
        inputs={
            "templates": digest(workspace.templates),
            "config": _digest_of_config(settings),
            **({} if unfitted is None else {"observables": digest(unfitted.templates)}),
        },
        notes=notes,
        unfitted=unfitted,
        cross_section=measured_cross_section(source, settings, analysis.processes),
    )


def _recipe(source: Any, analysis: Analysis, kind: str | None) -> Pseudodata:
    """Recipe of the pseudodata to fit: of a run on disk, those that were chosen for it."""
    chosen = None
    if isinstance(source, RunResult) and source.path is not None:
        chosen = pseudodata_choice.recipe_of(source.path, analysis, kind)
    return chosen or analysis.recipe(kind)


def _templates(
    source: RunResult | str | Path | Mapping[str, hist.Hist[Any]], settings: Config | None
) -> tuple[Mapping[str, hist.Hist[Any]], str, list[str]]:
    """Templates, the processor whose configuration is the default, and notes on the input."""
    if settings is not None and names_files(settings):
        if isinstance(source, str | Path):
            return collect(settings, Path(source)), DEFAULT, []
        if isinstance(source, RunResult):
            raise FitError(
                f"fit configuration: InputPath ({settings['General']['InputPath']!r}) names files, "
                "and a run has its histograms in one; give no placeholders before the colon"
            )
    if isinstance(source, RunResult):
        notes = []
        if source.status != "complete":
            missing = len(source.ledger.missing)
            notes.append(f"the run is {source.status}: {missing} ranges of events are missing")
        return source.templates, source.provenance.processor.name, notes
    if isinstance(source, str | Path):
        return load_templates(source), DEFAULT, []
    return source, DEFAULT, []


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


def _with_starts(
    spec: dict[str, Any], likelihood: lk.Likelihood
) -> tuple[dict[str, Any], list[str]]:
    """Let a workspace start where the fit did, so that others can fit it, too."""
    config = likelihood.model.config
    before = np.asarray(config.suggested_init(), dtype=np.float64)
    moved = {
        name: float(new)
        for name, old, new in zip(likelihood.names, before, likelihood.start, strict=True)
        if old != new
    }
    if not moved:
        return spec, []
    # a setting is of all bins' parameters at once
    inits = {
        name: likelihood.start[config.par_slice(name)].tolist()
        for name in config.par_order
        if (likelihood.start != before)[config.par_slice(name)].any()
    }
    first, *others = spec["measurements"]
    given = {one["name"]: one for one in first["config"]["parameters"]}
    starts = {name: {**given.get(name, {"name": name}), "inits": v} for name, v in inits.items()}
    parameters = [*({**given, **starts}.values())]
    measurement = {**first, "config": {**first["config"], "parameters": parameters}}
    told = ", ".join(f"{name} = {value:g}" for name, value in list(moved.items())[:MOST])
    more = f" and {len(moved) - MOST} more" if len(moved) > MOST else ""
    note = (
        f"the fit starts at {told}{more}: the start that was given is out of bounds, or leaves "
        "bins with data without prediction"
    )
    return {**spec, "measurements": [measurement, *others]}, [note]


def _doubts(
    likelihood: lk.Likelihood,
    minimum: Minimum,
    poi: str,
    moved: Mapping[str, NDArray[np.float64]],
) -> Iterator[str]:
    """Notes on a fit that a reader must know before relying on it."""
    quality = _goodness_of_fit(likelihood, minimum)
    if quality.p_value is not None and quality.p_value < POOR:
        yield f"the model does not describe the data (p-value {quality.p_value:.1g})"
    lost = [n for n in minimum.names if n not in moved and n != poi and _is_free(likelihood, n)]
    if lost:
        yield f"impacts could not be found for {', '.join(lost)}"


def _negative(regions: Sequence[RegionYields]) -> Iterator[str]:
    """Name bins for which the fitted model predicts less than nothing."""
    for region in regions:
        bad = np.flatnonzero(region.total < 0)
        if len(bad):
            bins = ", ".join(f"[{region.edges[i]:g}, {region.edges[i + 1]:g})" for i in bad[:MOST])
            more = f" and {len(bad) - MOST} more" if len(bad) > MOST else ""
            yield (
                f"{region.region}: the fitted model predicts less than no events in the bins {bins}"
                f"{more}, which are counted as 0; uncertainties may be wrong"
            )


def _states(likelihood: lk.Likelihood, minimum: Minimum) -> dict[str, str]:
    """Reasons why parameters have no uncertainty of their own, by name."""
    found = {}
    for name, value, width, low, high, is_fixed in zip(
        minimum.names,
        minimum.values,
        minimum.uncertainties,
        likelihood.lower,
        likelihood.upper,
        likelihood.fixed,
        strict=True,
    ):
        if is_fixed:
            found[name] = "fixed"
        elif width == 0:
            found[name] = f"at its {'lower' if value - low < high - value else 'upper'} bound"
    return found


def _is_free(likelihood: lk.Likelihood, name: str) -> bool:
    return not likelihood.fixed[likelihood.names.index(name)]


def _parameters(likelihood: lk.Likelihood, minimum: Minimum) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name,
            float(value),
            float(uncertainty),
            float((value - centre) / prefit) if prefit > 0 else None,
        )
        for name, value, uncertainty, centre, prefit in zip(
            minimum.names,
            minimum.values,
            minimum.uncertainties,
            likelihood.centre,
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
    ndof = len(likelihood.observed) - unconstrained
    return chi2_test(max(minimum.chi2, 0.0), ndof)  # a perfect fit, but for rounding


def _digest_of_config(settings: Config) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
