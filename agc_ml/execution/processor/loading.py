"""Find processors, make them, and get them ready for workers."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import cloudpickle

from agc_ml.analysis import registered
from agc_ml.errors import AgcError, ProcessorError, UsageError
from agc_ml.execution.code.code_identity import (
    POSTPROCESS,
    CodeIdentity,
    digest_without_postprocess,
    has_changed,
    identify_code,
)
from agc_ml.execution.code.code_objects import mentions
from agc_ml.execution.code.function_processor import origin
from agc_ml.execution.code.module_versions import LOOSE
from agc_ml.execution.code.source_files import is_library, place_in_code
from agc_ml.execution.code.user_folder import join_folders, refuse_ambiguous
from agc_ml.execution.processor import opened_files
from agc_ml.execution.processor.attachments import attach
from agc_ml.execution.processor.declarations import schema_of
from agc_ml.execution.processor.opened_files import (
    FileState,
    changed_files,
    file_states,
    watch_opened,
)
from agc_ml.execution.processor.outputs import SUMW
from agc_ml.execution.processor.parameters import make_processor
from agc_ml.models.model import Bundle, Model, by_reference


@dataclass(frozen=True)
class LoadedProcessor:
    """A processor, ready to travel to workers.

    Attributes
    ----------
    instance
        The processor itself.
    identity
        Identity of its code, as of the begin of the run.
    blob
        The pickled processor, with its ``schema``.
    modules
        Sources that decide, by sha256, which workers compare with theirs.
    module, source, where
        Module that a loose file becomes on every worker, its content and its path.
    models
        Models in the processor, whose content travels apart.
    files
        Files that it brings along, sha256 by name.
    values
        Numbers and text that the code refers to, as JSON, which workers compare with theirs.
    notes
        Lines for the user.
    """

    name: str
    instance: Any
    identity: CodeIdentity
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

    @property
    def code(self) -> str:
        """Digest of all its code."""
        return self.identity.digest

    @property
    def parameters(self) -> dict[str, Any]:
        """Values of its parameters, in canonical form."""
        return self.identity.parameters

    @property
    def label(self) -> str:
        """Name of its class or function, for outputs without a name of their own."""
        return str(getattr(origin(self.instance), "__name__", self.name))

    @cached_property
    def key(self) -> str:
        """Digest by which workers know it."""
        files = repr(sorted(self.files.items()))
        return hashlib.sha256(f"{self.code}{files}".encode() + self.blob).hexdigest()

    @property
    def normalises_itself(self) -> bool:
        """Whether its own postprocess uses the sum of weights, as in coffea's analyses."""
        postprocess = getattr(self.instance, POSTPROCESS, None)
        return mentions(SUMW, postprocess, self.instance, is_library)


def load_processor(
    processor: Any,
    settings: Mapping[str, str] | None = None,
    model: str | Path | Model | Bundle | None = None,
    schema: str | type | None = None,
) -> LoadedProcessor:
    """Make a processor, and all that workers need of it.

    Parameters
    ----------
    processor
        A registered name, ``module:Class``, ``path/to/file.py:Class``, or a processor itself. In
        place of a class there may be a function of the events, or an instance.
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
        There is no such model, or it does not fit the processor.
    ProcessorError
        The processor's code can't be imported, or its constructor raised.
    """
    settings = settings or {}
    if not isinstance(processor, str):
        return _of_object(processor, settings, model, schema)
    spec = registered().get(processor, processor)
    where, separator, name = spec.rpartition(":")
    if not separator:
        names = ", ".join(sorted(registered()))
        raise UsageError(
            f"no processor {processor!r}; installed are {names}; name others by module:Class or "
            "path/to/file.py:Class"
        )
    source = _read(processor, where) if where.endswith(".py") else None
    if source is None and spec == processor:
        _look_in_working_directory()
        refuse_ambiguous(where)
    module = _import(processor, where) if source is None else load_source(where, source)
    target = getattr(module, name, None)
    is_instance = _is_processor(target) and not isinstance(target, type)
    if not _is_processor(target) and (isinstance(target, type) or not callable(target)):
        raise UsageError(f"{processor}: {where} has no processor class or function {name!r}")
    if is_instance and (settings or model is not None):
        flag = "--model" if model is not None else f"--set {next(iter(settings))}"
        raise UsageError(f"{flag}: {processor} is an instance already; name its class")
    instance = target if is_instance else make_processor(processor, target, settings, model)
    loaded = _loaded(processor, instance, schema)
    if source is None:
        return loaded
    modules = {name: sha for name, sha in loaded.modules.items() if name != module.__name__}
    return replace(loaded, module=module.__name__, source=source, modules=modules, where=where)


