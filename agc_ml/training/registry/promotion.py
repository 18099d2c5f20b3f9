"""Champions: compared before they are swapped, and written down."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from agc_ml.errors import ModelError, TrainingError
from agc_ml.models.model import Parity
from agc_ml.models.registry import Version
from agc_ml.training.registry.publisher import Publisher
from agc_ml.training.registry.versions import AGAINST_TAG, PASSED_TAG
from agc_ml.training.service.database import Promotion, Table

logger = logging.getLogger(__name__)


class ConflictError(TrainingError):
    """The state of a model is another one than the promotion supposed."""


class Promoting:
    """Changes champions; one change at a time, in one process."""

    def __init__(self, registry: Publisher, table: Table) -> None:
        self._registry = registry
        self._table = table

    def promote(
        self,
        name: str,
        version: str | Mapping[Parity, int],
        *,
        expected: str | None,
        who: str,
        force: str = "",
    ) -> Promotion:
        """Make a bundle the champion: the two models change together, and at once.

        Parameters
        ----------
        version
            Of the bundle, or of its two models.
        expected
            Version that has to be the champion now, '' for none; None if any may be.
        force
            Why a bundle is promoted that did not pass all gates.

        Raises
        ------
        ConflictError
            Another one is the champion, or it was judged against another one, or fails a gate.
        ModelError
            There is no such bundle, or its files were changed.
        """
        found = (
            self._registry.find(name, version)
            if isinstance(version, str)
            else self._registry.bundle_of(name, version)
        )
        for file in found.files:
            self._registry.content(found, file)
        now = self._registry.champion(name)
        current = "" if now is None else now.version
        if expected is not None and expected != current:
            raise ConflictError(
                f"model {name}: the champion is {_called(current)}, not {_called(expected)}; look "
                "again, and promote again"
            )
        if found.version == current:
            raise ConflictError(f"model {name}: version {current} is the champion already")
        if not force:
            self._check_gates(found, current)
        return self._crown(name, found.version, current, force, who, is_rollback=False)

    def _check_gates(self, found: Version, current: str) -> None:
        label = f"model {found.name}: version {found.version}"
        if found.tags.get(PASSED_TAG) != "true":
            raise ConflictError(
                f"{label} does not pass all gates; see its report, or promote it with --force and "
                "a reason"
            )
        against = found.tags.get(AGAINST_TAG, "")
        if against != current:
            raise ConflictError(
                f"{label} was judged against {_called(against)}, but the champion is "
                f"{_called(current)}; judge it again, or promote it with --force and a reason"
            )

    def _crown(
        self, name: str, version: str, current: str, reason: str, who: str, *, is_rollback: bool
    ) -> Promotion:
        begun = self._table.begin_promotion(
            name, version, current, reason, who, is_rollback=is_rollback
        )
        try:
            self._registry.crown(name, version)
        except ModelError:
            with contextlib.suppress(ModelError):  # settled with the next start
                self._settle(begun)
            raise
        self._table.end_promotion(begun, happened=True)
        logger.info("model %s: version %s is the champion, by %s", name, version, who)
        return begun.model_copy(update={"state": "done"})

    def rollback(self, name: str, *, expected: str | None, who: str) -> Promotion:
        """Make the champion before this one the champion again.

        Raises
        ------
        ConflictError
            There was none before, or another one is the champion.
        """
        history = self._table.promotions(name)
        now = self._registry.champion(name)
        current = "" if now is None else now.version
        if expected is not None and expected != current:
            raise ConflictError(
                f"model {name}: the champion is {_called(current)}, not {_called(expected)}"
            )
        before = _before(history, current)
        if not before:
            raise ConflictError(f"model {name}: there was no champion before; promote a version")
        found = self._registry.find(name, before)
        for file in found.files:
            self._registry.content(found, file)
        reason = f"rollback from version {current}"
        return self._crown(name, before, current, reason, who, is_rollback=True)

    def settle(self) -> None:
        """Finish promotions in which someone died, as the registry says.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        for begun in self._table.unfinished_promotions():
            self._settle(begun)

    def _settle(self, begun: Promotion) -> None:
        now = self._registry.champion(begun.name)
        happened = now is not None and now.version == begun.version
        self._table.end_promotion(begun, happened=happened)


def _called(version: str) -> str:
    return f"version {version}" if version else "none"


def _before(history: list[Promotion], current: str) -> str:
    """Champion before the current one; rollbacks are steps back, not champions of their own."""
    stack: list[str] = []
    for one in history:
        if one.is_rollback and len(stack) > 1 and stack[-2] == one.version:
            stack.pop()
        else:
            stack = stack or ([one.previous] if one.previous else [])
            stack.append(one.version)
    while stack and stack[-1] != current:
        stack.pop()
    return stack[-2] if len(stack) > 1 else ""
