"""What orchestrators and Prometheus ask: /livez, /readyz, /metrics."""

from __future__ import annotations

from aiohttp import web

from lb.control.admin_gauges import gauges
from lb.control.admin_guard import respond
from lb.control.desk import Desk
from lb.exposition import exposition


class Probes:
    """Served on the admin address, and alone on `admin.probe`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def live(self, request: web.Request) -> web.Response:
        """Whether this process is worth keeping: it answers, so it is."""
        return respond({"live": True})

    async def ready(self, request: web.Request) -> web.Response:
        """Whether traffic should come here."""
        self._desk.note_asked()
        unready = self._desk.unready()
        if unready:
            return respond({"ready": False, "reason": unready}, 503)
        return respond({"ready": True})

    async def metrics(self, request: web.Request) -> web.Response:
        """The text of a scrape."""
        accept = request.headers.get("Accept", "")
        text, content_type = exposition(self._desk.reading(), gauges(self._desk), accept)
        return web.Response(body=text, headers={"Content-Type": content_type})
