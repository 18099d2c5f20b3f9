"""A user's folder of processors that has the name of an installed package, such as ``processors/``.

Python takes one of the two for the package, and does not see the modules of the other. Here both
become one package. Where both have a module of the same name, neither is taken in silence.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from agc_ml.analysis import portions
from agc_ml.errors import UsageError


def join_folders(module: str) -> None:
    """Let the package of a module have the modules of all folders of its name.

    Its own ones come first; an ``__init__.py`` in the others does not run.
    """
    package, _, rest = module.partition(".")
    folders = portions(package, sys.path)
    if not rest or len(folders) < 2:  # noqa: PLR2004 - its own one and another
        return
    places = getattr(import_module(package), "__path__", None)
    if isinstance(places, list):  # Python itself joins folders without __init__.py
        known = {Path(place).resolve() for place in places}
        places += [folder for folder in folders if Path(folder).resolve() not in known]


def refuse_ambiguous(module: str) -> None:
    """Make sure that a module is not both in the working directory and installed.

    Raises
    ------
    UsageError
        It is: which one is meant is not known.
    """
    package, _, rest = module.partition(".")
    if not rest:
        return
    name = f"{package}.{rest.partition('.')[0]}"
    here = (Path.cwd() / package).resolve()
    others = [folder for folder in portions(package, sys.path) if Path(folder).resolve() != here]
    mine, installed = _file(name, [str(here)]), _file(name, others)
    if mine is not None and installed is not None:
        raise UsageError(
            f"{mine}: {name} is also an installed module ({installed}); rename yours, or name its "
            f"file: {mine}:Class"
        )


def _file(module: str, places: list[str]) -> str | None:
    """File or folder of a module in one of these places; None where it is in none."""
    spec: ModuleSpec | None = None
    with suppress(KeyError, ImportError):
        spec = PathFinder.find_spec(module, places)
    if spec is None:
        return None
    return spec.origin or str(next(iter(spec.submodule_search_locations or ()), module))
