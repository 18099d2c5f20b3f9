"""The report of a run, or of a fit alone."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from agc_ml import files
from agc_ml.analysis import Analysis, Pseudodata, analysis_of
from agc_ml.errors import AgcError, FitError
from agc_ml.measurement.folders import output_folder, read_index, reject_link, write_index
from agc_ml.measurement.plotting import analysis_of_run, draw_run, large_histograms
from agc_ml.results import pseudodata_choice
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from agc_ml.presentation.page import FigureInfo
    from agc_ml.statistics.fit import FitResult

logger = logging.getLogger(__name__)


def report(source: Path, output: Path | None = None) -> Path:
    """Write the page of a run directory, or of the folder of a fit; returns its path.

    Raises
    ------
    AgcError
        It is neither, or the page can't be written.
    """
    from agc_ml.presentation import report as pages  # noqa: PLC0415 - heavy
    from agc_ml.statistics import fit as stats  # noqa: PLC0415 - heavy

    if (source / "fit.json").exists() and not (source / "run.json").exists():
        bare = stats.load(source)
        figures = _fit_figures(source, bare, (None, None), analysis_of())
        page = _page(source, output)
        pages.write_report(None, bare, figures, page)
        return page
    result, choices = RunResult.load(source), pseudodata_choice.load(source)
    analysis = analysis_of_run(result)
    recipe = pseudodata_choice.recipe_of(source, analysis)
    fitted = stats.load(source / "fit") if (source / "fit" / "fit.json").exists() else None
    if fitted is not None and fitted.pseudodata not in {"data", recipe and recipe.kind}:
        raise FitError(
            f"{source / 'fit'}: fitted to {fitted.pseudodata} pseudodata, and the run has "
            f"{'no' if recipe is None else recipe.kind} ones now; fit these: "
            f"agc-ml fit {shlex.quote(str(source))}"
        )
    figures = _run_figures(source, output, result, recipe, choices.drawn)
    if fitted is not None:
        label = result.luminosity, result.provenance.label
        figures += _fit_figures(source / "fit", fitted, label, analysis)
    page = _page(source, output)
    pages.write_report(result, fitted, figures, page, large_histograms(result))
    return page


def _run_figures(
    source: Path,
    output: Path | None,
    result: RunResult,
    recipe: Pseudodata | None,
    drawn_kind: str | None,
) -> list[FigureInfo]:
    """Figures of a run, drawn again if there are none, or those of other pseudodata.

    In the run directory, or beside the page where that is another folder.
    """
    folder = reject_link(source / "figures")
    kind = None if recipe is None else recipe.kind
    if drawn_kind == kind and (drawn := read_index(folder)):
        return drawn
    if not result.templates:
        return []
    if output is not None:
        folder = output_folder(source, output) / "figures"
        return draw_run(result, folder, analysis_of_run(result), recipe)
    drawn = draw_run(result, folder, analysis_of_run(result), recipe)
    if drawn:
        write_index(folder, drawn)
        pseudodata_choice.change(source, drawn=kind)
    return drawn


def _fit_figures(
    folder: Path,
    fitted: FitResult,
    known: tuple[float | None, str | None],
    analysis: Analysis,
) -> list[FigureInfo]:
    """Figures of a fit, drawn again if some are not there: an interrupted command left them."""
    from agc_ml.presentation.figures import fit_figures  # noqa: PLC0415 - heavy
    from agc_ml.presentation.report import is_whole  # noqa: PLC0415 - heavy

    try:
        drawn = read_index(folder / "figures")
    except AgcError as error:
        logger.info("drawn again: %s", error)
        drawn = []
    if drawn and all(is_whole(figure.png) for figure in drawn):
        return drawn
    target = reject_link(folder / "figures")
    drawn = fit_figures.draw_fit(fitted, target, *known, analysis.processes)
    write_index(folder / "figures", drawn)
    return drawn


def _page(source: Path, output: Path | None) -> Path:
    """Path of the page; its folder is made if it is not the run directory."""
    folder = output or source
    with files.store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / "report.html"
