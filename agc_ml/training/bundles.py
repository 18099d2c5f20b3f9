"""Folder of a bundle: card, models, golden rows and training record."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agc_ml.errors import ModelError, TrainingError
from agc_ml.files import write
from agc_ml.models import model_files
from agc_ml.models.backends.xgboost_backend import golden_rows
from agc_ml.models.cards import CARD, FORMATS, Card, CardEntry, GoldenRows
from agc_ml.models.loading import load_model
from agc_ml.models.model import PARITIES, Bundle, DeltaPhi, Parity
from agc_ml.results.histogram_files import DAMAGED
from agc_ml.training.trainers.trials import TrainedModel

Array = NDArray[Any]
Record = TypeVar("Record", bound=BaseModel)

CARD_FILE: Final = CARD[-1]
TRAINED: Final = "training.json"
GOLDEN: Final = "golden_{parity}.npz"
# Size of unpacked golden rows
MOST_GOLDEN_BYTES: Final = 500_000_000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """Training of one of the two models."""

    params: dict[str, int | float]
    trials: int = Field(description="number of finished trials")
    failed: int = Field(description="number of failed trials; the log has the errors")
    seed: int
    space: str | dict[str, Any] | None = Field(
        description="search space; null for the default of the kind"
    )
    validation: dict[str, float] = Field(description="cross-validated: auc, jet_score, fully_right")
    curve: tuple[tuple[int, float, float], ...] = Field(
        description="(events, auc, jet_score) of models trained on fewer events"
    )


class TrainingRecord(_Record):
    """Training record of a bundle, the content of ``training.json``."""

    schema_version: Literal[1] = Field(1, alias="schema")
    kind: str = Field(description="xgboost or keras")
    dataset: str = Field(description="digest of the training set")
    variation: str = Field(description="variation of the jets")
    job: str
    models: dict[Parity, ModelRecord]
    versions: dict[str, str] = Field(description="versions of the libraries")
    inputs: dict[str, dict[str, tuple[int, ...]]] = Field(
        description="histogram of each feature by process, with under- and overflow"
    )


def entry_of(parity: Parity, fitted: TrainedModel) -> CardEntry:
    """Return the entry of a trained model in a card."""
    name, content = fitted.files["model"]
    golden = None
    if FORMATS[Path(name).suffix] == "xgboost":
        golden_values = golden_rows(content, name)
        if golden_values is not None:
            golden = GoldenRows(
                rows=tuple(map(tuple, golden_values.rows.tolist())),
                margins=tuple(golden_values.values.tolist()),
            )
    sha256 = hashlib.sha256(content).hexdigest()
    return CardEntry(file=name, uri=None, sha256=sha256, trained_on=parity, golden=golden)


def write_models(folder: Path, fitted: Mapping[Parity, TrainedModel]) -> None:
    """Write the files of trained models, with golden rows and scores.

    Raises
    ------
    StoreError
        There is no space or no permission.
    """
    for parity, one in fitted.items():
        for name, content in one.files.values():
            write(folder / name, lambda path, data=content: path.write_bytes(data))  # type: ignore[misc]
        if one.golden is not None:
            rows, scores = one.golden
            write(
                folder / GOLDEN.format(parity=parity),
                lambda path, r=rows, s=scores: np.savez_compressed(path, rows=r, scores=s),  # type: ignore[misc]
            )


def write_card(
    folder: Path,
    name: str,
    entries: Mapping[Parity, CardEntry],
    about: tuple[str, DeltaPhi, tuple[str, ...]],
) -> None:
    """Write the card of one or two models; ``about`` are task, Delta phi and features.

    Its version is a digest of the models, as the version in the registry is not known yet.
    """
    task, delta_phi, features = about
    digests = "".join(str(entries[parity].sha256) for parity in PARITIES if parity in entries)
    card = Card(
        schema=1,
        name=name,
        version=hashlib.sha256(digests.encode()).hexdigest()[:12],
        task=task,
        delta_phi=delta_phi,
        features=features,
        models=tuple(entries[parity] for parity in PARITIES if parity in entries),
    )
    text = card.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True, indent=1)
    write(folder / CARD_FILE, lambda path: path.write_text(text + "\n"))


def write_record(folder: Path, trained: TrainingRecord) -> None:
    """Write ``training.json``."""
    text = trained.model_dump_json(by_alias=True, indent=1)
    write(folder / TRAINED, lambda path: path.write_text(text + "\n"))


def read_record(folder: Path) -> TrainingRecord:
    """Read ``training.json``.

    Raises
    ------
    TrainingError
        It is missing or damaged.
    """
    return _read(TrainingRecord, folder / TRAINED, "training record")


def read_card(folder: Path) -> Card:
    """Read the card of a bundle.

    Raises
    ------
    TrainingError
        It is missing or damaged.
    """
    return _read(Card, folder / CARD_FILE, "card")


def _read(model: type[Record], path: Path, name: str) -> Record:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{path}: is not a {name} ({reason})") from error


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle of two models.

    Raises
    ------
    ModelError
        It is damaged, or has one model only.
    """
    bundle = load_model(folder)
    if not isinstance(bundle, Bundle):
        raise ModelError(f"{folder}: one model, not a bundle of two; train the other parity too")
    return bundle


def read_golden(folder: Path, parity: Parity) -> tuple[Array, Array] | None:
    """Read golden rows and the scores of the library that trained; None if there are none.

    Raises
    ------
    ModelError
        They are damaged, or too many.
    """
    path = folder / GOLDEN.format(parity=parity)
    if not path.exists():
        return None
    try:
        data = BytesIO(model_files.read(path))
        with zipfile.ZipFile(data) as packed:
            unpacked = sum(one.file_size for one in packed.infolist())
        if unpacked > MOST_GOLDEN_BYTES:
            raise model_files.UnreadableError(f"it unpacks to {unpacked / 1e9:.1f} GB")
        with np.load(data, allow_pickle=False) as content:
            return content["rows"], content["scores"]
    except DAMAGED as error:
        raise ModelError(f"{path}: no golden rows ({error}); train it again") from error
