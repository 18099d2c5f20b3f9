"""Models in processors: pinned to their bytes, loaded once a process, scored in batches.

::

    class Mine(ProcessorABC):
        def __init__(self, model):                  # agc-ml run mine.py:Mine --model mine.onnx
            self.model = model

        def process(self, events):
            scores = self.model(features)           # (n, k) float32 -> (n,) float32

A model travels to workers as a reference; its content follows once, checked by its sha256.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agc_ml.errors import ModelError

Parity = Literal["even", "odd"]
PARITIES: Final[tuple[Parity, Parity]] = ("even", "odd")
"""Of event numbers, by their remainder."""
Format = Literal["xgboost", "onnx", "kserve"]
DeltaPhi = Literal["wrapped", "raw"]
Array = NDArray[Any]

BATCH_ROWS: Final = 32_768
"""Rows that are scored at once, where there are so many: more than 4,000 cost no less a row."""


class Golden(NamedTuple):
    """Rows, float32, shape ``(n, k)``, and what the model's own library gives for them, ``(n,)``.

    For forests it is the margins, before the sigmoid.
    """

    rows: Array
    values: Array


class Content(NamedTuple):
    """What a model is made of: the bytes of its file, and rows to check it with.

    ``is_vouched`` where whoever gives it has seen that it can be opened without harm: others don't
    try it in a process of its own again.
    """

    data: bytes
    golden: Golden | None = None
    is_vouched: bool = False


@dataclass(frozen=True)
class Model:
    """A model: ``model(features)`` scores rows, ``(n, k) float32 -> (n,) float32``.

    Attributes
    ----------
    sha256
        Of its file: what is scored with is these bytes, or nothing.
    format
        ``xgboost`` (JSON or UBJ), ``onnx``, or ``kserve``, a model on a server.
    n_features
        Number of features k.
    features
        Their names, where they are known: from the card, or from a file of xgboost.
    trained_on
        The parity of the numbers of the events it was trained on, None if of both.
    task
        What it was trained for, "" where that is not stated.
    delta_phi
        Whether its Delta R features were made with phi wrapped to [-pi, pi], or raw.
    """

    name: str
    version: str
    sha256: str
    format: Format
    n_features: int
    features: tuple[str, ...] = ()
    trained_on: Parity | None = None
    task: str = ""
    delta_phi: DeltaPhi = "wrapped"

    def __str__(self) -> str:
        return f"model {self.name} (version {self.version})"

    def canonical(self) -> str:
        """What tells it from other models, the same in any process."""
        trained = f", trained on {self.trained_on} events" if self.trained_on else ""
        features = f" {', '.join(self.features)}" if self.features else ""
        return (
            f"{self.name}@{self.version} sha256:{self.sha256} ({self.n_features} "
            f"features{features}, delta phi {self.delta_phi}{trained})"
        )

    @property
    def members(self) -> tuple[Model, ...]:
        """Itself: a bundle has two."""
        return (self,)

    def __call__(self, features: Any) -> Array:
        """Score rows.

        Raises
        ------
        ModelError
            The rows are refused, as by `checked`, or can't be scored.
        """
        rows = self.checked(features)
        if not len(rows):
            return np.empty(0, np.float32)
        scores = np.asarray(_backend(self)(rows))
        if scores.shape != (len(rows),) or not np.isfinite(scores).all():
            raise ModelError(
                f"{self}: gave scores of shape {scores.shape}, finite or not, for {len(rows)} "
                "rows; one finite score a row is needed"
            )
        return scores.astype(np.float32, copy=False)

    def checked(self, features: Any) -> Array:
        """Rows as the model takes them, float32.

        Raises
        ------
        ModelError
            They are of another shape, have columns in another order, or hold NaN, infinite, complex
            or masked values.
        """
        self._check_kind(features)
        try:
            rows = np.ascontiguousarray(features, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{self}: its features can't be taken as rows of numbers "
                f"({' '.join(str(error).split())[:200]}); give it an array of shape (n, k)"
            ) from error
        if rows.shape[1:] != (self.n_features,):
            raise ModelError(
                f"{self}: it takes rows of {self.n_features} features, not an array of shape "
                f"{rows.shape}; give it those it was trained on"
            )
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            feature = self.features[column] if self.features else f"number {column}"
            raise ModelError(
                f"{self}: feature {feature} of row {row} is {rows[row, column]}; select events in "
                "which it is defined, or give it a number"
            )
        return rows

    def _check_kind(self, features: Any) -> None:
        """Refuse what numpy would turn into other numbers without a word."""
        if np.ma.isMaskedArray(features) or np.iscomplexobj(features):
            kind = "complex" if np.iscomplexobj(features) else "masked"
            raise ModelError(f"{self}: its features are {kind}; give it plain numbers, all valid")
        # a table's, of pandas or pyarrow: numbers name nothing
        names = tuple(getattr(features, "column_names", getattr(features, "columns", ())))
        is_named = names and all(isinstance(name, str) for name in names)
        if is_named and self.features and names != self.features:
            raise ModelError(
                f"{self}: the columns are {', '.join(map(str, names))}; it takes "
                f"{', '.join(self.features)}, in this order"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, one.name) for one in fields(self))
        content = _contents.get(self.sha256)
        gathered = _gathered.get()
        if gathered is None:
            return _restored, (values, content)
        gathered.append(self)
        return _restored, (values, None)


def _restored(values: tuple[Any, ...], content: Content | None) -> Model:
    model = Model(*values)
    if content is not None:
        provide({model.sha256: content})
    return model


@dataclass(frozen=True)
class Bundle:
    """Two models, trained on even and on odd events; each scores the events it never saw."""

    name: str
    version: str
    even: Model
    odd: Model

    def __post_init__(self) -> None:
        """Refuse models that are not what their place says."""
        for parity, model in (("even", self.even), ("odd", self.odd)):
            if model.trained_on != parity:
                raise ModelError(
                    f"model {self.name}: the one for {parity} events says it was trained on "
                    f"{model.trained_on} ones; state trained_on of each in the card"
                )
        if self.even.sha256 == self.odd.sha256:
            raise ModelError(
                f"model {self.name}: both of its models are the same (sha256 {self.even.sha256}), "
                "so one would score events it was trained on; name two"
            )

    def __str__(self) -> str:
        return f"model {self.name} (version {self.version})"

    def canonical(self) -> str:
        """What tells it from other bundles, the same in any process."""
        return ", ".join(model.canonical() for model in self.members)

    @property
    def members(self) -> tuple[Model, ...]:
        """The model trained on even events, and the one trained on odd ones."""
        return (self.even, self.odd)

    @property
    def delta_phi(self) -> DeltaPhi:
        """How the Delta R features of both are made."""
        return self.even.delta_phi

    def scorer(self, parity: Parity) -> Model:
        """The model that may score events of a parity: the one trained on the others."""
        return self.odd if parity == "even" else self.even

    def __call__(self, features: Any, event: Any) -> Array:
        """Score rows, of which ``event`` gives the event numbers, shape ``(n,)``.

        Raises
        ------
        ModelError
            As of `Model`.
        """
        rows = self.even.checked(features)  # whose errors count rows before they are parted
        is_even = np.asarray(event) % 2 == 0
        scores = np.empty(len(rows), np.float32)
        scores[is_even] = self.scorer("even")(rows[is_even])
        scores[~is_even] = self.scorer("odd")(rows[~is_even])
        return scores


class Batches:
    """Gathers rows of many places, and has a model score them together.

    ``add`` takes rows, and what is to be done with their scores. What is left over at the end
    `flush` scores.
    """

    def __init__(self, model: Model, rows: int = BATCH_ROWS) -> None:
        self._model = model
        self._most = rows
        self._waiting: list[tuple[Array, Callable[[Array], None]]] = []

    def add(self, features: Array, use: Callable[[Array], None]) -> None:
        """Take rows; ``use`` is called with their scores, now or later."""
        self._waiting.append((features, use))
        if sum(len(rows) for rows, _ in self._waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Score what is waiting."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        scores = self._model(np.concatenate([rows for rows, _ in waiting]))
        ends = np.cumsum([len(rows) for rows, _ in waiting])
        for part, (_, use) in zip(np.split(scores, ends[:-1]), waiting, strict=True):
            use(part)


# What this process holds, by sha256.
_contents: dict[str, Content] = {}
_vouched: set[str] = set()
_backends: dict[str, Callable[[Array], Any]] = {}
_notes: dict[str, list[str]] = {}
_lock: Final = threading.RLock()
_gathered: ContextVar[list[Model] | None] = ContextVar("gathered", default=None)


def provide(contents: Mapping[str, Content]) -> None:
    """Give this process the content of models, by sha256.

    Raises
    ------
    ModelError
        A content is not what its sha256 says.
    """
    for sha256, content in contents.items():
        if sha256 not in _contents:
            if hashlib.sha256(content.data).hexdigest() != sha256:
                raise ModelError(f"a model's content is not what its sha256 {sha256} says")
            _contents[sha256] = content
            if content.is_vouched:
                vouch(sha256)


def vouch(sha256: str) -> None:
    """Remember that a content can be opened without harm."""
    _vouched.add(sha256)


def is_vouched(sha256: str) -> bool:
    """Return whether a content can be opened without harm, as far as this process knows."""
    return sha256 in _vouched


@contextmanager
def by_reference() -> Iterator[list[Model]]:
    """Inside it, models that are pickled leave their content behind; gives those models."""
    gathered: list[Model] = []
    token = _gathered.set(gathered)
    try:
        yield gathered
    finally:
        _gathered.reset(token)


def forget(sha256: str) -> None:
    """Let go of a content; nobody may need it any more."""
    _contents.pop(sha256, None)


def content_of(sha256: str) -> Content | None:
    """What this process was given under a sha256, None if nothing."""
    return _contents.get(sha256)


def contents(models: Iterable[Model]) -> dict[str, Content]:
    """Content of models, by sha256.

    Raises
    ------
    ModelError
        This process does not hold it.
    """
    return {model.sha256: _content(model) for model in models}


def _content(model: Model) -> Content:
    try:
        return _contents[model.sha256]
    except KeyError:
        raise ModelError(
            f"{model}: its content never came to this process; have it loaded by agc-ml's --model "
            "or agc_ml.load_model"
        ) from None


def notes(models: Iterable[str]) -> tuple[str, ...]:
    """What a user should know of how these models, by sha256, are scored in this process."""
    return tuple(note for sha256 in models for note in _notes.get(sha256, ()))


def _backend(model: Model) -> Callable[[Array], Any]:
    found = _backends.get(model.sha256)
    if found is not None:
        return found
    from agc_ml.models.backends import backends  # noqa: PLC0415 - heavy

    with _lock:  # loaded once, also when threads ask at once
        if model.sha256 not in _backends:
            _backends[model.sha256] = backends.open_model(
                model, _content(model), _notes.setdefault(model.sha256, []).append
            )
        return _backends[model.sha256]
