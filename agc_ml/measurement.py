"""The steps after a run: figures, fit, report; and `measure`, which takes all of them.

A run directory passes between them: figures go to ``figures/``, the fit to ``fit/``, the page to
``report.html``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agc_ml import catalogue, folders
from agc_ml.errors import AgcError, FitError, HistogramError, UsageError
from agc_ml.results import RunResult, write
from agc_ml.running import run

if TYPE_CHECKING:
    from agc_ml.plots import FigureInfo
    from agc_ml.stats import FitResult
    from agc_ml.templates import Pseudodata

logger = logging.getLogger(__name__)

PROCESSOR: Final = "ttbar"
INDEX: Final = "figures.json"
FEW: Final = 6
"""So many histograms of a run are all shown large."""


class Measurement(NamedTuple):
    """The outcome of `measure`; ``report`` is the path of its page."""

    run: RunResult
    fit: FitResult
    report: Path


def measure(
    fileset: Any = catalogue.DEMO, *, pseudodata: Pseudodata = "published", **options: Any
) -> Measurement:
    """Measure the ttbar cross-section: run, figures, fit, report.

    Without ``fileset`` it is the embedded demo set. ``options`` are those of `run`.

    Raises
    ------
    AgcError
        What went wrong. Without a fit there is still a report of the run.
    """
    result = run(PROCESSOR, fileset, **options)
    if result.path is None:
        raise UsageError("the run has no directory to report in")
    # Figures and fit take about as long, and one core each.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        drawn = pool.submit(plot, result.path, pseudodata=pseudodata)
        try:
            fitted = fit(result.path, pseudodata=pseudodata)
        except (FitError, HistogramError) as error:
            drawn.result()
            page = report(result.path)
            raise type(error)(f"{error} (the run without a fit is reported in {page})") from error
        drawn.result()
    return Measurement(result, fitted, report(result.path))


def plot(
    source: Path,
    output: Path | None = None,
    *,
    pseudodata: Pseudodata = "published",
    config: Path | None = None,
) -> Path:
    """Draw the templates of a run directory, or of a file of histograms; returns the folder.

    Figures of a run go into it, those of a file need ``output``. A fit configuration says which
    regions of a run are shown large, and which regions and processes the histograms of a file
    belong to.

    Raises
    ------
    AgcError
        Histograms are damaged, none can be drawn, or the folder can't be written.
    """
    folder = _output(source, output) / "figures"
    if source.is_dir():
        result = RunResult.load(source)
        figures = _draw_run(result, folder, pseudodata, config)
        if not figures:
            raise HistogramError(f"{source}: {_why_nothing_is_drawn(result)}")
    else:
        figures = _draw_file(source, folder, pseudodata, config)
    _write_index(folder, figures)
    return folder


def _draw_run(
    result: RunResult, folder: Path, kind: Pseudodata, config: Path | None
) -> list[FigureInfo]:
    from agc_ml import plots  # noqa: PLC0415 - heavy

    data = _pseudodata(dict(result.templates), kind)
    return plots.draw_run(result, folder, data, _large(result, config))


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
    source: Path, folder: Path, kind: Pseudodata, config: Path | None
) -> list[FigureInfo]:
    from agc_ml import plots, stats, templates  # noqa: PLC0415 - heavy

    flat = templates.load(source)
    described = stats.load_config(config) if config else stats.shipped_config(PROCESSOR)
    regions = stats.region_paths(described)
    samples = [s.get("SamplePath", s["Name"]) for s in described["Samples"] if not s.get("Data")]
    data = _pseudodata(flat, kind)
    figures = plots.draw_templates(flat, folder, samples, regions, data=data)
    if not figures:
        raise HistogramError(
            f"{source}: none of its histograms ({_few(flat)}) is of the regions "
            f"{_few(regions)} and samples {_few(samples)} of {config or PROCESSOR}; name its own "
            "in a fit configuration: agc-ml plot HISTOGRAMS CONFIG.yml -o DIR"
        )
    return figures


def _few(names: Collection[str]) -> str:
    more = ", ..." if len(names) > FEW else ""
    return ", ".join(list(names)[:FEW]) + more


def _large(result: RunResult, config: Path | None = None) -> tuple[str, ...] | None:
    """Which histograms are shown large: the regions of the fit, of many or if told; None: all."""
    from agc_ml import stats  # noqa: PLC0415 - heavy

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


def _pseudodata(flat: dict[str, Any], kind: Pseudodata) -> dict[str, Any] | None:
    """Pseudodata by region, or None where the histograms are not those of the ttbar measurement."""
    from agc_ml import templates  # noqa: PLC0415 - heavy

    try:
        made = templates.pseudodata(flat, kind)
    except HistogramError as error:
        logger.info("drawn without pseudodata: %s", error)
        return None
    return {name.removesuffix(f"_{templates.PSEUDODATA}"): h for name, h in made.items()} or None


def fit(
    source: Path,
    output: Path | None = None,
    *,
    config: Path | None = None,
    pseudodata: Pseudodata = "published",
    ml_uncertainty: Sequence[Path] = (),
) -> FitResult:
    """Fit the templates of a run directory, or of a file of histograms, and draw the fit.

    Writes ``fit/`` into the run directory, or ``fit_ml/`` if runs with other models say how
    uncertain the model is; for a file, ``output`` becomes that folder.

    Raises
    ------
    AgcError
        Histograms or configuration don't fit together, or the folder can't be written.
    """
    from agc_ml import plots, stats  # noqa: PLC0415 - heavy

    folder = fit_folder(source, output, ml_uncertainty)
    described = stats.load_config(config) if config is not None else None
    made = RunResult.load(source).provenance if source.is_dir() else None
    label = (made.luminosity, made.label) if made is not None else (None, None)
    result = stats.fit(source, described, pseudodata=pseudodata, ml_uncertainty=ml_uncertainty)
    stats.save(result, folder)
    _write_index(folder / "figures", plots.draw_fit(result, folder / "figures", *label))
    return result


def fit_folder(source: Path, output: Path | None, ml_uncertainty: Sequence[Path]) -> Path:
    """Where a fit is written to."""
    folder = _output(source, output)
    if output is not None:
        return folder
    return folder / ("fit_ml" if ml_uncertainty else "fit")


def report(source: Path, output: Path | None = None) -> Path:
    """Write the page of a run directory, or of the folder of a fit; returns its path.

    Raises
    ------
    AgcError
        It is neither, or the page can't be written.
    """
    from agc_ml import report as pages  # noqa: PLC0415 - heavy
    from agc_ml import stats  # noqa: PLC0415 - heavy

    if (source / "fit.json").exists():
        bare, figures = stats.load(source), _read_index(source / "figures")
        page = _page(source, output)
        pages.write_report(None, bare, figures, page)
        return page
    result = RunResult.load(source)
    if result.templates and not (source / "figures" / INDEX).exists():
        drawn = _draw_run(result, source / "figures", "published", None)
        if drawn:
            _write_index(source / "figures", drawn)
    fitted = stats.load(source / "fit") if (source / "fit" / "fit.json").exists() else None
    figures = [*_read_index(source / "figures"), *_read_index(source / "fit" / "figures")]
    page = _page(source, output)
    pages.write_report(result, fitted, figures, page, _large(result))
    return page


def _page(source: Path, output: Path | None) -> Path:
    """Where the page goes, in a folder that is made if it is another one than that of the run."""
    folder = output or source
    with folders.store_errors(folder):
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
    from agc_ml.plots import FigureInfo  # noqa: PLC0415 - heavy

    path = folder / INDEX
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        return [
            FigureInfo(
                **entry, png=folder / f"{entry['name']}.png", pdf=folder / f"{entry['name']}.pdf"
            )
            for entry in content
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AgcError(f"{path}: damaged ({error}); draw again with 'agc-ml plot'") from error
