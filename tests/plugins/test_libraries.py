"""Plugins that need a library which is not there say how to get it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from lb.errors import OperatorError
from lb.testing import call, make

FOLDER = Path(__file__).parents[2] / "plugins"
HASH = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()
URL = "http://127.0.0.1:9/"


@pytest.mark.parametrize(
    ("plugin", "library", "config"),
    [
        ("basic_auth", "bcrypt", {"users": {"a": HASH}}),
        ("basic_auth", "argon2", {"users": {"a": "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA"}}),
        ("jwt", "jwt", {"algorithms": ["HS256"], "secret": "s" * 32}),
        ("jwt", "aiohttp", {"algorithms": ["RS256"], "jwks_url": URL}),
        ("forward_auth", "aiohttp", {"url": URL}),
        ("mirror", "aiohttp", {"url": URL}),
        ("compress", "brotli", {"codings": ["gzip", "br"]}),
        ("compress", "zstandard", {"codings": ["zstd"]}),
    ],
)
def test_it_is_said_how_to_get_it(
    plugin: str, library: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(OperatorError, match=r"pip install 'accord-lb\[plugins\]'"):
        make(FOLDER / f"{plugin}.py", config)


def test_compress_does_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("brotli", "zstandard"):
        monkeypatch.setitem(sys.modules, library, None)
    outcome = call(
        FOLDER / "compress.py",
        "GET /\nAccept-Encoding: zstd, br, gzip",
        response="200 OK\nContent-Type: text/html",
        response_body=b"x" * 5000,
    )

    assert outcome.got.headers.get("Content-Encoding") == "gzip"
