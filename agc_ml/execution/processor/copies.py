"""A new copy of the processor for each chunk, as in coffea.

Attributes that ``process`` sets on ``self`` belong to its chunk: a processor that another chunk
filled, before it or at the same time in another thread, would count twice. Copies come out of a
pickle, as coffea's do. Content that never changes is shared: models, corrections, classes, large
arrays.
"""

from __future__ import annotations

import io
import pickle
import sys
import timeit
from collections.abc import Callable
from copy import deepcopy
from types import FunctionType, ModuleType
from typing import Any, Final

import cloudpickle

from agc_ml.errors import ProcessorError
from agc_ml.execution.code.code_identity import code_in_use
from agc_ml.execution.processor.opened_files import code_home
from agc_ml.execution.processor.persistent_state import (
    PersistentState,
    are_equal,
    part_at,
    returned_again,
)
from agc_ml.models.model import Model

LARGE: Final = 1 << 20
"""Bytes from which an array or text is shared, not copied: 0.1 ms. A shared array can't be written
to, so that numpy refuses a processor that changes it."""
SHARED: Final = (
    "an array of 1 MB or more from a processor's __init__ is shared by all chunks and read-only: "
    "copy it in process()"
)
SLOW_S: Final = 0.005
"""Time of a copy above which a line tells the user."""
_TIMED: Final = 5

_SHARED: Final = (
    *(("correctionlib", name) for name in ("CorrectionSet", "Correction", "CompoundCorrection")),
    ("xgboost", "Booster"),
    ("xgboost", "XGBModel"),
    ("lightgbm", "Booster"),
    ("keras", "Model"),
    ("torch", "Module"),
)
"""Package and class of models and corrections, which do not change when they are used."""


class ProcessorTemplate:
    """A processor of which each chunk gets a copy, and the schema of its events.

    ``homes`` is the user's code that it may run, by which opened files are remembered; ``notes``
    are lines about how it was made.

    Raises
    ------
    ProcessorError
        The processor can't be pickled.
    """

    def __init__(
        self, processor: Any, schema: type | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        self.schema = schema
        self._notes = notes
        self._shared: list[Any] = []
        self._buffers: list[bytes] = []
        file = io.BytesIO()
        try:
            _Pickler(file, self._shared, self._buffers).dump(processor)
            self._pickled = file.getvalue()
            self.copy()  # its imports do not count in the time below
        except (Exception, SystemExit) as error:  # pickling runs code of any object, both ways
            raise ProcessorError(
                f"{type(processor).__name__}: can't be copied for each chunk: {error}"
            ) from error
        self._persistent = PersistentState(processor)
        self.homes = frozenset(code_home(*where) for where in code_in_use(processor))
        # the fastest of a few, as machines pause
        self._copy_s = min(timeit.repeat(self.copy, number=1, repeat=_TIMED))

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for the user about the processor and the cost of its copies."""
        if self._copy_s < SLOW_S:
            return self._notes
        line = (
            f"each chunk gets a copy of the processor, and one takes {self._copy_s * 1e3:.0f} ms: "
            "keep large tables in numpy arrays, which are shared, and models in --model"
        )
        return (*self._notes, line)

    def copy(self) -> Any:
        """Return a processor that no other chunk has seen."""
        unpickler = pickle.Unpickler(io.BytesIO(self._pickled), buffers=self._buffers)  # noqa: S301 - pickled above
        unpickler.persistent_load = self._shared.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def check(self, output: Any, dataset: str, again: Callable[[Any], Any]) -> None:
        """Reject the output of a chunk of a dataset that other chunks have filled, too.

        ``again`` processes the chunk once more with a copy: where persistent state may be in the
        output, the output must be equal then.

        Raises
        ------
        ProcessorError
            The output holds state of the class or its module that gathers content of chunks.
        """
        suspects, place = self._persistent.suspects(output, dataset), returned_again(output)
        if place is not None:
            source = next(iter(suspects), "that of an earlier chunk")
            raise _gathers(f"has the content of {source}{place and f' (output{place})'}")
        if not suspects:
            return
        first = {name: deepcopy(part_at(output, where or ())) for name, where in suspects.items()}
        second = again(self.copy())
        for name, where in suspects.items():
            if not are_equal(first[name], part_at(second, where or ())):
                raise _gathers(f"has the content of {name}")
        self._persistent.acquit(suspects)

    @property
    def has_shared_arrays(self) -> bool:
        """Return whether copies share read-only arrays."""
        return bool(self._buffers)


def _gathers(content: str) -> ProcessorError:
    return ProcessorError(
        f"its output {content}, which all chunks of a worker fill, so that they would count twice; "
        "make it in process() or in __init__"
    )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts objects that may be shared into a list, and their places there into the pickle."""

    def __init__(self, file: io.BytesIO, shared: list[Any], buffers: list[bytes]) -> None:
        def in_band(buffer: pickle.PickleBuffer) -> bool:
            view = buffer.raw()
            if view.nbytes < LARGE:
                return True
            buffers.append(view.tobytes())
            return False

        super().__init__(file, protocol=5, buffer_callback=in_band)
        self._shared = shared
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """Return the place of an object that all copies share; None to copy it."""
        if not _is_shared(obj):
            return None
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self._shared)
            self._shared.append(obj)
        return self._places[id(obj)]


def _is_shared(obj: Any) -> bool:
    if isinstance(obj, type | ModuleType | Model):
        return True
    if isinstance(obj, FunctionType):  # closures and lambdas may hold state: they are copied
        home = sys.modules.get(obj.__module__)
        return getattr(home, obj.__qualname__, None) is obj
    if type(obj) in {bytes, str}:
        return len(obj) >= LARGE
    return any(
        cls.__name__ == name and cls.__module__.partition(".")[0] == package
        for cls in type(obj).__mro__
        for package, name in _SHARED
    )
