"""Talking to a ServiceX: finding it, asking it, and waiting for what it does."""

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
CALL_S: Final = 20.0
"""One question about a request may take so long."""
SILENT_S: Final = 120.0
"""A service that can't be reached for so long, while a request is under way, is given up."""
STALLED_S: Final = 900.0
"""A request of which no file is finished for so long is given up."""
_POLL_S: Final = (0.5, 5.0)  # at first, at last
_NEEDED: Final = "poll_local_transformation_results"
_CLOSED: Final = (401, 403)
_UNKNOWN: Final = 404
_UNDER_WAY: Final = {"Submitted", "Running", "Lookup", "Pending Lookup"}


@dataclass(frozen=True)
class Service:
    """The service, by the client's adapter, and the folder of what it delivered."""

    adapter: Any
    folder: Path

    @property
    def url(self) -> str:
        """Where it is."""
        return str(self.adapter.url)


def find(where: str | None) -> Service:
    """The service that is meant by a name, a file or a URL; None: the client's first.

    Raises
    ------
    UsageError
        No configuration says where it is.
    """
    from servicex.configuration import Configuration  # noqa: PLC0415 - heavy
    from servicex.servicex_adapter import ServiceXAdapter  # noqa: PLC0415 - heavy

    base = files.cache() / "servicex"
    if where is not None and "://" in where:
        return Service(ServiceXAdapter(where.rstrip("/")), base)
    path = where if where is not None and Path(where).is_file() else None
    if where is not None and path is None and Path(where).suffix in {".yaml", ".yml"}:
        raise UsageError(f"--via servicex={where}: there is no such file")
    try:
        config = Configuration.read(path)
    except NameError:
        raise UsageError(
            "--via servicex: there is no servicex.yaml here, above, or in your home; write one "
            "with the endpoint and token of your facility, or say --via servicex=FILE with that of "
            "an endpoint of your own (agc-ml service servicex)"
        ) from None
    except (OSError, ValueError) as error:  # also pydantic's, and YAML's
        raise UsageError(f"{path or 'servicex.yaml'}: {' '.join(str(error).split())}") from error
    endpoints = config.endpoint_dict()
    name = config.default_endpoint or next(iter(endpoints), None)
    name = where if where is not None and path is None else name
    if name not in endpoints:
        raise UsageError(
            f"--via servicex={name}: no such endpoint in {config.config_file}; it has "
            f"{', '.join(endpoints) or 'none'}"
        )
    found = endpoints[name]
    return Service(ServiceXAdapter(found.endpoint.rstrip("/"), refresh_token=found.token), base)


async def greet(service: Service) -> None:
    """See that there is a ServiceX, that lets us in, and can do what is needed.

    Raises
    ------
    DeliveryError
        It is not so.
    """
    import httpx  # noqa: PLC0415 - heavy

    fix = "check the endpoint in servicex.yaml"
    try:
        answer = await _asked(service, "")
        info = answer.json() if answer.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DeliveryError(
            f"ServiceX at {service.url} can't be reached ({reason}); {fix}"
        ) from error
    except ValueError:
        info = {}
    if not isinstance(info, dict) or "code-gen-image" not in info:
        raise DeliveryError(
            f"{service.url} is no ServiceX, or an old one (it answers {answer.status_code} to what "
            f"it is); {fix}"
        )
    if _NEEDED not in info.get("capabilities", ()):
        raise DeliveryError(
            f"ServiceX at {service.url} is too old (version {info.get('app-version')}): it does "
            "not say what became of each file; ask for a newer one"
        )
    if CODEGEN not in info["code-gen-image"]:
        raise DeliveryError(
            f"ServiceX at {service.url} has no {CODEGEN}, only "
            f"{', '.join(sorted(info['code-gen-image']))}; ask for it"
        )


async def _asked(service: Service, path: str, *, body: Any = None) -> Any:
    """What the service answers; asked again with a new token, if it wants one.

    The client's own calls try for minutes, and can't be stopped.
    """
    import httpx  # noqa: PLC0415 - heavy

    method = "GET" if body is None else "POST"
    url = f"{service.url}/servicex{path}"
    headers = await _authorization(service) if path else {}  # what it is, most tell anybody
    async with httpx.AsyncClient(timeout=CALL_S) as http:
        answer = await http.request(method, url, headers=headers, json=body)
        if answer.status_code in _CLOSED:
            headers = await _authorization(service, again=bool(path))
            answer = await http.request(method, url, headers=headers, json=body)
    return answer


async def _authorization(service: Service, *, again: bool = False) -> dict[str, str]:
    """Headers with a token; a new one if it is wanted ``again``."""
    from servicex.servicex_adapter import AuthorizationError  # noqa: PLC0415 - heavy

    try:
        # the client knows where tokens are and how to renew them, and offers no other way
        headers: dict[str, str] = await service.adapter._get_authorization(again)  # noqa: SLF001
    except (AuthorizationError, OSError, ValueError, RuntimeError) as error:
        # what others say holds the token
        reason = said(error) if isinstance(error, AuthorizationError) else type(error).__name__
        where = "BEARER_TOKEN_FILE" if os.environ.get("BEARER_TOKEN_FILE") else "servicex.yaml"
        raise DeliveryError(
            f"ServiceX at {service.url} does not let us in ({reason}); the token in {where} may "
            "have expired, or be none for it: get a new one from its web page"
        ) from None
    return headers


