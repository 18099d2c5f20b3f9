"""Models by name: ``NAME@champion`` or ``NAME@3``, in the registry."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import ModelError, UsageError
from agc_ml.models.cards import scoring_files
from agc_ml.models.registry import Registry
from agc_ml.models.registry_access import ServiceAddress, fetch, locate

NAME: Final = r"[a-z][a-z0-9_]{0,63}"
SPEC: Final = re.compile(rf"({NAME})@([A-Za-z0-9_-]{{1,64}})")


def is_registered_name(spec: str) -> bool:
    """Return True if a model is given by its name in a registry, not by a path."""
    return SPEC.fullmatch(spec) is not None and not Path(spec).exists()


def read_files(spec: str, where: str | None = None) -> tuple[str, str, dict[str, bytes]]:
    """Name and version of ``name@alias`` or ``name@version``, and its files that score, verified.

    Raises
    ------
    ModelError
        There is no such model, its files were changed, or the registry can't be reached.
    UsageError
        The name is malformed, or there is no such registry.
    """
    match = SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"model {spec}: name@alias or name@version is needed")
    name, version = match.groups()
    location = locate(where)
    if not isinstance(location, ServiceAddress):
        return name, *Registry(location.folder).read(name, version)
    answer = _resolved(location, name, version)
    number, digests = str(answer["version"]), dict(answer["files"])
    files = {}
    for file in scoring_files(digests):
        content = fetch(location, f"/v1/models/{name}/versions/{number}/files/{file}")
        if hashlib.sha256(content).hexdigest() != digests[file]:
            raise ModelError(f"model {name}@{number}: {file} arrived damaged; try again")
        files[file] = content
    return name, number, files


def pinned_name(spec: str, where: str | None = None) -> str:
    """``name@version`` of the current version of ``name@alias``.

    Raises
    ------
    ModelError
        As for `read_files`.
    """
    name, _, version = spec.partition("@")
    if version.isdigit():
        return spec
    location = locate(where)
    if isinstance(location, ServiceAddress):
        return f"{name}@{_resolved(location, name, version)['version']}"
    return f"{name}@{Registry(location.folder).find(name, version).version}"


def _resolved(service: ServiceAddress, name: str, version: str) -> Any:
    key = "version" if version.isdigit() else "alias"
    return json.loads(fetch(service, f"/v1/models/{name}/resolve?{key}={version}"))
