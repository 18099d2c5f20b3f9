from __future__ import annotations

import logging
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

from agc_ml.columnar import compiled


def double(x: Any) -> Any:
    return 2 * x


def test_without_a_writable_cache_kernels_work_and_say_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any) -> None:
        raise RuntimeError("cannot cache function 'double': no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    compiled._warn_uncached.cache_clear()
    with caplog.at_level(logging.WARNING, logger="agc_ml"):
        assert compiled.kernel(double)(4) == 8
        compiled.kernel(double)
    (line,) = caplog.messages
    assert "NUMBA_CACHE_DIR" in line


def test_the_cache_is_of_all_kernels() -> None:
    """numba looks at the file of a function, but kernels call each other across files."""
    made = compiled.kernel(double)
    assert made._cache._cache_file._source_stamp == compiled._digest(__file__)
