"""Figures of a run, or of a file of histograms."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.analysis import DEFAULT, Analysis, Pseudodata, analysis_of
from agc_ml.errors import FitError, HistogramError, UsageError
from agc_ml.inputs import agc_published
from agc_ml.measurement.folders import (
    other_folder,
    output_folder,
    reject_link,
    remove_index,
    write_index,
)
from agc_ml.results import pseudodata_choice
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from agc_ml.presentation.page import FigureInfo

logger = logging.getLogger(__name__)

FEW: Final = 6
"""Number of histograms of a run up to which all are shown large."""


def plot(
    source: Path,
    output: Path | None = None,
    *,
    pseudodata: str | None = None,
    config: Path | None = None,
    label: str | None = None,
) -> Path:
    """Draw the templates of a run directory, or of a file of histograms; returns the folder.

    Figures of a run go into it, those of a file need ``output``. A fit configuration says which
    regions of a run are shown large, and which regions and processes the histograms of a file
    belong to. ``label`` says on figures whose events they are, if the run does not.

    Raises
    ------
    AgcError
        Histograms are damaged, none can be drawn, or the folder can't be written.
    """
    output = other_folder(source, output)
    folder = reject_link(output_folder(source, output) / "figures")
    if output is not None and (output / "fit.json").exists():
        raise UsageError(f"{output}: the folder of a fit; name another one with -o")
    remove_index(folder)
    if source.is_dir():
        result = with_label(RunResult.load(source), label)
        analysis = analysis_of_run(result)
        recipe = pseudodata_choice.recipe_of(source, analysis, pseudodata)
        figures = draw_run(result, folder, analysis, recipe, config)
        if not figures:
            raise HistogramError(f"{source}: {_why_nothing_is_drawn(result)}")
        if output is None:
            drawn = None if recipe is None else recipe.kind
            pseudodata_choice.change(source, pseudodata=drawn, drawn=drawn)
    else:
        figures = _draw_file(source, folder, pseudodata, config, label)
    write_index(folder, figures)
    return folder


def with_label(result: RunResult, label: str | None) -> RunResult:
    """Return the run, with another label for its figures if one is given."""
    if label is None:
        return result
    before = result.provenance.label or ""
    partly = f"partly {agc_published.GENERATED}"
    generated = (
        "some" if partly in before else "all" if agc_published.GENERATED in before else "none"
    )
    update = {"label": agc_published.whose(label, generated=generated)}
    return replace(result, provenance=result.provenance.model_copy(update=update))


def analysis_of_run(run: RunResult) -> Analysis:
    """Analysis that the processor of a run declares."""
    return analysis_of(run.provenance.processor.name)


def draw_run(
    result: RunResult,
    folder: Path,
    analysis: Analysis,
    recipe: Pseudodata | None,
    config: Path | None = None,
) -> list[FigureInfo]:
    """Draw the histograms of a run into a folder, with pseudodata and the fit's uncertainties."""
    from agc_ml.presentation.figures import distributions  # noqa: PLC0415 - heavy

    return distributions.draw_run(
        result,
        folder,
        _pseudodata(dict(result.templates), recipe) if lacks_data(result) else None,
        large_histograms(result, config),
        data_label=_data_label(recipe),
        totals=total_uncertainties(result, recipe, config),
        processes=analysis.processes,
    )


def _data_label(recipe: Pseudodata | None) -> str:
    return "pseudodata" if recipe is None else f"{recipe.kind} pseudodata"


def lacks_data(result: RunResult) -> bool:
    """Return whether a run has simulation, and only pseudodata that it can be compared with."""
    return result.is_scaled and not any(d.is_data for d in result.provenance.datasets)


def total_uncertainties(
    result: RunResult, recipe: Pseudodata | None, config: Path | None = None
) -> dict[str, NDArray[np.float64]]:
    """Total uncertainties of the model of a fit, by histogram; none without one.

    The fit is that of ``config``, or the one that the processor ships.
    """
    from agc_ml.statistics import fit as stats  # noqa: PLC0415 - heavy
    from agc_ml.statistics import unfitted_observables  # noqa: PLC0415 - heavy

    if not result.is_scaled:
        return {}
    name = result.provenance.processor.name
    try:
        settings = stats.shipped_config(name) if config is None else stats.load_config(config)
    except FitError:
        return {}  # without a fit there is no model
    return _model_totals(
        result.templates, settings, unfitted_observables.shipped_observables(name), recipe
    )


