"""Access to objects: signatures of S3 requests, checked with botocore's own signers.

Clients sign requests in a header or, for a signed URL, in its query; there in version 4 or, which
the client uses without a region, in version 2.
"""

from __future__ import annotations

import hmac
import re
import time
from calendar import timegm
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from botocore.auth import HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

SKEW_S: Final = 900

_TIMESTAMP: Final = "%Y%m%dT%H%M%SZ"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<credential>[^, ]+), ?"
    r"SignedHeaders=(?P<headers>[^, ]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)


class AccessDeniedError(Exception):
    """A request that is refused; ``code`` is S3's name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Version4(NamedTuple):
    """Fields of a version 4 signature."""

    credential: str
    headers: str
    signature: str
    timestamp: str


class AccessKeys(NamedTuple):
    """The key pair that signs all requests."""

    access_key: str
    secret_key: str

    def check(self, method: str, url: str, headers: Mapping[str, str], now: float) -> None:
        """Check the signature of a request; ``now`` is in seconds since 1970.

        Raises
        ------
        AccessDeniedError
            It is missing, expired, of another key or of another request.
        """
        query = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        if match := _AUTHORIZATION.fullmatch(headers.get("Authorization", "")):
            fields = _Version4(**match.groupdict(), timestamp=headers.get("X-Amz-Date", ""))
            _check_time(fields.timestamp, now, lifetime=SKEW_S)
            self._check_version_4(S3SigV4Auth, fields, method, url, headers)
        elif "X-Amz-Signature" in query:
            names = ("Credential", "SignedHeaders", "Signature", "Date")
            fields = _Version4(*(query.get(f"X-Amz-{name}", "") for name in names))
            _check_time(fields.timestamp, now, lifetime=_seconds(query.get("X-Amz-Expires", "")))
            # what was signed is the URL without its signature
            unsigned = re.sub(r"(?<=[?&])X-Amz-Signature=[^&]*&?", "", url).rstrip("?&")
            self._check_version_4(S3SigV4QueryAuth, fields, method, unsigned, headers)
        elif "Signature" in query:
            self._check_version_2(method, url, query, now)
        else:
            raise AccessDeniedError("AccessDenied", "the request is not signed")

    def _check_version_4(
        self,
        signer: type[Any],
        fields: _Version4,
        method: str,
        url: str,
        headers: Mapping[str, str],
    ) -> None:
        access_key, date, region, service, *_ = [*fields.credential.split("/"), "", "", "", ""]
        self._check_key(access_key)
        auth = signer(Credentials(*self), service, region)
        names = fields.headers.split(";")
        signed = {name: headers[name] for name in names if name in headers}
        request = AWSRequest(method=method, url=url, headers=signed)
        request.context["timestamp"] = fields.timestamp
        canonical = auth.canonical_request(request)
        expected = auth.signature(auth.string_to_sign(request, canonical), request)
        is_whole = "host" in names and len(signed) == len(names) and date == fields.timestamp[:8]
        _compare(expected if is_whole else "", fields.signature)

    def _check_version_2(self, method: str, url: str, query: Mapping[str, str], now: float) -> None:
        self._check_key(query.get("AWSAccessKeyId", ""))
        expires = query.get("Expires", "")
        if _seconds(expires) < now:
            raise AccessDeniedError("AccessDenied", "the URL has expired")
        auth = _FixedExpiry(Credentials(*self), expires)
        _compare(auth.get_signature(method, urlsplit(url), HTTPHeaders()), query["Signature"])

    def _check_key(self, access_key: str) -> None:
        if not hmac.compare_digest(access_key.encode(), self.access_key.encode()):
            raise AccessDeniedError("InvalidAccessKeyId", "there is no such access key")


class _FixedExpiry(HmacV1QueryAuth):  # type: ignore[misc]  # botocore has no types
    """A signer of what was signed before: the expiry is a time, not counted from now."""

    def _get_date(self) -> str:
        return str(self._expires)


def _compare(expected: str, signature: str) -> None:
    if not expected or not hmac.compare_digest(expected.encode(), signature.encode()):
        raise AccessDeniedError("SignatureDoesNotMatch", "the signature is not of this request")


def _check_time(timestamp: str, now: float, *, lifetime: int) -> None:
    try:
        signed = timegm(time.strptime(timestamp, _TIMESTAMP))
    except ValueError as error:
        raise AccessDeniedError("AccessDenied", "the signature has no time") from error
    if not signed - SKEW_S <= now <= signed + lifetime:
        raise AccessDeniedError("AccessDenied", "the signature has expired, or the clocks differ")


def _seconds(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise AccessDeniedError("AccessDenied", "the URL does not say when it expires")
    return int(text)
