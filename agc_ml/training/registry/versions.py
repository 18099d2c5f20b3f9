"""Bundles in the registry, as people see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, Field

from agc_ml.models.model import PARITIES

if TYPE_CHECKING:
    from agc_ml.models.registry import Version
    from agc_ml.training.registry.publisher import Publisher

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
    passed: bool = Field(description="whether it passed all gates")
    quality: dict[str, float]
    members: dict[str, str] = Field(description="parity -> version of that model")
    job: str
    against: str = Field(description="version of the champion it was judged against")
    files: dict[str, str] = Field(description="sha256 of each of its files")


def _facts(version: Version, champion: str) -> VersionFacts:
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


def of_model(registry: Publisher, name: str) -> list[VersionFacts]:
    """Bundles of a model, the oldest first.

    Raises
    ------
    RegistryError
        The registry can't be used now.
    """
    champion = registry.champion(name)
    crowned = "" if champion is None else champion.version
    return [_facts(one, crowned) for one in registry.versions(name)]


def of_all(registry: Publisher) -> list[VersionFacts]:
    """Bundles of all models.

    Raises
    ------
    RegistryError
        The registry can't be used now.
    """
    return [one for name in registry.names() for one in of_model(registry, name)]


def resolved(registry: Publisher, name: str, which: str) -> VersionFacts:
    """What a number or an alias is now, with all its files checked.

    Raises
    ------
    ModelError
        There is none, or a file of it was changed.
    RegistryError
        The registry can't be used now.
    """
    champion = registry.champion(name)
    found = registry.find(name, which)
    for file in found.files:
        registry.content(found, file)
    return _facts(found, "" if champion is None else champion.version)


def content(registry: Publisher, name: str, which: str, file: str) -> bytes:
    """A file of a version, checked.

    Raises
    ------
    ModelError
        There is none, or it was changed.
    RegistryError
        The registry can't be used now.
    """
    return registry.content(registry.find(name, which), file)
