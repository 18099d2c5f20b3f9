"""Models by name: ``jet_assignment@champion`` or ``jet_assignment@3``, from a registry.

A registry is MLflow's: its versions, tags and aliases. The files of a version lie beside it, and a
tag holds the sha256 of each: what is read is these bytes, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import urllib3

from agc_ml import documents
from agc_ml.errors import ModelError, UsageError
from agc_ml.models import model_files
from agc_ml.models.cards import CARD, load_model
from agc_ml.models.model import Bundle, Model

VARIABLE: Final = "AGC_ML_TRAINING"
TOKEN_VARIABLE: Final = "AGC_ML_TRAINING_TOKEN"  # noqa: S105 - the name of a variable
FOLDER: Final = "training"
"""Where models are trained unless something else is named."""

CLIENT: Final = "client.yaml"
DATABASE: Final = "mlflow.db"
ARTIFACTS: Final = "artifacts"
SCHEME: Final = "mlflow-artifacts:/"
FILES_TAG: Final = "agc_ml.files"
PART_TAG: Final = "agc_ml.part"
WHOLE: Final = "bundle"
CHAMPION: Final = "champion"
HEADER: Final = "X-AGC-ML"
"""In all that a training service answers: its version."""

TIMEOUT_S: Final = 30.0
MOST_VERSION: Final = 2**31 - 1
NAME: Final = r"[a-z][a-z0-9_]{0,63}"
SPEC: Final = re.compile(rf"({NAME})@([A-Za-z0-9_-]{{1,64}})")


class RegistryError(ModelError):
    """The registry's database can't be used now: later it may work."""


class ChangedError(ModelError):
    """A file is not what it was when it was registered."""


@dataclass(frozen=True)
class Service:
    """A training service: its URL and a token for it."""

    url: str
    token: str


@dataclass(frozen=True)
class Local:
    """A folder in which models were trained without a service."""

    folder: Path


Place = Service | Local


def place(where: str | None = None) -> Place:
    """Find the training service, or the folder that models are trained in.

    Parameters
    ----------
    where
        A URL, with the token in ``AGC_ML_TRAINING_TOKEN``; the ``client.yaml`` that a service
        writes; or a folder. By default what ``AGC_ML_TRAINING`` names, else ``./training``.

    Raises
    ------
    UsageError
        It is none of these.
    """
    named = where or os.environ.get(VARIABLE) or FOLDER
    if named.startswith(("http://", "https://")):
        return _service(named, os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE)
    path = Path(named)
    client = path / CLIENT if path.is_dir() else path
    if client.is_file():
        return _client(client)
    if path.is_dir() or where is None:
        return Local(path)
    raise UsageError(
        f"{named}: no training service and no folder of one; give a URL, a client.yaml or a folder"
    )


def _client(path: Path) -> Service:
    try:
        content = documents.read(path)
        url, token = str(content["url"]), str(content["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not what a training service writes ({type(error).__name__}); name the "
            f"{CLIENT} in its folder"
        ) from error
    return _service(url, token, str(path))


def _service(url: str, token: str, source: str) -> Service:
    if not re.fullmatch(r"[!-~]*", token):
        raise UsageError(f"{source}: the token is damaged: it has characters that no token has")
    return Service(url.rstrip("/"), token)


def is_named(spec: str) -> bool:
    """Return whether a model is asked for by its name in a registry."""
    return SPEC.fullmatch(spec) is not None and not Path(spec).exists()


def resolve(spec: str, where: str | None = None) -> Model | Bundle:
    """Find what ``name@alias`` or ``name@version`` is now, and pin it to its bytes.

    Raises
    ------
    ModelError
        There is no such model, its files were changed, or the registry can't be reached.
    UsageError
        No such registry.
    """
    matched = SPEC.fullmatch(spec)
    if matched is None:
        raise UsageError(f"model {spec}: name@alias or name@version is needed")
    name, which = matched.groups()
    found = place(where)
    if isinstance(found, Service):
        version, files = _from_service(found, name, which)
    else:
        version, files = Registry(found.folder).read(name, which)
    return _loaded(name, version, files)


def pinned(spec: str, where: str | None = None) -> str:
    """``name@version`` of what ``name@alias`` is now.

    Raises
    ------
    ModelError
        As of `resolve`.
    """
    name, _, which = spec.partition("@")
    if which.isdigit():
        return spec
    found = place(where)
    if isinstance(found, Service):
        told = json.loads(fetch(found, f"/v1/models/{name}/resolve?alias={which}"))
        return f"{name}@{told['version']}"
    return f"{name}@{Registry(found.folder).find(name, which).version}"


def _loaded(name: str, version: str, files: Mapping[str, bytes]) -> Model | Bundle:
    with tempfile.TemporaryDirectory() as scratch:
        for file, content in files.items():
            (Path(scratch) / file).write_bytes(content)
        found = load_model(scratch)
    if isinstance(found, Model):
        return replace(found, version=version)
    members = {p: replace(getattr(found, p), version=version) for p in ("even", "odd")}
    return Bundle(name, version, **members)


def needed(files: Mapping[str, Any]) -> list[str]:
    """Of a version's files, those that score: the card, and the models beside it."""
    return [file for file in files if "/" not in file and _scores(file)]


