"""ONNX models, scored by ONNX Runtime on one thread within limits of time and memory.

A graph may hold loops, and sizes that depend on the rows: inspecting it tells nothing of its cost.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.backends import isolated_loading
from agc_ml.models.backends.probing import import_library, library_message, probe_rows
from agc_ml.models.content import BATCH_ROWS, Array
from agc_ml.models.model_files import MOST_FEATURES, one_line

SECOND_COLUMN: Final = (
    "of the two columns of its output the second is the score, as of the second class"
)
DEADLINE_S: Final = 10.0
"""CPU seconds to score rows, besides `SLOWER` times the time a few rows took each."""

SLOWER: Final = 20
MEMORY: Final = 4_000_000_000
"""Bytes that all models of a process may hold at once."""

FEWEST_ROWS: Final = 1_024
"""Rows that are not split further when memory runs out."""

GRACE_S: Final = 2.0
"""Seconds to stop between two nodes of a graph."""

_SHORT_S: Final = 0.02

_NO_MEMORY: Final = re.compile("bad.?alloc|Available memory|Failed to allocate", re.IGNORECASE)


class _NoMemoryError(Exception):
    pass


class Graph:
    """An ONNX model, opened: rows ``(n, k) float32 -> (n,)``.

    Raises
    ------
    ModelError
        It can't be read, or does not map rows to one score each.
    """

    def __init__(self, data: bytes, label: str) -> None:
        isolated_loading.ensure_safe(data, "onnx", label)
        self._label = label
        self._session = session = _session(data, label)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        scores = _checked(inputs, outputs, label)
        self._input, self._output = inputs[0].name, scores.name
        self.n_features: int = inputs[0].shape[1]
        self.has_two_columns: bool = scores.shape[1:] == [2]
        # The cost of a row; an isolated process has scored these rows already.
        few, seconds = probe_rows(self.n_features), []
        for _ in range(3):  # on a busy machine the shortest time counts
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
            ONNX Runtime fails, or takes too much time or memory.
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
                    f"{MEMORY / 1e9:g} GB of memory; export it again"
                ) from error
        half = len(rows) // 2
        return np.concatenate([self._within_memory(part) for part in (rows[:half], rows[half:])])

    def _score(self, rows: Array, deadline: float) -> Array:
        """Score rows in a thread, which is abandoned if it can't be stopped."""
        from onnxruntime import RunOptions  # noqa: PLC0415 - heavy

        options, outcome, clocks = RunOptions(), [], []

        def run() -> None:
            clocks.append(_clock_of_this_thread())
            try:
                outcome.extend(self._session.run([self._output], {self._input: rows}, options))
            except onnx_errors() as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        # The deadline counts CPU time: on a busy machine it passes more slowly than the clock.
        try:
            thread.join(deadline)
            while thread.is_alive() and (left := deadline - _seconds(clocks)) > 0:
                thread.join(max(left, _SHORT_S))
            is_late = thread.is_alive()
        finally:
            options.terminate = True
        if is_late:
            thread.join(GRACE_S)
            raise ModelError(
                f"{self._label}: scoring {len(rows)} rows takes more than {deadline:.0f} s, "
                "perhaps an infinite loop; export it again"
            )
        result = outcome[0]
        if isinstance(result, MemoryError) or _NO_MEMORY.search(str(result)[:2000]):
            raise _NoMemoryError
        if isinstance(result, Exception):
            raise ModelError(
                f"{self._label}: ONNX Runtime can't score with it ({library_message(result)})"
            ) from result
        scores = np.asarray(result)
        return scores[:, -1] if scores.ndim == 2 else scores  # noqa: PLR2004 - one column or two


def _clock_of_this_thread() -> int | None:
    """Clock of this thread's CPU time; None on systems without it (macOS)."""
    find = getattr(time, "pthread_getcpuclockid", None)
    return None if find is None else int(find(threading.get_ident()))


def _seconds(clocks: list[int | None]) -> float:
    """CPU time of a thread in seconds; infinity if it has no clock or has ended."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(clocks[0]) if clocks and clocks[0] is not None else np.inf
    return np.inf


def _session(data: bytes, label: str) -> Any:
    runtime = import_library("onnxruntime", label)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    _limit_memory(runtime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except onnx_errors() as error:
        raise ModelError(
            f"{label}: ONNX Runtime can't read it ({library_message(error)}); export it again"
        ) from error


def _limit_memory(runtime: Any) -> None:
    """Give all sessions of this process one memory arena of limited size."""
    memory = runtime.OrtMemoryInfo(
        "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    )
    with contextlib.suppress(*onnx_errors()):  # it exists already
        runtime.create_and_register_allocator(memory, runtime.OrtArenaCfg({"max_mem": MEMORY}))


def _checked(inputs: Any, outputs: Any, label: str) -> Any:
    """Check shapes and types of a graph's tensors; returns the output with the scores."""
    scores = [output for output in outputs if output.type == "tensor(float)"]
    shapes = [tensor.shape for tensor in (*inputs, *scores)]
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
            f"{label}: it takes {shapes[0][1]} features; 1 to {MOST_FEATURES:,} are supported"
        )
    return scores[0]


def try_out(data: bytes, label: str) -> None:
    """Open a model that may crash this process, and score a few rows twice.

    Raises
    ------
    ModelError
        It can't be opened, reads other files, or its scores are random.
    """
    _check_external_data(data, label)
    graph = Graph(data, label)
    rows = probe_rows(graph.n_features)
    if not np.array_equal(graph(rows), graph(rows), equal_nan=True):
        raise ModelError(f"{label}: it scores the same rows differently each time; export it again")


def _check_external_data(data: bytes, label: str) -> None:
    """Reject a model with weights in other files: they would be read from the working directory."""
    onnx = import_library("onnx", label)
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx

    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{label}: it is not an ONNX model, or truncated; export it again"
        ) from error
    for tensor in _messages(model, onnx.TensorProto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = {entry.key: entry.value for entry in tensor.external_data}
            file = one_line(location.get("location", "a file without a name"))
            raise ModelError(
                f"{label}: it takes weights from another file ({file}), which its sha256 does not "
                "cover; save it whole: onnx.save(onnx.load(FILE), FILE, "
                "save_as_external_data=False)"
            )


def _messages(message: Any, kind: type) -> Iterator[Any]:
    """All messages of a kind inside a protobuf message, at any depth."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "add") else [value]:  # several, or one
                yield from _messages(inner, kind)


def onnx_errors() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime, which share no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native  # noqa: PLC0415 - heavy

    kinds = [kind for kind in vars(native).values() if isinstance(kind, type)]
    own = [kind for kind in kinds if issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def _described(tensors: list[Any]) -> str:
    return one_line(", ".join(f"{tensor.name} {tensor.type} {tensor.shape}" for tensor in tensors))
