"""What a client asks for: checked, with each input once."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agc_ml.errors import UsageError

REMOTE: Final = ("root", "http", "https")
MOST_BYTES: Final = 4_000_000  # of a request
MOST_FILES: Final = 10_000
LONGEST_TITLE: Final = 10_240  # characters, as the client's capability says
LONGEST_PATH: Final = 8192  # characters: a URL may hold a token

# Control characters, and halves of characters: they break lines, terminals and databases.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HOST: Final = re.compile(r"(?<=://)[^/]*\[[^/\]]*\]")  # with an address of IPv6
_LAYOUT: Final = str.maketrans("\t\n\r", "   ")


def printable(text: str) -> str:
    """The same text.

    Raises
    ------
    ValueError
        It has characters that can't be printed.
    """
    if found := _UNPRINTABLE.search(text):
        raise ValueError(f"it has the character U+{ord(found[0]):04X}, which can't be printed")
    return text


def escaped(text: str) -> str:
    """A text in which characters that can't be printed are written as Python writes them."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _title(text: str) -> str:
    printable(text.translate(_LAYOUT))
    return text


def _few(paths: tuple[str, ...]) -> tuple[str, ...]:
    if len(paths) > MOST_FILES:
        raise ValueError(
            f"{len(paths):,} files, and {MOST_FILES:,} are the most; ask several times"
        )
    return paths


Path = Annotated[str, Field(max_length=LONGEST_PATH), AfterValidator(printable)]
ResultFormat = Literal["root-file", "root-rntuple", "parquet"]


class Request(BaseModel):
    """The body of a transformation request, in the client's names."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    title: Annotated[str, Field(max_length=LONGEST_TITLE), AfterValidator(_title)] | None = None
    did: Path | None = None
    files: Annotated[tuple[Path, ...], AfterValidator(_few)] = Field(default=(), alias="file-list")
    selection: str = Field(min_length=1)
    codegen: Annotated[str, Field(max_length=100), AfterValidator(printable)]
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
    where = ".".join(map(str, first["loc"]))[:200]
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
    try:
        name = urlsplit(path).path
        local = printable(unquote(name)) if separator and scheme == "file" else path
    except ValueError as error:
        raise UsageError(f"{path}: no URL ({error})") from error
    if "::" in _HOST.sub("", local):
        raise UsageError(f"{path}: a path with :: would be taken for several")
    if separator and scheme in REMOTE:
        return path
    if separator and scheme == "file":
        return os.path.normpath(local)
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
