"""What decides a result, written down: code, versions, inputs."""

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

from agc_ml.execution.processor.code_identity import version_of
from agc_ml.execution.processor.loading import Shipment
from agc_ml.execution.state.run_state import Account
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
    *("agc-ml", "awkward", "boost-histogram", "coffea", "correctionlib", "dask"),
    *("distributed", "hist", "numba", "numpy", "uproot"),
)


SCORING: Final = {"xgboost": "xgboost", "onnx": "onnxruntime"}
"""Packages that score models, by format; forests do without xgboost."""


@functools.cache
def _installed() -> Mapping[str, str]:
    return {name: version(name) for name in PACKAGES}


def versions(models: Iterable[Model] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that decide results, also those that score models."""
    scoring = {SCORING[model.format] for model in models if model.format in SCORING}
    found = dict(_installed())
    found |= {
        name: installed.rpartition(" ")[2]  # xgboost's distribution may be xgboost-cpu
        for name in sorted(scoring)
        if (installed := version_of(name))
    }
    return {"python": platform.python_version(), **found}


def _digests(models: Iterable[Model]) -> dict[str, str]:
    """The sha256 of each model, by name and version; and digest, where these are not enough."""
    found: dict[str, str] = {}
    for model in models:
        key = f"{model.name}@{model.version}"
        if found.setdefault(key, model.sha256) != model.sha256:
            found[f"{key} ({model.sha256[:12]})"] = model.sha256
    return found


def processor_summary(shipment: Shipment) -> ProcessorSummary:
    """Name, parameters and digest of the code."""
    return ProcessorSummary(name=shipment.name, parameters=shipment.parameters, code=shipment.code)


def differences(
    before: Provenance, shipment: Shipment, fileset: Fileset, *, of_chunks: bool = False
) -> list[str]:
    """Say what a run was made with that is something else now, a few words each.

    ``of_chunks``: also what decides only whether its finished chunks can be used.
    """
    now = processor_summary(shipment)
    # as text, in which 1 is not 1.0, and the order of dictionaries counts
    values = [{k: json.dumps(v, default=repr) for k, v in one.parameters.items()}
              for one in (before.processor, now)]  # fmt: skip
    found = []
    if before.processor.code != now.code and before.processor.name != now.name:
        found.append(f"processor {before.processor.name}, now {now.name}")
    for name in dict.fromkeys([*values[0], *values[1]]):
        old, new = (one.get(name, "not set")[:_SHOWN] for one in values)
        if values[0].get(name) != values[1].get(name):
            found.append(f"{name}={old}, now {new}")
    if before.processor.code != now.code and not found:
        found.append("the code of the processor, or of what it refers to")
    if before.fileset != fileset.digest:
        found.append(_other_fileset(before, fileset))
    if of_chunks:
        old_versions, new_versions = before.versions, versions(shipment.models)
        names = [n for n in new_versions if old_versions.get(n) != new_versions[n]]
        found += [f"{n} {old_versions.get(n, 'none')}, now {new_versions[n]}" for n in names]
        if before.files != dict(shipment.files):
            found.append("files that the processor declares")
        if before.models != _digests(shipment.models):
            found.append("its models")
    return found


_SHOWN: Final = 60


def _other_fileset(before: Provenance, fileset: Fileset) -> str:
    """Say in what a fileset differs from the one of a run, as far as that says what it had."""
    old = {dataset.name: dataset.files for dataset in before.datasets}
    new = {dataset.name: len(dataset.files) for dataset in fileset.datasets}
    gone, come = (", ".join(sorted(a.keys() - b.keys())) for a, b in ((old, new), (new, old)))
    if gone or come:
        parts = [f"without {gone}" if gone else "", f"with {come}" if come else ""]
        return f"another fileset ({', '.join(part for part in parts if part)})"
    for name, number in new.items():
        if old[name] != number:
            return f"another fileset ({name}: {old[name]} files, now {number})"
    return "another fileset (other files, numbers or metadata)"


def deciding(shipment: Shipment) -> dict[str, Any]:
    """All that decides the output of a chunk, but for the chunk itself."""
    return {
        "parameters": shipment.parameters,
        "code": shipment.of_chunks,
        "files": dict(shipment.files),
        "schema": shipment.schema
        and f"{shipment.schema.__module__}.{shipment.schema.__qualname__}",
        "versions": versions(shipment.models),
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


def _label(account: Account) -> str | None:
    """Label of the events: as the fileset says, but never others' where files say otherwise."""
    told = [info.is_generated for info in account.files.values()]
    generated = "none" if not any(told) else "all" if all(told) else "some"
    return agc_published.whose(account.fileset.label, generated=generated)


def collect(
    account: Account, where: ClusterSummary, start: datetime, command: tuple[str, ...]
) -> Provenance:
    """Put together the provenance of a run, as of now."""
    shipment, fileset = account.shipment, account.fileset
    module = sys.modules.get(shipment.module or type(shipment.processor).__module__)
    return Provenance(
        fileset=fileset.digest,
        luminosity=fileset.luminosity,
        label=_label(account),
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
                    info.entries
                    for file in dataset.files
                    if (info := account.files.get((dataset.name, file.lfn))) is not None
                ),
            )
            for dataset in fileset.datasets
        ),
        processor=processor_summary(shipment),
        files=dict(shipment.files),
        opened={path: OpenedFile(**asdict(one)) for path, one in sorted(account.opened.items())},
        models=_digests(shipment.models),
        versions=versions(shipment.models),
        git=git_state(getattr(module, "__file__", None)),
        cluster=where,
        chunk_size=account.chunk_size,
        start=start.isoformat(timespec="seconds"),
        stop=datetime.now(UTC).isoformat(timespec="seconds"),
        command=tuple(redacted(word) for word in command),
    )
