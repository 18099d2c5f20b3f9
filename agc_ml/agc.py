"""Published inputs of the Analysis Grand Challenge: cross-sections, luminosity, sizes of its files.

Source of all: the CMS Open Data ttbar analysis of the IRIS-HEP Analysis Grand Challenge, version 2
(https://github.com/iris-hep/analysis-grand-challenge, analyses/cms-open-data-ttbar).
"""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from typing import Final

from agc_ml.errors import FilesetError
from agc_ml.variations import NOMINAL

SOURCE: Final = "IRIS-HEP Analysis Grand Challenge, CMS Open Data ttbar, version 2"

LUMINOSITY: Final = 3378.0
"""Integrated luminosity of the analysed data, in 1/pb."""

CROSS_SECTIONS: Final[dict[str, float]] = {
    "ttbar": 729.84,  # 396.87 not all-hadronic + 332.97 all-hadronic; the same for all variations
    "single_top_s_chan": 3.2944,  # top 2.0268 + antitop 1.2676
    "single_top_t_chan": (36.993 + 22.175) / 0.252,  # from one lepton's flavour to all decays
    "single_top_tW": 75.842,  # top 37.936 + antitop 37.906
    "wjets": 15487.164,  # 61457 x 0.252: the part with an electron or muon
}
"""Cross-section of each process, in pb."""


@cache
def _published() -> dict[str, dict[str, tuple[int, ...]]]:
    file = importlib.resources.files("agc_ml") / "data" / "agc_entries.json"
    content = json.loads(file.read_text(encoding="utf-8"))["entries"]
    return {
        process: {variation: tuple(numbers) for variation, numbers in variations.items()}
        for process, variations in content.items()
    }


def variations(process: str) -> tuple[str, ...]:
    """Variations of ``process`` that are datasets of their own, nominal first.

    Raises
    ------
    FilesetError
        The process is not one of the published ones.
    """
    if process not in _published():
        known = ", ".join(_published())
        raise FilesetError(f"process {process!r} is not one of the published ones ({known})")
    return tuple(_published()[process])


def entries(process: str, variation: str = NOMINAL) -> tuple[int, ...]:
    """Numbers of entries of the published files of a dataset, in their published order.

    Raises
    ------
    FilesetError
        The process, or its variation, is not one of the published ones.
    """
    if variation not in variations(process):
        known = ", ".join(variations(process))
        raise FilesetError(f"{process} has no published dataset {variation!r}, only {known}")
    return _published()[process][variation]


def event_weight(process: str, variation: str, files: int) -> float:
    """Weight of an event when the first ``files`` files of a published dataset are used.

    It is cross-section x luminosity / number of entries; generator weights are ignored. A dataset
    of fewer files is used whole.

    Raises
    ------
    FilesetError
        The process, or its variation, is not one of the published ones.
    """
    return CROSS_SECTIONS[process] * LUMINOSITY / sum(entries(process, variation)[:files])
