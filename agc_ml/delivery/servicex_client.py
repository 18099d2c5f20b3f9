"""Client of a ServiceX: finding it, calling it, and waiting for its transformations."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agc_ml import files
from agc_ml.errors import DeliveryError, UsageError
from agc_ml.transports.credentials import redacted

logger = logging.getLogger(__name__)

CODEGEN: Final = "uproot-raw"
# Seconds that one call may take.
CALL_S: Final = 20.0
# A service that can't be reached for so many seconds, while a request runs, is given up.
SILENT_S: Final = 120.0
# A request of which no file is finished for so many seconds is given up.
STALLED_S: Final = 900.0
_FIRST_POLL_S: Final = 0.5
_LAST_POLL_S: Final = 5.0
_NEEDED_CAPABILITY: Final = "poll_local_transformation_results"
_DENIED: Final = (401, 403)
_NOT_FOUND: Final = 404
_RUNNING: Final = {"Submitted", "Running", "Lookup", "Pending Lookup"}


class CallError(Exception):
    """A call that failed; its text says why, on one line and without tokens."""


@dataclass(frozen=True)
class ServiceX:
    """A service, by the client's adapter, and the cache of what it delivered."""

    adapter: Any
    folder: Path

    @property
    def url(self) -> str:
        """URL of the service."""
        return str(self.adapter.url)


def find_service(endpoint: str | None) -> ServiceX:
    """Return the service of a name, a file or a URL; None is the client's first.

    Raises
    ------
    UsageError
        No configuration says where it is.
    """
    from servicex.configuration import Configuration  # noqa: PLC0415 - heavy
    from servicex.servicex_adapter import ServiceXAdapter  # noqa: PLC0415 - heavy

    folder = files.cache() / "servicex"
    if endpoint is not None and "://" in endpoint:
        return ServiceX(ServiceXAdapter(endpoint.rstrip("/")), folder)
    path = endpoint if endpoint is not None and Path(endpoint).is_file() else None
    if endpoint is not None and path is None and Path(endpoint).suffix in {".yaml", ".yml"}:
        raise UsageError(f"--via servicex={endpoint}: there is no such file")
    try:
        config = Configuration.read(path)
    except NameError:
        raise UsageError(
            "--via servicex: there is no servicex.yaml here, above, or in your home; write one "
            "with the endpoint and token of your facility, or use --via servicex=FILE with that of "
            "an endpoint of your own (agc-ml service servicex)"
        ) from None
    except (OSError, ValueError) as error:  # also pydantic's, and YAML's
        raise UsageError(f"{path or 'servicex.yaml'}: {' '.join(str(error).split())}") from error
    endpoints = config.endpoint_dict()
    name = config.default_endpoint or next(iter(endpoints), None)
    name = endpoint if endpoint is not None and path is None else name
    if name not in endpoints:
        raise UsageError(
            f"--via servicex={name}: no such endpoint in {config.config_file}; it has "
            f"{', '.join(endpoints) or 'none'}"
        )
    entry = endpoints[name]
    return ServiceX(ServiceXAdapter(entry.endpoint.rstrip("/"), refresh_token=entry.token), folder)


async def check_service(service: ServiceX) -> None:
    """Check that a service is a ServiceX, gives us access, and can do what is needed.

    Raises
    ------
    DeliveryError
        It is not so.
    """
    fix = "check the endpoint in servicex.yaml"
    try:
        status, info = await _call(service, "")
    except CallError as error:
        raise DeliveryError(
            f"ServiceX at {service.url} can't be reached ({error}); {fix}"
        ) from error
    if not isinstance(info, dict) or "code-gen-image" not in info:
        raise DeliveryError(
            f"{service.url} is not a ServiceX, or an old one (it answers {status} to "
            f"GET /servicex); {fix}"
        )
    if _NEEDED_CAPABILITY not in info.get("capabilities", ()):
        raise DeliveryError(
            f"ServiceX at {service.url} is too old (version {info.get('app-version')}): it does "
            "not report the result of each file; ask for a newer one"
        )
    if CODEGEN not in info["code-gen-image"]:
        raise DeliveryError(
            f"ServiceX at {service.url} has no code generator {CODEGEN}, only "
            f"{', '.join(sorted(info['code-gen-image']))}; ask for it"
        )


