"""Processors of this process: each is unpickled once, and its chunks get copies."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import cloudpickle

from agc_ml.errors import ProcessorError
from agc_ml.execution.code.code_identity import compare_values
from agc_ml.execution.code.module_versions import forget_modules, require_same_modules
from agc_ml.execution.processor import opened_files
from agc_ml.execution.processor.attachments import attachment_folder
from agc_ml.execution.processor.copies import ProcessorTemplate
from agc_ml.execution.processor.loading import load_source
from agc_ml.execution.worker.job import Job

# A processor may hold tables or models, so it is unpickled once a process, not once a chunk.
_templates: Final[dict[str, ProcessorTemplate]] = {}
_lock: Final = threading.Lock()
_MOST_TEMPLATES: Final = 8  # of a worker that works for one run after the other


@contextmanager
def provide_processor(key: str, processor: Any, schema: type | None) -> Iterator[None]:
    """Give this process the processor of jobs with this key, inside of the block.

    Where a processor was made it must not be unpickled: that would overwrite classes of a notebook.
    """
    with _lock:
        _templates[key] = ProcessorTemplate(processor, schema)
    try:
        yield
    finally:
        with _lock:
            _templates.pop(key, None)


def template_of(job: Job) -> ProcessorTemplate:
    """Return the processor of a job, whose code and values are those of the driver.

    Raises
    ------
    ProcessorError
        This process has other modules or values.
    """
    with _lock:
        if job.key not in _templates:
            require_same_modules(job.modules)
            processor, schema = _unpickle(job)
            problem, notes = compare_values(processor, job.values, is_moved=bool(job.files))
            if problem is not None:
                # a module read a file here when that was another one, or an earlier run left
                # something in it, such as a cache or a counter: import all again
                forget_modules(job.modules)
                for name in job.modules:
                    opened_files.forget_opened(name)
                processor, schema = _unpickle(job, anew=True)
                problem, notes = compare_values(processor, job.values, is_moved=bool(job.files))
            if problem is not None:
                raise ProcessorError(f"{problem}; make it a parameter, or set it to the same value")
            while len(_templates) >= _MOST_TEMPLATES:
                del _templates[next(iter(_templates))]
            _templates[job.key] = ProcessorTemplate(processor, schema, notes)
        return _templates[job.key]


def _unpickle(job: Job, *, anew: bool = False) -> tuple[Any, type | None]:
    """Unpickle a processor and its schema, after the module of a loose file is loaded."""
    if job.module is not None:
        folder = attachment_folder(job.files)
        where = job.where if folder is None else str(folder / Path(job.where).name)
        load_source(where, job.source, anew=anew)
    with _own_classes():
        processor, schema = cloudpickle.loads(job.processor)
    return processor, schema


@contextmanager
def _own_classes() -> Iterator[None]:
    """Have a pickle make classes of a notebook again.

    cloudpickle would take one that it made of an earlier pickle for the same, and write over it
    while another run works with it.
    """
    module = cloudpickle.cloudpickle
    known = module._DYNAMIC_CLASS_TRACKER_BY_ID  # noqa: SLF001 - no other way
    module._DYNAMIC_CLASS_TRACKER_BY_ID = weakref.WeakValueDictionary()  # noqa: SLF001 - as above
    try:
        yield
    finally:
        module._DYNAMIC_CLASS_TRACKER_BY_ID = known  # noqa: SLF001 - as above