def _scores(file: str) -> bool:
    path = Path(file)
    return file in CARD or (path.stem in {"even", "odd"} and path.suffix in {".json", ".onnx"})


def _from_service(service: Service, name: str, which: str) -> tuple[str, dict[str, bytes]]:
    key = "version" if which.isdigit() else "alias"
    told = json.loads(fetch(service, f"/v1/models/{name}/resolve?{key}={which}"))
    version, digests = str(told["version"]), dict(told["files"])
    files = {}
    for file in needed(digests):
        content = fetch(service, f"/v1/models/{name}/versions/{version}/files/{file}")
        if hashlib.sha256(content).hexdigest() != digests[file]:
            raise ModelError(f"model {name}@{version}: {file} arrived damaged; try again")
        files[file] = content
    return version, files


def fetch(service: Service, path: str) -> bytes:
    """What a training service answers to a GET.

    Raises
    ------
    ModelError
        It can't be reached, or refuses: in its words.
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
        raise ModelError(
            f"the training service {service.url} can't be reached ({_reason(error)}); start it, "
            "or use a bundle on disk (agc-ml models pull)"
        ) from error
    if HEADER not in answer.headers:
        raise ModelError(not_a_service(service.url, answer.status))
    if answer.status != 200:  # noqa: PLR2004 - HTTP's OK
        raise ModelError(f"the training service {service.url}: {problem(body)}")
    if len(body) > model_files.MOST_BYTES:
        raise ModelError(
            f"the training service {service.url}: it answers with more than "
            f"{model_files.MOST_BYTES / 1e9:g} GB; is that its address?"
        )
    return bytes(body)


def not_a_service(url: str, status: int) -> str:
    """What to say where something else answers."""
    return (
        f"{url}: something answers (HTTP status {status}), but no training service; is that its "
        "address, and is it up?"
    )


def problem(body: bytes) -> str:
    """What a service says is wrong, by its problem details."""
    try:
        told = json.loads(body)
        return " ".join(str(told.get("detail") or told["title"]).split())[:500]
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"it answers with something else: {body[:100]!r}"


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).rpartition(": ")[2][:150]


def check_path(folder: Path) -> None:
    """Make sure that databases in a folder can be named: they are by URLs, which nobody escapes.

    Raises
    ------
    UsageError
        They can't.
    """
    found = sorted(set("?#%") & set(str(folder.absolute())))
    if found:
        raise UsageError(
            f"{folder}: there is {' and '.join(found)} in its path, which MLflow's databases can't "
            "have; name another folder"
        )


def client_of(database: Path) -> Any:
    """MLflow's client on a database, which is made if it is not there."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415 - heavy, and optional

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # others may write to it, too: they are waited for
    uri = f"sqlite:///{database.absolute()}?timeout=60"
    return MlflowClient(uri, uri)


