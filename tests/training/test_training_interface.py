"""The interface against its own description: what schemathesis thinks of, and real answers."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from services.training import TrainingService

EXAMPLES = 6
"""Of each operation, valid and invalid ones."""

# What makes no sense although the fields do one by one, such as a job without its training set.
NOT_CHECKED = [positive_data_acceptance]


@pytest.fixture(scope="module", autouse=True)
def silent() -> None:
    logging.getLogger("urllib3").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def described(training_service: TrainingService) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(training_service.ask("GET", "/openapi.json").data)
    return found


@pytest.fixture(scope="module")
def operations(described: dict[str, Any]) -> dict[str, Any]:
    schema = schemathesis.openapi.from_dict(described)
    return {one.ok().label: one.ok() for one in schema.get_all_operations()}


def examples(operation: Any, mode: GenerationMode, url: str, headers: dict[str, str]) -> int:
    """Ask for examples of an operation; how many there were."""
    asked = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        nonlocal asked
        answer = case.call(headers=headers, base_url=url, timeout=20)
        asked += 1
        case.validate_response(answer, excluded_checks=NOT_CHECKED)

    with contextlib.suppress(Unsatisfiable):  # nothing is invalid where nothing is asked for
        ask()
    return asked


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_is_asked(
    training_service: TrainingService, operations: dict[str, Any], mode: GenerationMode
) -> None:
    """Each answer is one that the description has; what is invalid is refused; none is a fault."""
    headers = {"Authorization": f"Bearer {training_service.token}"}
    asked = {
        label: examples(operation, mode, training_service.url, headers)
        for label, operation in operations.items()
    }
    without = [label for label, number in asked.items() if not number]
    assert not without or (mode is GenerationMode.NEGATIVE and len(without) < 4), without
    log = training_service.log.read_text()
    assert "a fault of the service" not in log


def test_what_is_there_is_as_described(
    training_service: TrainingService, operations: dict[str, Any]
) -> None:
    jobs = json.loads(training_service.ask("GET", "/v1/jobs").data)
    known = {
        "digest": jobs[0]["spec"]["dataset"],
        "job_id": jobs[0]["id"],
        "name": "jet_assignment",
        "version": 1,
        "file": "model.json",
    }
    headers = {"Authorization": f"Bearer {training_service.token}"}
    for label, operation in operations.items():
        if label.startswith("GET "):
            names = [one.name for one in operation.path_parameters]
            case = operation.Case(path_parameters={name: known[name] for name in names})
            answer = case.call(headers=headers, base_url=training_service.url, timeout=20)
            case.validate_response(answer, excluded_checks=NOT_CHECKED)
            assert answer.status_code == 200, label


def test_the_description_is_for_people(described: dict[str, Any]) -> None:
    """Each operation says in words what it does, and each problem when it comes."""
    summaries = []
    for methods in described["paths"].values():
        for method, operation in methods.items():
            summaries.append(operation["summary"])
            assert len(operation["summary"].split()) >= 2
            assert operation["description"]
            for parameter in operation.get("parameters", []):
                assert parameter["description"], parameter["name"]
            statuses = set(operation["responses"])
            assert {"400", "408", "421", "500", "503", "507"} <= statuses
            if operation["summary"] != "Check the health of the service":
                assert {"401", "403"} <= statuses
            if method != "get":
                assert {"413", "415"} <= statuses
            for status, answer in operation["responses"].items():
                assert answer["description"]
                if status >= "400":
                    (media,) = answer["content"]
                    assert media == "application/problem+json"
                    assert answer["content"][media]["schema"]["$ref"].endswith("/Problem")
    assert len(set(summaries)) == len(summaries) == 18
    assert "HTTPValidationError" not in json.dumps(described["paths"])
