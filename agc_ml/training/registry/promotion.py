"""Promotion and rollback: the champion is compared before it changes, and every change noted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

from agc_ml.errors import ModelError, TrainingError
from agc_ml.models.model import Parity
from agc_ml.models.registry import Version
from agc_ml.training.registry.publisher import Publisher
from agc_ml.training.registry.versions import AGAINST_TAG, PASSED_TAG
from agc_ml.training.service.database import Database, Promotion

logger = logging.getLogger(__name__)


class ConflictError(TrainingError):
    """The champion is not the expected one, or the bundle may not replace it."""


class Champions:
    """Champions of the models; one change at a time, in one process."""

    def __init__(self, registry: Publisher, database: Database) -> None:
        self._registry = registry
        self._database = database

    def promote(
        self,
        name: str,
        version: str | Mapping[Parity, int],
        *,
        expected: str | None,
        who: str,
        force: str = "",
    ) -> Promotion:
        """Make a bundle the champion: both of its models change at once.

        Parameters
        ----------
        version
            Version of the bundle, or versions of its two models.
        expected
            Version that has to be the champion now, '' for none; None to accept any.
        force
            Reason for promoting a bundle that failed gates.

        Raises
        ------
        ConflictError
            Another version is the champion, the bundle was compared with another one, or it failed
            a gate.
        ModelError
            There is no such bundle, or its files were changed.
        """
        self.settle()
        bundle = self._registry.verified(name, version)
        champion = self._expected_champion(name, expected)
        if bundle.version == champion:
            raise ConflictError(f"model {name}: version {champion} is the champion already")
        if not force:
            self._check_gates(bundle, champion)
        return self._change(name, bundle.version, champion, force, who, is_rollback=False)

    def _expected_champion(self, name: str, expected: str | None) -> str:
        champion = self._registry.champion_version(name)
        if expected is not None and expected != champion:
            raise ConflictError(
                f"model {name}: the champion is {_label(champion)}, not {_label(expected)}; look "
                "again, and try again"
            )
        return champion

    def _check_gates(self, bundle: Version, champion: str) -> None:
        label = f"model {bundle.name}: version {bundle.version}"
        if bundle.tags.get(PASSED_TAG) != "true":
            raise ConflictError(
                f"{label} does not pass all gates; see its report, or promote it with --force and "
                "a reason"
            )
        against = bundle.tags.get(AGAINST_TAG, "")
        if against != champion:
            raise ConflictError(
                f"{label} was judged against {_label(against)}, but the champion is "
                f"{_label(champion)}; judge it again, or promote it with --force and a reason"
            )

    def _change(
        self, name: str, version: str, previous: str, reason: str, who: str, *, is_rollback: bool
    ) -> Promotion:
        """Change the champion, and note it before and after."""
        promotion = self._database.begin_promotion(
            name, version, previous, reason, who, is_rollback=is_rollback
        )
        try:
            self._registry.set_champion(name, version)
        except ModelError:
            with contextlib.suppress(ModelError):  # settled by the next promotion
                self._settle(promotion)
            raise
        self._database.end_promotion(promotion, happened=True)
        logger.info("model %s: version %s is the champion, by %s", name, version, who)
        return promotion.model_copy(update={"state": "done"})

    def rollback(self, name: str, *, expected: str | None, who: str) -> Promotion:
        """Make the previous champion the champion again.

        Raises
        ------
        ConflictError
            There was none before, or another version is the champion.
        """
        self.settle()
        history = self._database.promotions(name)
        champion = self._expected_champion(name, expected)
        previous = _previous(history, champion)
        if not previous:
            raise ConflictError(f"model {name}: there was no champion before; promote a version")
        self._registry.verified(name, previous)
        reason = f"rollback from version {champion}"
        return self._change(name, previous, champion, reason, who, is_rollback=True)

    def settle(self) -> None:
        """Finish promotions that a process died in: the registry says whether they happened.

        Raises
        ------
        RegistryError
            The registry can't be used now.
        """
        for promotion in self._database.unfinished_promotions():
            self._settle(promotion)

    def _settle(self, promotion: Promotion) -> None:
        champion = self._registry.champion_version(promotion.name)
        self._database.end_promotion(promotion, happened=champion == promotion.version)


def _label(version: str) -> str:
    return f"version {version}" if version else "none"


def _previous(history: list[Promotion], champion: str) -> str:
    """Return the champion before this one; a rollback is a step back, not a new champion."""
    stack: list[str] = []
    for change in history:
        if change.is_rollback and len(stack) > 1 and stack[-2] == change.version:
            stack.pop()
        else:
            stack = stack or ([change.previous] if change.previous else [])
            stack.append(change.version)
    while stack and stack[-1] != champion:
        stack.pop()
    return stack[-2] if len(stack) > 1 else ""