def _model_totals(
    templates: Any, settings: Any, observables: Any, recipe: Pseudodata | None
) -> dict[str, NDArray[np.float64]]:
    from agc_ml.statistics import model_bands  # noqa: PLC0415 - heavy

    try:
        return model_bands.total_uncertainty(templates, settings, observables, recipe)
    except (FitError, HistogramError) as error:
        logger.info("drawn without the total uncertainty of a fit's model: %s", error)
        return {}


def _why_nothing_is_drawn(result: RunResult) -> str:
    if result.hists:
        return (
            f"none of its histograms ({_few(result.hists)}) can be drawn: that takes numbers of "
            "events on one numeric axis, and a nominal variation where there are any"
        )
    what = f"a {result.status} run without histograms, nothing to draw; 'agc-ml show' tells of it"
    resume = ", and 'agc-ml run' with --resume goes on with it"
    return what if result.status == "complete" else what + resume


def _draw_file(
    source: Path, folder: Path, kind: str | None, config: Path | None, label: str | None
) -> list[FigureInfo]:
    from agc_ml.presentation.figures import distributions  # noqa: PLC0415 - heavy
    from agc_ml.results import templates  # noqa: PLC0415 - heavy
    from agc_ml.statistics import fit as stats  # noqa: PLC0415 - heavy

    analysis = analysis_of()
    recipe, flat = analysis.recipe(kind), templates.load(source)
    described = stats.load_config(config) if config else stats.shipped_config(DEFAULT)
    regions = stats.region_paths(described)
    samples = [s.get("SamplePath", s["Name"]) for s in described["Samples"] if not s.get("Data")]
    # histograms that come alone say nothing of events, but the published ones are known
    published = templates.is_published(source)
    figures = distributions.draw_templates(
        flat,
        folder,
        samples,
        regions,
        source=label or (agc_published.LABEL if published else None),
        luminosity=agc_published.LUMINOSITY if published else None,
        data=_pseudodata(flat, recipe),
        data_label=_data_label(recipe),
        totals=_model_totals(flat, described, None, recipe),
        processes=analysis.processes,
    )
    if not figures:
        raise HistogramError(
            f"{source}: none of its histograms ({_few(flat)}) is of the regions "
            f"{_few(regions)} and samples {_few(samples)} of {config or DEFAULT}; name its own "
            "in a fit configuration: agc-ml plot HISTOGRAMS CONFIG.yml -o DIR"
        )
    return figures


def _few(names: Collection[str]) -> str:
    more = ", ..." if len(names) > FEW else ""
    return ", ".join(list(names)[:FEW]) + more


def large_histograms(result: RunResult, config: Path | None = None) -> tuple[str, ...] | None:
    """Histograms to show large: regions of a fit where there are many; None for all."""
    from agc_ml.statistics import fit as stats  # noqa: PLC0415 - heavy

    if config is not None:
        regions = stats.region_paths(stats.load_config(config))
        if not result.hists.keys() & set(regions):
            raise HistogramError(
                f"{config}: none of its regions ({_few(regions)}) is in the run, which has "
                f"{_few(result.hists) or 'no histograms'}"
            )
        return regions
    if len(result.hists) <= FEW:
        return None
    try:
        return stats.region_paths(stats.shipped_config(result.provenance.processor.name))
    except FitError as error:
        logger.info("all histograms are shown large: %s", error)
        return None


def _pseudodata(flat: dict[str, Any], recipe: Pseudodata | None) -> dict[str, Any] | None:
    """Pseudodata by region, or None where the histograms lack what the recipe asks for."""
    from agc_ml.results import templates  # noqa: PLC0415 - heavy

    if recipe is None:
        return None
    try:
        made = templates.pseudodata(flat, recipe)
    except HistogramError as error:
        logger.info("drawn without pseudodata: %s", error)
        return None
    return {name.removesuffix(f"_{templates.PSEUDODATA}"): h for name, h in made.items()} or None
