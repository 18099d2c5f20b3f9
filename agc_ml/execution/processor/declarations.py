"""Declarations of processors: columns, the form of events, files, and the datasets they take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Final

from agc_ml.delivery.servicex import Needs
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.code.function_processor import origin_name
from agc_ml.inputs.columns import NANOAOD, ColumnRequest
from agc_ml.inputs.fileset import Fileset

logger = logging.getLogger(__name__)

_SCHEMAS: Final = "coffea.nanoevents.schemas"


def declared_names(processor: Any, attribute: str, kind: str) -> tuple[str, ...]:
    """Names that a processor declares, () if none; ``kind`` says in messages what they name.

    Raises
    ------
    ProcessorError
        The attribute is not a collection of names.
    """
    names = getattr(processor, attribute, None)
    if names is None:
        return ()
    is_other = isinstance(names, str | Mapping) or not isinstance(names, Iterable)
    if is_other or not all(isinstance(name, str | PurePath) for name in names):
        raise ProcessorError(
            f"{origin_name(processor)}.{attribute}: a tuple of {kind} is needed; rename the "
            "attribute if it is for something else"
        )
    return tuple(map(str, names))


def declared_columns(processor: Any, *, is_data: bool) -> tuple[str, ...]:
    """Branches that a processor declares in ``columns``, () if none, so that it gets all.

    Simulation has ``simulation_columns`` in addition, such as genWeight.
    """
    columns = _names(processor, "columns")
    if columns and not is_data:
        columns += _names(processor, "simulation_columns")
    return columns


def wanted_of(processor: Any, schema: type | None, *, is_data: bool) -> ColumnRequest:
    """Columns that a processor needs of the files of a dataset; ``schema`` makes its events.

    Raises
    ------
    ProcessorError
        A declaration has the wrong type.
    """
    columns = declared_columns(processor, is_data=is_data)
    optional = _names(processor, "optional_columns") if columns else ()
    return ColumnRequest(
        columns=columns,
        optional=tuple(name for name in optional if name not in columns),
        flat=is_flat(processor),
        schema=NANOAOD if schema is None else coffea_schema_name(schema),
    )


def needs_of(processor: Any, *, is_data: bool) -> Needs:
    """Columns of a dataset that a processor reads, and the preselection of flat ones.

    Raises
    ------
    ProcessorError
        A declaration has the wrong type.
    """
    columns = declared_columns(processor, is_data=is_data)
    if columns:
        columns = tuple(dict.fromkeys((*columns, *_names(processor, "optional_columns"))))
    preselection = getattr(processor, "preselection", "") or ""
    if not isinstance(preselection, str):
        raise ProcessorError(
            f"{type(processor).__name__}.preselection: an expression of branches is needed, as text"
        )
    if not preselection or not is_flat(processor):
        return Needs(columns)
    counted = _names(processor, "counted_columns")
    return Needs(columns, preselection, tuple(name for name in counted if name in columns))


def is_flat(processor: Any) -> bool:
    """Return whether a processor takes events as flat columns, and declares which ones."""
    return bool(getattr(processor, "flat", False) and _names(processor, "columns"))


def _names(processor: Any, attribute: str) -> tuple[str, ...]:
    return declared_names(processor, attribute, "branch names")


def schema_of(processor: Any, given: str | type | None) -> type | None:
    """Schema by which coffea makes records of events: the given one, or the processor's own.

    It is a class, or the name of one of coffea's, with or without "Schema". None: coffea's default,
    that of NanoAOD.

    Raises
    ------
    UsageError
        coffea has no schema of that name.
    ProcessorError
        The processor's attribute is not a schema.
    """
    stated = given if given is not None else getattr(processor, "schema", None)
    if stated is None:
        return None
    where = "--schema" if given is not None else f"{type(processor).__name__}.schema"
    if is_flat(processor):
        raise UsageError(f"{where}: the processor takes flat columns, which have no schema")
    from coffea.nanoevents import schemas  # noqa: PLC0415 - heavy

    if isinstance(stated, str):
        # modules and other things of coffea's may be called as a schema is without "Schema"
        named = [getattr(schemas, name, None) for name in (stated, f"{stated}Schema")]
        stated_name, stated = stated, next(filter(_is_schema, named), None)
        if stated is None:
            known = ", ".join(name for name in schemas.__all__ if name.endswith("Schema"))
            raise UsageError(f"{where} {stated_name}: coffea has no such schema; it has {known}")
    if not _is_schema(stated):
        raise ProcessorError(f"{where}: {stated!r} is not a schema of coffea's kind")
    return stated


def _is_schema(value: Any) -> bool:
    from coffea.nanoevents.schemas import BaseSchema  # noqa: PLC0415 - heavy

    return isinstance(value, type) and issubclass(value, BaseSchema)


def coffea_schema_name(schema: type) -> str:
    """Name of coffea's schema that a schema is, or derives from."""
    of_coffea = (cls for cls in schema.__mro__ if cls.__module__.startswith(_SCHEMAS))
    return next(of_coffea, schema).__name__


def select_datasets(name: str, processor: Any, fileset: Fileset) -> Fileset:
    """Return a fileset of the datasets that a processor takes: all, or as its ``takes`` says.

    Raises
    ------
    UsageError
        There are none.
    ProcessorError
        ``takes`` is not a mapping of text.
    """
    takes = getattr(processor, "takes", None) or {}
    if not isinstance(takes, Mapping) or not all(isinstance(v, str) for v in takes.values()):
        raise ProcessorError(
            f"{type(processor).__name__}.takes: {{field of the metadata: text}} is needed"
        )
    datasets = tuple(
        dataset
        for dataset in fileset.datasets
        if all(fileset.metadata(dataset).get(key) == value for key, value in takes.items())
    )
    if len(datasets) == len(fileset.datasets):
        return fileset
    described = ", ".join(f"{key} {value}" for key, value in takes.items())
    if not datasets:
        raise UsageError(
            f"{name} takes datasets with {described}, and none of "
            f"{', '.join(dataset.name for dataset in fileset.datasets[:9])} is one; name others"
        )
    logger.info(
        "%s takes datasets with %s: %s", name, described, ", ".join(d.name for d in datasets)
    )
    return replace(fileset, datasets=datasets)
