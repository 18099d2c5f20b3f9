"""Location of the model registry: a training service or a folder; requests to a service."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3

from agc_ml import documents
from agc_ml.errors import ModelError, UsageError
from agc_ml.models import model_files

VARIABLE: Final = "AGC_ML_TRAINING"
TOKEN_VARIABLE: Final = "AGC_ML_TRAINING_TOKEN"  # noqa: S105 - the name of a variable
FOLDER: Final = "training"
"""Default folder in which models are trained."""

CLIENT: Final = "client.yaml"
HEADER: Final = "X-AGC-ML"
"""Header of every answer of a training service: its version."""

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class ServiceAddress:
    """A training service: its URL and a token for it."""

    url: str
    token: str


@dataclass(frozen=True)
class RegistryFolder:
    """A folder in which models were trained without a service."""

    folder: Path


def locate(where: str | None = None) -> ServiceAddress | RegistryFolder:
    """Find the training service, or the folder with trained models.

    Parameters
    ----------
    where
        A URL, with the token in ``AGC_ML_TRAINING_TOKEN``; the ``client.yaml`` that a service
        writes; or a folder. Default: ``AGC_ML_TRAINING``, else ``./training``.

    Raises
    ------
    UsageError
        There is neither at that place.
    """
    place = where or os.environ.get(VARIABLE) or FOLDER
    if place.startswith(("http://", "https://")):
        return _service(place, os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
    path = Path(place)
    client = path / CLIENT if path.is_dir() else path
    if client.is_file():
        return _from_client_file(client)
    if path.is_dir() or where is None:
        return RegistryFolder(path)
    raise UsageError(
        f"{place}: no training service and no folder of one; give a URL, a client.yaml or a folder"
    )


def _from_client_file(path: Path) -> ServiceAddress:
    try:
        content = documents.read(path)
        url, token = str(content["url"]), str(content["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not a file of a training service ({type(error).__name__}); name the "
            f"{CLIENT} in its folder"
        ) from error
    return _service(url, token, str(path))


def _service(url: str, token: str, source: str) -> ServiceAddress:
    if not re.fullmatch(r"[!-~]*", token):
        raise UsageError(f"{source}: the token is damaged: it has characters that no token has")
    return ServiceAddress(url.rstrip("/"), token)


def fetch(service: ServiceAddress, path: str) -> bytes:
    """Answer of a training service to a GET request.

    Raises
    ------
    ModelError
        The service can't be reached, or refuses; the message quotes it.
    """
    try:
        answer = urllib3.request(
            "GET",
            service.url + path,
            headers={"Authorization": f"Bearer {service.token}"},
            timeout=TIMEOUT_S,
            retries=urllib3.Retry(2, backoff_factor=0.3, redirect=0),
            preload_content=False,
        )
        body = answer.read(model_files.MOST_BYTES + 1, decode_content=True)
        answer.close()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise ModelError(
            f"the training service {service.url} can't be reached "
            f"({str(cause).rpartition(': ')[2][:150]}); start it, or use a bundle on disk "
            "(agc-ml models pull)"
        ) from error
    if HEADER not in answer.headers:
        raise ModelError(not_a_service(service.url, answer.status))
    if answer.status != 200:  # noqa: PLR2004 - HTTP's OK
        raise ModelError(f"the training service {service.url}: {problem(body)}")
    if len(body) > model_files.MOST_BYTES:
        raise ModelError(
            f"the training service {service.url}: it answers with more than "
            f"{model_files.MOST_BYTES / 1e9:g} GB; check its address"
        )
    return bytes(body)


def not_a_service(url: str, status: int) -> str:
    """Message for an address where another server answers."""
    return (
        f"{url}: a server answers (HTTP status {status}), but not a training service; check its "
        "address, and that it is up"
    )


def problem(body: bytes) -> str:
    """Error message of a service, from its problem details."""
    try:
        details = json.loads(body)
        return " ".join(str(details.get("detail") or details["title"]).split())[:500]
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"it answers without problem details: {body[:100]!r}"
