"""A fresh processor for each chunk, as coffea gives one, at the price of a copy.

What ``process`` puts on ``self`` belongs to its chunk: a processor that another chunk filled,
before it or at the same time in another thread, would count twice. Copies come out of a pickle, as
coffea's do. Content that never changes is not copied: models, corrections, classes, large arrays.
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
from agc_ml.execution.processor.code_identity import code_in_use
from agc_ml.execution.processor.lasting_state import Lasting, are_same, at, returned_again
from agc_ml.execution.processor.opened_files import home
from agc_ml.models.model import Model

LARGE: Final = 1 << 20
"""Bytes from which an array or text is shared, not copied: 0.1 ms. A shared array can't be written
to, so a processor that changes it is refused by numpy and not wrong in silence."""
SHARED: Final = (
    "an array of 1 MB or more that a processor has from __init__ is shared by all chunks and can't "
    "be written to: copy it in process()"
)
SLOW_S: Final = 0.005
"""A copy that takes longer is told."""
_TIMED: Final = 5

_SHARED: Final = (
    *(("correctionlib", name) for name in ("CorrectionSet", "Correction", "CompoundCorrection")),
    *(("xgboost", "Booster"), ("xgboost", "XGBModel"), ("lightgbm", "Booster")),
    *(("keras", "Model"), ("torch", "Module")),
)
"""Package and class of what scores or corrects, and is not changed by it."""


class Original:
    """A processor as it was made, of which each chunk gets a copy, and the schema of its events.

    ``homes`` is the user's code that it may run, by which files are remembered; ``notes`` are lines
    about how it was made.

    Raises
    ------
    ProcessorError
        It can't be pickled.
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
            self.copy()  # what it imports is no part of the time
        except (Exception, SystemExit) as error:  # pickling runs code of any object, both ways
            raise ProcessorError(
                f"{type(processor).__name__}: can't be copied for each chunk: {error}"
            ) from error
        self._lasting = Lasting(processor)
        self.homes = frozenset(home(*where) for where in code_in_use(processor))
        # machines pause: the quickest of a few
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
        """Refuse the output of a chunk of a dataset that other chunks have filled, too.

        ``again`` gives what a processor, a copy, makes of the chunk: where something lasting may be
        in the output, it must not be another one then.

        Raises
        ------
        ProcessorError
            It holds something of the class or of its module that gathers what chunks give.
        """
        suspects, place = self._lasting.suspects(output, dataset), returned_again(output)
        if place is not None:
            what = next(iter(suspects), "that of an earlier chunk")
            raise _outlives(f"has what is in {what}{place and f' (output{place})'}")
        if not suspects:
            return
        first = {name: deepcopy(at(output, where or ())) for name, where in suspects.items()}
        second = again(self.copy())
        for name, where in suspects.items():
            if not are_same(first[name], at(second, where or ())):
                raise _outlives(f"has what is in {name}")
        self._lasting.acquit(suspects)

    @property
    def has_shared_arrays(self) -> bool:
        """Return whether copies share read-only arrays."""
        return bool(self._buffers)


def _outlives(what: str) -> ProcessorError:
    return ProcessorError(
        f"its output {what}, which all chunks of a worker fill, so that they would count twice; "
        "make it in process() or in __init__"
    )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Puts what may be shared into a list, and its place there into the pickle."""

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
        """Place of an object that all copies share; None for one that each has its own of."""
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
