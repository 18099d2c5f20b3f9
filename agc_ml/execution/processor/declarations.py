"""What a processor declares: the columns that it needs, the form in which it takes events."""

from __future__ import annotations

from typing import Any, Final

from agc_ml.delivery.servicex import Needs
from agc_ml.errors import ProcessorError, UsageError
from agc_ml.execution.processor.function_processor import declared
from agc_ml.inputs.columns import NANOAOD, ColumnRequest

_SCHEMAS: Final = "coffea.nanoevents.schemas"


def declared_columns(processor: Any, *, is_data: bool) -> tuple[str, ...]:
    """Branches that a processor declares in ``columns``, () if it declares none and gets all.

    ``simulation_columns`` are those that only simulation has, such as genWeight.
    """
    columns = _names(processor, "columns")
    if columns and not is_data:
        columns += _names(processor, "simulation_columns")
    return columns


def wanted_of(processor: Any, schema: type | None, *, is_data: bool) -> ColumnRequest:
    """What a processor wants of the files of a dataset; events are made by ``schema``.

    Raises
    ------
    ProcessorError
        A declaration is of another kind.
    """
    columns = declared_columns(processor, is_data=is_data)
    optional = _names(processor, "optional_columns") if columns else ()
    return ColumnRequest(
        columns=columns,
        optional=tuple(name for name in optional if name not in columns),
        flat=is_flat(processor),
        schema=NANOAOD if schema is None else coffeas_name(schema),
    )


def needs_of(processor: Any, *, is_data: bool) -> Needs:
    """What a processor reads of a dataset: its columns, and, if it takes them flat, its selection.

    Raises
    ------
    ProcessorError
        A declaration is of another kind.
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
    """Whether a processor takes events as flat columns: it says so, and declares which ones."""
    return bool(getattr(processor, "flat", False) and _names(processor, "columns"))


def _names(processor: Any, attribute: str) -> tuple[str, ...]:
    return declared(processor, attribute, "branch names")


def schema_of(processor: Any, given: str | type | None) -> type | None:
    """Schema by which coffea makes records of events: the given one, or the processor's own.

    It is a class, or the name of one of coffea's, with or without "Schema". None: coffea's default,
    that of NanoAOD.

    Raises
    ------
    UsageError
        coffea has no schema of that name.
    ProcessorError
        What the processor has is no schema.
    """
    stated = given if given is not None else getattr(processor, "schema", None)
    if stated is None:
        return None
    where = "--schema" if given is not None else f"{type(processor).__name__}.schema"
    if is_flat(processor):
        raise UsageError(f"{where}: the processor takes flat columns, of which no records are made")
    from coffea.nanoevents import schemas  # noqa: PLC0415 - heavy

    if isinstance(stated, str):
        # modules and other things of coffea's may be called as a schema is without "Schema"
        named = [getattr(schemas, name, None) for name in (stated, f"{stated}Schema")]
        found = next(filter(_is_schema, named), None)
        if found is None:
            known = ", ".join(name for name in schemas.__all__ if name.endswith("Schema"))
            raise UsageError(f"{where} {stated}: coffea has no such schema; it has {known}")
        stated = found
    if not _is_schema(stated):
        raise ProcessorError(f"{where}: {stated!r} is no schema of coffea's kind")
    return stated


def _is_schema(value: Any) -> bool:
    from coffea.nanoevents.schemas import BaseSchema  # noqa: PLC0415 - heavy

    return isinstance(value, type) and issubclass(value, BaseSchema)


def coffeas_name(schema: type) -> str:
    """Name of the schema of coffea's that a schema is, or is derived from."""
    of_coffea = (cls for cls in schema.__mro__ if cls.__module__.startswith(_SCHEMAS))
    return next(of_coffea, schema).__name__
