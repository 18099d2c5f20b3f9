"""Transformation requests of clients: validated, with each input file once."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agc_ml.errors import UsageError

REMOTE: Final = ("root", "http", "https")
MAX_BYTES: Final = 4_000_000  # of a request
MAX_FILES: Final = 10_000
MAX_TITLE: Final = 10_240  # characters, as the client's capability says
MAX_PATH: Final = 8192  # characters: a URL may hold a token

# Control characters, and halves of characters: they break lines, terminals and databases.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_IPV6_HOST: Final = re.compile(r"(?<=://)[^/]*\[[^/\]]*\]")
_LAYOUT: Final = str.maketrans("\t\n\r", "   ")


def printable(text: str) -> str:
    """Return the same text.

    Raises
    ------
    ValueError
        It has characters that can't be printed.
    """
    if match := _UNPRINTABLE.search(text):
        raise ValueError(f"it has the character U+{ord(match[0]):04X}, which can't be printed")
    return text


def escaped(text: str) -> str:
    """Return a text with unprintable characters escaped as Python does."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _check_title(text: str) -> str:
    printable(text.translate(_LAYOUT))
    return text


Path = Annotated[str, Field(max_length=MAX_PATH), AfterValidator(printable)]
ResultFormat = Literal["root-file", "root-rntuple", "parquet"]


class TransformRequest(BaseModel):
    """Body of a transformation request, with the client's names."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    title: Annotated[str, Field(max_length=MAX_TITLE), AfterValidator(_check_title)] | None = None
    did: Path | None = None
    files: tuple[Path, ...] = Field(default=(), alias="file-list", max_length=MAX_FILES)
    selection: str = Field(min_length=1)
    codegen: Annotated[str, Field(max_length=100), AfterValidator(printable)]
    destination: Literal["object-store"] = Field(alias="result-destination")
    result_format: ResultFormat = Field(alias="result-format")

    @classmethod
    def parse(cls, body: bytes) -> TransformRequest:
        """Validate a request, and drop repeated inputs, which would be delivered twice.

        Raises
        ------
        UsageError
            It is not valid; the message is for its sender.
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
        distinct: dict[str, str] = {}
        for path in request.files:
            distinct.setdefault(locate(path), path)
        return request.model_copy(update={"files": tuple(distinct.values())})


def one_line(error: ValidationError) -> str:
    """Return the first problem of a validation error, and its field."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))[:200]
    problem = first.get("ctx", {}).get("error") or first["msg"]
    return f"{field}: {problem}" if field else str(problem)


def locate(path: str) -> str:
    """Return where to open an input: a URL as it is, a local file by its absolute path.

    Raises
    ------
    UsageError
        It can't be opened by this endpoint, whether it exists or not.
    """
    scheme, separator, _ = path.partition("://")
    is_file_url = bool(separator) and scheme == "file"
    try:
        url_path = urlsplit(path).path
        local = printable(unquote(url_path)) if is_file_url else path
    except ValueError as error:
        raise UsageError(f"{path}: not a URL ({error})") from error
    if "::" in _IPV6_HOST.sub("", local):
        raise UsageError(f"{path}: a path with :: would be read as several")
    if separator and scheme in REMOTE:
        return path
    if separator and not is_file_url:
        raise UsageError(
            f"{path}: {scheme}:// can't be read here; use root://, http(s):// or files"
        )
    if not is_file_url and not PurePosixPath(path).is_absolute():
        raise UsageError(
            f"{path}: not an absolute path, and the endpoint may run in another folder"
        )
    return os.path.normpath(local)
