"""Finding models: a file, a card that describes one or two of them, a server."""

from __future__ import annotations

import hashlib
import importlib.resources
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from agc_ml import documents
from agc_ml.errors import ModelError
from agc_ml.models import model_files as given
from agc_ml.models.backends import backends
from agc_ml.models.backends.backends import Described
from agc_ml.models.backends.onnx_graph import one_line
from agc_ml.models.model import (
    Bundle,
    Content,
    DeltaPhi,
    Format,
    Golden,
    Model,
    Parity,
    content_of,
    is_vouched,
    provide,
)

CARD: Final = ("model.yaml", "model.yml", "model.json")
"""What the card in a folder is called."""

FORMATS: Final[dict[str, Format]] = {".json": "xgboost", ".ubj": "xgboost", ".onnx": "onnx"}
MOST_PUBLISHED: Final = 10_000_000
"""Bytes: larger than any model that was published."""

MOST_CARD: Final = 30_000_000
"""Bytes of a card of JSON, with golden rows of thousands of features."""

MOST_YAML: Final = 1_000_000
"""Bytes of a card of YAML, of which a second reads some 300 kB."""

_KSERVE: Final = "kserve"
_PICKLES: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_EXPORT: Final = (
    "give xgboost's .json or .ubj, or ONNX (Keras: model.export(file, format='onnx')), or the "
    "address of a server"
)


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GoldenRows(_Described):
    """Rows to check a forest with, and xgboost's margins for them."""

    rows: tuple[tuple[FiniteFloat, ...], ...] = Field(min_length=1)
    margins: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _are_complete(self) -> Self:
        if len({len(row) for row in self.rows}) > 1 or len(self.margins) != len(self.rows):
            raise ValueError("rows of one length are needed, and a margin for each")
        return self


class CardEntry(_Described):
    """One of the models of a card."""

    file: str | None = Field(None, description="its file, relative to the card")
    uri: str | None = Field(
        None, description="or where it is served: grpc://host:port[,other:port]/model?version=1"
    )
    sha256: str | None = Field(None, description="of the file; another file is refused")
    trained_on: Parity | None = Field(None, description="parity of the events it was trained on")
    golden: GoldenRows | None = Field(None, description="rows that it is checked with")


