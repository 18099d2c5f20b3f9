"""Objects over HTTP: as much of S3 as reading needs."""

from __future__ import annotations

import time
from typing import Any, Final
from xml.etree import ElementTree as ET

from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from agc_ml.servicex_endpoint.handlers import Handler
from agc_ml.servicex_endpoint.rest import ID, Endpoint
from agc_ml.servicex_endpoint.signatures import Denied

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_FORBIDDEN, _NOT_FOUND, _OURS = 403, 404, 500
_CODES: Final = {
    _FORBIDDEN: "AccessDenied",
    _NOT_FOUND: "NoSuchKey",
    _OURS: "InternalError",
}


class _Signed(Handler):
    """Answers in XML, to whoever signs with the endpoint's key."""

    endpoint: Endpoint
    code: str | None = None

    def denied(self) -> tuple[int, str] | None:
        request = self.request
        url = f"http://{request.host}{request.uri}"
        try:
            keys = self.endpoint.credentials.keys
            keys.check(request.method or "", url, request.headers, time.time())
        except Denied as denied:
            self.code = denied.code
            return _FORBIDDEN, str(denied)
        return None

    def refuse(self, status: int, message: str) -> None:
        self.set_status(status)
        error = ET.Element("Error")
        ET.SubElement(error, "Code").text = self.code or _CODES.get(status, "InvalidRequest")
        ET.SubElement(error, "Message").text = message
        self.send_xml(error)

    def send_xml(self, element: ET.Element) -> None:
        self.set_header("Content-Type", "application/xml")
        self.finish(ET.tostring(element, encoding="utf-8", xml_declaration=True))


class Bucket(_Signed):
    """``/ID?list-type=2``: the objects of a request."""

    def initialize(self, endpoint: Endpoint) -> None:
        """Be one of an endpoint."""
        self.endpoint = endpoint

    def get(self, request_id: str) -> None:
        """List them; they are never more than fit in one answer."""
        if not self.endpoint.state.request(request_id):
            self.code = "NoSuchBucket"
            raise HTTPError(_NOT_FOUND, reason="there is no such bucket")
        objects = self.endpoint.state.objects(request_id)
        listing = ET.Element("ListBucketResult", xmlns=_NAMESPACE)
        for tag, text in {
            "Name": request_id,
            "Prefix": "",
            "KeyCount": len(objects),
            "IsTruncated": "false",
        }.items():
            ET.SubElement(listing, tag).text = str(text)
        for name, size in objects.items():
            entry = ET.SubElement(listing, "Contents")
            ET.SubElement(entry, "Key").text = name
            ET.SubElement(entry, "Size").text = str(size)
        self.send_xml(listing)


class Object(_Signed, StaticFileHandler):
    """``/ID/NAME``: an object, or a range of it."""

    def initialize(self, endpoint: Endpoint, path: str) -> None:  # type: ignore[override]
        """Be one of an endpoint, with its objects below ``path``."""
        StaticFileHandler.initialize(self, path)
        self.endpoint = endpoint

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """Find an object: only what the state knows is one, whatever path is asked for."""
        request_id, _, name = self.path_args[0].partition("/")
        if name not in self.endpoint.state.objects(request_id):
            raise HTTPError(_NOT_FOUND, reason="there is no such object")
        return super().validate_absolute_path(root, absolute_path)

    def compute_etag(self) -> str | None:
        """Tell versions apart; by default all of the file is read for that."""
        return f'"{self.get_content_size():x}-{self.modified:%Y%m%d%H%M%S}"'


def routes(endpoint: Endpoint, root: str) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """What is answered by whom."""
    return [
        (rf"/({ID})/?", Bucket, {"endpoint": endpoint}),
        (rf"/({ID}/.+)", Object, {"endpoint": endpoint, "path": root}),
    ]
