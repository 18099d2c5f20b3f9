"""Processors: finding them, telling one version from another, getting them to workers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final, get_args, get_type_hints

import cloudpickle
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from agc_ml.analysis import registered
from agc_ml.errors import AgcError, ProcessorError, UsageError
from agc_ml.execution.processor import opened_files
from agc_ml.execution.processor.attachments import attach
from agc_ml.execution.processor.code_identity import (
    LOOSE,
    POSTPROCESS,
    STATE,
    Code,
    code_of,
    is_changed,
    is_library,
    place_in_code,
    without_postprocess,
)
from agc_ml.execution.processor.declarations import schema_of
from agc_ml.execution.processor.function_processor import FunctionProcessor, origin
from agc_ml.execution.processor.opened_files import Seen, changed, seen, watched
from agc_ml.execution.processor.outputs import SUMW
from agc_ml.execution.processor.referred_values import uses
from agc_ml.execution.processor.user_folder import join_folders, refuse_ambiguous
from agc_ml.inputs.fileset import Fileset
from agc_ml.models.loading import load_model
from agc_ml.models.model import Bundle, Model, by_reference

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shipment:
    """A processor, ready to travel.

    ``code`` is the digest of all its code, ``of_chunks`` of what decides the output of a chunk;
    ``blob`` is the pickled processor, with its ``schema``; ``module`` and ``source`` are the module
    that a loose file (``where``) becomes on every worker, named by its digest so that an edited
    file is another module; ``modules`` are the other sources that decide, by sha256, which workers
    compare with theirs; ``values`` are numbers and text that the code refers to, as JSON, compared
    likewise; ``files`` are those that it brings along, sha256 by name; ``models`` are those in it,
    whose content travels apart; ``notes`` is what a user should know; ``identified`` is all that
    is known of its code.
    """

    name: str
    processor: Any
    parameters: dict[str, Any]
    code: str
    of_chunks: str
    blob: bytes
    schema: type | None
    modules: dict[str, str]
    module: str | None = None
    source: bytes = b""
    where: str = ""
    models: tuple[Model, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    values: bytes = b"{}"
    notes: tuple[str, ...] = ()
    identified: Code | None = None

    @property
    def label(self) -> str:
        """Name of its class or function: of outputs that have none of their own."""
        return str(getattr(origin(self.processor), "__name__", self.name))

    @cached_property
    def key(self) -> str:
        """What workers know it by."""
        files = repr(sorted(self.files.items()))
        return hashlib.sha256(f"{self.code}{files}".encode() + self.blob).hexdigest()


def prepare(
    processor: Any,
    settings: Mapping[str, str] | None = None,
    model: str | Path | Model | Bundle | None = None,
    schema: str | type | None = None,
) -> Shipment:
    """Make a processor and all that workers need of it.

    Parameters
    ----------
    processor
        A registered name, ``module:Class``, ``path/to/file.py:Class``, or a processor itself. In
        place of a class there may be a function of the events, or a processor that is made.
    settings
        Values of the class's parameters as text, from a command line.
    model
        A model, or where to find one: the parameter ``model`` of the class.
    schema
        Schema by which coffea makes records of events, in place of the processor's own.

    Raises
    ------
    UsageError
        There is no such processor or parameter, or a value is of the wrong type.
    ModelError
        There is no such model, or it is not one for this processor.
    ProcessorError
        The processor's code can't be imported or made.
    """
    if not isinstance(processor, str):
        return _given(processor, settings, model, schema)
    spec = registered().get(processor, processor)
    where, separator, class_name = spec.rpartition(":")
    if not separator:
        names = ", ".join(sorted(registered()))
        raise UsageError(
            f"no processor {processor!r}; installed are {names}; others go as module:Class or "
            "path/to/file.py:Class"
        )
    source = _read(processor, where) if where.endswith(".py") else None
    if source is None and spec == processor:
        _look_here()
        refuse_ambiguous(where)
    module = _import(processor, where) if source is None else load_source(where, source)
    found = getattr(module, class_name, None)
    if not _is_processor(found) and (isinstance(found, type) or not callable(found)):
        raise UsageError(f"{processor}: {where} has no processor class or function {class_name!r}")
    is_made = _is_processor(found) and not isinstance(found, type)
    if is_made and (settings or model is not None):
        flag = "--model" if model is not None else f"--set {next(iter(settings or {}))}"
        raise UsageError(f"{flag}: {processor} is an object that is made already; give its class")
    made = found if is_made else _make(processor, found, settings or {}, model)
    shipment = _shipment(processor, made, schema)
    if source is None:
        return shipment
    modules = {name: sha for name, sha in shipment.modules.items() if name != module.__name__}
    return replace(shipment, module=module.__name__, source=source, modules=modules, where=where)


def _is_processor(value: Any) -> bool:
    return callable(getattr(value, "process", None))


def _given(processor: Any, settings: Mapping[str, str] | None, model: Any, schema: Any) -> Shipment:
    """Take a processor or a function that is given as such."""
    if isinstance(processor, type) or not (_is_processor(processor) or callable(processor)):
        raise UsageError(
            f"{processor!r} is no processor: an object with process(events) is, or a function"
        )
    if _is_processor(processor):
        if model is not None:
            raise UsageError(
                "pass model= to the processor's constructor; --model works only for processors "
                "given by name"
            )
        return _shipment(type(processor).__name__, processor, schema)
    name = getattr(processor, "__name__", type(processor).__name__)
    return _shipment(name, _make(name, processor, settings or {}, model), schema)


def _read(processor: str, where: str) -> bytes:
    try:
        return Path(where).read_bytes()
    except OSError as error:
        raise UsageError(f"{processor}: {where} can't be read ({error.strerror})") from error


def _look_here() -> None:
    """Look for modules in the working directory, too, after all other places.

    Only for one that the user names: otherwise nothing of what others wrote is imported.
    """
    with contextlib.suppress(OSError):  # it may be gone
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)


def _import(processor: str, where: str) -> ModuleType:
    try:
        join_folders(where)
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and where.startswith(error.name):
            raise UsageError(f"{processor}: there is no module or file {where}") from error
        raise ProcessorError(f"{processor}: importing {where} failed: {error}") from error
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ProcessorError(f"{processor}: importing {where} failed: {error!r}") from error


def load_source(where: str, source: bytes, *, anew: bool = False) -> ModuleType:
    """Make a module of a loose file's content, under a name that holds its digest.

    It is made once, unless it is another one but for its ``postprocess``, or lies elsewhere, or a
    file that it read, while it was made or later, has changed, or it shall be made ``anew``.

    Raises
    ------
    ProcessorError
        It can't be compiled, or raises while it runs.
    """
    name = f"{LOOSE}{without_postprocess(source)[:16]}"
    if name in sys.modules and not anew:
        made_of, read = _loaded[name]
        read = read | dict(opened_files.earlier([name]))
        if made_of == (source, Path(where).absolute()) and not changed(read, seen(read)):
            return sys.modules[name]
    opened_files.forget(name)
    module = ModuleType(name)
    module.__file__ = where
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with watched(lambda path: path == where) as opened:
            exec(compile(source, where, "exec"), vars(module))  # noqa: S102 - the user's own processor
            _loaded[name] = ((source, Path(where).absolute()), opened())
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        place = place_in_code(error)
        raise ProcessorError(f"{where}: can't be loaded: {error!r}{place}") from error
    return module


# Of each module of a loose file: its source and where that is, and the files that it read.
_loaded: Final[dict[str, tuple[tuple[bytes, Path], dict[str, Seen]]]] = {}


def _make(processor: str, maker: Any, settings: Mapping[str, str], model: Any) -> Any:
    """Make a processor of a class, or of a function, whose first parameter are the events."""
    is_class = isinstance(maker, type)
    parameters = dict(inspect.signature(maker).parameters)
    if not is_class:
        if not parameters:
            raise UsageError(f"{processor}: a function of the events is needed: def f(events)")
        del parameters[next(iter(parameters))]
    values: dict[str, Any] = {}
    if model is not None:
        if "model" not in parameters:
            raise UsageError(f"--model: {processor} takes no model (a parameter of that name)")
        values["model"] = load_model(model) if isinstance(model, str | Path) else model
    for name, text in settings.items():
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"--set {name}: {processor} has no such parameter; it has: {known}")
        if name == "model":
            raise UsageError("--set model: a model is given with --model")
        values[name] = _value(name, text, _type_of(maker, parameters[name]))
    _refuse_missing(processor, parameters, values)
    try:
        return maker(**values) if is_class else FunctionProcessor(maker, values)
    except AgcError:
        raise
    except (Exception, SystemExit) as error:  # a constructor may raise anything
        place = place_in_code(error)
        raise ProcessorError(f"{processor}: can't be made: {error!r}{place}") from error


def _value(name: str, text: str, kind: Any) -> Any:
    """Value of a parameter; of one without a type a number, true, false or None, else text."""
    if text in {"None", "null"} and (kind is None or _takes_none(kind)):
        return None
    if kind is None:
        try:
            value = json.loads(text.lower())
        except ValueError:
            return text
        return text if isinstance(value, str | list | dict) else value
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UsageError(f"--set {name}={text}: {message}") from error
    except PydanticUserError as error:
        raise UsageError(
            f"--set {name}: a value of its type can't be given as text; use Python"
        ) from error


def _takes_none(kind: Any) -> bool:
    """Return whether a parameter of that type may be None, and not only text."""
    return type(None) in get_args(kind)


def _refuse_missing(
    processor: str, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
) -> None:
    for name, parameter in parameters.items():
        is_open = parameter.default is inspect.Parameter.empty and name not in values
        if is_open and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            flag = "--model" if name == "model" else f"--set {name}=VALUE"
            raise UsageError(f"{processor}: missing parameter {name}; set it with {flag}")


def _type_of(maker: Any, parameter: inspect.Parameter) -> Any:
    """Type of a parameter: as annotated, else that of its default; None where nothing tells."""
    for hints, space in _annotations(maker):
        if parameter.name in hints:
            alone = SimpleNamespace(__annotations__={parameter.name: hints[parameter.name]})
            try:
                return get_type_hints(alone, space)[parameter.name]
            except (NameError, TypeError, AttributeError):  # for the type checker only
                break
    default = parameter.default
    is_open = default is None or default is inspect.Parameter.empty
    return None if is_open else type(default)


def _annotations(maker: Any) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Annotations of a class or function, with the names that they may refer to."""
    if not isinstance(maker, type):
        function = inspect.unwrap(maker)
        yield getattr(function, "__annotations__", {}), getattr(function, "__globals__", {})
        return
    for cls in maker.__mro__:
        if "__init__" in vars(cls):
            yield from _annotations(vars(cls)["__init__"])
        yield vars(cls).get("__annotations__", {}), vars(sys.modules[cls.__module__])


