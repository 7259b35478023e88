"""
What plugins need of the world outside: an HTTP client, files, libraries that may not be there.

For authors as well; nothing of it is imported in workers that need nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from aiohttp import ClientSession

KEEPALIVE_S: Final = 15.0
AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""What the client would say by itself, for `skip_auto_headers`."""


class Web:
    """
    A plugin's HTTP client: at most `at_once` connections, `timeout` seconds for one exchange.

    Made in `start`, closed in `stop`; connections come with the first exchange.
    """

    def __init__(self, at_once: int, timeout: float) -> None:
        self._at_once = at_once
        self._timeout = timeout
        self._aiohttp: Any = None
        self._session: ClientSession | None = None

    async def session(self) -> ClientSession:
        """Return the session, with aiohttp's own interface."""
        if self._session is not None:
            return self._session
        # Importing it takes a quarter of a second, in which others want to be served.
        aiohttp = self._aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")
        if self._session is None:  # Nobody was quicker.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._at_once, keepalive_timeout=KEEPALIVE_S),
                # One client's cookies are nothing to the next.
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                auto_decompress=False,
            )
        assert self._session is not None
        return self._session

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What an exchange may raise that is no failure of ours."""
        own = () if self._aiohttp is None else (self._aiohttp.ClientError,)
        return (TimeoutError, OSError, ValueError, *own)

    def close(self) -> None:
        """Close its connections now: where a worker ends, no loop is left to wait in."""
        if self._session is not None:
            closing = self._session.close()
            with contextlib.suppress(StopIteration):
                closing.send(None)  # All is closed by its first step; the others see it off.
                closing.close()


def check_url(url: str, *examples: str, query: bool = True) -> None:
    """Refuse what `Web` could not ask: for a Config's `__post_init__`. ValueError."""
    try:
        parts = urlsplit(url)
        odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        odd = odd or bool(parts.username or parts.fragment or (parts.query and not query))
    except ValueError:
        odd = True
    if odd:
        raise ValueError(f"{url} is no URL like {' or '.join(examples)}")
    if importlib.util.find_spec("aiohttp") is None:
        raise absent("aiohttp")


def as_utf8(value: str) -> str:
    """
    Return a field's octets as they are written in UTF-8; what is none of that is replaced.

    Ours are text by ISO 8859-1, one character an octet, and aiohttp sends text as UTF-8.
    """
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "replace")


def library(module: str, package: str = "") -> Any:
    """Import what only plugins need. ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise absent(package or module) from None


def absent(package: str) -> ValueError:
    """Say how to install what a plugin needs."""
    return ValueError(f"{package} is not there: pip install 'accord-lb[plugins]'")


def read_file(file: str, bytes_max: int) -> bytes:
    """Read a file, never waiting for one that is none. ValueError says what is wrong."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            content = opened.read(bytes_max + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if len(content) > bytes_max:
        raise ValueError(f"{file} has more than {bytes_max} bytes")
    return content


def stamp_of(file: str) -> object:
    """Return what changes when a file does; None while there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
