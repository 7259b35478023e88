"""
Sets, appends, removes and renames fields of requests and responses.

What is written may hold what is known of the request: `{client}`, `{host}`, `{id}`, `{scheme}`,
`{route}`, `{upstream}` and, in a response, `{backend}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lb.plugin import HeaderName, Headers, Plugin, Request, Response, reply

_PLACE: Final = re.compile(r"\{([A-Za-z_]*)\}")  # Not the braces of JSON.
_KNOWN: Final[dict[str, Callable[[Request, Response | None], str]]] = {
    "client": lambda req, _: req.client,
    "host": lambda req, _: req.host,
    "id": lambda req, _: req.request_id,
    "scheme": lambda req, _: req.scheme,
    "route": lambda req, _: req.route,
    "upstream": lambda req, _: req.upstream,
    "backend": lambda _, res: res.backend if res is not None else "",
}

Value = str | Callable[[Request, Response | None], str]
Step = Callable[[Headers, Request, Response | None], None]


@dataclass
class Changes:
    """What happens to the fields of one message, in this order."""

    remove: list[HeaderName] = field(
        default_factory=list, metadata={"about": "Fields to take out."}
    )
    rename: dict[str, HeaderName] = field(
        default_factory=dict, metadata={"about": "Fields to give another name."}
    )
    set: dict[str, str] = field(
        default_factory=dict, metadata={"about": "Fields that have this value, and no other."}
    )
    append: dict[str, str] = field(
        default_factory=dict, metadata={"about": "Fields to add to those of the name."}
    )


class ChangeHeaders(Plugin["ChangeHeaders.Config"]):
    """Changes fields, both ways."""

    name = "headers"

    @dataclass
    class Config:
        """What stands beside `use`."""

        request: Changes = field(
            default_factory=Changes, metadata={"about": "Of requests, on their way to a backend."}
        )
        response: Changes = field(
            default_factory=Changes, metadata={"about": "Of responses, our own included."}
        )

        def __post_init__(self) -> None:
            for way, changes in (("request", self.request), ("response", self.response)):
                for value in (*changes.set.values(), *changes.append.values()):
                    _check(value, way)
            for step in steps_of(self.request):
                step(Headers(b"\r\n", b""), _NOBODY, None)
            for step in steps_of(self.response):
                step(Headers(b"\r\n", b"", frozenset()), _NOBODY, None)
            for name in _touched(self.response):
                _check_ours(name)

    def start(self) -> None:
        """Work out the steps; a message that nothing is done to is not looked at."""
        request, response = steps_of(self.config.request), steps_of(self.config.response)
        if request:

            def on_request(req: Request) -> None:
                for step in request:
                    step(req.headers, req, None)

            self.on_request = on_request
        if response:

            def on_response(req: Request, res: Response) -> None:
                for step in response:
                    step(res.headers, req, res)

            self.on_response = on_response


class _Nobody(Request):
    """A request of which nothing is known: to see whether names and values may stand at all."""

    def __init__(self) -> None:
        pass

    client = host = request_id = scheme = route = upstream = "x"


_NOBODY: Final = _Nobody()


def _touched(changes: Changes) -> list[str]:
    named = [*changes.remove, *changes.rename, *changes.rename.values()]
    return [*named, *changes.set, *changes.append]


def _check_ours(name: str) -> None:
    """Refuse a field that no plugin may write in a response: there are fewer than in a request."""
    try:
        reply(200, {name: ""})
    except ValueError:
        raise ValueError(f"{name} is written by the load balancer itself") from None


def steps_of(changes: Changes) -> list[Step]:
    """Return what is to be done, in order."""
    steps: list[Step] = [_remove(name) for name in changes.remove]
    steps += [_rename(name, to) for name, to in changes.rename.items()]
    steps += [_write(name, value, "set") for name, value in changes.set.items()]
    steps += [_write(name, value, "append") for name, value in changes.append.items()]
    return steps


def _remove(name: str) -> Step:
    return lambda headers, _, __: headers.remove(name)


def _rename(name: str, to: str) -> Step:
    return lambda headers, _, __: headers.rename(name, to)


def _write(name: str, text: str, how: str) -> Step:
    value = _compiled(text)
    if isinstance(value, str):
        plain = value
        if how == "set":
            return lambda headers, _, __: headers.set(name, plain)
        return lambda headers, _, __: headers.append(name, plain)
    filled = value
    if how == "set":
        return lambda headers, req, res: headers.set(name, filled(req, res))
    return lambda headers, req, res: headers.append(name, filled(req, res))


def _compiled(text: str) -> Value:
    """Return a text, or what fills it in where it has places to fill."""
    pieces = _PLACE.split(text)
    if len(pieces) == 1:
        return text

    def fill(req: Request, res: Response | None) -> str:
        return "".join(
            _KNOWN[piece](req, res) if index % 2 else piece for index, piece in enumerate(pieces)
        )

    return fill


def _check(text: str, way: str) -> None:
    for name in _PLACE.findall(text):
        if name not in _KNOWN or (name == "backend" and way == "request"):
            known = ", ".join(key for key in _KNOWN if way == "response" or key != "backend")
            raise ValueError(f"{{{name}}} is not known in a {way}: there are {known}")
