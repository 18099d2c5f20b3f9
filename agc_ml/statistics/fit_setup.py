"""Preparation of a fit: from a run, histograms or a pyhf workspace to the workspace to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hist

from agc_ml.analysis import DEFAULT, Analysis, Pseudodata, analysis_of
from agc_ml.errors import FitError, UsageError
from agc_ml.results import pseudodata_choice
from agc_ml.results.run_result import RunResult
from agc_ml.results.templates import digest
from agc_ml.results.templates import load as load_templates
from agc_ml.statistics.cross_section import measured_cross_section
from agc_ml.statistics.fit_result import CrossSection
from agc_ml.statistics.model_uncertainty import (
    check_alternatives,
    ml_config,
    with_model_uncertainty,
)
from agc_ml.statistics.unfitted_observables import Unfitted, prepare_unfitted, shipped_observables
from agc_ml.statistics.workspace import histfactory
from agc_ml.statistics.workspace.fit_config import (
    Config,
    check_config,
    load_config,
    shipped_config,
)
from agc_ml.statistics.workspace.fit_inputs import collect, names_files
from agc_ml.statistics.workspace.workspace import Workspace, prepare, wants_pseudodata

Source = RunResult | str | Path | Mapping[str, hist.Hist[Any]]
"""Source of a fit: a run, its directory, a file of histograms, or templates."""


class FitSetup(NamedTuple):
    """A workspace to fit; ``inputs`` are sha256 digests, ``notes`` caveats on the input."""

    workspace: Workspace
    inputs: dict[str, str]
    notes: list[str]
    unfitted: Unfitted | None
    cross_section: CrossSection | None


def set_up(
    source: Source,
    config: str | Path | Config | None,
    pseudodata: str | None,
    ml_uncertainty: Sequence[RunResult | str | Path],
    patch: str | None,
) -> FitSetup:
    """Prepare a fit; the arguments are those of `agc_ml.statistics.fit.fit`."""
    if isinstance(source, str | Path) and histfactory.is_workspace(Path(source)):
        if config is not None or pseudodata is not None or ml_uncertainty:
            raise UsageError(
                f"{source}: a pyhf workspace says itself what is fitted; it takes no "
                "configuration, no --pseudodata and no --ml-uncertainty"
            )
        workspace, inputs = histfactory.read(source, patch)
        return FitSetup(workspace, inputs, [*workspace.notes], None, None)
    if patch is not None:
        raise UsageError(f"--patch {patch}: only a pyhf workspace can be patched")
    settings = load_config(config) if isinstance(config, str | Path) else config
    if isinstance(config, Mapping):
        check_config(config, "fit configuration")
    alternatives = [_run(one) for one in ml_uncertainty]
    if alternatives:
        source = _run(source)
        check_alternatives(source, alternatives)
    return _from_templates(source, settings, pseudodata, alternatives)


def _from_templates(
    source: Source,
    settings: Config | None,
    pseudodata: str | None,
    alternatives: Sequence[RunResult],
) -> FitSetup:
    is_one_source = settings is None or not names_files(settings)
    if is_one_source and isinstance(source, str | Path) and Path(source).is_dir():
        source = RunResult.load(source)
    templates, processor, notes = _templates(source, settings)
    # the configuration: the given one, or that of the processor
    if settings is None:
        settings = ml_config(processor) if alternatives else shipped_config(processor)
    if alternatives:
        others = [one.templates for one in alternatives]
        templates, settings, note = with_model_uncertainty(templates, settings, others)
        notes.append(note)
    if isinstance(source, RunResult):
        _check_run(source, settings)
    analysis = analysis_of(processor)
    recipe = _recipe(source, analysis, pseudodata) if wants_pseudodata(settings) else None
    workspace = prepare(templates, settings, recipe)
    if pseudodata is not None and workspace.data == "data":
        notes.append(f"no {pseudodata} pseudodata are made: the configuration names data")
    # before the fit, so that faults of their histograms are reported early
    observables = None if alternatives else shipped_observables(processor)
    unfitted = prepare_unfitted(templates, observables, settings, recipe)
    inputs = {
        "templates": digest(workspace.templates),
        "config": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
    }
    if unfitted is not None:
        inputs["observables"] = digest(unfitted.templates)
    notes += workspace.notes
    cross_section = measured_cross_section(source, settings, analysis.processes)
    return FitSetup(workspace, inputs, notes, unfitted, cross_section)


def _check_run(run: RunResult, settings: Config) -> None:
    """Reject a run without histograms, or without the scale that pseudodata need."""
    name = run.path or "this run"
    if not run.templates:
        raise FitError(f"{name}: a {run.status} run without histograms, nothing to fit")
    if not run.is_scaled and wants_pseudodata(settings):
        raise FitError(
            f"{name}: nothing in it is scaled to cross-section x luminosity, "
            "so no pseudodata can be made of it; return 'sumw' from the processor, and state "
            "'xsec' and 'luminosity' in the fileset"
        )


def _recipe(source: Source, analysis: Analysis, kind: str | None) -> Pseudodata:
    """Recipe of the pseudodata to fit: of a run on disk, those that were chosen for it."""
    chosen = None
    if isinstance(source, RunResult) and source.path is not None:
        chosen = pseudodata_choice.recipe_of(source.path, analysis, kind)
    return chosen or analysis.recipe(kind)


def _templates(
    source: Source, settings: Config | None
) -> tuple[Mapping[str, hist.Hist[Any]], str, list[str]]:
    """Return templates, the processor whose configuration is the default, and notes."""
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


def _run(source: Source) -> RunResult:
    """Return a run for the uncertainty of its model, loaded if needed."""
    if isinstance(source, RunResult):
        return source
    if isinstance(source, str | Path) and Path(source).is_dir():
        return RunResult.load(source)
    raise FitError(
        f"{source if isinstance(source, str | Path) else 'these templates'}: not a run directory; "
        "the uncertainty of a model is found from runs"
    )
