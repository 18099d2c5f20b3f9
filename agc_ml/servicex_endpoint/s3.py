"""Objects over HTTP: as much of S3 as reading needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from tornado.web import HTTPError, RequestHandler, StaticFileHandler

from agc_ml.servicex_endpoint.handlers import Refusal
from agc_ml.servicex_endpoint.rest import ID, ContextHandler
from agc_ml.servicex_endpoint.signatures import AccessDeniedError

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
_FORBIDDEN, _NOT_FOUND, _INTERNAL = 403, 404, 500
_CODES: Final = {
    _FORBIDDEN: "AccessDenied",
    _NOT_FOUND: "NoSuchKey",
    _INTERNAL: "InternalError",
}


class SignedHandler(ContextHandler):
    """Answer in XML requests that are signed with the endpoint's key."""

    code: str | None = None

    def denied(self) -> Refusal | None:
        """Refuse requests without a valid signature."""
        request = self.request
        url = f"http://{request.host}{request.uri}"
        try:
            keys = self.context.credentials.keys
            keys.check(request.method or "", url, request.headers, time.time())
        except AccessDeniedError as error:
            self.code = error.code
            return _FORBIDDEN, str(error)
        return None

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error."""
        self.set_status(status)
        error = ET.Element("Error")
        ET.SubElement(error, "Code").text = self.code or _CODES.get(status, "InvalidRequest")
        ET.SubElement(error, "Message").text = message
        self.send_xml(error)

    def send_xml(self, element: ET.Element) -> None:
        """Answer with an XML document."""
        self.set_header("Content-Type", "application/xml")
        self.finish(ET.tostring(element, encoding="utf-8", xml_declaration=True))


class BucketHandler(SignedHandler):
    """``/ID?list-type=2``: the objects of a request."""

    def get(self, request_id: str) -> None:
        """List the objects, which always fit in one answer."""
        if not self.context.store.request(request_id):
            self.code = "NoSuchBucket"
            raise HTTPError(_NOT_FOUND, reason="there is no such bucket")
        objects = self.context.store.objects(request_id)
        listing = ET.Element("ListBucketResult", xmlns=_NAMESPACE)
        ET.SubElement(listing, "Name").text = request_id
        ET.SubElement(listing, "Prefix").text = ""
        ET.SubElement(listing, "KeyCount").text = str(len(objects))
        ET.SubElement(listing, "IsTruncated").text = "false"
        for name, size in objects.items():
            entry = ET.SubElement(listing, "Contents")
            ET.SubElement(entry, "Key").text = name
            ET.SubElement(entry, "Size").text = str(size)
        self.send_xml(listing)


class ObjectHandler(SignedHandler, StaticFileHandler):
    """``/ID/NAME``: an object, or a range of it."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """Return the path of an object: only objects that the store lists have one."""
        request_id, _, name = self.path_args[0].partition("/")
        if name not in self.context.store.objects(request_id):
            raise HTTPError(_NOT_FOUND, reason="there is no such object")
        return super().validate_absolute_path(root, absolute_path)

    def compute_etag(self) -> str | None:
        """Return a tag of size and time; tornado's own would read the whole file."""
        return f'"{self.get_content_size():x}-{self.modified:%Y%m%d%H%M%S}"'


def routes(folder: Path) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """Return the handlers of all paths, for objects in a folder."""
    return [
        (rf"/({ID})/?", BucketHandler, {}),
        (rf"/({ID}/.+)", ObjectHandler, {"path": str(folder)}),
    ]