def _shipment(name: str, processor: Any, given: str | type | None) -> Shipment:
    schema = schema_of(processor, given)
    try:
        now = _identified(processor, schema)
    except AgcError:
        raise
    except (Exception, SystemExit) as error:  # to look at a value may run code of its class
        raise ProcessorError(
            f"{name}: a value that its code refers to can't be looked at: {error!r}"
        ) from error
    code = _before.get(_what_decides(now), now)
    try:
        with by_reference() as models:
            blob = cloudpickle.dumps((processor, schema))
    except (Exception, SystemExit) as error:  # pickling runs code of any object
        raise ProcessorError(f"{name}: can't be sent to workers: {error}") from error
    return Shipment(
        name=name,
        processor=processor,
        parameters=_parameters(code),
        code=code.digest,
        of_chunks=code.chunks,
        blob=blob,
        schema=schema,
        modules=code.modules,
        models=tuple(models),
        files=attach(processor),
        values=now.plain,
        notes=code.notes,
        identified=code,
    )


def _identified(processor: Any, schema: type | None) -> Code:
    return code_of(processor, *([] if schema is None else [schema]))


# Of processors that a run in this process changed: what they were when it began, by what they are.
_before: Final[dict[tuple[str, str, str], Code]] = {}


def _what_decides(code: Code) -> tuple[str, str, str]:
    return code.digest, code.chunks, json.dumps(_parameters(code))


