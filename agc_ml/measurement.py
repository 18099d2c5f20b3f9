"""The steps after a run: figures, fit, report; and `measure`, which takes all of them.

A run directory passes between them: figures go to ``figures/``, the fit to ``fit/``, the page to
``report.html``. The kind of pseudodata is the run's (``measurement.json``): what one command is
told is the default of those that follow, and a page has one kind only.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml import documents, files
from agc_ml.analysis import DEFAULT, Analysis, Pseudodata, analysis_of
from agc_ml.errors import AgcError, ClusterError, FitError, HistogramError, UsageError
from agc_ml.execution.cluster import child_processes
from agc_ml.execution.run import run
from agc_ml.files import write
from agc_ml.inputs import agc_published, loading
from agc_ml.results import pseudodata_choice, run_directories
from agc_ml.results.run_result import RunResult

if TYPE_CHECKING:
    from agc_ml.presentation.page import FigureInfo
    from agc_ml.statistics.fit import FitResult

logger = logging.getLogger(__name__)

INDEX: Final = "figures.json"
FEW: Final = 6
"""So many histograms of a run are all shown large."""


class Measurement(NamedTuple):
    """The outcome of `measure`; ``report`` is the path of its page."""

    run: RunResult
    fit: FitResult
    report: Path


def measure(
    fileset: Any = loading.DEMO, *, pseudodata: str | None = None, **options: Any
) -> Measurement:
    """Measure a cross-section with the default processor: run, figures, fit, report.

    Without ``fileset`` it is the embedded demo set. ``pseudodata`` are of a kind that the analysis
    declares; the default is that of the run that is resumed, else the first one. ``options`` are
    those of `run`.

    Raises
    ------
    AgcError
        What went wrong. Without a fit there is still a report of the run.
    """
    # what was chosen is kept from the beginning, for a resume
    folder = Path(options["output"]) if options.get("output") else None
    resumed = folder if options.get("resume") else None
    before = (
        pseudodata_choice.load(run_directories.work_of(resumed))
        if resumed
        else pseudodata_choice.Choices(schema=1)
    )
    kind = analysis_of().recipe(pseudodata or before.pseudodata).kind
    try:
        result = run(DEFAULT, fileset, **options)
    except BaseException:
        work = run_directories.work_of(folder) if folder else None
        if work and (work / run_directories.CHUNKS).is_dir():
            pseudodata_choice.change(work, pseudodata=kind)
        raise
    if result.path is None:
        raise UsageError("the run has no directory to report in")
    pseudodata_choice.change(result.path, pseudodata=kind)
    # Figures and fit take about as long, and one core each.
    with _beside(plot, result.path, pseudodata=kind) as drawn:
        try:
            fitted = fit(result.path, pseudodata=kind, quiet=bool(options.get("quiet", False)))
        except (FitError, HistogramError) as error:
            drawn()
            page = report(result.path)
            raise type(error)(f"{error} (the run without a fit is reported in {page})") from error
        drawn()
    return Measurement(result, fitted, report(result.path))


@contextmanager
def _beside(function: Any, *arguments: Any, **options: Any) -> Iterator[Callable[[], Any]]:
    """Call a function in another process meanwhile; gives what waits for its result.

    That raises `ClusterError` where the process can't be started, or is killed.
    """
    child_processes.import_nothing_from_here()
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        call = pool.submit(function, *arguments, **options)

        def wait() -> Any:
            try:
                return call.result()
            except BrokenProcessPool as error:
                raise ClusterError(child_processes.start_problem(error)) from error

        yield wait


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
    output = _elsewhere(source, output)
    folder = _no_link(_output(source, output) / "figures")
    if output is not None and (output / "fit.json").exists():
        raise UsageError(f"{output}: the folder of a fit; name another one with -o")
    _begin(folder)
    if source.is_dir():
        result = _labelled(RunResult.load(source), label)
        analysis = _analysis_of(result)
        recipe = pseudodata_choice.recipe_of(source, analysis, pseudodata)
        figures = _draw_run(result, folder, analysis, recipe, config)
        if not figures:
            raise HistogramError(f"{source}: {_why_nothing_is_drawn(result)}")
        if output is None:
            drawn = None if recipe is None else recipe.kind
            pseudodata_choice.change(source, pseudodata=drawn, drawn=drawn)
    else:
        figures = _draw_file(source, folder, pseudodata, config, label)
    _write_index(folder, figures)
    return folder


def _elsewhere(source: Path, output: Path | None) -> Path | None:
    """Folder to write to, None for the run directory itself, also if it is named."""
    if output is None or not output.exists() or not source.is_dir():
        return output
    return None if output.samefile(source) else output


def _no_link(folder: Path) -> Path:
    """A folder inside a run directory: somebody else may have made a link to one of ours."""
    if folder.is_symlink():
        raise UsageError(f"{folder}: a link is in the way; take it away, or name a folder with -o")
    return folder


def _begin(folder: Path) -> None:
    """Take the list of figures away while new ones are drawn: of two kinds none may be shown."""
    with files.store_errors(folder):
        (folder / INDEX).unlink(missing_ok=True)


def _labelled(result: RunResult, label: str | None) -> RunResult:
    """A run with another label for its figures, if one is given."""
    if label is None:
        return result
    before = result.provenance.label or ""
    partly = f"partly {agc_published.GENERATED}"
    generated = (
        "some" if partly in before else "all" if agc_published.GENERATED in before else "none"
    )
    update = {"label": agc_published.whose(label, generated=generated)}
    return replace(result, provenance=result.provenance.model_copy(update=update))


def _analysis_of(run: RunResult) -> Analysis:
    return analysis_of(run.provenance.processor.name)


def _draw_run(
    result: RunResult,
    folder: Path,
    analysis: Analysis,
    recipe: Pseudodata | None,
    config: Path | None = None,
) -> list[FigureInfo]:
    from agc_ml.presentation.figures import distributions  # noqa: PLC0415 - heavy

    return distributions.draw_run(
        result,
        folder,
        _pseudodata(dict(result.templates), recipe) if _lacks_data(result) else None,
        _large(result, config),
        data_label=_data_label(recipe),
        totals=_totals(result, recipe, config),
        processes=analysis.processes,
    )


def _data_label(recipe: Pseudodata | None) -> str:
    return "pseudodata" if recipe is None else f"{recipe.kind} pseudodata"


def _lacks_data(result: RunResult) -> bool:
    """Return whether a run has simulation, and only pseudodata that it can be compared with."""
    return result.is_scaled and not any(d.is_data for d in result.provenance.datasets)


def _totals(
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


def _large(result: RunResult, config: Path | None = None) -> tuple[str, ...] | None:
    """Which histograms are shown large: the regions of the fit, of many or if told; None: all."""
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
    output = _elsewhere(source, output)
    folder = fit_folder(source, output, ml_uncertainty)
    described = stats.load_config(config) if config is not None else None
    made = RunResult.load(source) if is_run else None
    analysis = analysis_of() if made is None else _analysis_of(made)
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
        _begin(_no_link(folder / "figures"))
        stats.save(result, folder)
        tell("drawing")
        figures = fit_figures.draw_fit(
            result,
            folder / "figures",
            *_figure_label(source, made, label),
            processes=analysis.processes,
        )
    _write_index(folder / "figures", figures)
    if made is not None and output is None and not ml_uncertainty and recipe is not None:
        pseudodata_choice.change(source, pseudodata=recipe.kind)
    return result


def _figure_label(
    source: Path, made: RunResult | None, label: str | None
) -> tuple[float | None, str | None]:
    """Luminosity and whose events they are, for figures."""
    from agc_ml.results import templates  # noqa: PLC0415 - heavy

    if made is not None:
        return made.luminosity, _labelled(made, label).provenance.label
    if templates.is_published(source):
        return agc_published.LUMINOSITY, label or agc_published.LABEL
    return None, label


def fit_folder(source: Path, output: Path | None, ml_uncertainty: Sequence[Path]) -> Path:
    """Where a fit is written to."""
    output = _elsewhere(source, output)
    folder = _output(source, output)
    if output is not None:
        return folder
    return _no_link(folder / ("fit_ml" if ml_uncertainty else "fit"))


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
    analysis = _analysis_of(result)
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
    pages.write_report(result, fitted, figures, page, _large(result))
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
    folder = _no_link(source / "figures")
    kind = None if recipe is None else recipe.kind
    if drawn_kind == kind and (drawn := _read_index(folder)):
        return drawn
    if not result.templates:
        return []
    if output is not None:
        folder = _output(source, output) / "figures"
        return _draw_run(result, folder, _analysis_of(result), recipe)
    drawn = _draw_run(result, folder, _analysis_of(result), recipe)
    if drawn:
        _write_index(folder, drawn)
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
        drawn = _read_index(folder / "figures")
    except AgcError as error:
        logger.info("drawn again: %s", error)
        drawn = []
    if drawn and all(is_whole(figure.png) for figure in drawn):
        return drawn
    drawn = fit_figures.draw_fit(fitted, _no_link(folder / "figures"), *known, analysis.processes)
    _write_index(folder / "figures", drawn)
    return drawn


def _page(source: Path, output: Path | None) -> Path:
    """Where the page goes, in a folder that is made if it is another one than that of the run."""
    folder = output or source
    with files.store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / "report.html"


def _output(source: Path, output: Path | None) -> Path:
    if output is not None:
        return output
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if not source.is_dir():
        raise UsageError(f"{source}: not a run directory, so say with -o DIR where to write")
    return source


def _write_index(folder: Path, figures: Sequence[FigureInfo]) -> None:
    """Keep titles and captions beside the figures, for the report."""
    content = [{"name": f.name, "title": f.title, "caption": f.caption} for f in figures]
    write(folder / INDEX, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def _read_index(folder: Path) -> list[FigureInfo]:
    from agc_ml.presentation.page import FigureInfo  # noqa: PLC0415 - heavy

    path = folder / INDEX
    if not path.exists():
        return []
    try:
        content = documents.json_of(documents.text(path))
        return [
            FigureInfo(
                **entry, png=folder / f"{entry['name']}.png", pdf=folder / f"{entry['name']}.pdf"
            )
            for entry in content
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AgcError(f"{path}: damaged ({error}); draw again with 'agc-ml plot'") from error