def _is_processor(value: Any) -> bool:
    return callable(getattr(value, "process", None))


def _of_object(
    processor: Any, settings: Mapping[str, str], model: Any, schema: Any
) -> LoadedProcessor:
    """Load a processor or function that is not given by name."""
    if isinstance(processor, type) or not (_is_processor(processor) or callable(processor)):
        raise UsageError(
            f"{processor!r} is not a processor: give an object with process(events), or a function"
        )
    if not _is_processor(processor):
        name = getattr(processor, "__name__", type(processor).__name__)
        return _loaded(name, make_processor(name, processor, settings, model), schema)
    if model is not None:
        raise UsageError(
            "pass model= to the processor's constructor; --model works only for processors "
            "given by name"
        )
    return _loaded(type(processor).__name__, processor, schema)


def _read(processor: str, where: str) -> bytes:
    try:
        return Path(where).read_bytes()
    except OSError as error:
        raise UsageError(f"{processor}: {where} can't be read ({error.strerror})") from error


def _look_in_working_directory() -> None:
    """Look for modules in the working directory, too, after all other places.

    Only for one that the user names: nothing that others wrote there is imported otherwise.
    """
    with contextlib.suppress(OSError):  # the directory may be gone
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


# Of each module of a loose file: its source and path, and the files that it read.
_loose_modules: Final[dict[str, tuple[tuple[bytes, Path], dict[str, FileState]]]] = {}


def load_source(where: str, source: bytes, *, anew: bool = False) -> ModuleType:
    """Make a module of a loose file's content, under a name that holds its digest.

    A module that was made before is used again, unless its source differs in more than
    ``postprocess``, it lies elsewhere, a file that it read has changed, or ``anew`` is true.

    Raises
    ------
    ProcessorError
        It can't be compiled, or raises while it runs.
    """
    name = f"{LOOSE}{digest_without_postprocess(source)[:16]}"
    made_of = (source, Path(where).absolute())
    if name in sys.modules and not anew:
        before, read = _loose_modules[name]
        read = read | dict(opened_files.opened_before([name]))
        if before == made_of and not changed_files(read, file_states(read)):
            return sys.modules[name]
    opened_files.forget_opened(name)
    module = ModuleType(name)
    module.__file__ = where
    replaced = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with watch_opened(lambda path: path == where) as opened:
            exec(compile(source, where, "exec"), vars(module))  # noqa: S102 - the user's own processor
            _loose_modules[name] = (made_of, opened())
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        sys.modules.pop(name)
        if replaced is not None:
            sys.modules[name] = replaced
        place = place_in_code(error)
        raise ProcessorError(f"{where}: can't be loaded: {error!r}{place}") from error
    return module


# Identities at the begin of a run of processors that a run in this process changed, by the key of
# what they are now.
_before_changes: Final[dict[tuple[str, str, str], CodeIdentity]] = {}


def _loaded(name: str, processor: Any, given_schema: str | type | None) -> LoadedProcessor:
    schema = schema_of(processor, given_schema)
    try:
        now = identify_code(processor, schema)
    except AgcError:
        raise
    except (Exception, SystemExit) as error:  # to look at a value may run code of its class
        raise ProcessorError(
            f"{name}: a value that its code refers to can't be examined: {error!r}"
        ) from error
    identity = _before_changes.get(now.key, now)
    try:
        with by_reference() as models:
            blob = cloudpickle.dumps((processor, schema))
    except (Exception, SystemExit) as error:  # pickling runs code of any object
        raise ProcessorError(f"{name}: can't be sent to workers: {error}") from error
    return LoadedProcessor(
        name=name,
        instance=processor,
        identity=identity,
        blob=blob,
        schema=schema,
        modules=identity.modules,
        models=tuple(models),
        files=attach(processor),
        values=now.plain,
        notes=identity.notes,
    )


def remember_changes(loaded: LoadedProcessor) -> None:
    """Recognise a processor that a run changed as the same one in a resume.

    Its code may have filled a cache or counted something, in its module or on itself. Where
    anything else changes as well, it is another processor.
    """
    if has_changed(loaded.identity, loaded.instance, loaded.schema):
        with contextlib.suppress(ProcessorError):  # a module was edited meanwhile
            now = identify_code(loaded.instance, loaded.schema)
            _before_changes[now.key] = loaded.identity
