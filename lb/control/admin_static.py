"""The dashboard's files: read, compressed and given an ETag once, when the controller starts."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources

from aiohttp import web

from lb.control.problems import Problem

TYPES = {
    "index.html": "text/html",
    "app.js": "text/javascript",
    "events.js": "text/javascript",
    "group.js": "text/javascript",
    "page.js": "text/javascript",
    "session.js": "text/javascript",
    "app.css": "text/css",
    "favicon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One static file, ready to send."""

    content_type: str
    plain: bytes
    packed: bytes
    etag: str


def load_pages() -> dict[str, Page]:
    """Read every file of `lb/web`, by name."""
    pages = {}
    for name, content_type in TYPES.items():
        plain = resources.files("lb").joinpath("web", name).read_bytes()
        etag = sha256(plain).hexdigest()[:16]
        pages[name] = Page(content_type, plain, gzip.compress(plain, mtime=0), etag)
    return pages


class Static:
    """Answers `GET /` and the files that page names."""

    def __init__(self) -> None:
        self._pages = load_pages()

    async def get(self, request: web.Request) -> web.Response:
        """Send one page, or say that the browser has it."""
        page = self._pages.get(request.match_info.get("file", "index.html"))
        if page is None:
            raise Problem("not-found", f"there is no {request.path} here", "see /openapi.json")
        headers = {"ETag": f'"{page.etag}"', "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if page.etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        body = page.plain
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            body = page.packed
            headers["Content-Encoding"] = "gzip"
        return web.Response(
            body=body, headers=headers, content_type=page.content_type, charset="utf-8"
        )
