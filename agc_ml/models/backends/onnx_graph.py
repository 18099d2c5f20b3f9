"""Models of ONNX, by ONNX Runtime on one thread, with limits of time and memory.

A graph may hold loops, and sizes that depend on rows: no look at it tells what it takes.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import ModelError
from agc_ml.models.backends import isolated_loading
from agc_ml.models.backends.xgboost_structure import MOST_FEATURES
from agc_ml.models.model import BATCH_ROWS

Array = NDArray[Any]

SECOND_COLUMN: Final = "of its output's two columns the second is the score, as of the second class"
DEADLINE_S: Final = 10.0
"""Seconds of a processor to score rows, and `SLOWER` times what a few rows took each."""

SLOWER: Final = 20
MEMORY: Final = 4_000_000_000
"""Bytes that all models of a process may have at once."""

FEWEST_ROWS: Final = 1_024
"""Rows that are not parted any more where memory does not do."""

PROBE_ROWS: Final = 64
PROBE_CELLS: Final = 1 << 22
GRACE_S: Final = 2.0
"""Seconds to stop between two nodes of a graph."""

_SHORT_S: Final = 0.02

_NO_MEMORY: Final = re.compile("bad.?alloc|Available memory|Failed to allocate", re.IGNORECASE)


class _NoMemoryError(Exception):
    pass


class Graph:
    """A model of ONNX, opened: rows ``(n, k) float32 -> (n,)``.

    Raises
    ------
    ModelError
        It can't be read, or takes and gives something else than rows and a score each.
    """

    def __init__(self, data: bytes, label: str) -> None:
        isolated_loading.ensure(data, "onnx", label)
        self._label = label
        self._session = session = _session(data, label)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        scores = _checked(inputs, outputs, label)
        self._input, self._output = inputs[0].name, scores.name
        self.n_features: int = inputs[0].shape[1]
        self.has_two_columns: bool = scores.shape[1:] == [2]
        # what these rows take was tried where it hurts nobody
        few, seconds = probe_rows(self.n_features), []
        for _ in range(3):  # the machine may be busy: the least counts
            start = time.perf_counter()
            with contextlib.suppress(ModelError, _NoMemoryError):
                self._score(few, DEADLINE_S)
            seconds.append(time.perf_counter() - start)
        self._seconds_a_row = min(seconds) / len(few)

    def __call__(self, rows: Array) -> Array:
        """Score rows.

        Raises
        ------
        ModelError
            ONNX Runtime refuses, or it takes too much time or memory.
        """
        parts = [
            self._within_memory(rows[start : start + BATCH_ROWS])
            for start in range(0, len(rows), BATCH_ROWS)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _within_memory(self, rows: Array) -> Array:
        try:
            return self._score(rows, DEADLINE_S + SLOWER * self._seconds_a_row * len(rows))
        except _NoMemoryError as error:
            if len(rows) <= FEWEST_ROWS:
                raise ModelError(
                    f"{self._label}: scoring {len(rows)} rows takes more than "
                    f"{MEMORY / 1e9:g} GB of memory; export it anew"
                ) from error
        half = len(rows) // 2
        return np.concatenate([self._within_memory(some) for some in (rows[:half], rows[half:])])

    def _score(self, rows: Array, deadline: float) -> Array:
        """Score rows in a thread, which is left alone where it can't be stopped."""
        from onnxruntime import RunOptions  # noqa: PLC0415 - heavy

        options, found, clocks = RunOptions(), [], []

        def run() -> None:
            clocks.append(_clock_of_this_thread())
            try:
                found.extend(self._session.run([self._output], {self._input: rows}, options))
            except onnx_errors() as error:
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            thread.join(deadline)
            while thread.is_alive() and (left := deadline - _seconds(clocks)) > 0:
                thread.join(max(left, _SHORT_S))  # others wanted the processor, or it slept
            is_late = thread.is_alive()
        finally:
            options.terminate = True
        if is_late:
            thread.join(GRACE_S)
            raise ModelError(
                f"{self._label}: scoring {len(rows)} rows takes more than {deadline:.0f} s, a "
                "loop without an end perhaps; export it anew"
            )
        if isinstance(found[0], MemoryError) or _NO_MEMORY.search(str(found[0])[:2000]):
            raise _NoMemoryError
        if isinstance(found[0], Exception):
            raise ModelError(
                f"{self._label}: ONNX Runtime can't score with it ({short(found[0])})"
            ) from found[0]
        scores = np.asarray(found[0])
        return scores[:, -1] if scores.ndim == 2 else scores  # noqa: PLR2004 - one column or two


def _clock_of_this_thread() -> int | None:
    """The clock of its processor time, None where there is none (macOS)."""
    find = getattr(time, "pthread_getcpuclockid", None)
    return None if find is None else int(find(threading.get_ident()))