async def _call(service: ServiceX, path: str, *, body: Any = None) -> tuple[int, Any]:
    """Return the status of an answer, and its JSON: None if there is none, or on an error.

    Retries once with a new token. The client's own calls retry for minutes, and can't be stopped.
    """
    import httpx  # noqa: PLC0415 - heavy

    method = "GET" if body is None else "POST"
    url = f"{service.url}/servicex{path}"
    headers = await _authorization(service) if path else {}  # most tell anybody what they are
    try:
        async with httpx.AsyncClient(timeout=CALL_S) as http:
            answer = await http.request(method, url, headers=headers, json=body)
            if answer.status_code in _DENIED:
                headers = await _authorization(service, renew=bool(path))
                answer = await http.request(method, url, headers=headers, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CallError(error_line(error)) from error
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, None


async def _authorization(service: ServiceX, *, renew: bool = False) -> dict[str, str]:
    """Return headers with a token."""
    from servicex.servicex_adapter import AuthorizationError  # noqa: PLC0415 - heavy

    try:
        # the client knows where tokens are and how to renew them, and offers no other way
        headers: dict[str, str] = await service.adapter._get_authorization(renew)  # noqa: SLF001
    except (AuthorizationError, OSError, ValueError, RuntimeError) as error:
        # the text of other errors holds the token
        is_clean = isinstance(error, AuthorizationError)
        reason = error_line(error) if is_clean else type(error).__name__
        place = "BEARER_TOKEN_FILE" if os.environ.get("BEARER_TOKEN_FILE") else "servicex.yaml"
        raise DeliveryError(
            f"ServiceX at {service.url} denies access ({reason}); the token in {place} may have "
            "expired, or belong to another service: get a new one from its web page"
        ) from None
    return headers


async def request_status(service: ServiceX, request_id: str) -> Any:
    """Return the client's view of a request; None if the service does not know it.

    Raises
    ------
    CallError
        The service does not tell.
    """
    from servicex.models import TransformStatus  # noqa: PLC0415 - heavy

    status, content = await _call(service, f"/transformation/{request_id}")
    if status == _NOT_FOUND:
        return None
    try:
        return TransformStatus(**content)
    except (TypeError, ValueError) as error:
        reason = f"it answers {status}" if status >= 400 else error_line(error)  # noqa: PLR2004
        raise CallError(reason) from error


async def submit(service: ServiceX, dataset: str, request: Any, earlier: Any) -> str:
    """Submit the request of a dataset; return its id.

    ``earlier`` is the id of a request that a stopped run left: it is resumed if it is of use.

    Raises
    ------
    DeliveryError
        The service refuses it.
    """
    try:
        if isinstance(earlier, str):
            status = await request_status(service, earlier)
            if status is not None and _is_of_use(status):
                logger.info("dataset %s: resuming the request %s", dataset, earlier)
                return earlier
        body = request.model_dump(by_alias=True, exclude_none=True, mode="json")
        code, content = await _call(service, "/transformation", body=body)
        answer = content if isinstance(content, dict) else {}
        if "request_id" in answer:
            return str(answer["request_id"])
        reason = answer.get("message", code)
    except CallError as error:
        reason = error
    raise DeliveryError(
        f"dataset {dataset}: ServiceX at {service.url} refuses the request: {reason_line(reason)}"
    )


def _is_of_use(status: Any) -> bool:
    """Return whether a request runs, or delivered all: failed files may be fixed since."""
    state = status.status.value
    return state in _RUNNING or (state == "Complete" and not status.files_failed)


async def wait_until_finished(
    service: ServiceX, dataset: str, n_files: int, request_id: str
) -> None:
    """Wait until a request is complete, as long as it makes progress.

    Raises
    ------
    DeliveryError
        The service is gone, has lost the request, or does not work on it any more.
    """
    wait = _FIRST_POLL_S
    answered = progressed = time.monotonic()
    n_done = -1
    while True:
        try:
            status = await request_status(service, request_id)
        except CallError as error:  # the service may be restarting
            if time.monotonic() - answered > SILENT_S:
                raise DeliveryError(
                    f"dataset {dataset}: ServiceX at {service.url} does not answer for "
                    f"{SILENT_S:.0f} s ({error}); what it has finished is kept: run again"
                ) from error
            await asyncio.sleep(wait)
            continue
        if status is None:
            raise DeliveryError(
                f"dataset {dataset}: ServiceX at {service.url} has lost the request {request_id}; "
                "run again"
            )
        answered = time.monotonic()
        n_finished = status.files_completed + status.files_failed
        if n_finished != n_done:
            n_done, progressed = n_finished, answered
            logger.info("dataset %s: %d of %d files delivered", dataset, n_done, n_files)
        if status.status.value == "Complete":
            return
        if status.status.value not in _RUNNING:
            raise DeliveryError(
                f"dataset {dataset}: the request {request_id} at {service.url} ended as "
                f"{status.status.value}, after {n_done} of {n_files} files; run again"
            )
        if answered - progressed > STALLED_S:
            raise DeliveryError(
                f"dataset {dataset}: no file was finished for {STALLED_S:.0f} s, {n_done} of "
                f"{n_files} are; the request {request_id} at {service.url} still runs: run again "
                "to resume it"
            )
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, _LAST_POLL_S)


async def fetch_results(
    service: ServiceX, dataset: str, request_id: str
) -> tuple[Any, list[dict[str, Any]]]:
    """Return a finished request and the result of each file, also of those that failed.

    Raises
    ------
    DeliveryError
        The service does not tell.
    """
    try:
        status = await request_status(service, request_id)
        reason = "it does not know the request any more"
        if status is not None:
            code, content = await _call(service, f"/transformation/{request_id}/results")
            if isinstance(content, dict) and isinstance(content.get("results"), list):
                return status, content["results"]
            reason = f"it answers {code}"
    except CallError as error:
        reason = str(error)
    raise DeliveryError(
        f"dataset {dataset}: ServiceX at {service.url} does not tell the results of the request "
        f"{request_id} ({reason}); run again"
    )


def error_line(error: BaseException) -> str:
    """Return the text of an error, on one line and without tokens."""
    text = redacted(" ".join(str(error).split()))
    return text[:300] or type(error).__name__


def reason_line(text: Any) -> str:
    """Return the most telling line of a service's message on a failure."""
    lines = [line for line in str(text or "").splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    return redacted(lines[-1 if lines[0].startswith("Traceback") else 0])[:300]
