"""`GET /v1/plugins`: which plugins are in use, from where, and how they do."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from lb.config.uses import uses_in
from lb.control.admin_guard import respond
from lb.control.desk import Desk


class PluginReads:
    """What an operator may know of plugins; their settings are the config's to show."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def get(self, request: web.Request) -> web.Response:
        """Each plugin with its code's digest, its uses, and what went wrong with it."""
        config, reading = self._desk.config, self._desk.reading()
        errors = reading.by("lb_plugin_errors_total", "plugin")
        off = reading.by("lb_plugin_off", "plugin")
        events = reading.by("lb_plugin_events_total", "plugin", "event")
        uses: dict[str, list[dict[str, Any]]] = {}
        for place, use in uses_in(config.plugins, config.listener, config.route):
            path = [str(part) for part in place if isinstance(part, str)]
            where = ".".join(part for part in path if part not in ("plugins", "use")) or "all"
            uses.setdefault(use.use, []).append({"at": where, "on_error": use.on_error})
        items = []
        for known, code in config.plugins.code.items():
            kind, _, name = known.rpartition(":")
            items.append(
                {
                    "name": name,
                    "kind": kind or "plugin",
                    "from": code["file"],
                    "digest": code["digest"],
                    "uses": uses.get(name, []) if not kind else [],
                    "errors": int(errors.get((name,), 0)),
                    "off": int(off.get((name,), 0)),
                    "events": {
                        event: int(count)
                        for (plugin, event), count in events.items()
                        if plugin == name
                    },
                }
            )
        return respond({"items": items, "next": None})
