"""agc-ml: a distributed analysis framework for the Analysis Grand Challenge.

::

    import agc_ml as agc

    fileset = agc.Fileset.load("fileset.json").limit(files=1)
    with agc.connect("local", workers=4) as client:
        result = agc.run("mine.py:Mine", fileset, client=client, output="runs/first")
    fit = agc.fit(result, "fit.yml")

Names are imported when they are first used, so importing this costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agc_ml import _moved
from agc_ml._version import __version__

if TYPE_CHECKING:
    from agc_ml.columnar.events import blocks
    from agc_ml.errors import AgcError
    from agc_ml.execution.cluster.clusters import connect
    from agc_ml.execution.plan import plan
    from agc_ml.execution.run import run
    from agc_ml.inputs.datasets import Dataset, File
    from agc_ml.inputs.fileset import Fileset
    from agc_ml.inputs.variations import NOMINAL
    from agc_ml.measurement.cross_section import measure
    from agc_ml.models.loading import load_model
    from agc_ml.models.model import Batches, Bundle, Model
    from agc_ml.results.histograms import DenseHist, book, materialised
    from agc_ml.results.run_result import RunResult
    from agc_ml.results.tables import ColumnTable
    from agc_ml.results.templates import compare
    from agc_ml.statistics.fit import FitResult, fit
    from agc_ml.training.client import connect_training

__all__ = [
    "NOMINAL",
    "AgcError",
    "Batches",
    "Bundle",
    "ColumnTable",
    "Dataset",
    "DenseHist",
    "File",
    "Fileset",
    "FitResult",
    "Model",
    "RunResult",
    "__version__",
    "blocks",
    "book",
    "compare",
    "connect",
    "connect_training",
    "fit",
    "load_model",
    "materialised",
    "measure",
    "plan",
    "run",
]

HOMES: dict[str, str] = {
    "NOMINAL": "inputs.variations",
    "AgcError": "errors",
    "Batches": "models.model",
    "Bundle": "models.model",
    "ColumnTable": "results.tables",
    "Dataset": "inputs.fileset",
    "DenseHist": "results.histograms",
    "File": "inputs.fileset",
    "Fileset": "inputs.fileset",
    "FitResult": "statistics.fit",
    "Model": "models.model",
    "RunResult": "results.run_result",
    "blocks": "columnar.events",
    "book": "results.histograms",
    "compare": "results.templates",
    "connect": "execution.cluster.clusters",
    "connect_training": "training.client",
    "fit": "statistics.fit",
    "load_model": "models.loading",
    "materialised": "results.histograms",
    "measure": "measurement.cross_section",
    "plan": "execution.plan",
    "run": "execution.run",
}


_moved.install()


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'agc_ml' has no attribute {name!r}")
    return getattr(import_module(f"agc_ml.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
