"""Recognition and checks of files and folders, for ``agc-ml validate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import AgcError, InputFileError
from agc_ml.execution.inspection import FileInfo, inspect_file
from agc_ml.execution.state.run_state import file_label
from agc_ml.inputs.datasets import EVENTS, File
from agc_ml.inputs.fileset import Fileset
from agc_ml.inputs.folders import is_root_file
from agc_ml.inputs.loading import is_described, is_list, read_mapping
from agc_ml.inputs.paths import split_tree
from agc_ml.models.cards import CARD
from agc_ml.models.loading import load_model, scoring_notes
from agc_ml.results import pseudodata_choice, templates
from agc_ml.results.run_result import RunResult
from agc_ml.simulation import manifest
from agc_ml.simulation.manifest import MANIFEST
from agc_ml.statistics import fit
from agc_ml.statistics.workspace import fit_inputs, histfactory
from agc_ml.training import training_set
from agc_ml.transports.base import scheme

MODELS: Final = (".onnx", ".ubj", ".keras", ".h5", ".pkl", ".pickle", ".joblib")
"""Endings of models, and of files often mistaken for one."""
RUN: Final = ("run.json", "ledger.jsonl", "histograms.root", "chunks")
"""Names that only a run directory contains."""
_PROTOCOLS: Final = {"file", "root", "roots", "xroot", "xroots", "http", "https"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``kind`` of a path, and a ``summary`` of its content or its ``problem``."""

    path: Path
    kind: str
    summary: str
    problem: str | None


def validate(path: Path) -> Verdict:
    """Recognise and check a fileset, generated set, fit configuration, model, run, and so on.

    Local files of a fileset are opened too, so that a good fileset can be run.
    """
    try:
        file, tree = split_tree(str(path))
        if not path.exists() and (tree is None or not Path(file).is_file()):
            return Verdict(path, "nothing", "", "no such file or folder")
        if path.exists() and not path.is_dir() and not path.is_file():
            return Verdict(path, "nothing", "", "neither a file nor a folder, but a pipe or device")
        kind, summarise = _recognise_for_pyhf(path) or _recognise(path)
    except OSError as error:
        return Verdict(path, "nothing", "", f"can't be read ({error.strerror or error})")
    try:
        return Verdict(path, kind, summarise(path), None)
    except AgcError as error:
        return Verdict(path, kind, "", str(error))


def _recognise(path: Path) -> tuple[str, Callable[[Path], str]]:
    if path.is_dir() or path.name == MANIFEST:
        return _recognise_folder(path)
    by_ending = dict.fromkeys(MODELS, ("model", _model))
    by_ending[".parquet"] = ("training set", _training_set)
    if path.suffix.lower() in by_ending:
        return by_ending[path.suffix.lower()]
    if is_list(path):
        return "fileset", _fileset
    if not is_described(path):
        return _recognise_root_file(path)
    try:
        content = read_mapping(path)
    except AgcError:
        return "fileset", _fileset  # reports the problem
    # first: datasets may have any names, also those of other formats
    return ("fileset", _fileset) if _is_fileset(path) else _recognise_content(content)


def _recognise_for_pyhf(path: Path) -> tuple[str, Callable[[Path], str]] | None:
    if histfactory.is_workspace(path):
        return "pyhf workspace", histfactory.describe
    return ("pyhf patch", histfactory.describe_patch) if histfactory.is_patch(path) else None


def _recognise_root_file(path: Path) -> tuple[str, Callable[[Path], str]]:
    try:
        _events(path)
    except AgcError:
        try:
            templates.load(path)
        except AgcError:
            # a ROOT file without histograms should have events
            is_of_events = is_root_file(split_tree(str(path))[0])
            return ("event file", _events) if is_of_events else ("histograms", _histograms)
        return "histograms", _histograms
    return "event file", _events


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
    is_run = any((path / name).exists() for name in RUN)
    if not is_run and _is_fileset(path):
        return "fileset", _fileset
    if any((path / name).exists() for name in (*CARD, "model_even.json")):
        return "model", _model
    return ("run directory", _run) if is_run else ("fileset", _fileset)


