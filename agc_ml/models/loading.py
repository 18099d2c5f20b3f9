"""`load_model`: a model or a bundle from a file, a card, a folder, a server or the registry."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from agc_ml.errors import ModelError
from agc_ml.models import content, model_files, naming
from agc_ml.models.backends import backends
from agc_ml.models.backends.xgboost_backend import Description, golden_rows
from agc_ml.models.cards import (
    CARD,
    FORMATS,
    Card,
    CardEntry,
    GoldenRows,
    is_card,
    json_keys,
    parse_card,
    published_cards,
)
from agc_ml.models.content import Content, Format, Golden, content_of, provide
from agc_ml.models.model import PARITIES, Bundle, Model
from agc_ml.models.model_files import one_line

MOST_PUBLISHED: Final = 10_000_000
"""Bytes: more than any published model has."""

_KSERVE: Final = "kserve"
_PICKLES: Final = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_EXPORT: Final = (
    "give xgboost's .json or .ubj, or ONNX (Keras: model.export(file, format='onnx')), or the "
    "address of a server"
)


def load_model(spec: str | Path) -> Model | Bundle:
    """Load a model and pin it to its bytes.

    Parameters
    ----------
    spec
        A model's file (xgboost .json or .ubj, ONNX); a card, or a folder with a card or with the
        models that an analysis published; a server's
        ``grpc://host:port/model?version=1``; or ``name@champion`` or ``name@version`` of the
        registry that `agc_ml.models.registry_access.locate` finds.

    Raises
    ------
    ModelError
        There is no such model, it is damaged or unsupported, or its card contradicts it.
    """
    if isinstance(spec, str) and "://" in spec:
        return _served(spec)
    if isinstance(spec, str) and naming.is_registered_name(spec):
        return load_registered(spec)
    path = Path(spec)
    try:
        data = _read(path)
    except IsADirectoryError:
        return _in_folder(path)
    if is_card(path, data):
        return _from_card(parse_card(path, data), path)
    return _from_file(path, data)


def load_registered(spec: str, where: str | None = None) -> Model | Bundle:
    """Load the current version of ``name@alias`` or ``name@version`` from the registry.

    Raises
    ------
    ModelError
        There is no such model, its files were changed, or the registry can't be reached.
    UsageError
        There is no such registry.
    """
    name, version, files = naming.read_files(spec, where)
    with tempfile.TemporaryDirectory() as scratch:
        for file, data in files.items():
            (Path(scratch) / file).write_bytes(data)
        model = load_model(scratch)
    if isinstance(model, Model):
        return replace(model, version=version)
    even, odd = (replace(member, version=version) for member in model.members)
    return Bundle(name, version, even, odd)


def scoring_notes(model: Model | Bundle) -> tuple[str, ...]:
    """Notes for the user on how a model would be scored."""
    notes: list[str] = []
    for member in model.members:
        stored = content_of(member.sha256)
        if stored is not None and member.format != _KSERVE:
            backends.open_model(stored, member.format, member.n_features, str(member), notes.append)
    return tuple(dict.fromkeys(notes))


def _read(path: Path) -> bytes:
    try:
        return model_files.read(path)
    except IsADirectoryError:
        raise
    except model_files.UnreadableError as error:
        raise ModelError(f"model {path}: {error}; give a model's file or a card") from error
    except (OSError, ValueError) as error:  # the path may hold a NUL
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"model {str(path)[:200]}: can't be read ({reason}); give a model's file, a card, a "
            "folder, or grpc://host:port/model?version=1"
        ) from error


def _in_folder(folder: Path) -> Model | Bundle:
    for name in CARD:
        path = folder / name
        # xgboost's own models may be called model.json, too.
        if path.is_file() and "learner" not in json_keys(data := _read(path)):
            return _from_card(parse_card(path, data), path)
    # Without a card: the published models, recognised by their digests.
    names = {
        hashlib.sha256(_read(path)).hexdigest(): path.name
        for path in sorted(folder.glob("*.json"))
        if path.is_file() and path.stat().st_size <= MOST_PUBLISHED
    }
    for published in published_cards():
        if all(entry.sha256 in names for entry in published.models):
            entries = tuple(
                entry.model_copy(update={"file": names[str(entry.sha256)]})
                for entry in published.models
            )
            return _from_card(published.model_copy(update={"models": entries}), folder / CARD[0])
    raise ModelError(
        f"model {folder}: no card ({CARD[0]}) in it, nor the published models; describe yours in a "
        "card, or give a model's file"
    )


def _from_card(card: Card, path: Path) -> Model | Bundle:
    models = [_member(card, entry, path) for entry in card.models]
    if len(models) == 1:
        return models[0]
    by_parity = {model.trained_on: model for model in models}
    if set(by_parity) != set(PARITIES):
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
    description = backends.describe(data, format, label)
    _compare_features(label, description, card.features)
    model = Model(
        name=f"{card.name}{parity}",
        version=card.version,
        sha256=sha256,
        format=format,
        n_features=description.n_features,
        features=card.features or description.names,
        trained_on=entry.trained_on,
        task=card.task,
        delta_phi=card.delta_phi,
    )
    return _pinned(model, data, description, label, _golden(entry.golden, model, label))


def _golden(golden: GoldenRows | None, model: Model, label: str) -> Golden | None:
    if golden is None:
        return None
    if model.format != "xgboost" or len(golden.rows[0]) != model.n_features:
        raise ModelError(
            f"{label}: golden rows are for a model of xgboost, with as many numbers as features "
            f"({model.n_features}); correct the card"
        )
    return Golden(np.array(golden.rows, np.float32), np.array(golden.margins, np.float32))


def _compare_features(label: str, description: Description, names: tuple[str, ...]) -> None:
    """Reject a card that names other features than the model has."""
    number, own = description.n_features, description.names
    if names and len(names) != number:
        raise ModelError(
            f"{label}: it takes {number} features, but its card names {len(names)}; correct the "
            "card"
        )
    if own and names and own != names:
        raise ModelError(
            f"{label}: its features are {one_line(', '.join(own))}, but its card names "
            f"{one_line(', '.join(names))}; correct the card: order counts"
        )


def _from_file(path: Path, data: bytes) -> Model:
    format = _format(path, data)  # noqa: A001 - as in Model
    sha256 = hashlib.sha256(data).hexdigest()
    label = f"model {path}"
    description = backends.describe(data, format, label)
    model = Model(
        name=path.stem,
        version=sha256[:12],
        sha256=sha256,
        format=format,
        n_features=description.n_features,
        features=description.names,
    )
    return _pinned(model, data, description, label)


def _served(uri: str) -> Model:
    scheme = uri.partition("://")[0].lower()
    if scheme not in {"grpc", "grpcs"}:
        raise ModelError(
            f"model {uri}: no {scheme}:// models; served ones are grpc://host:port/model?version=1"
        )
    from agc_ml.models.backends.kserve_endpoint import Endpoint  # noqa: PLC0415 - on demand

    endpoint, data = Endpoint.parse(uri), uri.encode()
    description = backends.describe(data, _KSERVE, uri)
    model = Model(
        name=endpoint.model,
        version=endpoint.version,
        sha256=hashlib.sha256(data).hexdigest(),
        format=_KSERVE,
        n_features=description.n_features,
    )
    return _pinned(model, data, description, f"model {uri}")


def _format(path: Path, data: bytes) -> Format:
    if data.startswith(_PICKLES):
        raise ModelError(f"model {path}: a pickle, which runs whatever is in it; {_EXPORT}")
    if path.suffix not in FORMATS:
        raise ModelError(f"model {path}: {path.suffix or 'no suffix'}: not a format; {_EXPORT}")
    return FORMATS[path.suffix]


def _pinned(
    model: Model, data: bytes, description: Description, label: str, golden: Golden | None = None
) -> Model:
    """Store a model's content in this process, with golden rows, after it scored."""
    if golden is None and model.format == "xgboost":
        golden = golden_rows(data, label, description.parsed)
    pinned = Content(data, golden)
    if model.format != _KSERVE:  # its server has answered already
        backends.probe(pinned, model.format, str(model), description)
    provide({model.sha256: pinned._replace(is_safe=content.is_safe(model.sha256))})
    return model
