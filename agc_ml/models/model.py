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

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models.content import BATCH_ROWS, Array, Content, Format, content_of, provide
from agc_ml.models.model_files import one_line

Parity = Literal["even", "odd"]
PARITIES: Final[tuple[Parity, Parity]] = ("even", "odd")
"""Parities of event numbers."""
DeltaPhi = Literal["wrapped", "raw"]


@dataclass(frozen=True)
class Model:
    """A model: ``model(features)`` scores rows, ``(n, k) float32 -> (n,) float32``.

    Attributes
    ----------
    sha256
        Digest of its file: only these bytes score.
    format
        ``xgboost`` (JSON or UBJ), ``onnx``, or ``kserve``, a model on a server.
    n_features
        Number of features k.
    features
        Names of the features, from the card or an xgboost file; () if unknown.
    trained_on
        Parity of the numbers of its training events; None for both.
    task
        Task that it was trained for; "" if not stated.
    delta_phi
        Delta R features with phi wrapped to [-pi, pi], or raw.
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
        """Description that distinguishes it from other models, the same in any process."""
        trained = f", trained on {self.trained_on} events" if self.trained_on else ""
        features = f" {', '.join(self.features)}" if self.features else ""
        return (
            f"{self.name}@{self.version} sha256:{self.sha256} ({self.n_features} "
            f"features{features}, delta phi {self.delta_phi}{trained})"
        )

    @property
    def members(self) -> tuple[Model, ...]:
        """The model itself; a bundle has two members."""
        return (self,)

    def __call__(self, features: Any) -> Array:
        """Score rows.

        Raises
        ------
        ModelError
            `checked` rejects the rows, or they can't be scored.
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
        """Rows as the model takes them, float32, shape ``(n, k)``.

        Raises
        ------
        ModelError
            The rows have another shape or order of columns, or hold NaN, infinite, complex or
            masked values.
        """
        self._check_kind(features)
        try:
            rows = np.ascontiguousarray(features, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{self}: its features can't be taken as rows of numbers "
                f"({one_line(str(error))}); give it an array of shape (n, k)"
            ) from error
        if rows.shape[1:] != (self.n_features,):
            raise ModelError(
                f"{self}: it takes rows of {self.n_features} features, not an array of shape "
                f"{rows.shape}; give it the features it was trained on"
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
        """Reject features that numpy would silently turn into other numbers."""
        if np.ma.isMaskedArray(features) or np.iscomplexobj(features):
            kind = "complex" if np.iscomplexobj(features) else "masked"
            raise ModelError(f"{self}: its features are {kind}; give it plain numbers, all valid")
        # Columns of a pandas or pyarrow table; numbers are not names.
        names = tuple(getattr(features, "column_names", getattr(features, "columns", ())))
        is_named = names and all(isinstance(name, str) for name in names)
        if is_named and self.features and names != self.features:
            raise ModelError(
                f"{self}: the columns are {', '.join(map(str, names))}; it takes "
                f"{', '.join(self.features)}, in this order"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, field.name) for field in fields(self))
        gathered = _gathered.get()
        if gathered is None:
            return _restored, (values, content_of(self.sha256))
        gathered.append(self)
        return _restored, (values, None)


def _restored(values: tuple[Any, ...], content: Content | None) -> Model:
    model = Model(*values)
    if content is not None:
        provide({model.sha256: content})
    return model


@dataclass(frozen=True)
class Bundle:
    """Two models, trained on even and on odd events; each scores events that it never saw."""

    name: str
    version: str
    even: Model
    odd: Model

    def __post_init__(self) -> None:
        """Reject members trained on other events than their place says."""
        for parity, model in zip(PARITIES, self.members, strict=True):
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
        """Description that distinguishes it from other bundles, the same in any process."""
        return ", ".join(model.canonical() for model in self.members)

    @property
    def members(self) -> tuple[Model, ...]:
        """The model trained on even events, and the one trained on odd events."""
        return (self.even, self.odd)

    @property
    def delta_phi(self) -> DeltaPhi:
        """Delta R features of both with phi wrapped, or raw."""
        return self.even.delta_phi

    def scorer(self, parity: Parity) -> Model:
        """The model that may score events of a parity: the one trained on the others."""
        return self.odd if parity == "even" else self.even

    def __call__(self, features: Any, event: Any) -> Array:
        """Score rows; ``event`` holds their event numbers, shape ``(n,)``.

        Raises
        ------
        ModelError
            As for `Model`.
        """
        # Checked before the rows are split by parity: errors name the caller's row.
        rows = self.even.checked(features)
        is_even = np.asarray(event) % 2 == 0
        scores = np.empty(len(rows), np.float32)
        scores[is_even] = self.scorer("even")(rows[is_even])
        scores[~is_even] = self.scorer("odd")(rows[~is_even])
        return scores


class Batches:
    """Rows from many places, scored together by one model.

    ``add`` takes rows and a callback for their scores; `flush` scores the rest at the end.
    """

    def __init__(self, model: Model, rows: int = BATCH_ROWS) -> None:
        self._model = model
        self._batch_rows = rows
        self._waiting: list[tuple[Array, Callable[[Array], None]]] = []

    def add(self, features: Array, use: Callable[[Array], None]) -> None:
        """Add rows; ``use`` is called with their scores, now or later."""
        self._waiting.append((features, use))
        if sum(len(rows) for rows, _ in self._waiting) >= self._batch_rows:
            self.flush()

    def flush(self) -> None:
        """Score the waiting rows."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        scores = self._model(np.concatenate([rows for rows, _ in waiting]))
        ends = np.cumsum([len(rows) for rows, _ in waiting])
        for part, (_, use) in zip(np.split(scores, ends[:-1]), waiting, strict=True):
            use(part)


# Opened back ends of this process and notes on them, by sha256.
_backends: dict[str, Callable[[Array], Any]] = {}
_notes: dict[str, list[str]] = {}
_lock: Final = threading.RLock()
_gathered: ContextVar[list[Model] | None] = ContextVar("gathered", default=None)


@contextmanager
def by_reference() -> Iterator[list[Model]]:
    """Pickle models without their content inside this context; yields the pickled models."""
    gathered: list[Model] = []
    token = _gathered.set(gathered)
    try:
        yield gathered
    finally:
        _gathered.reset(token)


def contents(models: Iterable[Model]) -> dict[str, Content]:
    """Content of models, by sha256.

    Raises
    ------
    ModelError
        This process does not hold the content of one.
    """
    return {model.sha256: _content(model) for model in models}


def _content(model: Model) -> Content:
    content = content_of(model.sha256)
    if content is None:
        raise ModelError(
            f"{model}: its content never came to this process; load it with agc-ml's --model or "
            "agc_ml.load_model"
        )
    return content


def notes(models: Iterable[str]) -> tuple[str, ...]:
    """Notes for the user on how these models, by sha256, are scored in this process."""
    return tuple(note for sha256 in models for note in _notes.get(sha256, ()))


def _backend(model: Model) -> Callable[[Array], Any]:
    backend = _backends.get(model.sha256)
    if backend is not None:
        return backend
    from agc_ml.models.backends.backends import open_model  # noqa: PLC0415 - heavy

    with _lock:  # opened once, also when several threads score
        if model.sha256 not in _backends:
            note = _notes.setdefault(model.sha256, []).append
            _backends[model.sha256] = open_model(
                _content(model), model.format, model.n_features, str(model), note
            )
        return _backends[model.sha256]