def _is_fileset(path: Path) -> bool:
    try:
        Fileset.load(path)
    except AgcError:
        return False
    return True


def _run(path: Path) -> str:
    result = RunResult.load(path)
    pseudodata_choice.load(path)
    return f"{result.status}, {result.metrics.events:,} events, {len(result.templates)} histograms"


def _generated(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    made = manifest.load(folder)
    manifest.verify(folder, made)
    events = sum(dataset.events for dataset in made.datasets.values())
    return f"{len(made.datasets)} datasets, {events:,} events"


def _model(path: Path) -> str:
    model = load_model(path)
    first, *others = model.members
    parts = f"two models of {first.n_features}" if others else f"{first.n_features}"
    notes = "".join(f"; {note}" for note in scoring_notes(model))
    return f"{model.name}, version {model.version}: {parts} features{notes}"


def _training_set(path: Path) -> str:
    training = training_set.load(path)
    even = int(training.is_even.sum())
    return (
        f"{training.task}, {even:,} even and {len(training) - even:,} odd events of "
        f"{training.features.shape[1]} rows, digest {training.digest[:12]}"
    )


def _events(path: Path) -> str:
    name, tree = (str(path), None) if path.exists() else split_tree(str(path))
    file = File(name, (str(Path(name).absolute()),), tree or EVENTS)
    info = inspect_file(file, ())
    if not isinstance(info, FileInfo):
        raise InputFileError(f"{name}: {info.reason}")
    if not info.entries:
        raise InputFileError(f"{name}: no events in {file.tree}")
    return f"{info.entries:,} events in {file.tree}"


def _fileset(path: Path) -> str:
    fileset = Fileset.load(path)
    n_remote = _open_local_files(fileset)
    remote = f", {n_remote:,} of them on servers and not opened" if n_remote else ""
    return f"{len(fileset.datasets)} datasets, {fileset.n_files:,} files{remote}"


def _open_local_files(fileset: Fileset) -> int:
    """Open local files as a run does; return the number of files that are only on servers.

    Raises
    ------
    InputFileError
        Files can't be read, differ from the fileset, or have no events at all.
    FilesetError
        Two are the same file, so that events would count twice.
    """
    problems: list[str] = []
    n_remote = n_events = 0
    datasets = []
    for dataset in fileset.datasets:
        files = []
        for file in dataset.files:
            usable = tuple(url for url in file.replicas if _is_known(scheme(url)))
            if not usable:
                problems.append(f"{file_label(dataset, file)}: unknown protocol")
            elif any(scheme(url) != "file" for url in usable):
                n_remote += 1
                files.append(file)
            else:
                info = inspect_file(replace(file, replicas=usable), ())
                if isinstance(info, FileInfo):
                    files.append(replace(file, uuid=info.uuid))
                    n_events += info.entries
                else:
                    problems.append(f"{file_label(dataset, file)}: {info.reason}")
        if not problems:
            datasets.append(replace(dataset, files=tuple(files)))
    # all files are opened before the first problem is reported
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise InputFileError(f"{problems[0]}{more}")
    replace(fileset, datasets=tuple(datasets))  # rejects a file that is listed twice
    if not n_remote and not n_events:
        raise InputFileError(f"dataset {datasets[0].name}: no events in it, nor in any other")
    return n_remote


def _is_known(kind: str) -> bool:
    """Return whether files of a protocol can be opened."""
    import fsspec  # noqa: PLC0415 - heavy

    try:
        return kind in _PROTOCOLS or fsspec.get_filesystem_class(kind) is not None
    except (ValueError, ImportError):
        return False


def _configuration(path: Path) -> str:
    config = fit.load_config(path)
    fit_inputs.needs(config)
    return f"{len(config['Regions'])} regions, {len(config['Samples'])} samples"


def _fit(path: Path) -> str:
    return str(fit.load(path))


def _histograms(path: Path) -> str:
    histograms = templates.load(path)
    templates.check(histograms)
    return f"{len(histograms)} histograms"
