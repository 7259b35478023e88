"""An office that wants tokens, and what the tests of it share."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from office import PATIENCE, Office

from lb.config.admin import ROLES, Token
from lb.config.schema import Config

TOKENS = {role: f"{role}-0123456789abcdef" for role in ROLES}
APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"


def tokens() -> list[Token]:
    return [
        Token(
            name=role,
            token=text,
            role=role,
            upstreams=["app"] if role == "register" else [],
        )
        for role, text in TOKENS.items()
    ]


def with_admin(config: Config, **keys: Any) -> Config:
    return config.model_copy(update={"admin": config.admin.model_copy(update=keys)})


def bearer(role: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Office]:
    """Open an office where each role has its token."""
    with Office(folder) as opened:
        opened.desk.config = with_admin(opened.desk.config, tokens=tokens())
        yield opened


def by_of(office: Office, key: str = "127.0.0.1:9001") -> dict[str, Any]:
    return office.desk.store.registry.upstreams["app"].backends[key].changed.by.to_plain()


def ask_head(
    office: Office, method: str, path: str, body: Any, headers: dict[str, str]
) -> tuple[int, str]:
    """Return an answer's status and problem, and read no more of it: a stream has no end."""
    connection = http.client.HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
    data = None if body is None else json.dumps(body).encode()
    named = {**headers, **({} if data is None else {"Content-Type": "application/json"})}
    with contextlib.closing(connection):
        connection.request(method, path, body=data, headers=named)
        with contextlib.closing(connection.getresponse()) as response:
            if response.status < 400:
                return response.status, ""
            return response.status, str(json.loads(response.read())["code"])


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
