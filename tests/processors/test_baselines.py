"""The measurement on kernels against the same one written with awkward records."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory
from places import ROOT
from test_ttbar import SAMPLE, SEEDS

from agc_ml.columnar.columns import Columns, directory
from agc_ml.columnar.stream import Stream
from agc_ml.delivery.opening import open_file
from agc_ml.inputs import loading
from agc_ml.inputs.columns import with_counters
from agc_ml.inputs.datasets import File
from agc_ml.models.loading import load_model
from agc_ml.results.histograms import materialised
from processors.ttbar import TtbarProcessor

sys.path.insert(0, str(ROOT))

from benchmarks.baselines.awkward_ttbar import AwkwardTtbar

NanoAODSchema.warn_missing_crossrefs = False


def of_kernels(path: Path, processor: TtbarProcessor, metadata: dict[str, Any]) -> dict[str, Any]:
    names = tuple(with_counters((*processor.columns, *processor.simulation_columns)))
    with open_file(File(str(path), (str(path),))) as file:
        found, _ = directory(file, "Events", names)
        columns = Columns(file, "Events", found)
        stop = file["Events"].num_entries
        return materialised(processor.process(Stream(columns, 0, stop, metadata)))


def of_records(path: Path, processor: AwkwardTtbar, metadata: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what the schema leaves out
        events = NanoEventsFactory.from_root(
            {str(path): "Events"}, mode="virtual", metadata=metadata
        ).events()
        return processor.process(events)


def boosters(real_data: Path) -> dict[str, Any]:
    """Published models, by the parity of the events that they score."""
    import xgboost  # noqa: PLC0415 - heavy

    found = {}
    for scored, trained in (("even", "odd"), ("odd", "even")):
        found[scored] = xgboost.Booster()
        found[scored].load_model(real_data / f"model_{trained}.json")
        found[scored].set_param({"nthread": 1})
    return found


@pytest.mark.parametrize("process", ["ttbar", "wjets"])
@pytest.mark.parametrize("variation", ["nominal", "ME_var"])
def test_every_bin_of_generated_events_is_the_same(
    process: str, variation: str, real_data: Path
) -> None:
    path = loading.demo().parent / f"{process}__nominal.root"
    metadata = {"dataset": "d", "process": process, "variation": variation, "filename": "f"}
    ours = of_kernels(path, TtbarProcessor(compat=True, model=load_model(real_data)), metadata)
    theirs = of_records(path, AwkwardTtbar(models=boosters(real_data)), metadata)
    assert len(theirs) == 22
    n_variations = (13 if process == "wjets" else 11) if variation == "nominal" else 1
    for name, histogram in theirs.items():
        assert len(histogram.axes["variation"]) == n_variations
        for one in histogram.axes["variation"]:
            found = ours[name][:, process, one]
            expected = histogram[:, process, one]
            for what in ("values", "variances"):
                np.testing.assert_allclose(
                    *(getattr(x, what)(flow=True) for x in (found, expected)), rtol=1e-9
                )
    assert theirs["4j2b"].sum(flow=True).value > 100


@pytest.mark.parametrize("process", ["ttbar", "wjets"])
def test_the_baseline_is_the_reference(process: str, real_data: Path) -> None:
    """Histograms of the reference implementation itself, all of them."""
    file = real_data / "reference" / f"{process}_nominal_{Path(SAMPLE).stem}.json"
    reference = json.loads(file.read_text())
    weight = reference["meta"]["xsec"] * reference["meta"]["lumi"] / reference["meta"]["nevts"]
    found = of_records(
        real_data / SAMPLE,
        AwkwardTtbar(models=boosters(real_data), seed=SEEDS[process]),
        {"process": process, "variation": "nominal"},
    )
    for name, content in {**reference["hist"], **reference["ml_hist"]}.items():
        for variation, expected in content["variations"].items():
            template = found[name][:, process, variation]
            np.testing.assert_allclose(
                template.values(flow=True) * weight, expected["values"], rtol=1e-9, atol=1e-9
            )
            np.testing.assert_allclose(
                template.variances(flow=True) * weight**2, expected["variances"], rtol=1e-9
            )
