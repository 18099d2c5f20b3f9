"""Who may read objects: signatures of S3 requests, checked with botocore's own signers.

Clients sign requests in a header or, for a URL that they hand on, in its query; there in version 4
or, which the client uses without a region, in version 2.
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


class Denied(Exception):  # noqa: N818 - an answer, no fault
    """A request is refused; ``code`` is S3's name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Signed(NamedTuple):
    """What a version 4 signature says of itself."""

    credential: str
    headers: str
    signature: str
    timestamp: str


class Keys(NamedTuple):
    """The key that all requests are signed with."""

    access_key: str
    secret_key: str

    def check(self, method: str, url: str, headers: Mapping[str, str], now: float) -> None:
        """Let a request pass; ``now`` is in seconds since 1970.

        Raises
        ------
        Denied
            It is not signed, not with this key, not what was signed, or its time is over.
        """
        query = {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
        if found := _AUTHORIZATION.fullmatch(headers.get("Authorization", "")):
            signed = _Signed(**found.groupdict(), timestamp=headers.get("X-Amz-Date", ""))
            self._check_time(signed.timestamp, now, earlier=SKEW_S, later=SKEW_S)
            self._check_version_4(S3SigV4Auth, signed, method, url, headers)
        elif "X-Amz-Signature" in query:
            self._check_presigned_4(method, url, headers, query, now)
        elif "Signature" in query:
            self._check_presigned_2(method, url, query, now)
        else:
            raise Denied("AccessDenied", "the request is not signed")

    def _check_presigned_4(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        now: float,
    ) -> None:
        names = ("Credential", "SignedHeaders", "Signature", "Date")
        signed = _Signed(*(query.get(f"X-Amz-{name}", "") for name in names))
        lifetime = _number(query.get("X-Amz-Expires", ""))
        self._check_time(signed.timestamp, now, earlier=lifetime, later=SKEW_S)
        unsigned = re.sub(r"(?<=[?&])X-Amz-Signature=[^&]*&?", "", url).rstrip("?&")
        self._check_version_4(S3SigV4QueryAuth, signed, method, unsigned, headers)

    def _check_version_4(
        self,
        signer: type[Any],
        signed: _Signed,
        method: str,
        url: str,
        headers: Mapping[str, str],
    ) -> None:
        access_key, date, region, service, *_ = [*signed.credential.split("/"), "", "", "", ""]
        self._check_key(access_key)
        auth = signer(Credentials(*self), service, region)
        names = signed.headers.split(";")
        kept = {name: headers[name] for name in names if name in headers}
        request = AWSRequest(method=method, url=url, headers=kept)
        request.context["timestamp"] = signed.timestamp
        expected = auth.signature(
            auth.string_to_sign(request, auth.canonical_request(request)), request
        )
        is_whole = "host" in names and len(kept) == len(names) and date == signed.timestamp[:8]
        if not is_whole or not hmac.compare_digest(expected.encode(), signed.signature.encode()):
            raise Denied("SignatureDoesNotMatch", "the signature is not of this request")

    def _check_presigned_2(
        self, method: str, url: str, query: Mapping[str, str], now: float
    ) -> None:
        self._check_key(query.get("AWSAccessKeyId", ""))
        expires = query.get("Expires", "")
        if _number(expires) < now:
            raise Denied("AccessDenied", "the URL has expired")
        auth = _Expiring(Credentials(*self), expires)
        expected = auth.get_signature(method, urlsplit(url), HTTPHeaders())
        if not hmac.compare_digest(expected.encode(), query["Signature"].encode()):
            raise Denied("SignatureDoesNotMatch", "the signature is not of this request")

    def _check_key(self, access_key: str) -> None:
        if not hmac.compare_digest(access_key.encode(), self.access_key.encode()):
            raise Denied("InvalidAccessKeyId", "there is no such access key")

    @staticmethod
    def _check_time(timestamp: str, now: float, *, earlier: int, later: int) -> None:
        try:
            signed = timegm(time.strptime(timestamp, _TIMESTAMP))
        except ValueError as error:
            raise Denied("AccessDenied", "the signature has no time") from error
        if not signed - later <= now <= signed + earlier:
            raise Denied("AccessDenied", "the signature has expired, or the clocks differ")


class _Expiring(HmacV1QueryAuth):  # type: ignore[misc]  # botocore has no types
    """A signer of what was signed before: it expires when it says, not from now on."""

    def _get_date(self) -> str:
        return str(self._expires)


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise Denied("AccessDenied", "the URL does not say when it expires")
    return int(text)
