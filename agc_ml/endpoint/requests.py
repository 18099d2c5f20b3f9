"""What a client asks for: checked, with each input once."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml.errors import UsageError

REMOTE: Final = ("root", "http", "https")

ResultFormat = Literal["root-file", "root-rntuple", "parquet"]


class Request(BaseModel):
    """The body of a transformation request, in the client's names."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    title: str | None = None
    did: str | None = None
    files: tuple[str, ...] = Field(default=(), alias="file-list")
    selection: str = Field(min_length=1)
    codegen: str
    destination: Literal["object-store"] = Field(alias="result-destination")
    result_format: ResultFormat = Field(alias="result-format")

    @classmethod
    def parse(cls, body: bytes) -> Request:
        """Check a request and drop repeated inputs, which would be delivered twice.

        Raises
        ------
        UsageError
            It makes no sense; the message is for whoever sent it.
        """
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            raise UsageError(f"the request is malformed: {one_line(error)}") from error
        if request.did is not None:
            raise UsageError(
                f"{request.did}: datasets can't be looked up here; give a list of files"
            )
        if not request.files:
            raise UsageError("the list of files is empty")
        return request.model_copy(update={"files": _distinct(request.files)})


def one_line(error: ValidationError) -> str:
    """What is wrong first, and where."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    what = first.get("ctx", {}).get("error") or first["msg"]
    return f"{where}: {what}" if where else str(what)


def locate(path: str) -> str:
    """Where to open an input: a URL as it is, a local file by its absolute path.

    Raises
    ------
    UsageError
        It can't be opened here, whatever is there.
    """
    scheme, separator, _ = path.partition("://")
    if separator and scheme in REMOTE:
        return path
    if separator and scheme == "file":
        return os.path.normpath(unquote(urlsplit(path).path))
    if separator:
        raise UsageError(
            f"{path}: {scheme}:// can't be read here; root://, http(s):// and files can"
        )
    if not PurePosixPath(path).is_absolute():
        raise UsageError(
            f"{path}: not an absolute path, and the endpoint may run in another folder"
        )
    return os.path.normpath(path)


def _distinct(paths: tuple[str, ...]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(locate(path), path)
    return tuple(first.values())
