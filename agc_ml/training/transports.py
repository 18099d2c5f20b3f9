"""Transports of the training client: one method that sends a request, here over HTTP."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import urllib3

from agc_ml.errors import TrainingError
from agc_ml.models.registry_access import HEADER, ServiceAddress, not_a_service

# Statuses of a proxy whose service is down
_PROXY_ERRORS: Final = (502, 503, 504)

# Only idempotent requests are retried, while the service restarts.
_RETRY: Final = urllib3.Retry(3, backoff_factor=0.5, redirect=0)


class UnreachableError(TrainingError):
    """The service does not answer; one that restarts answers soon."""


@dataclass(frozen=True)
class Answer:
    """Status and body of an answer; a streamed body arrives part by part."""

    status: int
    parts: Generator[bytes]

    def read(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.parts)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the body as they arrive."""
        rest = b""
        for part in self.parts:
            *lines, rest = (rest + part).split(b"\n")
            yield from lines


class Transport(Protocol):
    """Connection to the application of a training service."""

    # Prefix of error messages: the URL of a service, '' in this process
    name: str

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Any,
        *,
        stream: bool,
        timeout: float,
    ) -> Answer:
        """Send a request; ``timeout`` in seconds.

        Raises
        ------
        UnreachableError
            The service does not answer.
        """

    def close(self) -> None:
        """Close the connection."""


class HttpTransport:
    """HTTP connection to a training service."""

    def __init__(self, service: ServiceAddress) -> None:
        self._service = service
        self.name = f"{service.url}: "
        self._pool = urllib3.PoolManager(retries=False)

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Any,
        *,
        stream: bool,
        timeout: float,
    ) -> Answer:
        """Send a request with the token; retry those that only read.

        Raises
        ------
        UnreachableError
            The service does not answer.
        TrainingError
            Something else answers at its address.
        """
        try:
            answer = self._pool.request(
                method,
                self._service.url + path,
                body=body,
                headers={**headers, "Authorization": f"Bearer {self._service.token}"},
                timeout=urllib3.Timeout(connect=5, read=timeout),
                preload_content=not stream,
                retries=_RETRY if method == "GET" else False,
            )
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise self._unreachable(error) from error
        if HEADER not in answer.headers:
            error_type = UnreachableError if answer.status in _PROXY_ERRORS else TrainingError
            raise error_type(not_a_service(self._service.url, answer.status))
        return Answer(
            answer.status, self._stream(answer) if stream else (part for part in [answer.data])
        )

    def _stream(self, answer: urllib3.BaseHTTPResponse) -> Generator[bytes]:
        try:
            yield from answer.stream(1 << 16, decode_content=True)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            answer.release_conn()

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = str(getattr(error, "reason", None) or error).rpartition(": ")[2][:150]
        return UnreachableError(
            f"the training service {self._service.url} can't be reached ({reason}); is it running, "
            "and is that its address?"
        )
