"""Training in a folder without a service: the same jobs, registry and promotions, here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agc_ml.training.registry import versions
from agc_ml.training.registry.versions import VersionFacts
from agc_ml.training.service import job_manager
from agc_ml.training.service.client import Versions, checked, table_of
from agc_ml.training.service.database import Job, Promotion
from agc_ml.training.service.job_manager import Settings

_PAUSE_S = 0.2


@contextmanager
def opened(folder: Path, workers: int | None, site: str, who: str) -> Iterator[Unserved]:
    """Open a folder to train in."""
    training = job_manager.Training(
        Settings(folder, site=site, workers=workers or os.cpu_count() or 1)
    )
    try:
        yield Unserved(training, who)
    finally:
        training.close()


class Unserved:
    """A folder that models are trained in, as `agc_ml.training.service.client.Training`."""

    def __init__(self, training: job_manager.Training, who: str) -> None:
        self._training = training
        self._who = who

    def upload(self, source: str | Path) -> str:
        """Take a training set in."""
        return self._training.add_dataset(table_of(source))

    def submit(self, **spec: Any) -> Job:
        """Take a job on; it is done by who follows it."""
        return self._training.submit(checked(spec), self._who)[0]

    def jobs(self) -> list[Job]:
        """Jobs, the oldest first."""
        return self._training.table.jobs()

    def job(self, identity: str) -> Job:
        """A job as it stands."""
        return self._training.table.job(identity)

    def follow(self, identity: str) -> Iterator[Job]:
        """Do the job, and those before it; gives it each time it changes, until it is over."""
        changed = 0.0
        while True:
            job = self.job(identity)
            if job.changed != changed:
                changed = job.changed
                yield job
            if job.is_over:
                return
            for waiting in self._training.step():
                job_manager.advance(self._training, waiting)
            time.sleep(_PAUSE_S)

    def cancel(self, identity: str) -> Job:
        """Stop a job."""
        return self._training.cancel(identity)

    def log(self, identity: str) -> list[str]:
        """Lines of a job's log."""
        return self._training.log(self.job(identity), 10_000)

    def models(self, name: str | None = None) -> list[VersionFacts]:
        """Bundles of a model, or of all."""
        registry = self._training.registry
        return versions.of_all(registry) if name is None else versions.of_model(registry, name)

    def resolve(self, name: str, which: str) -> VersionFacts:
        """What an alias or a version is now."""
        return versions.resolved(self._training.registry, name, which)

    def content(self, name: str, version: str, file: str) -> bytes:
        """A file of a bundle."""
        return versions.content(self._training.registry, name, version, file)

    def promotions(self, name: str) -> list[Promotion]:
        """Changes of the champion, the oldest first."""
        return self._training.table.promotions(name)

    def promote(
        self, name: str, version: Versions, *, expected: str | None = None, reason: str = ""
    ) -> Promotion:
        """Make a bundle the champion."""
        promoting = self._training.promoting
        promoting.settle()
        return promoting.promote(name, version, expected=expected, who=self._who, force=reason)

    def rollback(self, name: str, *, expected: str | None = None) -> Promotion:
        """Make the champion before the champion again."""
        self._training.promoting.settle()
        return self._training.promoting.rollback(name, expected=expected, who=self._who)
