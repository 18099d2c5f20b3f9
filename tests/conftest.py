"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from places import ROOT, TESTS
from services.catalogues import portal, rucio  # noqa: F401 - the fixtures
from services.proxy import proxies  # noqa: F401 - the fixture
from services.servicex import servicex_endpoint  # noqa: F401 - the fixture
from services.training import (  # noqa: F401 - the fixtures
    champions,
    own_champions,
    training_service,
)
from services.triton import triton  # noqa: F401 - the fixture
from services.web import web  # noqa: F401 - the fixture
from services.xrootd import shared_storage, storage  # noqa: F401 - the fixtures

from agc_ml.execution import run
from agc_ml.simulation import production, samples
from agc_ml.simulation.samples import SAMPLES

settings.register_profile("suite", deadline=None)  # machines are shared: a pause is no failure
settings.load_profile("suite")

GENERATED = {"ttbar__nominal": 70, "ttbar__scaleup": 25, "single_top_tW__nominal": 25}
UNIT = 25

REQUIRE_ALL = os.environ.get("AGC_ML_REQUIRE_ALL") == "1"

LONGEST = (
    "training/test_training_kills.py",
    "execution/test_rounds.py",
    "delivery/test_servicex_client.py",
    "test_measurement.py",
    "delivery/test_replica_faults.py",
    "simulation/test_production.py",
    "training/test_training_service.py",
    "models/test_models_in_runs.py",
    "training/test_training_gates.py",
    "training/test_training_loop.py",
    "training/test_training_registry.py",
)
"""Files of minutes, that come first: else one of them runs alone in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    if gone := [name for name in LONGEST if not (TESTS / name).is_file()]:
        raise pytest.UsageError(f"tests/conftest.py: LONGEST names files that are not here: {gone}")
    ranks = {TESTS / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))


def absent(what: str) -> None:
    """Skip for want of a part, or fail where every part is required."""
    if REQUIRE_ALL:
        pytest.fail(f"{what} (AGC_ML_REQUIRE_ALL=1: nothing may be skipped)")
    pytest.skip(what)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of files is not taken from the user's cache, nor left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data files and reference figures."""
    folder = Path(os.environ.get("AGC_ML_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        absent("the real data are not here: point AGC_ML_REAL_DATA at their folder")
    return folder


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A headless browser."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        absent("no browser: install one with 'apt-get install chromium'")
    return Path(str(found))


@pytest.fixture(scope="session")
def generated_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set of three datasets, in units of a few events; not to be changed."""
    folder = tmp_path_factory.mktemp("generated") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "SAMPLES", tuple(replace(s, unit=UNIT) for s in SAMPLES))
        production.generate(folder, events=GENERATED, seed=7, site="inline", quiet=True)
    return folder


@pytest.fixture(scope="session")
def training_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that extracted the training set of the embedded events; not to be changed."""
    folder = tmp_path_factory.mktemp("features") / "run"
    run.run("jet_assignment", site="inline", output=folder, quiet=True)
    return folder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody remembers servers and files of the test before; chunks come in several blocks.

    What failed is tried again at once.
    """
    import stepwise  # noqa: PLC0415 - a processor, of few tests

    from agc_ml.columnar import columns  # noqa: PLC0415 - heavy
    from agc_ml.delivery import replica_source  # noqa: PLC0415 - heavy
    from agc_ml.execution import rounds  # noqa: PLC0415 - heavy
    from agc_ml.transports import server_health  # noqa: PLC0415 - heavy

    server_health.forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(columns, "BLOCK", 100)
    monkeypatch.setattr(rounds, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(replica_source, "PAUSE_S", 0.05)
    stepwise.EVENTS.clear()
    yield
    server_health.forget()
    stepwise.EVENTS.clear()


@pytest.fixture
def tiny_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of a few kilobytes: as many as the test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        absent("a small file system can't be mounted here (it needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def trained_job(training_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that trained and judged a bundle; not to be changed."""
    from trained import setup_of  # noqa: PLC0415 - only for tests of training

    from agc_ml.training import job_process  # noqa: PLC0415 - likewise

    folder = tmp_path_factory.mktemp("job")
    setup_of(folder, training_run)
    assert job_process.main(folder) == 0
    return folder
