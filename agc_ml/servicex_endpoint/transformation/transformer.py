"""A worker process: one input into one output, and a verdict on it.

Run as ``python -m agc_ml.servicex_endpoint.transformation.transformer`` in a folder with a
``job.json``; its standard input ends when the endpoint does, and it ends with all that it started.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Final

from agc_ml.servicex_endpoint.transformation import limits
from agc_ml.servicex_endpoint.transformation.supervision import supervise

JOB: Final = "job.json"
VERDICT: Final = "verdict.json"
OUTPUT: Final = "output"

_LONGEST_REASON: Final = 1000

# Servers that are gone, slow or overloaded; libraries tell it in words only, some of them in
# errors of the wrong kind.
_TRANSIENT: Final = re.compile(
    r"Operation expired|Socket timeout|Socket error|Connection error|Failed to submit"
    r"|Invalid redirect|TimeoutError|ConnectionError|ConnectionResetError|ConnectionRefusedError"
    r"|ClientConnectorError|ClientOSError|ClientPayloadError|ServerDisconnectedError"
    r"|status=(?:429|5\d\d)|\b(?:429|50[0234]),? message="
)


def main() -> None:
    """Do the job, and say how it went."""
    supervise()
    job = json.loads(Path(JOB).read_text())
    limits.limit(job["memory"], job["seconds"])
    try:
        verdict = _transform(job)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - of the query's code or of any file it reads
        verdict = {"error": reason(error), "transient": is_transient(error)}
        if said := beyond_limits(error, job):
            verdict = {"error": said}
        Path(OUTPUT).unlink(missing_ok=True)  # or on a full disk there is no room for the verdict
    partial = Path(f"{VERDICT}.partial")
    partial.write_text(json.dumps(verdict))
    partial.rename(VERDICT)


def reason(error: BaseException) -> str:
    """An error in one line, of what is ours without its type."""
    from agc_ml.errors import AgcError  # noqa: PLC0415 - heavy
    from agc_ml.servicex_endpoint.requests import escaped  # noqa: PLC0415 - heavy

    text = escaped(" ".join(str(error).split())[:_LONGEST_REASON])
    if isinstance(error, AgcError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may help."""
    from agc_ml.errors import chain  # noqa: PLC0415 - heavy

    return any(_TRANSIENT.search(f"{type(e).__name__}: {e}") for e in chain(error))


def beyond_limits(error: BaseException, job: dict[str, Any]) -> str | None:
    """Name the limit of a job that was reached, in one line; None for other errors."""
    from agc_ml.errors import chain  # noqa: PLC0415 - heavy

    for cause in chain(error):
        number = getattr(cause, "errno", None)
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return out_of_memory(job["memory"])
        if number == errno.EFBIG:
            return f"it writes more than {limits.FILE_BYTES / limits.GB:g} GB into a file"
    return None


def out_of_memory(memory: float) -> str:
    """Error line of a worker that needs more than ``memory`` bytes."""
    return f"it needs more than {memory / limits.GB:g} GB of memory (--memory)"


def refuse_what_is_no_input(source: str, own: str) -> None:
    """Refuse what is of the endpoint, whose folder is ``own``, and what can't be read as a file.

    Raises
    ------
    InputFileError
        It is one of those; devices and pipes would never end.
    """
    from agc_ml.errors import InputFileError  # noqa: PLC0415 - heavy

    if "://" in source:
        return
    real = Path(os.path.realpath(source))
    if real.is_relative_to(os.path.realpath(own)):
        raise InputFileError("it is a file of the endpoint itself")
    if real.exists() and not stat.S_ISREG(real.stat().st_mode):
        raise InputFileError("no regular file")


def _transform(job: dict[str, Any]) -> dict[str, Any]:
    refuse_what_is_no_input(job["source"], job["own"])
    from agc_ml.servicex_endpoint.transformation.reading import pieces  # noqa: PLC0415 - heavy
    from agc_ml.servicex_endpoint.transformation.writing import write  # noqa: PLC0415 - heavy

    output = Path(OUTPUT)
    what = (job["codegen"], job["program"], job["source"])
    events = write(lambda: pieces(*what), output, job["format"])
    return {"events": events, "size": output.stat().st_size}


if __name__ == "__main__":
    main()