def _seconds(clocks: list[int | None]) -> float:
    """Processor time of a thread in seconds; infinity where it has no clock, or has ended."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(clocks[0]) if clocks and clocks[0] is not None else np.inf
    return np.inf


def probe_rows(n_features: int) -> Array:
    """Rows to try a model with, float32: zeros first, then small, large and whole numbers."""
    n = max(2, min(PROBE_ROWS, PROBE_CELLS // n_features))
    rng = np.random.default_rng(n_features)
    rows = rng.normal(size=(n, n_features)) * 10.0 ** rng.integers(-1, 6, (n, 1))
    rows[: n // 2] = np.round(rows[: n // 2])
    rows[0] = 0
    return rows.astype(np.float32)


def _session(data: bytes, label: str) -> Any:
    runtime = import_runtime(label)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    _limit_memory(runtime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except onnx_errors() as error:
        raise ModelError(
            f"{label}: ONNX Runtime can't read it ({short(error)}); export it anew"
        ) from error


def import_runtime(label: str) -> Any:
    """ONNX Runtime.

    Raises
    ------
    ModelError
        It is not installed.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - heavy
    except ImportError as error:
        raise ModelError(
            f"{label}: ONNX Runtime is needed for it: pip install 'agc-ml[ml]'"
        ) from error
    return onnxruntime


def _limit_memory(runtime: Any) -> None:
    """Give this process one store of memory for all sessions, of a limited size."""
    place = runtime.OrtMemoryInfo(
        "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    )
    with contextlib.suppress(*onnx_errors()):  # it is there already
        runtime.create_and_register_allocator(place, runtime.OrtArenaCfg({"max_mem": MEMORY}))


def _checked(inputs: Any, outputs: Any, label: str) -> Any:
    """The output with the scores."""
    scores = [one for one in outputs if one.type == "tensor(float)"]
    shapes = [one.shape for one in (*inputs, *scores)]
    if len(inputs) != 1 or len(scores) != 1 or inputs[0].type != "tensor(float)":
        raise ModelError(
            f"{label}: one input and one output of float32 are needed, it has "
            f"{_described(inputs)} -> {_described(outputs)}; export it with those"
        )
    if isinstance(next(iter(shapes[0]), None), int):
        raise ModelError(
            f"{label}: it takes {shapes[0][0]} rows at a time, not any number; export it with a "
            "free first dimension"
        )
    columns = shapes[1][1:]
    if len(shapes[0]) != 2 or columns not in ([], [1], [2]):  # noqa: PLR2004
        raise ModelError(
            f"{label}: input (n, k) and output (n,), (n, 1) or (n, 2) are needed, it has "
            f"{_described(inputs)} -> {_described(scores)}; export it with those"
        )
    if not isinstance(shapes[0][1], int):
        raise ModelError(f"{label}: its number of features is not fixed; export it with one")
    if not 1 <= shapes[0][1] <= MOST_FEATURES:
        raise ModelError(
            f"{label}: it takes {shapes[0][1]} features; 1 to {MOST_FEATURES:,} can be done"
        )
    return scores[0]


def check_alone(data: bytes, label: str) -> None:
    """Make sure that a model has its weights in itself, and not in the working directory.

    Raises
    ------
    ModelError
        It has not; it is no model of ONNX; or the package onnx is not installed.
    """
    try:
        import onnx  # noqa: PLC0415 - heavy
        from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx
    except ImportError as error:
        raise ModelError(
            f"{label}: onnx is needed to check it: pip install 'agc-ml[ml]'"
        ) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(f"{label}: it is not an ONNX model, or cut off; export it anew") from error
    for tensor in _messages(model, onnx.TensorProto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            other = one_line(where.get("location", "a file without a name"))
            raise ModelError(
                f"{label}: it takes weights from another file ({other}), which its sha256 does "
                "not cover; save it whole: onnx.save(onnx.load(FILE), FILE, "
                "save_as_external_data=False)"
            )


def _messages(message: Any, kind: type) -> Iterator[Any]:
    """All messages of a kind inside of a protobuf message, at any depth."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "add") else [value]:  # several, or one
                yield from _messages(inner, kind)


def onnx_errors() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime, which share no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native  # noqa: PLC0415 - heavy

    found = (getattr(native, name) for name in dir(native))
    own = (one for one in found if isinstance(one, type) and issubclass(one, Exception))
    return (*own, RuntimeError, ValueError, MemoryError)


def short(error: Exception) -> str:
    """The beginning of what a library says, in one line."""
    text = one_line(str(error).partition("Stack trace")[0])
    return re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", text)  # xgboost begins with time and source


def _described(tensors: list[Any]) -> str:
    return one_line(", ".join(f"{one.name} {one.type} {one.shape}" for one in tensors))


def one_line(text: str) -> str:
    """The beginning of a text from a file."""
    return " ".join(text[:2000].split())[:300]