@dataclass(frozen=True)
class Version:
    """A version in a registry; ``files`` are the sha256 of its files."""

    name: str
    version: str
    tags: Mapping[str, str]
    files: Mapping[str, str]
    folder: Path


class Registry:
    """Reads MLflow's registry in its database, and the files of versions in ``folder/artifacts``.

    MLflow's server shows the same database to people: it need not run.
    """

    def __init__(self, folder: Path) -> None:
        check_path(folder)
        self._root = folder / ARTIFACTS
        self.database = folder / DATABASE
        self._client: Any = None

    @property
    def client(self) -> Any:
        """MLflow's client, to be used within `errors`."""
        if self._client is None:
            self._client = client_of(self.database)
        return self._client

    def read(self, name: str, which: str) -> tuple[str, dict[str, bytes]]:
        """Version, and content of the files that score, checked.

        Raises
        ------
        ModelError
            There is no such model, or a file was changed.
        """
        found = self.find(name, which)
        return found.version, {file: self.content(found, file) for file in needed(found.files)}

    def find(self, name: str, which: str) -> Version:
        """The version of a number or an alias.

        Raises
        ------
        ModelError
            There is none.
        """
        if not self.database.exists():
            raise ModelError(
                f"model {name}@{which}: there is no registry in {self.database.parent}; train "
                "there, or name the service or folder with AGC_ML_TRAINING"
            )
        with self.errors(f"model {name}@{which}"):
            if which.isdecimal() and int(which) > MOST_VERSION:
                raise ModelError(f"model {name}: there is no version {which}")
            if which.isdecimal():
                found = self.client.get_model_version(name, which)
            else:
                found = self.client.get_model_version_by_alias(name, which)
        return self.described(found)

    def described(self, found: Any) -> Version:
        """A version of MLflow's with what we know of it.

        Raises
        ------
        ModelError
            It does not come from agc-ml.
        """
        try:
            files = dict(json.loads(found.tags[FILES_TAG]))
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"model {found.name}@{found.version}: it was not registered by agc-ml, so nothing "
                "says what its files must be"
            ) from error
        path = self._root / str(found.source).removeprefix(SCHEME).lstrip("/")
        return Version(found.name, str(found.version), dict(found.tags), files, path)

    def content(self, version: Version, file: str) -> bytes:
        """Content of a file of a version.

        Raises
        ------
        ModelError
            It is gone, or not what it was when it was registered.
        """
        label = f"model {version.name}@{version.version}"
        if file not in version.files:
            raise ModelError(f"{label}: it has no file {file}")
        try:
            content = model_files.read(version.folder / file)
        except (OSError, model_files.NotTakenError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(
                f"{label}: {file} can't be read ({reason}); restore the artefacts, or promote "
                "another version"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != version.files[file]:
            raise ChangedError(
                f"{label}: {file} was changed on disk: its sha256 is {found[:12]}, it was "
                f"registered with {version.files[file][:12]}; restore it, or promote another"
            )
        return content

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn MLflow's errors into one line.

        Raises
        ------
        ModelError
            There is no such thing.
        RegistryError
            MLflow's database can't be used.
        UsageError
            MLflow is not installed.
        """
        try:
            from mlflow.exceptions import MlflowException  # noqa: PLC0415 - heavy, and optional
            from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - comes with it
        except ImportError as error:
            raise UsageError(
                f"MLflow is not installed ({error}): pip install 'agc-ml[training]'"
            ) from error
        try:
            yield
        except (MlflowException, SQLAlchemyError, UnicodeDecodeError) as error:
            if getattr(error, "error_code", "") in {
                "RESOURCE_DOES_NOT_EXIST",
                "INVALID_PARAMETER_VALUE",
            }:
                raise ModelError(
                    f"{what}: there is no such model, version or alias in the registry; see "
                    "'agc-ml models list'"
                ) from error
            reason = " ".join(str(error).partition("[SQL")[0].split())[:200]
            raise RegistryError(f"{self.database}: can't be used now ({reason})") from error