async def status_of(service: Service, request_id: str) -> Any:
    """The client's view of a request; None if the service does not know it."""
    from servicex.models import TransformStatus  # noqa: PLC0415 - heavy

    answer = await _asked(service, f"/transformation/{request_id}")
    if answer.status_code == _UNKNOWN:
        return None
    answer.raise_for_status()
    return TransformStatus(**answer.json())


async def submitted(service: Service, name: str, request: Any, earlier: Any) -> str:
    """Send a request for the dataset ``name``; its id.

    ``earlier`` is the id of one of which a run did not see the end: it goes on, if it is known.

    Raises
    ------
    DeliveryError
        The service refuses it.
    """
    import httpx  # noqa: PLC0415 - heavy

    try:
        if isinstance(earlier, str):
            status = await status_of(service, earlier)
            if status is not None and _is_of_use(status):
                logger.info("dataset %s: going on with the request %s", name, earlier)
                return earlier
        body = request.model_dump(by_alias=True, exclude_none=True, mode="json")
        answer = await _asked(service, "/transformation", body=body)
        content = answer.json()
        if answer.is_success:
            return str(content["request_id"])
        reason = content.get("message", answer.status_code)
    except (httpx.HTTPError, ValueError, KeyError, AttributeError) as error:
        reason = said(error)
    raise DeliveryError(
        f"dataset {name}: ServiceX at {service.url} refuses the request: {first_line(reason)}"
    )


def _is_of_use(status: Any) -> bool:
    """Whether a request goes on, or delivered all: failed files may have been mended since."""
    state = status.status.value
    return state in _UNDER_WAY or (state == "Complete" and not status.files_failed)


async def finished(service: Service, name: str, n_files: int, request_id: str) -> None:
    """Wait until nothing is left to do, as long as something is being done.

    Raises
    ------
    DeliveryError
        The service is gone, has lost the request, or does nothing for it any more.
    """
    import httpx  # noqa: PLC0415 - heavy

    wait = _POLL_S[0]
    answered = progressed = time.monotonic()
    done = -1
    while True:
        try:
            status = await status_of(service, request_id)
        except (httpx.HTTPError, ValueError) as error:  # it may be starting again
            if time.monotonic() - answered > SILENT_S:
                raise DeliveryError(
                    f"dataset {name}: ServiceX at {service.url} does not answer for "
                    f"{SILENT_S:.0f} s ({said(error)}); what it has finished is kept: run again"
                ) from error
            await asyncio.sleep(wait)
            continue
        if status is None:
            raise DeliveryError(
                f"dataset {name}: ServiceX at {service.url} has lost the request {request_id}; run "
                "again"
            )
        answered = time.monotonic()
        finished = status.files_completed + status.files_failed
        if finished != done:
            done, progressed = finished, answered
            logger.info("dataset %s: %d of %d files delivered", name, done, n_files)
        if status.status.value == "Complete":
            return
        if status.status.value not in _UNDER_WAY:
            raise DeliveryError(
                f"dataset {name}: the request {request_id} at {service.url} ended as "
                f"{status.status.value}, after {done} of {n_files} files; run again"
            )
        if answered - progressed > STALLED_S:
            raise DeliveryError(
                f"dataset {name}: no file was finished for {STALLED_S:.0f} s, {done} of "
                f"{n_files} are; the request {request_id} at {service.url} goes on, and "
                "so does running again"
            )
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, _POLL_S[1])


async def outcome(service: Service, name: str, request_id: str) -> tuple[Any, list[dict[str, Any]]]:
    """A finished request, and what became of each file: the client keeps what went well only.

    Raises
    ------
    DeliveryError
        The service does not say.
    """
    import httpx  # noqa: PLC0415 - heavy

    reason = "it does not know the request any more"
    try:
        status = await status_of(service, request_id)
        if status is not None:
            answer = await _asked(service, f"/transformation/{request_id}/results")
            answer.raise_for_status()
            return status, answer.json()["results"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        reason = said(error)
    raise DeliveryError(
        f"dataset {name}: ServiceX at {service.url} does not say what became of the request "
        f"{request_id} ({reason}); run again"
    )


def said(error: BaseException) -> str:
    """What an error says, on one line and without tokens."""
    text = redacted(" ".join(str(error).split()))
    return text[:300] or type(error).__name__


def first_line(text: Any) -> str:
    """The line that tells most of what a service says of a failure."""
    lines = [line for line in str(text or "no reason given").splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    return redacted(lines[-1 if lines[0].startswith("Traceback") else 0])[:300]
