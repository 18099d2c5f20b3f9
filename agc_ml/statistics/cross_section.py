"""The cross-section that a fit measures: its parameter of interest times a known one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agc_ml.analysis import Process
from agc_ml.inputs import agc_published
from agc_ml.inputs.variations import NOMINAL
from agc_ml.results import templates
from agc_ml.results.run_result import RunResult
from agc_ml.statistics.fit_result import CrossSection
from agc_ml.statistics.workspace.fit_config import Config, names_in


def measured_cross_section(
    source: Any, settings: Config, processes: Mapping[str, Process]
) -> CrossSection | None:
    """The predicted cross-section that the parameter of interest multiplies; None if not known.

    ``processes`` are those that the analysis declares, with their symbols.

    It is known where that parameter alone scales the sample of one process in all of its regions,
    and the process's templates were scaled to a stated cross-section: in a run
    (`RunResult.scales`), or in the published histograms.
    """
    poi = settings["General"]["POI"]
    scaled = [
        sample
        for sample in settings["Samples"]
        if not sample.get("Data", False)
        and any(poi == factor["Name"] for factor in _factors(settings, sample))
    ]
    if len(scaled) != 1:
        return None
    (sample,), process = scaled, str(scaled[0].get("SamplePath"))
    # nothing else may scale it, and nowhere may it stay as it was
    everywhere = [names_in(one, "Regions") for one in _factors(settings, sample)]
    if len(everywhere) > 1 or not _covers(everywhere[0], names_in(sample, "Regions"), settings):
        return None
    predicted = _predicted(source).get(process)
    if predicted is None:
        return None
    declared = processes.get(process)
    return CrossSection(process, (declared and declared.symbol) or process, predicted)


def _factors(settings: Config, sample: Config) -> list[Config]:
    """Normalisation factors that act on a sample."""
    return [
        factor
        for factor in settings["NormFactors"]
        if sample["Name"] in (names_in(factor, "Samples") or [sample["Name"]])
    ]


def _covers(factor: list[str], sample: list[str], settings: Config) -> bool:
    """Return whether a factor acts in all regions of a sample; no names mean all of them."""
    every = [region["Name"] for region in settings["Regions"]]
    return set(sample or every) <= set(factor or every)


def _predicted(source: Any) -> Mapping[str, float]:
    """Cross-sections that templates were scaled to, in pb, by process."""
    if isinstance(source, RunResult):
        return {
            dataset.process: dataset.process_xsec or dataset.xsec
            for dataset in source.provenance.datasets
            if dataset.variation == NOMINAL
            and dataset.xsec is not None
            and (source.scales or {}).get(dataset.name) is not None
        }
    if isinstance(source, str | Path) and templates.is_published(Path(source)):
        return agc_published.CROSS_SECTIONS
    return {}
