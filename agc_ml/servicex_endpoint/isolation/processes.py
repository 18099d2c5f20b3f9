"""Start of processes that run foreign code, with a clean environment."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from agc_ml.servicex_endpoint.isolation import limits


async def start_module(
    module: str, *arguments: str, folder: Path, **streams: Any
) -> asyncio.subprocess.Process:
    """Run a module of ours in a new session, in a folder."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        *arguments,
        cwd=folder,
        env=limits.environment(os.environ, folder),
        start_new_session=True,
        **streams,
    )
