"""Total uncertainty of a fit's model before the fit, in the bins that figures show.

A figure of a region has all bins of its histogram, the fit merges some and drops others. So the
model of the same samples and uncertainties is built from the histograms with their own binning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray

from agc_ml.analysis import Pseudodata
from agc_ml.statistics.fit_model import FitModel
from agc_ml.statistics.unfitted_observables import Observables, extended, raised_by_offset
from agc_ml.statistics.workspace.fit_config import Config
from agc_ml.statistics.workspace.workspace import prepare

_Array = NDArray[np.float64]


def total_uncertainty(
    templates: Mapping[str, hist.Hist[Any]],
    settings: Config,
    observables: Observables | None,
    recipe: Pseudodata | None,
) -> dict[str, _Array]:
    """Total pre-fit uncertainty of each region and observable of a fit, by its name in histograms.

    Shape ``(n_bins,)``, in events: all systematic uncertainties and the statistics of the
    simulation.

    Raises
    ------
    FitError, HistogramError
        Templates and configuration don't fit together.
    """
    # the regions of the fit, with all bins of their histograms
    paths = [str(region["RegionPath"]) for region in settings["Regions"]]
    whole = [
        {key: value for key, value in region.items() if key != "Binning"}
        for region in settings["Regions"]
    ]
    names = dict(zip([region["Name"] for region in whole], paths, strict=True))
    config: dict[str, Any] = {**settings, "Regions": whole}
    if observables is not None:
        # and the observables of its events that have histograms
        present = [
            name
            for name in (*observables.histograms, *observables.drawn)
            if name not in paths and any(key.startswith(f"{name}_") for key in templates)
        ]
        added = [{"Name": name, "RegionPath": name} for name in present]
        config = extended(config, added, observables.region)
        names |= {name: name for name in present}
    raised = {
        key: raised_by_offset(h)
        for key, h in templates.items()
        if key.startswith(tuple(f"{name}_" for name in names.values()))
    }
    model = FitModel.of(prepare(raised, config, recipe))
    return {names[one.yields.region]: one.yields.uncertainty for one in model.predict()}
