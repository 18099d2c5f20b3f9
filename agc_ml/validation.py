"""What a file or folder is, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agc_ml.catalogue import FORMATS, read_mapping
from agc_ml.datasets import Fileset
from agc_ml.errors import AgcError
from agc_ml.generate import manifest
from agc_ml.generate.manifest import MANIFEST
from agc_ml.ml import cards
from agc_ml.results import RunResult

MODELS: Final = (".onnx", ".ubj", ".keras", ".h5", ".pkl", ".pickle", ".joblib")
"""Endings of models, and of what is mistaken for one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """``kind`` of a path, a ``summary`` of what is in it, or the ``problem`` it has."""

    path: Path
    kind: str
    summary: str
    problem: str | None


def validate(path: Path) -> Verdict:
    """Recognise and check filesets, generated sets, fit configurations, models, runs, and so on."""
    if not path.exists():
        return Verdict(path, "nothing", "", "no such file or folder")
    kind, summarise = _recognise(path)
    try:
        return Verdict(path, kind, summarise(path), None)
    except AgcError as error:
        return Verdict(path, kind, "", str(error))


def _recognise(path: Path) -> tuple[str, Callable[[Path], str]]:
    if path.is_dir() or path.name == MANIFEST:
        return _recognise_folder(path)
    if path.suffix in MODELS:
        return "model", _model
    if path.suffix == ".parquet":
        return "training set", _training_set
    if path.suffix.lower() not in FORMATS:
        return "histograms", _histograms
    try:
        content = read_mapping(path)
    except AgcError:
        return "fileset", _fileset  # which says what is wrong with it
    return _recognise_content(content)


def _recognise_content(content: Mapping[str, Any]) -> tuple[str, Callable[[Path], str]]:
    if "learner" in content or {"schema", "models"} <= content.keys():
        return "model", _model
    if {"poi", "parameters"} <= content.keys():
        return "fit", lambda path: _fit(path.parent)
    if all(isinstance(value, dict) and "contents" in value for value in content.values()):
        return "histograms", _histograms
    is_configuration = {"General", "Regions", "Samples"} & content.keys()
    return ("fit configuration", _configuration) if is_configuration else ("fileset", _fileset)


def _recognise_folder(path: Path) -> tuple[str, Callable[[Path], str]]:
    if path.name == MANIFEST or (path / MANIFEST).exists():
        return "generated set", _generated
    if (path / "fit.json").exists():
        return "fit", _fit
    is_model = any((path / name).exists() for name in (*cards.CARD, "model_even.json"))
    return ("model", _model) if is_model else ("run directory", _run)


def _run(path: Path) -> str:
    result = RunResult.load(path)
    return f"{result.status}, {result.metrics.events:,} events, {len(result.templates)} histograms"


def _generated(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    made = manifest.load(folder)
    manifest.verify(folder, made)
    events = sum(dataset.events for dataset in made.datasets.values())
    return f"{len(made.datasets)} datasets, {events:,} events"


def _model(path: Path) -> str:
    found = cards.load_model(path)
    first, *others = found.members
    parts = f"two models of {first.n_features}" if others else f"{first.n_features}"
    return f"{found.name}, version {found.version}: {parts} features"


def _training_set(path: Path) -> str:
    from agc_ml.training import trainingset  # noqa: PLC0415 - heavy

    found = trainingset.load(path)
    even = int(found.is_even.sum())
    return (
        f"{found.task}, {even:,} even and {len(found) - even:,} odd events of "
        f"{found.features.shape[1]} rows, digest {found.digest[:12]}"
    )


def _fileset(path: Path) -> str:
    found = Fileset.load(str(path))
    return f"{len(found.datasets)} datasets, {found.n_files:,} files"


def _configuration(path: Path) -> str:
    from agc_ml import stats  # noqa: PLC0415 - heavy

    config = stats.load_config(path)
    return f"{len(config['Regions'])} regions, {len(config['Samples'])} samples"


def _fit(path: Path) -> str:
    from agc_ml import stats  # noqa: PLC0415 - heavy

    poi = stats.load(path).poi
    return f"{poi.name} = {poi.value:.4f} ± {poi.uncertainty:.4f}"


def _histograms(path: Path) -> str:
    from agc_ml import templates  # noqa: PLC0415 - heavy

    found = templates.load(path)
    templates.check(found)
    return f"{len(found)} histograms"
