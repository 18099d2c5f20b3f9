"""Model cards: the YAML or JSON description of one or two models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from agc_ml import documents
from agc_ml.analysis import FILE_NAME, shipped_cards
from agc_ml.errors import ModelError
from agc_ml.models import model_files
from agc_ml.models.content import Format
from agc_ml.models.model import DeltaPhi, Parity
from agc_ml.models.model_files import one_line

CARD: Final = ("model.yaml", "model.yml", "model.json")
"""Names of the card in a folder."""

FORMATS: Final[dict[str, Format]] = {".json": "xgboost", ".ubj": "xgboost", ".onnx": "onnx"}
MOST_CARD: Final = 30_000_000
"""Bytes of a JSON card, with golden rows of thousands of features."""

MOST_YAML: Final = 1_000_000
"""Bytes of a YAML card: a second parses about 300 kB."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenRows(_Frozen):
    """Rows to check a forest with, and xgboost's margins for them."""

    rows: tuple[tuple[FiniteFloat, ...], ...] = Field(min_length=1)
    margins: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _are_complete(self) -> Self:
        if len({len(row) for row in self.rows}) > 1 or len(self.margins) != len(self.rows):
            raise ValueError("rows of one length are needed, and a margin for each")
        return self


class CardEntry(_Frozen):
    """One model of a card."""

    file: str | None = Field(None, description="its file, relative to the card")
    uri: str | None = Field(
        None, description="or its server: grpc://host:port[,other:port]/model?version=1"
    )
    sha256: str | None = Field(None, description="of the file; another file is rejected")
    trained_on: Parity | None = Field(None, description="parity of its training events")
    golden: GoldenRows | None = Field(None, description="rows to check it with")


class Card(_Frozen):
    """One model, or two that each score the events the other one was trained on."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    version: str
    task: str = Field("", description="task of the model")
    delta_phi: DeltaPhi = Field(
        "wrapped", description="Delta R features with phi wrapped to [-pi, pi], or raw"
    )
    features: tuple[str, ...] = Field((), description="names of its features, in order")
    models: tuple[CardEntry, ...] = Field(min_length=1, max_length=2)


def parse_card(path: Path, data: bytes) -> Card:
    """Parse the content of a card.

    Raises
    ------
    ModelError
        It is too large, not YAML or JSON, or has wrong fields.
    """
    try:
        is_json = path.suffix == ".json"
        most = MOST_CARD if is_json else MOST_YAML
        if len(data) > most:
            raise ModelError(f"{path}: a card of more than {most / 1e6:g} MB; shorten it")
        text = model_files.parse_json(data) if is_json else documents.yaml_of(data.decode())
        return Card.model_validate(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the card"
        raise ModelError(f"{path}: {where}: {first['msg']}; correct the card") from error
    except ValueError as error:
        raise ModelError(
            f"{path}: not YAML or JSON ({one_line(str(error))}); correct the card"
        ) from error


def is_card(path: Path, data: bytes) -> bool:
    """Return True if a file that a user named is a card, not a model."""
    if path.suffix in {".yaml", ".yml"}:
        return True
    # Models are large: parse only JSON that mentions models.
    return b'"models"' in data and {"schema", "models"} <= json_keys(data)


def json_keys(data: bytes) -> set[str]:
    """Keys of a JSON object; none for other data."""
    try:
        content: Any = model_files.parse_json(data)
    except model_files.UnreadableError:
        return set()
    return set(content) if isinstance(content, dict) else set()


def scoring_files(files: Iterable[str]) -> list[str]:
    """Files of a registered version that score: the card, and the models beside it."""
    stems, suffixes = {"even", "odd"}, {".json", ".onnx"}
    return [
        file
        for file in files
        if file in CARD
        or ("/" not in file and Path(file).stem in stems and Path(file).suffix in suffixes)
    ]


def published_cards() -> list[Card]:
    """Cards of published models that registered analyses ship.

    Raises
    ------
    ModelError
        One can't be read, or is damaged.
    """
    cards = []
    for path in shipped_cards():
        try:
            data = model_files.read(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: can't be read ({error}); see {FILE_NAME} there") from error
        cards.append(parse_card(path, data))
    return cards
