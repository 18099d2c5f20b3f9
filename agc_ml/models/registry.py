"""The model registry: MLflow's versions, tags and aliases, with the files of versions beside it.

A tag holds the sha256 of each file of a version: only these bytes are ever read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import ModelError, UsageError
from agc_ml.models import model_files
from agc_ml.models.cards import scoring_files
from agc_ml.models.model_files import one_line

DATABASE: Final = "mlflow.db"
ARTIFACTS: Final = "artifacts"
SCHEME: Final = "mlflow-artifacts:/"
FILES_TAG: Final = "agc_ml.files"
PART_TAG: Final = "agc_ml.part"
WHOLE: Final = "bundle"
CHAMPION: Final = "champion"
MOST_VERSION: Final = 2**31 - 1


class RegistryError(ModelError):
    """The registry's database can't be used now; it may work later."""


class ChangedError(ModelError):
    """A file has changed since it was registered."""


def check_path(folder: Path) -> None:
    """Reject folders whose path can't be in a database URL: MLflow does not escape it.

    Raises
    ------
    UsageError
        The path holds such characters.
    """
    special = sorted(set("?#%") & set(str(folder.absolute())))
    if special:
        raise UsageError(
            f"{folder}: there is {' and '.join(special)} in its path, which MLflow's databases "
            "can't have; name another folder"
        )


def client_of(database: Path) -> Any:
    """MLflow's client for a database, which is created if missing."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # noqa: PLC0415 - heavy, and optional

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Wait for other processes that write.
    uri = f"sqlite:///{database.absolute()}?timeout=60"
    return MlflowClient(uri, uri)


@dataclass(frozen=True)
class Version:
    """A registered version of a model; ``files`` maps names to sha256."""

    name: str
    version: str
    tags: Mapping[str, str]
    files: Mapping[str, str]
    folder: Path


class Registry:
    """Reader of MLflow's registry in its database, and of the files in ``folder/artifacts``.

    MLflow's server, which shows the same database in a browser, need not run.
    """

    def __init__(self, folder: Path) -> None:
        check_path(folder)
        self._root = folder / ARTIFACTS
        self.database = folder / DATABASE
        self._client: Any = None

    @property
    def client(self) -> Any:
        """MLflow's client, for use within `errors`."""
        if self._client is None:
            self._client = client_of(self.database)
        return self._client

    def read(self, name: str, which: str) -> tuple[str, dict[str, bytes]]:
        """Number of a version, and content of its files that score, verified.

        Raises
        ------
        ModelError
            There is no such model, or a file was changed.
        """
        version = self.find(name, which)
        scoring = scoring_files(version.files)
        return version.version, {file: self.content(version, file) for file in scoring}

    def find(self, name: str, which: str) -> Version:
        """The version with a number or an alias.

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
                entry = self.client.get_model_version(name, which)
            else:
                entry = self.client.get_model_version_by_alias(name, which)
        return self.version_of(entry)

    def version_of(self, entry: Any) -> Version:
        """Convert a version of MLflow, with its tags and files.

        Raises
        ------
        ModelError
            It does not come from agc-ml.
        """
        try:
            files = dict(json.loads(entry.tags[FILES_TAG]))
        except (KeyError, ValueError) as error:
            raise ModelError(
                f"model {entry.name}@{entry.version}: it was not registered by agc-ml, so the "
                "digests of its files are unknown"
            ) from error
        path = self._root / str(entry.source).removeprefix(SCHEME).lstrip("/")
        return Version(entry.name, str(entry.version), dict(entry.tags), files, path)

    def content(self, version: Version, file: str) -> bytes:
        """Content of a file of a version.

        Raises
        ------
        ModelError
            It is missing, or has changed since it was registered.
        """
        label = f"model {version.name}@{version.version}"
        if file not in version.files:
            raise ModelError(f"{label}: it has no file {file}")
        try:
            content = model_files.read(version.folder / file)
        except (OSError, model_files.UnreadableError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelError(
                f"{label}: {file} can't be read ({reason}); restore the artefacts, or promote "
                "another version"
            ) from error
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != version.files[file]:
            raise ChangedError(
                f"{label}: {file} was changed on disk: its sha256 is {sha256[:12]}, it was "
                f"registered with {version.files[file][:12]}; restore it, or promote another"
            )
        return content

    @contextmanager
    def errors(self, label: str) -> Iterator[None]:
        """Turn MLflow's errors into one line.

        Raises
        ------
        ModelError
            There is no such model, version or alias.
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
                    f"{label}: there is no such model, version or alias in the registry; see "
                    "'agc-ml models list'"
                ) from error
            reason = one_line(str(error).partition("[SQL")[0])
            raise RegistryError(f"{self.database}: can't be used now ({reason})") from error
