"""Bundles in the registry, as the client and the web pages show them."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, Field

from agc_ml.models.model import PARITIES
from agc_ml.models.registry import Version

JOB_TAG: Final = "agc_ml.job"
PASSED_TAG: Final = "agc_ml.passed"
AGAINST_TAG: Final = "agc_ml.against"
MEMBER_TAG: Final = "agc_ml.{parity}"
QUALITY_TAG: Final = "quality."


class VersionFacts(BaseModel):
    """A bundle in the registry."""

    name: str
    version: str
    is_champion: bool
    passed: bool = Field(description="true if it passed all gates")
    quality: dict[str, float]
    members: dict[str, str] = Field(description="version of the model of each parity")
    job: str
    against: str = Field(description="version of the champion it was compared with")
    files: dict[str, str] = Field(description="sha256 of each of its files")


def version_facts(version: Version, champion: str) -> VersionFacts:
    """Return the facts of a version; ``champion`` is the version of the champion."""
    tags = version.tags
    members = {parity: MEMBER_TAG.format(parity=parity) for parity in PARITIES}
    return VersionFacts(
        name=version.name,
        version=version.version,
        is_champion=version.version == champion,
        passed=tags.get(PASSED_TAG) == "true",
        quality={
            key.removeprefix(QUALITY_TAG): float(value)
            for key, value in tags.items()
            if key.startswith(QUALITY_TAG)
        },
        members={parity: tags[tag] for parity, tag in members.items() if tag in tags},
        job=tags.get(JOB_TAG, ""),
        against=tags.get(AGAINST_TAG, ""),
        files=dict(version.files),
    )
