"""The cross-section that a fit measures: its parameter of interest times a known one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agc_ml import agc, templates
from agc_ml.fitconfig import Config
from agc_ml.fitresult import CrossSection
from agc_ml.results import RunResult
from agc_ml.variations import NOMINAL

SYMBOLS: Final = {"ttbar": "tt"}
"""How processes are written in results, where that is not their name."""


def measured_cross_section(source: Any, settings: Config) -> CrossSection | None:
    """The predicted cross-section that the parameter of interest multiplies; None if not known.

    It is known where that parameter scales the sample of one process alone, whose templates were
    scaled to a stated cross-section: in a run (`RunResult.scales`), or the published histograms.
    """
    poi = settings["General"]["POI"]
    factor = next(item for item in settings["NormFactors"] if item["Name"] == poi)
    given = factor.get("Samples", [])
    names = [given] if isinstance(given, str) else given
    scaled = {
        str(sample.get("SamplePath"))
        for sample in settings["Samples"]
        if not sample.get("Data", False) and (not names or sample["Name"] in names)
    }
    if len(scaled) != 1:
        return None
    process = scaled.pop()
    predicted = _predicted(source).get(process)
    if predicted is None:
        return None
    return CrossSection(process, SYMBOLS.get(process, process), predicted)


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
        return agc.CROSS_SECTIONS
    return {}
