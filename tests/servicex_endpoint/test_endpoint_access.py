"""Who may ask, and who may read what was delivered."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import jwt
import nanoaod
import pytest
import uproot
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from services.servicex import Endpoint, finished, submitted

from agc_ml.servicex_endpoint import credentials
from agc_ml.servicex_endpoint.signatures import AccessDeniedError, AccessKeys

NOW = 1_800_000_000
KEYS = AccessKeys("ACCESS", "secret")
URL = "http://127.0.0.1:5000/7d0b1fbc-7d46-4b5b-8b5f-8b5e4f8d2f6f/a.root"


class Stored(NamedTuple):
    """A request that is done, its one object, and its content."""

    request_id: str
    name: str
    content: bytes
    minio: Any

    @property
    def path(self) -> str:
        return f"/{self.request_id}/{self.name}"


@pytest.fixture(scope="module")
def stored(servicex_endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    from servicex import query  # noqa: PLC0415 - heavy
    from servicex.minio_adapter import MinioAdapter  # noqa: PLC0415 - heavy

    path = nanoaod.write(tmp_path_factory.mktemp("in") / "a.root", nanoaod.events(20, 1))
    asked = query.UprootRaw([{"treename": "Events", "filter_name": "Jet_pt"}])
    request_id = submitted(servicex_endpoint, [path], asked)
    status = finished(servicex_endpoint, request_id)
    (result,) = servicex_endpoint.results(request_id)
    name = result["s3-object-name"]
    content = (servicex_endpoint.folder / "objects" / request_id / name).read_bytes()
    assert len(content) == result["total-bytes"]
    return Stored(request_id, name, content, MinioAdapter.for_transform(status))


def secrets(endpoint: Endpoint) -> credentials.EndpointCredentials:
    return credentials.load_credentials(endpoint.folder)


def get(endpoint: Endpoint, token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}".encode()}
    return httpx.get(f"{endpoint.url}/servicex", headers=headers)


def test_the_client_needs_the_token(servicex_endpoint: Endpoint) -> None:
    from servicex.servicex_adapter import AuthorizationError  # noqa: PLC0415 - heavy

    info = asyncio.run(servicex_endpoint.adapter().get_servicex_info())
    assert set(info.code_gen_image) == {"uproot", "uproot-raw", "python"}
    with pytest.raises(AuthorizationError, match="rejected \\[401 Unauthorized\\]"):
        asyncio.run(servicex_endpoint.adapter("wrong").get_servicex_info())
    with pytest.raises(AuthorizationError, match="Not authorized to access serviceX"):
        asyncio.run(servicex_endpoint.adapter("").get_servicex_info())


def signed_with_another_algorithm(secret: str, expiry: float) -> str:
    with pytest.warns(jwt.InsecureKeyLengthWarning):  # of HMAC with SHA-512
        return jwt.encode({"exp": expiry}, secret, "HS512")


def test_access_tokens_are_checked(servicex_endpoint: Endpoint) -> None:
    ours, now = secrets(servicex_endpoint), time.time()
    other = ours.model_copy(update={"signing_secret": "x" * 43})
    good = ours.issue_access_token(now)
    assert get(servicex_endpoint, good).status_code == 200
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').decode()
    claims = base64.urlsafe_b64encode(json.dumps({"exp": now + 99}).encode()).decode()
    bad = {
        "expired": ours.issue_access_token(now - credentials.ACCESS_TOKEN_LIFETIME_S - 1),
        "other secret": other.issue_access_token(now),
        "other algorithm": signed_with_another_algorithm(ours.signing_secret, now + 99),
        "no expiry": jwt.encode({"iat": now}, ours.signing_secret, "HS256"),
        "cut": good[:-1],
        "unsigned": f"{unsigned}.{claims}.",
        "other claims": f"{good.split('.')[0]}.{claims}.{good.split('.')[2]}",
        "odd": "é..",
        "refresh token": servicex_endpoint.token,
    }
    for name, token in bad.items():
        answer = get(servicex_endpoint, token)
        assert answer.status_code == 401, name
        assert answer.json() == {"message": "a valid access token is needed"}


def test_tokens_of_the_release_before_are_accepted(servicex_endpoint: Endpoint) -> None:
    """It made them by hand: a client goes on with one that it has."""

    def base64_of(content: bytes) -> str:
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    now = int(time.time())
    parts = ({"alg": "HS256", "typ": "JWT"}, {"iat": now, "exp": now + 3600})
    signed = ".".join(base64_of(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    key = secrets(servicex_endpoint).signing_secret.encode()
    token = f"{signed}.{base64_of(hmac.digest(key, signed.encode(), 'sha256'))}"
    assert get(servicex_endpoint, token).status_code == 200


def test_every_path_needs_a_token(servicex_endpoint: Endpoint, stored: Stored) -> None:
    of_one = f"/servicex/transformation/{stored.request_id}"
    for method, path in [
        ("GET", "/servicex"),
        ("GET", "/servicex/transformation"),
        ("POST", "/servicex/transformation"),
        *[("GET", f"{of_one}{end}") for end in ("", "/status", "/results", "/cancel")],
        ("DELETE", of_one),
        ("POST", "/token/refresh"),
    ]:
        assert httpx.request(method, servicex_endpoint.url + path).status_code == 401, path
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, servicex_endpoint.url + stored.path)
        assert answer.status_code == 403
    assert httpx.get(f"{servicex_endpoint.url}/{stored.request_id}?list-type=2").status_code == 403
    assert httpx.get(f"{servicex_endpoint.url}/elsewhere").status_code == 404


def test_secrets_are_ours_alone(servicex_endpoint: Endpoint) -> None:
    modes = {
        name: (servicex_endpoint.folder / name).stat().st_mode & 0o777
        for name in (".", "credentials.json", "servicex.yaml")
    }
    assert modes == {".": 0o700, "credentials.json": 0o600, "servicex.yaml": 0o600}


def test_the_client_lists_and_downloads(stored: Stored, tmp_path: Path) -> None:
    (listed,) = asyncio.run(stored.minio.list_bucket())
    assert (listed.filename, listed.size, listed.extension) == (
        *(stored.name, len(stored.content)),
        "root",
    )
    path = asyncio.run(stored.minio.download_file(stored.name, str(tmp_path)))
    assert path.read_bytes() == stored.content


def test_urls_of_the_client_are_good_for_reading(stored: Stored) -> None:
    url = asyncio.run(stored.minio.get_signed_url(stored.name))
    assert httpx.get(url).content == stored.content
    part = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, stored.content[10:20])
    assert httpx.get(url, headers={"Range": "bytes=999999999-"}).status_code == 416
    with uproot.open({url: "Events"}) as tree:
        assert tree.num_entries == 20
    assert httpx.head(url).status_code == 403  # it was signed for reading


def test_forged_urls_are_refused(servicex_endpoint: Endpoint, stored: Stored) -> None:
    url = asyncio.run(stored.minio.get_signed_url(stored.name))
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    forged = {
        "later": {**query, "Expires": str(int(query["Expires"]) + 1)},
        "over": {**query, "Expires": "1"},
        "never": {**query, "Expires": ""},
        "other key": {**query, "AWSAccessKeyId": "X"},
        "other signature": {**query, "Signature": query["Signature"][::-1]},
        "none": {},
    }
    base = servicex_endpoint.url + stored.path
    for name, parameters in forged.items():
        assert httpx.get(base, params=parameters).status_code == 403, name
    assert httpx.get(base + "x", params=query).status_code == 403
    assert httpx.get(base, params=query).status_code == 200


@pytest.mark.parametrize(
    "key",
    [
        "../../credentials.json",
        "..%2f..%2fcredentials.json",
        "%2e%2e/%2e%2e/credentials.json",
        "..",
        "/etc/passwd",
        "a%00b",
        "nothing.root",
    ],
)
def test_only_objects_are_objects(servicex_endpoint: Endpoint, stored: Stored, key: str) -> None:
    """Signed as they should be: whoever asks has the keys."""
    for base in (f"/{stored.request_id}", f"/{stored.request_id}/../{stored.request_id}"):
        url = f"{servicex_endpoint.url}{base}/{key}"
        request = AWSRequest(method="GET", url=url)
        pair = secrets(servicex_endpoint).keys
        S3SigV4Auth(Credentials(*pair), "s3", "us-east-1").add_auth(request)
        raw = urllib.request.Request(url, headers=dict(request.headers))  # changes no path
        with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(raw) as got:
            pytest.fail(got.read()[:100])
        code = b"NoSuchKey" if refused.value.code == 404 else b"AccessDenied"
        assert code in refused.value.read()
        refused.value.close()


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch, moment: float) -> Iterator[None]:
    """Let botocore sign at another time."""
    from datetime import UTC, datetime  # noqa: PLC0415 - here only

    with monkeypatch.context() as patch:
        signed = datetime.fromtimestamp(moment, UTC)
        patch.setattr("botocore.auth.get_current_datetime", lambda *_: signed)
        yield


def in_header(request: AWSRequest) -> AWSRequest:
    S3SigV4Auth(Credentials(*KEYS), "s3", "eu-west-1").add_auth(request)
    return request


def in_query(request: AWSRequest) -> AWSRequest:
    S3SigV4QueryAuth(Credentials(*KEYS), "s3", "eu-west-1", expires=60).add_auth(request)
    return request


def denied(
    request: AWSRequest, now: float = NOW, keys: AccessKeys = KEYS, **headers: str
) -> str | None:
    given = httpx.Headers({"host": "127.0.0.1:5000", **dict(request.headers), **headers})
    try:
        keys.check(request.method, request.url, given, now)
    except AccessDeniedError as reason:
        return reason.code
    return None


@pytest.mark.parametrize("sign", [in_header, in_query])
def test_signatures_of_version_4(
    sign: Callable[[AWSRequest], AWSRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{URL}?response-content-type={quote('a/b', safe='')}"
    with clock(monkeypatch, NOW):
        request = sign(AWSRequest(method="GET", url=url))
    assert denied(request) is None
    assert denied(request, NOW + 50) is None
    assert denied(request, NOW + 1000) == "AccessDenied"
    assert denied(request, NOW - 1000) == "AccessDenied"
    assert denied(request, host="other:5000") == "SignatureDoesNotMatch"
    assert denied(request, keys=AccessKeys("ACCESS", "other")) == "SignatureDoesNotMatch"
    assert denied(request, keys=AccessKeys("OTHER", "secret")) == "InvalidAccessKeyId"
    for old, new in [("a.root", "b.root"), ("a%2Fb", "a%2Fc")]:
        other = AWSRequest("GET", request.url.replace(old, new), dict(request.headers))
        assert denied(other) == "SignatureDoesNotMatch"
    put = AWSRequest("PUT", request.url, dict(request.headers))
    assert denied(put) == "SignatureDoesNotMatch"


def test_signatures_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with clock(monkeypatch, NOW):
        header = dict(in_header(AWSRequest(method="GET", url=URL)).headers)
        signed = in_query(AWSRequest(method="GET", url=URL)).url
    for changed in (
        {**header, "X-Amz-Date": ""},
        {**header, "X-Amz-Date": "yesterday"},
        {**header, "Authorization": header["Authorization"].replace("host;", "")},
        {**header, "Authorization": header["Authorization"].replace("/s3/", "/")},
        {**header, "Authorization": "Basic x"},
    ):
        assert denied(AWSRequest("GET", URL, changed)) is not None
    for old, new in [
        ("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        ("X-Amz-Expires=60", "X-Amz-Expires=-1"),
        ("X-Amz-Expires=60&", ""),
        ("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders="),
        ("X-Amz-Credential=ACCESS", "X-Amz-Credential="),
        ("X-Amz-Signature=", "X-Amz-Signature=%C3%A9"),
    ]:
        assert denied(AWSRequest("GET", signed.replace(old, new))) is not None, new
