"""The fit of a run, a file of histograms, or a workspace, with its figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agc_ml.analysis import analysis_of
from agc_ml.inputs import agc_published
from agc_ml.measurement.folders import (
    other_folder,
    output_folder,
    reject_link,
    remove_index,
    write_index,
)
from agc_ml.measurement.plotting import analysis_of_run, with_label
from agc_ml.results import pseudodata_choice
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from agc_ml.statistics.fit import FitResult


def fit(
    source: Path,
    output: Path | None = None,
    *,
    config: Path | None = None,
    pseudodata: str | None = None,
    ml_uncertainty: Sequence[Path] = (),
    patch: str | None = None,
    label: str | None = None,
    quiet: bool = True,
) -> FitResult:
    """Fit the templates of a run or of a file of histograms, or a pyhf workspace, and draw the fit.

    Writes ``fit/`` into the run directory, or ``fit_ml/`` if runs with other models say how
    uncertain the model is; for a file, ``output`` becomes that folder. ``patch`` adds to a
    workspace, ``label`` says on figures whose events they are. Unless ``quiet``, it shows what it
    does.

    Raises
    ------
    AgcError
        Histograms or configuration don't fit together, or the folder can't be written.
    """
    from agc_ml.execution import progress  # noqa: PLC0415 - heavy
    from agc_ml.presentation.figures import fit_figures  # noqa: PLC0415 - heavy
    from agc_ml.statistics import fit as stats  # noqa: PLC0415 - heavy

    is_run = (source / "run.json").exists()
    output = other_folder(source, output)
    folder = fit_folder(source, output, ml_uncertainty)
    described = stats.load_config(config) if config is not None else None
    made = RunResult.load(source) if is_run else None
    analysis = analysis_of() if made is None else analysis_of_run(made)
    recipe = pseudodata_choice.recipe_of(source, analysis, pseudodata) if is_run else None
    with progress.show_steps(quiet=quiet) as tell:
        result = stats.fit(
            made or source,
            described,
            pseudodata=pseudodata,
            ml_uncertainty=ml_uncertainty,
            patch=patch,
            tell=tell,
        )
        remove_index(reject_link(folder / "figures"))
        stats.save(result, folder)
        tell("drawing")
        figures = fit_figures.draw_fit(
            result,
            folder / "figures",
            *_figure_label(source, made, label),
            processes=analysis.processes,
        )
    write_index(folder / "figures", figures)
    if made is not None and output is None and not ml_uncertainty and recipe is not None:
        pseudodata_choice.change(source, pseudodata=recipe.kind)
    return result


def _figure_label(
    source: Path, made: RunResult | None, label: str | None
) -> tuple[float | None, str | None]:
    """Luminosity in 1/pb and label of the events, for figures."""
    from agc_ml.results import templates  # noqa: PLC0415 - heavy

    if made is not None:
        return made.luminosity, with_label(made, label).provenance.label
    if templates.is_published(source):
        return agc_published.LUMINOSITY, label or agc_published.LABEL
    return None, label


def fit_folder(source: Path, output: Path | None, ml_uncertainty: Sequence[Path]) -> Path:
    """Folder that a fit is written to."""
    output = other_folder(source, output)
    folder = output_folder(source, output)
    if output is not None:
        return folder
    return reject_link(folder / ("fit_ml" if ml_uncertainty else "fit"))
