"""pyhf workspaces given as files, and patches that add a signal.

A patch is a JSON patch (RFC 6902), or one of a patch set as published on HEPData, by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from agc_ml import documents
from agc_ml.errors import FitError, UsageError
from agc_ml.statistics.likelihood.pyhf_model import model_and_data, quiet
from agc_ml.statistics.workspace.unreachable_bins import each_modifier, without_unreachable
from agc_ml.statistics.workspace.workspace import Workspace

WORKSPACE: Final = {"channels", "measurements", "observations"}
"""Fields of a pyhf workspace."""
OF_LUMI: Final = ("inits", "bounds", "auxdata", "sigmas")
"""Settings of a luminosity parameter, for which pyhf has no defaults."""


@contextmanager
def _refused(message: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of a library into one line: ``message``, and the library's reason."""
    try:
        yield
    except kinds as error:
        raise FitError(f"{message} ({_line(error)})") from error


def is_workspace(path: Path) -> bool:
    """Return whether a file is a pyhf workspace, good or bad."""
    content = _content(path)
    return isinstance(content, dict) and len(WORKSPACE & content.keys()) > 1


def is_patch(path: Path) -> bool:
    """Return whether a file is a JSON patch, or a set of them."""
    content = _content(path)
    if isinstance(content, dict):
        return {"patches", "metadata"} <= content.keys()
    return isinstance(content, list) and all(
        isinstance(one, dict) and {"op", "path"} <= one.keys() for one in content
    )


def _content(path: Path) -> Any:
    """Return the content of a JSON file; None if it is not one, which is reported elsewhere."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    try:
        return documents.json_of(documents.text(path))
    except (OSError, ValueError):
        return None


def read(path: str | Path, patch: str | None = None) -> tuple[Workspace, dict[str, str]]:
    """Read a pyhf workspace with its first measurement, and return it with digests of its files.

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
    inputs, name = {"workspace": _digest(file)}, str(file)
    if patch is not None:
        spec = _patched(spec, patch, file)
        inputs["patch"] = _digest(_split(patch)[0])
        name = f"{file} with {patch}"
    check(spec, name)
    poi = spec["measurements"][0]["config"]["poi"]
    if poi not in _modifiers(spec):
        raise FitError(
            f"{name}: its parameter of interest {poi!r} changes nothing: a workspace of background "
            "only, to which --patch FILE[:NAME] adds a signal"
        )
    edges = {
        channel["name"]: np.arange(len(channel["samples"][0]["data"]) + 1.0)
        for channel in spec["channels"]
    }
    observed = {one["name"]: np.asarray(one["data"], np.float64) for one in spec["observations"]}
    reachable = without_unreachable(spec, edges)
    workspace = Workspace(
        spec=reachable.spec,
        labels=dict.fromkeys(edges, "bin"),
        edges=edges,
        observed=observed,
        kept=reachable.kept,
        units=dict.fromkeys(edges, "Events"),
        templates={},
        data="data",
        is_closure=False,
        notes=(*_notes(spec), *reachable.notes),
    )
    return workspace, inputs


def describe(path: Path) -> str:
    """Check a workspace, and return a line about its content.

    Raises
    ------
    FitError
        pyhf does not take it.
    """
    spec = _json(path, "a pyhf workspace")
    check(spec, str(path))
    n_bins = sum(len(one["data"]) for one in spec["observations"])
    poi = spec["measurements"][0]["config"]["poi"]
    measures = f"measures {poi}"
    if poi not in _modifiers(spec):
        measures = f"of background only: a patch has to add what {poi} scales"
    return f"{len(spec['channels'])} regions, {n_bins} bins, {measures}"


def describe_patch(path: Path) -> str:
    """Check a patch or a patch set, and return a line about its content.

    Raises
    ------
    FitError
        The file holds neither.
    """
    content = _json(path, "a patch")
    if isinstance(content, list):
        _patch(content, path)
        return f"one patch of {len(content)} operations"
    patches = list(_patch_set(content, path))
    for one in patches:
        _patch(one.patch, path)
    return f"{len(patches)} patches: {', '.join(one.name for one in patches)}"


def _patch(operations: Any, path: Path) -> Any:
    import jsonpatch  # noqa: PLC0415 - comes with pyhf

    kinds = (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError)
    with _refused(f"{path}: not a JSON patch", *kinds):
        patch = jsonpatch.JsonPatch(operations)
        for operation in patch.patch:
            jsonpatch.JsonPointer(operation["path"])
    return patch


