"""Workspaces that people bring: pyhf's JSON, and patches that add a signal to one without.

A patch is a JSON patch (RFC 6902), or one of a patch set as HEPData has them, by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agc_ml.errors import FitError, UsageError
from agc_ml.likelihood import quiet
from agc_ml.unreachable import without_unreachable
from agc_ml.workspace import Workspace

WORKSPACE = {"channels", "measurements", "observations"}
"""Fields of a pyhf workspace."""


class Brought(NamedTuple):
    """A workspace from a file; ``inputs`` are sha256 digests of what it was made of."""

    workspace: Workspace
    inputs: dict[str, str]


def is_workspace(path: Path) -> bool:
    """Whether a file is a pyhf workspace, good or bad."""
    content = _content(path)
    return isinstance(content, dict) and len(WORKSPACE & content.keys()) > 1


def is_patch(path: Path) -> bool:
    """Whether a file is a JSON patch, or a set of them."""
    content = _content(path)
    if isinstance(content, dict):
        return {"patches", "metadata"} <= content.keys()
    return isinstance(content, list) and all(
        isinstance(one, dict) and {"op", "path"} <= one.keys() for one in content
    )


def _content(path: Path) -> Any:
    """Content of a JSON file; None where it is none, which others tell of."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read(path: str | Path, patch: str | None = None) -> Brought:
    """Read a pyhf workspace, of which the first measurement counts.

    ``patch`` is a file with a JSON patch, or ``FILE:NAME`` for one of a patch set.

    Raises
    ------
    UsageError
        There is no such file, or a patch set needs a name.
    FitError
        A file is damaged or is something else, the patch is for another workspace, or the workspace
        has nothing to measure.
    """
    file = Path(path)
    spec = _json(file, "a pyhf workspace")
    if not isinstance(spec, dict):
        raise FitError(f"{file}: not a pyhf workspace, which is an object of JSON")
    inputs = {"workspace": _digest(file)}
    if patch is not None:
        spec = _patched(spec, patch, file)
        inputs["patch"] = _digest(_split(patch)[0])
    _check(spec, file)
    edges = {
        channel["name"]: np.arange(len(channel["samples"][0]["data"]) + 1.0)
        for channel in spec["channels"]
    }
    observed = {one["name"]: np.asarray(one["data"], np.float64) for one in spec["observations"]}
    reachable = without_unreachable(spec, edges)
    return Brought(
        Workspace(
            spec=reachable.spec,
            edges=edges,
            observed=observed,
            kept=reachable.kept,
            templates={},
            data="data",
            notes=(*_notes(spec), *reachable.notes),
        ),
        inputs,
    )


def patch_names(path: Path) -> list[str]:
    """Names of the patches of a set; empty for a single patch.

    Raises
    ------
    FitError
        It is neither.
    """
    content = _json(path, "a patch")
    if isinstance(content, list):
        return []
    return [patch.name for patch in _patch_set(content, path)]


def _patched(spec: Mapping[str, Any], patch: str, file: Path) -> dict[str, Any]:
    import jsonpatch  # noqa: PLC0415 - comes with pyhf
    import pyhf.exceptions as problems  # noqa: PLC0415 - heavy

    path, name = _split(patch)
    content = _json(path, "a patch")
    if isinstance(content, list):
        if name:
            raise UsageError(f"{path}: one patch, not a set with names such as {name!r}")
        chosen = jsonpatch.JsonPatch(content)
    else:
        patches = _patch_set(content, path)
        known = ", ".join(one.name for one in patches)
        if not name:
            raise UsageError(f"{path}: a set of patches; say which: {path}:NAME, one of {known}")
        try:
            chosen = patches[name]
        except problems.InvalidPatchLookup as error:
            raise UsageError(f"{path}: no patch {name!r} in it; there are {known}") from error
        try:
            with quiet():
                patches.verify(spec)
        except problems.PatchSetVerificationError as error:
            raise FitError(
                f"{path}: made for another workspace than {file}: its digest is another one"
            ) from error
    try:
        patched: dict[str, Any] = chosen.apply(spec)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        reason = " ".join(str(error).split())
        raise FitError(f"{path}: can't be applied to {file} ({reason})") from error
    return patched


def _split(patch: str) -> tuple[Path, str]:
    """File and name of ``FILE:NAME``, or of a file that is there as it is written."""
    if Path(patch).is_file():
        return Path(patch), ""
    file, colon, name = patch.rpartition(":")
    return (Path(file), name) if colon else (Path(patch), "")


def _patch_set(content: Any, path: Path) -> Any:
    import pyhf  # noqa: PLC0415 - heavy

    try:
        with quiet():
            return pyhf.PatchSet(content)
    except (pyhf.exceptions.InvalidSpecification, pyhf.exceptions.InvalidPatchSet) as error:
        raise FitError(f"{path}: not a set of patches ({_line(error)})") from error


def _check(spec: Mapping[str, Any], file: Path) -> None:
    """Make sure that pyhf takes the workspace, and that it has something to measure."""
    import pyhf  # noqa: PLC0415 - heavy

    try:
        with quiet():
            workspace = pyhf.Workspace(spec)
            workspace.get_measurement()
    except (
        pyhf.exceptions.InvalidSpecification,
        pyhf.exceptions.InvalidMeasurement,
        pyhf.exceptions.InvalidNameReuse,
    ) as error:
        raise FitError(f"{file}: not a workspace that pyhf takes ({_line(error)})") from error
    data = {one["name"]: one["data"] for one in spec["observations"]}
    for channel in spec["channels"]:
        name = channel["name"]
        if name not in data:
            raise FitError(f"{file}: channel {name!r} has no observations")
        sizes = {len(sample["data"]) for sample in channel["samples"]} | {len(data[name])}
        if len(sizes) > 1:
            raise FitError(
                f"{file}: channel {name!r}: samples and observations have {sorted(sizes)} bins"
            )
        bad = [count for count in data[name] if not count >= 0]
        if bad:
            raise FitError(f"{file}: channel {name!r}: the data are {bad[0]:g} in a bin")
    poi = spec["measurements"][0]["config"]["poi"]
    if poi not in _modifiers(spec):
        raise FitError(
            f"{file}: its parameter of interest {poi!r} changes nothing: a workspace of background "
            "only, to which --patch FILE[:NAME] adds a signal"
        )


def _modifiers(spec: Mapping[str, Any]) -> set[str]:
    return {
        modifier["name"]
        for channel in spec["channels"]
        for sample in channel["samples"]
        for modifier in sample["modifiers"]
    }


def _notes(spec: Mapping[str, Any]) -> Iterator[str]:
    first, *others = spec["measurements"]
    if others:
        yield (
            f"fitted is the measurement {first['name']}, the first of {len(others) + 1}: the "
            f"others are {', '.join(one['name'] for one in others)}"
        )
    known = _modifiers(spec)
    unknown = [one["name"] for one in first["config"]["parameters"] if one["name"] not in known]
    if unknown:
        yield f"settings of parameters that the model does not have: {', '.join(unknown)}"


def _json(path: Path, what: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {what} is a JSON file")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise FitError(f"{path}: can't be read as JSON ({_line(error)})") from error


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
