"""A worker process: one input into one output, and a verdict on it.

Run as ``python -m agc_ml.endpoint.transformer`` in a folder with a ``job.json``; its standard input
ends when the endpoint does.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

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
    threading.Thread(target=_end_with_the_endpoint, daemon=True).start()
    job = json.loads(Path(JOB).read_text())
    try:
        verdict = _transform(job)
    except Exception as error:  # noqa: BLE001 - of the query's code or of any file it reads
        verdict = {"error": reason(error), "transient": is_transient(error)}
        Path(OUTPUT).unlink(missing_ok=True)  # or on a full disk there is no room for the verdict
    partial = Path(f"{VERDICT}.partial")
    partial.write_text(json.dumps(verdict))
    partial.rename(VERDICT)


def reason(error: BaseException) -> str:
    """An error in one line, of what is ours without its type."""
    from agc_ml.errors import AgcError  # noqa: PLC0415 - after the thread has started

    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, AgcError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may help."""
    from agc_ml.errors import chain  # noqa: PLC0415 - after the thread has started

    return any(_TRANSIENT.search(f"{type(e).__name__}: {e}") for e in chain(error))


def _transform(job: dict[str, Any]) -> dict[str, Any]:
    from agc_ml.endpoint.reading import pieces  # noqa: PLC0415 - after the thread has started
    from agc_ml.endpoint.writing import write  # noqa: PLC0415 - after the thread has started

    output = Path(OUTPUT)
    what = (job["codegen"], job["program"], job["source"])
    events = write(lambda: pieces(*what), output, job["format"])
    return {"events": events, "size": output.stat().st_size}


def _end_with_the_endpoint() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
