"""A process that translates queries to programs: a query a line of input, an answer a line back.

Run as ``python -m agc_ml.servicex_endpoint.translation.translator PARENT``. It may be killed at any
time: parsers can hang on a query, or crash.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any, Final

from agc_ml.errors import UsageError
from agc_ml.servicex_endpoint.isolation import limits
from agc_ml.servicex_endpoint.isolation.supervision import end_with_parent

MEMORY: Final = limits.GB  # bytes
READY: Final = b"ready\n"

_CPU_S: Final = 24 * 3600  # more than valid queries of a year take; each has a deadline


def main() -> None:
    """Translate until the input ends."""
    end_with_parent(int(sys.argv[1]))
    limits.limit(MEMORY, _CPU_S)
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # output of libraries is not an answer
        # heavy, so before the first query comes
        import_module("agc_ml.servicex_endpoint.translation.language")
        answers.write(READY)
        answers.flush()
        for line in sys.stdin.buffer:
            answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
            answers.flush()


def _answer(query: list[Any]) -> dict[str, str]:
    from agc_ml.servicex_endpoint.translation.generators import generate  # noqa: PLC0415 - heavy

    try:
        return {"program": generate(*query)}
    except UsageError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"the query for {query[0]} can't be used: it takes too much memory"}


if __name__ == "__main__":
    main()