class Card(_Described):
    """What a model is: one, or two that score the events that the other one was trained on."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    version: str
    task: str = Field("", description="what it is for [jet_assignment]")
    delta_phi: DeltaPhi = Field(
        "wrapped", description="whether its Delta R features wrap phi to [-pi, pi], or leave it raw"
    )
    features: tuple[str, ...] = Field((), description="names of its features, in order")
    models: tuple[CardEntry, ...] = Field(min_length=1, max_length=2)


def load_model(spec: str | Path) -> Model | Bundle:
    """Find a model and pin it to its bytes.

    Parameters
    ----------
    spec
        A model's file (xgboost .json or .ubj, ONNX); a card, or a folder with a card or with the
        two models that the Analysis Grand Challenge published; a server's
        ``grpc://host:port/model?version=1``; or ``name@champion`` or ``name@version`` of the
        registry that `agc_ml.models.registry.place` finds.

    Raises
    ------
    ModelError
        There is none, it is damaged, of another kind, or not what its card says.
    """
    if isinstance(spec, str) and "://" in spec:
        return _served(spec)
    if isinstance(spec, str) and "@" in spec:
        from agc_ml.models import registry  # noqa: PLC0415 - it builds on this module

        if registry.is_named(spec):
            return registry.resolve(spec)
    path = Path(spec)
    try:
        data = _read(path)
    except IsADirectoryError:
        return _in_folder(path)
    if path.suffix in {".yaml", ".yml"} or _is_card(data):
        return _from_card(_card(path, data), path)
    return _from_file(path, data)


def remarks(model: Model | Bundle) -> tuple[str, ...]:
    """Notes on how a model scores, for those who are about to use it."""
    found: list[str] = []
    for member in model.members:
        content = content_of(member.sha256)
        if content is not None and member.format != _KSERVE:
            backends.open_model(member, content, found.append)
    return tuple(dict.fromkeys(found))


def _read(path: Path) -> bytes:
    try:
        return given.read(path)
    except IsADirectoryError:
        raise
    except given.NotTakenError as error:
        raise ModelError(f"model {path}: {error}; give a model's file or a card") from error
    except (OSError, ValueError) as error:  # the path may hold a NUL
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"model {str(path)[:200]}: can't be read ({reason}); give a model's file, a card, a "
            "folder, or grpc://host:port/model?version=1"
        ) from error


def _is_card(data: bytes) -> bool:
    if b'"models"' not in data:  # which spares reading a model
        return False
    return {"schema", "models"} <= _keys(data)


def _keys(data: bytes) -> set[str]:
    try:
        content = given.parse_json(data)
    except given.NotTakenError:
        return set()
    return set(content) if isinstance(content, dict) else set()


def _in_folder(folder: Path) -> Model | Bundle:
    for name in CARD:
        path = folder / name
        # xgboost's users call their models so too
        if path.is_file() and "learner" not in _keys(data := _read(path)):
            return _from_card(_card(path, data), path)
    published = published_card()
    found = {
        hashlib.sha256(_read(path)).hexdigest(): path.name
        for path in sorted(folder.glob("*.json"))
        if path.is_file() and path.stat().st_size <= MOST_PUBLISHED
    }
    if all(entry.sha256 in found for entry in published.models):
        entries = tuple(
            entry.model_copy(update={"file": found[str(entry.sha256)]})
            for entry in published.models
        )
        return _from_card(published.model_copy(update={"models": entries}), folder / CARD[0])
    raise ModelError(
        f"model {folder}: no card ({CARD[0]}) in it, nor the published models; describe yours in a "
        "card, or give a model's file"
    )


def published_card() -> Card:
    """The card of the jet assignment models that the Analysis Grand Challenge published."""
    file = importlib.resources.files("agc_ml.models") / "agc_jet_assignment.json"
    return Card.model_validate_json(file.read_text(encoding="utf-8"))


def _card(path: Path, data: bytes) -> Card:
    try:
        is_json = path.suffix == ".json"
        most = MOST_CARD if is_json else MOST_YAML
        if len(data) > most:
            raise ModelError(f"{path}: a card of more than {most / 1e6:g} MB; shorten it")
        text = given.parse_json(data) if is_json else documents.yaml_of(data.decode())
        return Card.model_validate(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the card"
        raise ModelError(f"{path}: {where}: {first['msg']}; mend the card") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not YAML or JSON ({reason}); mend the card") from error


def _from_card(card: Card, path: Path) -> Model | Bundle:
    models = [_member(card, entry, path) for entry in card.models]
    if len(models) == 1:
        return models[0]
    by_parity = {model.trained_on: model for model in models}
    if set(by_parity) != {"even", "odd"}:
        raise ModelError(
            f"{path}: of two models one must be trained_on even events, the other one on odd ones"
        )
    return Bundle(card.name, card.version, even=by_parity["even"], odd=by_parity["odd"])


def _member(card: Card, entry: CardEntry, path: Path) -> Model:
    if (entry.file is None) == (entry.uri is None):
        raise ModelError(f"{path}: each of its models needs either a file or a uri")
    parity = f"-{entry.trained_on}" if entry.trained_on else ""
    format: Format = _KSERVE  # noqa: A001 - as in Model
    if entry.uri is not None:
        data, label = entry.uri.encode(), entry.uri
    else:
        file = path.parent / str(entry.file)
        try:
            data, label = _read(file), f"model {file}"
        except IsADirectoryError as error:
            raise ModelError(f"{path}: {file} is a folder; name a model's file") from error
        format = _format(file, data)  # noqa: A001 - as in Model
    sha256 = hashlib.sha256(data).hexdigest()
    if entry.sha256 is not None and entry.sha256.lower() != sha256:
        raise ModelError(
            f"{label}: its sha256 is {sha256}, but {path} says {entry.sha256}; it is another model "
            "or damaged"
        )
    about = backends.described(data, format, label)
    model = Model(
        name=f"{card.name}{parity}",
        version=card.version,
        sha256=sha256,
        format=format,
        n_features=_checked_number(label, about, len(card.features)),
        features=_checked_names(label, about, card.features),
        trained_on=entry.trained_on,
        task=card.task,
        delta_phi=card.delta_phi,
    )
    return _pinned(model, data, about, label, _golden(entry.golden, model, label))


def _golden(given: GoldenRows | None, model: Model, label: str) -> Golden | None:
    if given is None:
        return None
    if model.format != "xgboost" or len(given.rows[0]) != model.n_features:
        raise ModelError(
            f"{label}: golden rows are for a model of xgboost, with as many numbers as features "
            f"({model.n_features}); mend the card"
        )
    return Golden(np.array(given.rows, np.float32), np.array(given.margins, np.float32))


def _checked_number(label: str, about: Described, named: int) -> int:
    number = about.n_features
    if named and named != number:
        raise ModelError(
            f"{label}: it takes {number} features, but its card names {named}; mend the card"
        )
    return number


def _checked_names(label: str, about: Described, named: tuple[str, ...]) -> tuple[str, ...]:
    own = about.names
    if own and named and own != named:
        raise ModelError(
            f"{label}: its features are {one_line(', '.join(own))}, but its card names "
            f"{one_line(', '.join(named))}; mend the card: order counts"
        )
    return named or own


def _from_file(path: Path, data: bytes) -> Model:
    format = _format(path, data)  # noqa: A001 - as in Model
    sha256 = hashlib.sha256(data).hexdigest()
    label = f"model {path}"
    about = backends.described(data, format, label)
    model = Model(
        name=path.stem,
        version=sha256[:12],
        sha256=sha256,
        format=format,
        n_features=about.n_features,
        features=about.names,
    )
    return _pinned(model, data, about, label)


def _served(uri: str) -> Model:
    scheme = uri.partition("://")[0].lower()
    if scheme not in {"grpc", "grpcs"}:
        raise ModelError(
            f"model {uri}: no {scheme}:// models; served ones are grpc://host:port/model?version=1"
        )
    from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

    endpoint, data = Endpoint.parse(uri), uri.encode()
    about = backends.described(data, _KSERVE, uri)
    model = Model(
        name=endpoint.model,
        version=endpoint.version,
        sha256=hashlib.sha256(data).hexdigest(),
        format=_KSERVE,
        n_features=about.n_features,
    )
    return _pinned(model, data, about, f"model {uri}")


def _format(path: Path, data: bytes) -> Format:
    if data.startswith(_PICKLES):
        raise ModelError(f"model {path}: a pickle, which runs whatever is in it; {_EXPORT}")
    if path.suffix not in FORMATS:
        raise ModelError(f"model {path}: {path.suffix or 'no ending'}: not a format; {_EXPORT}")
    return FORMATS[path.suffix]


def _pinned(
    model: Model, data: bytes, about: Described, label: str, golden: Golden | None = None
) -> Model:
    """Take a model's content into this process, with rows to check it."""
    if golden is None and model.format == "xgboost":
        golden = backends.golden(data, label, about.learner)
    content = Content(data, golden)
    if model.format != _KSERVE:  # a server was asked already
        backends.probe(model, content, about.learner)
    provide({model.sha256: content._replace(is_vouched=is_vouched(model.sha256))})
    return model