def settle(shipment: Shipment) -> None:
    """Know a processor again that a run changed, which then is the same one to a resume.

    Its code may have filled a cache or counted something, in its module or on itself. Where
    anything else is changed as well, it is another processor.
    """
    code, also = shipment.identified, [] if shipment.schema is None else [shipment.schema]
    if code is not None and is_changed(code, shipment.processor, *also):
        with contextlib.suppress(ProcessorError):  # a module was edited meanwhile
            _before[_what_decides(_identified(shipment.processor, shipment.schema))] = code


def _parameters(code: Code) -> dict[str, Any]:
    """Attributes of a processor, or the values that a function was given, in canonical form."""
    return {
        name.removeprefix(STATE): value
        for name, value in code.values.items()
        if name.startswith(STATE)
    }


def taken(shipment: Shipment, fileset: Fileset) -> Fileset:
    """Datasets that a processor is for: all, or those whose metadata are what its ``takes`` says.

    Raises
    ------
    UsageError
        There is none.
    ProcessorError
        ``takes`` is no mapping of text.
    """
    wanted = getattr(shipment.processor, "takes", None) or {}
    if not isinstance(wanted, Mapping) or not all(isinstance(v, str) for v in wanted.values()):
        raise ProcessorError(
            f"{type(shipment.processor).__name__}.takes: {{field of the metadata: text}} is needed"
        )
    names = [
        dataset.name
        for dataset in fileset.datasets
        if all(fileset.metadata(dataset).get(key) == value for key, value in wanted.items())
    ]
    if len(names) == len(fileset.datasets):
        return fileset
    described = ", ".join(f"{key} {value}" for key, value in wanted.items())
    if not names:
        raise UsageError(
            f"{shipment.name}: it is for datasets with {described}, and none of "
            f"{', '.join(dataset.name for dataset in fileset.datasets[:9])} is one; name others"
        )
    logger.info("%s is for datasets with %s: %s", shipment.name, described, ", ".join(names))
    return replace(fileset, datasets=tuple(d for d in fileset.datasets if d.name in names))


def normalises_itself(processor: Any) -> bool:
    """Whether a processor's own postprocess uses the sum of weights, as coffea's analyses do."""
    return uses(SUMW, getattr(processor, POSTPROCESS, None), processor, is_library)
