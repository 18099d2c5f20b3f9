"""A transformer process: it makes one output of one input file, and reports.

Run as ``python -m agc_ml.servicex_endpoint.transformation.transformer`` in a folder with a
``job.json``; its standard input ends when the endpoint does, and it ends with its descendants.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Final

from agc_ml.errors import AgcError, InputFileError, chain
from agc_ml.servicex_endpoint.isolation import limits
from agc_ml.servicex_endpoint.isolation.supervision import supervise

JOB: Final = "job.json"
REPORT: Final = "report.json"
OUTPUT: Final = "output"

_MAX_REASON: Final = 1000

# Servers that are gone, slow or overloaded: libraries say so only in the text of errors, some of
# them of the wrong class.
_TRANSIENT: Final = re.compile(
    r"Operation expired|Socket timeout|Socket error|Connection error|Failed to submit"
    r"|Invalid redirect|TimeoutError|ConnectionError|ConnectionResetError|ConnectionRefusedError"
    r"|ClientConnectorError|ClientOSError|ClientPayloadError|ServerDisconnectedError"
    r"|status=(?:429|5\d\d)|\b(?:429|50[0234]),? message="
)


def main() -> None:
    """Run the job, and write the report."""
    supervise()
    job = json.loads(Path(JOB).read_text())
    limits.limit(job["memory"], job["seconds"])
    try:
        report = _transform(job)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - anything of the query's code
        report = {"error": reason(error), "transient": is_transient(error)}
        if limit := exceeded_limit(error, job):
            report = {"error": limit}
        Path(OUTPUT).unlink(missing_ok=True)  # or a full disk has no room for the report
    partial = Path(f"{REPORT}.partial")
    partial.write_text(json.dumps(report))
    partial.rename(REPORT)


def reason(error: BaseException) -> str:
    """Return an error on one line, with its class unless it is ours."""
    from agc_ml.servicex_endpoint.requests import escaped  # noqa: PLC0415 - heavy

    text = escaped(" ".join(str(error).split())[:_MAX_REASON])
    if isinstance(error, AgcError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may help."""
    return any(_TRANSIENT.search(f"{type(e).__name__}: {e}") for e in chain(error))


def exceeded_limit(error: BaseException, job: dict[str, Any]) -> str | None:
    """Return an error line if a limit of the job was exceeded; None for other errors."""
    for cause in chain(error):
        number = getattr(cause, "errno", None)
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return out_of_memory(job["memory"])
        if number == errno.EFBIG:
            return f"it writes more than {limits.FILE_BYTES / limits.GB:g} GB into a file"
    return None


def out_of_memory(memory: float) -> str:
    """Return the error line of a transformer that needs more than ``memory`` bytes."""
    return f"it needs more than {memory / limits.GB:g} GB of memory (--memory)"


def check_input(source: str, own: str) -> None:
    """Reject files of the endpoint, whose folder is ``own``, and devices and pipes.

    Raises
    ------
    InputFileError
        It is one of those; a device or pipe may never end.
    """
    if "://" in source:
        return
    real = Path(os.path.realpath(source))
    if real.is_relative_to(os.path.realpath(own)):
        raise InputFileError("it is a file of the endpoint itself")
    if real.exists() and not stat.S_ISREG(real.stat().st_mode):
        raise InputFileError("not a regular file")


def _transform(job: dict[str, Any]) -> dict[str, Any]:
    check_input(job["source"], job["own"])
    from agc_ml.servicex_endpoint.transformation.reading import pieces  # noqa: PLC0415 - heavy
    from agc_ml.servicex_endpoint.transformation.writing import write  # noqa: PLC0415 - heavy

    output = Path(OUTPUT)
    query = (job["codegen"], job["program"], job["source"])
    events = write(lambda: pieces(*query), output, job["format"])
    return {"events": events, "size": output.stat().st_size}


if __name__ == "__main__":
    main()
