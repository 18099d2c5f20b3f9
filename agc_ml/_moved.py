"""Import paths of version 0.1, which work in 0.2 with a DeprecationWarning.

Processors were written against them; `agc_ml` itself offers the common names now.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MOVED: Final = {
    "agc_ml.datasets": "agc_ml.inputs.fileset",
    "agc_ml.hists": "agc_ml.results.histograms",
    "agc_ml.kernels": "agc_ml.columnar",
    "agc_ml.kernels.combinatorics": "agc_ml.columnar.combinatorics",
    "agc_ml.kernels.compiled": "agc_ml.columnar.compiled",
    "agc_ml.kernels.filling": "agc_ml.columnar.histogram_filling",
    "agc_ml.kernels.flat": "agc_ml.columnar.events",
    "agc_ml.kernels.forest": "agc_ml.models.backends.forest",
    "agc_ml.kernels.jagged": "agc_ml.columnar.jagged",
    "agc_ml.kernels.kinematics": "agc_ml.columnar.kinematics",
    "agc_ml.ml": "agc_ml.models",
    "agc_ml.ml.cards": "agc_ml.models.loading",
    "agc_ml.ml.hook": "agc_ml.models.model",
    "agc_ml.rows": "agc_ml.results.tables",
    "agc_ml.variations": "agc_ml.inputs.variations",
}
"""Modules of version 0.1, and those that have their names now."""

_FEATURES: Final = "processors.ttbar.features"
RENAMED: Final = {
    "agc_ml.rows.Rows": "agc_ml.results.tables.ColumnTable",
    **{
        f"agc_ml.kernels.combinatorics.{name}": f"{_FEATURES}.{name}"
        for name in (
            "FEW",
            "FIRST",
            "MANY",
            "PERMUTATIONS",
            "assignment_features",
            "n_permutations",
        )
    },
}
"""Names that are others now, or in another module."""


class Finder:
    """Finder of the modules in `MOVED`, the last one in ``sys.meta_path``."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG004
        """Return what Python needs to import an old module."""
        if name not in MOVED:
            return None
        return ModuleSpec(name, Finder, is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Leave that to Python."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """Have the names of a module come from where they are now."""
        old = module.__name__
        new = import_module(MOVED[old])

        def moved(name: str) -> Any:
            path = RENAMED.get(f"{old}.{name}", f"{new.__name__}.{name}")
            home, _, now = path.rpartition(".")
            try:
                value = getattr(import_module(home), now)
            except AttributeError:
                raise AttributeError(f"module {old!r} has no attribute {name!r}") from None
            if not name.startswith("__"):
                warnings.warn(
                    f"{old}.{name} is now {path}; version 0.3 removes the old path",
                    DeprecationWarning,
                    stacklevel=2,
                )
            return value

        module.__dict__["__getattr__"] = moved


def install() -> None:
    """Have Python find the old modules."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


def home(module: str) -> str:
    """Name of a module as it is now."""
    return MOVED.get(module, module)