def _patched(spec: Any, patch: str, file: Path) -> Any:
    import jsonpatch  # noqa: PLC0415 - comes with pyhf
    import pyhf.exceptions as problems  # noqa: PLC0415 - heavy

    path, name = _split(patch)
    content = _json(path, "a patch")
    if isinstance(content, dict):
        patches = _patch_set(content, path)
        names = ", ".join(one.name for one in patches)
        if not name:
            raise UsageError(f"{path}: a set of patches; say which: {path}:NAME, one of {names}")
        try:
            chosen = patches[name]
        except problems.InvalidPatchLookup as error:
            raise UsageError(f"{path}: no patch {name!r} in it; there are {names}") from error
        try:
            with quiet():
                patches.verify(spec)
        except problems.PatchSetVerificationError as error:
            raise FitError(
                f"{path}: made for another workspace than {file}: its digest is another one"
            ) from error
        chosen = _patch(chosen.patch, path)
    elif name:
        raise UsageError(f"{path}: one patch, not a set with names such as {name!r}")
    else:
        chosen = _patch(content, path)
    kinds = (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError)
    with _refused(f"{path}: can't be applied to {file}", *kinds, AttributeError):
        return chosen.apply(spec)


def _split(patch: str) -> tuple[Path, str]:
    """File and name of ``FILE:NAME``, or of a file that is there as it is written."""
    if Path(patch).is_file():
        return Path(patch), ""
    file, colon, name = patch.rpartition(":")
    return (Path(file), name) if colon else (Path(patch), "")


def _patch_set(content: Any, path: Path) -> Any:
    import pyhf  # noqa: PLC0415 - heavy

    kinds = (pyhf.exceptions.InvalidSpecification, pyhf.exceptions.InvalidPatchSet)
    with _refused(f"{path}: not a set of patches", *kinds), quiet():
        return pyhf.PatchSet(content)


def check(spec: Any, name: str) -> None:
    """Reject a workspace that pyhf makes no model of, or would ignore a part of.

    Raises
    ------
    FitError
        The first problem; ``name`` names the workspace.
    """
    import pyhf  # noqa: PLC0415 - heavy

    if not isinstance(spec, dict):
        raise FitError(f"{name}: not a pyhf workspace, which is an object of JSON")
    kinds = (
        pyhf.exceptions.InvalidSpecification,
        pyhf.exceptions.InvalidMeasurement,
        pyhf.exceptions.InvalidNameReuse,
        pyhf.exceptions.InvalidWorkspaceOperation,
        IndexError,
    )
    try:
        with _refused(f"{name}: not a workspace that pyhf takes", *kinds), quiet():
            pyhf.Workspace(spec).get_measurement()
    except pyhf.exceptions.SchemaNotFound as error:
        version = spec.get("version")
        raise FitError(f"{name}: pyhf knows no workspaces of version {version!r}") from error
    problem = next(_problems(spec), None)
    if problem is not None:
        raise FitError(f"{name}: {problem}")
    # a workspace of background only may lack a signal that a patch adds
    if spec["measurements"][0]["config"]["poi"] in _modifiers(spec):
        _check_model(spec, name)


def _check_model(spec: Mapping[str, Any], name: str) -> None:
    kinds = (AssertionError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError)
    try:
        model_and_data(spec)
    except FitError as error:
        raise FitError(f"{name}: {error}") from error
    except kinds as error:
        reason = _line(error) or "channels share parameters of bins in a way that it does not know"
        raise FitError(f"{name}: pyhf makes no model of it ({reason})") from error


def _problems(spec: Mapping[str, Any]) -> Iterator[str]:
    """Problems that pyhf's schema lets pass, but that would be ignored or go wrong later."""
    names = [channel["name"] for channel in spec["channels"]]
    observed = [one["name"] for one in spec["observations"]]
    for name in dict.fromkeys((*names, *observed)):
        if names.count(name) != 1 or observed.count(name) != 1:
            yield (
                f"channel {name!r} is there {names.count(name)} times, and observations of it "
                f"{observed.count(name)} times; once each is needed"
            )
    data = {one["name"]: one["data"] for one in spec["observations"]}
    for channel in spec["channels"]:
        yield from _bad_channel(channel, data[channel["name"]])
    parameters = spec["measurements"][0]["config"]["parameters"]
    yield from _bad_settings(parameters)
    yield from _lacking_settings(parameters, _modifiers(spec))
    yield from _badly_shared(spec)


