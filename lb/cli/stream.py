"""Server-sent events over http.client: one connection's worth of them, and where they end."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LINE_BYTES_MAX = 16 * 1024 * 1024  # One revision may change 10,000 backends.


class StreamEndedError(Exception):
    """The stream ended, or broke; the text says how. What comes next is on another connection."""


@dataclass(frozen=True, slots=True)
class Event:
    """One frame. `number` is its id, where it has one."""

    kind: str
    number: int | None
    plain: dict[str, Any]


def events_of(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Yield frames until the stream ends; it always ends with StreamEndedError."""
    kind, number, data = "message", None, ""
    while True:
        line = _line(response)
        if line == "":
            if data:
                yield Event(kind, number, _object(data))
            kind, number, data = "message", None, ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                kind = value
            case "id" if value.isascii() and value.isdigit():
                number = int(value)
            case "data":
                data = f"{data}\n{value}" if data else value
            case _:
                continue  # A comment keeps the connection alive; other fields are not for us.


def _line(response: http.client.HTTPResponse) -> str:
    try:
        raw = response.readline(LINE_BYTES_MAX)
    except TimeoutError:
        raise StreamEndedError("nothing came for too long") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StreamEndedError(str(error) or type(error).__name__) from None
    if not raw.endswith(b"\n"):
        raise StreamEndedError("the connection ended")
    return raw.rstrip(b"\r\n").decode(errors="replace")


def _object(data: str) -> dict[str, Any]:
    try:
        plain = json.loads(data)
    except ValueError:
        raise StreamEndedError("what came is not JSON") from None
    return plain if isinstance(plain, dict) else {"data": plain}
