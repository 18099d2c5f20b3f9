"""Provenance of a result: code, versions, inputs."""

from __future__ import annotations

import functools
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from agc_ml._version import __version__
from agc_ml.execution.code.source_files import version_of
from agc_ml.execution.processor.loading import LoadedProcessor
from agc_ml.execution.state.run_state import RunState
from agc_ml.inputs import agc_published
from agc_ml.inputs.fileset import Fileset
from agc_ml.models.model import Model
from agc_ml.results.run_record import (
    ClusterSummary,
    DatasetSummary,
    GitState,
    OpenedFile,
    ProcessorSummary,
    Provenance,
)
from agc_ml.transports.credentials import redacted

PACKAGES: Final = (
    "awkward",
    "boost-histogram",
    "coffea",
    "correctionlib",
    "dask",
    "distributed",
    "hist",
    "numba",
    "numpy",
    "uproot",
)


SCORING: Final = {"xgboost": "xgboost", "onnx": "onnxruntime"}
"""Packages that score models, by format; forests need none."""


@functools.cache
def _installed() -> Mapping[str, str]:
    return {"agc-ml": __version__, **{name: version(name) for name in PACKAGES}}


def versions(models: Iterable[Model] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that decide results, also those that score models."""
    scoring = {SCORING[model.format] for model in models if model.format in SCORING}
    scorers = {
        name: installed.rpartition(" ")[2]  # xgboost's distribution may be xgboost-cpu
        for name in sorted(scoring)
        if (installed := version_of(name))
    }
    return {"python": platform.python_version(), **_installed(), **scorers}


def _digests(models: Iterable[Model]) -> dict[str, str]:
    """The sha256 of each model, by name and version, and by digest where two have the same."""
    digests: dict[str, str] = {}
    for model in models:
        key = f"{model.name}@{model.version}"
        if digests.setdefault(key, model.sha256) != model.sha256:
            digests[f"{key} ({model.sha256[:12]})"] = model.sha256
    return digests


def processor_summary(loaded: LoadedProcessor) -> ProcessorSummary:
    """Name, parameters and digest of the code."""
    return ProcessorSummary(name=loaded.name, parameters=loaded.parameters, code=loaded.code)


def differences(
    before: Provenance, loaded: LoadedProcessor, fileset: Fileset, *, of_chunks: bool = False
) -> list[str]:
    """Differences of a run's processor, parameters and fileset from those of now, a few words each.

    With ``of_chunks`` also of things that decide only whether its finished chunks can be used.
    """
    now = processor_summary(loaded)
    # as text, in which 1 is not 1.0, and the order of dictionaries counts
    old_values, new_values = (
        {name: json.dumps(value, default=repr) for name, value in summary.parameters.items()}
        for summary in (before.processor, now)
    )
    found = []
    if before.processor.code != now.code and before.processor.name != now.name:
        found.append(f"processor {before.processor.name}, now {now.name}")
    for name in old_values | new_values:
        old, new = (values.get(name, "not set") for values in (old_values, new_values))
        if old_values.get(name) != new_values.get(name):
            found.append(f"{name}={old[:_SHOWN]}, now {new[:_SHOWN]}")
    if before.processor.code != now.code and not found:
        found.append("the code of the processor, of agc-ml, or of a value that it refers to")
    if before.fileset != fileset.digest:
        found.append(_other_fileset(before, fileset))
    if of_chunks:
        old_versions, new_versions = before.versions, versions(loaded.models)
        names = [n for n in new_versions if old_versions.get(n) != new_versions[n]]
        found += [f"{n} {old_versions.get(n, 'none')}, now {new_versions[n]}" for n in names]
        if before.files != dict(loaded.files):
            found.append("files that the processor declares")
        if before.models != _digests(loaded.models):
            found.append("its models")
    return found


_SHOWN: Final = 60


def _other_fileset(before: Provenance, fileset: Fileset) -> str:
    """Difference of a fileset from the one of a run, as far as the record has it."""
    old = {dataset.name: dataset.files for dataset in before.datasets}
    new = {dataset.name: len(dataset.files) for dataset in fileset.datasets}
    removed, added = (", ".join(sorted(a.keys() - b.keys())) for a, b in ((old, new), (new, old)))
    if removed or added:
        parts = [f"without {removed}" if removed else "", f"with {added}" if added else ""]
        return f"another fileset ({', '.join(part for part in parts if part)})"
    for name, number in new.items():
        if old[name] != number:
            return f"another fileset ({name}: {old[name]} files, now {number})"
    return "another fileset (other files, numbers or metadata)"


def deciding(loaded: LoadedProcessor) -> dict[str, Any]:
    """Everything that decides the output of a chunk, without the chunk itself."""
    return {
        "parameters": loaded.parameters,
        "code": loaded.identity.chunks,
        "files": dict(loaded.files),
        "schema": loaded.schema and f"{loaded.schema.__module__}.{loaded.schema.__qualname__}",
        "versions": versions(loaded.models),
    }


def git_state(file: str | None) -> GitState | None:
    """Commit and cleanliness of the checkout that tracks ``file``; None if none does."""
    if file is None:
        return None
    folder = Path(file).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(file).name)
        commit = _git(folder, "rev-parse", "HEAD")
        return GitState(commit=commit, dirty=bool(_git(folder, "status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 - no shell, fixed arguments
        ["git", "-C", str(folder), *arguments],  # noqa: S607 - the user's git
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
    )
    return done.stdout.strip()


def _label(state: RunState) -> str | None:
    """Label of the events: the fileset's, unless files say that agc-ml generated them."""
    flags = [info.is_generated for info in state.files.values()]
    generated = "none" if not any(flags) else "all" if all(flags) else "some"
    return agc_published.whose(state.fileset.label, generated=generated)


def collect(
    state: RunState, where: ClusterSummary, start: datetime, command: tuple[str, ...]
) -> Provenance:
    """Return the provenance of a run, as of now."""
    loaded, fileset = state.processor, state.fileset
    module = sys.modules.get(loaded.module or type(loaded.instance).__module__)
    return Provenance(
        fileset=fileset.digest,
        luminosity=fileset.luminosity,
        label=_label(state),
        datasets=tuple(
            DatasetSummary(
                name=dataset.name,
                process=dataset.process,
                variation=dataset.variation,
                is_data=dataset.is_data,
                xsec=dataset.xsec,
                process_xsec=dataset.process_xsec,
                files=len(dataset.files),
                events=sum(
                    info.entries for owner, _, info in state.inspected_files() if owner is dataset
                ),
            )
            for dataset in fileset.datasets
        ),
        processor=processor_summary(loaded),
        files=dict(loaded.files),
        opened={path: OpenedFile(**asdict(file)) for path, file in sorted(state.opened.items())},
        models=_digests(loaded.models),
        versions=versions(loaded.models),
        git=git_state(getattr(module, "__file__", None)),
        cluster=where,
        chunk_size=state.chunk_size,
        start=start.isoformat(timespec="seconds"),
        stop=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(redacted(word) for word in command),
    )