def _badly_shared(spec: Mapping[str, Any]) -> Iterator[str]:
    """Shape factors of channels of different sizes."""
    sizes: dict[str, dict[str, int]] = {}
    for channel, sample, modifier in each_modifier(spec["channels"]):
        if modifier["type"] == "shapefactor":
            sizes.setdefault(modifier["name"], {})[channel["name"]] = len(sample["data"])
    for name, where in sizes.items():
        if len(set(where.values())) > 1:
            channels = ", ".join(where)
            yield f"shapefactor {name!r} is that of channels {channels}, of different sizes"


def _bad_channel(channel: Mapping[str, Any], data: list[float]) -> Iterator[str]:
    where = f"channel {channel['name']!r}"
    sizes = {len(sample["data"]) for sample in channel["samples"]} | {len(data)}
    if len(sizes) > 1:
        yield f"{where}: samples and observations have {sorted(sizes)} bins"
    for count in data:
        if not 0 <= count < np.inf:
            yield f"{where}: the data are {count:g} in a bin"
    names = [sample["name"] for sample in channel["samples"]]
    for sample in channel["samples"]:
        if names.count(sample["name"]) > 1:
            yield f"{where}: sample {sample['name']!r} is there twice, and one would be ignored"
        yield from _bad_sample(sample, f"{where}, sample {sample['name']!r}")


def _bad_settings(parameters: list[Mapping[str, Any]]) -> Iterator[str]:
    names = [parameter["name"] for parameter in parameters]
    for parameter in parameters:
        name = parameter["name"]
        for low, high in parameter.get("bounds", []):
            if not (low < high or (low == high and parameter.get("fixed", False))):
                yield f"parameter {name!r}: bounds {low:g} to {high:g} don't rise"
        for field in ("inits", "auxdata", "sigmas", "factors"):
            if not np.isfinite(parameter.get(field, [])).all():
                yield f"parameter {name!r}: its {field} are not all finite"
        for field in ("sigmas", "factors"):
            if not all(value > 0 for value in parameter.get(field, [])):
                yield f"parameter {name!r}: its {field} are not all above 0"
        if names.count(name) > 1:
            yield f"parameter {name!r} has settings twice"


def _lacking_settings(
    parameters: list[Mapping[str, Any]], modifiers: Mapping[str, set[str]]
) -> Iterator[str]:
    stated = {parameter["name"]: parameter for parameter in parameters}
    for name in (name for name, kinds in modifiers.items() if "lumi" in kinds):
        lacking = [field for field in OF_LUMI if field not in stated.get(name, {})]
        if lacking:
            yield (
                f"parameter {name!r}: the settings of a luminosity have no defaults; state its "
                f"{', '.join(lacking)}"
            )


def _bad_sample(sample: Mapping[str, Any], where: str) -> Iterator[str]:
    size = len(sample["data"])
    kinds = [(one["type"], one["name"]) for one in sample["modifiers"]]
    for kind in kinds:
        if kinds.count(kind) > 1:
            yield f"{where}: {kind[0]} {kind[1]!r} is there twice, and one would be ignored"
    if not np.isfinite(sample["data"]).all():
        yield f"{where}: its yields are not all finite"
    for modifier in sample["modifiers"]:
        place = f"{where}, {modifier['type']} {modifier['name']!r}"
        given = modifier["data"]
        parts = list(given.values()) if isinstance(given, Mapping) else [given]
        for part in parts:
            if isinstance(part, list) and len(part) != size:
                yield f"{place}: {len(part)} bins, and the sample has {size}"
            if part is not None and not np.isfinite(part).all():
                yield f"{place}: its numbers are not all finite"
        if modifier["type"] == "normsys" and min(parts) <= 0:
            yield f"{place}: {min(parts):g} takes all events away; it must be above 0"


def _modifiers(spec: Mapping[str, Any]) -> dict[str, set[str]]:
    """Types of the modifiers, by name."""
    types: dict[str, set[str]] = {}
    for *_, modifier in each_modifier(spec["channels"]):
        types.setdefault(modifier["name"], set()).add(modifier["type"])
    return types


def _notes(spec: Mapping[str, Any]) -> Iterator[str]:
    first, *others = spec["measurements"]
    if others:
        yield (
            f"fitted is the measurement {first['name']}, the first of {len(others) + 1}: the "
            f"others are {', '.join(one['name'] for one in others)}"
        )
    modifiers = _modifiers(spec)
    unknown = [one["name"] for one in first["config"]["parameters"] if one["name"] not in modifiers]
    if unknown:
        yield f"settings of parameters that the model does not have: {', '.join(unknown)}"


def _json(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; {kind} is a JSON file")
    with _refused(f"{path}: can't be read as JSON", OSError, ValueError):
        return documents.json_of(documents.text(path))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
