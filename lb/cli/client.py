"""Talking to an instance's admin API: which one, over what, and what its answers mean here.

Only http.client: this must start quickly. Not here: retries by ourselves. Every write is safe
to repeat, and the person or script that repeats it should know.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click

from lb import __version__
from lb.cli.output import say
from lb.config.environment import replace
from lb.errors import OperatorError, UsageError

DEFAULT_ADMIN = "127.0.0.1:9900"
SECONDS_MAX = 15.0  # For one answer; a reload takes 5 at most, a write without quorum as long.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
TOKEN_BYTES_MAX = 4096
FILE_BYTES_MAX = 1024 * 1024
INCLUDES_DEEP_MAX = 8

_ADMIN_SECTION = re.compile(r"\s*\[\s*admin\s*\]\s*(#.*)?$")
_ADMIN_ADDRESS = re.compile(r"""\s*address\s*=\s*["']([^"']+)["']""")


class UnreachableError(OperatorError):
    """The instance does not answer, or not to us."""

    exit_status = 4


class RefusedError(OperatorError):
    """The instance said no, with an RFC 9457 problem; `exit_status` is what that means."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        detail = problem.get("text") or problem.get("detail") or f"it answered {status}"
        super().__init__(str(detail), str(problem.get("hint") or ""))
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code", ""))
        self.exit_status = exit_status_of(status)


class UnknownOutcomeError(OperatorError):
    """A write was sent, and nobody told what became of it."""

    exit_status = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer of the admin API."""

    status: int
    plain: Any
    headers: dict[str, str]


def exit_status_of(status: int) -> int:
    """What an HTTP status means as an exit status (design, 6)."""
    match status:
        case 400 | 413 | 415:
            return 2
        case 401 | 403:
            return 4
        case 409 | 412 | 503:
            return 5
        case 422:
            return 3
        case 504:
            return 6
        case _:
            return 1


@dataclass(frozen=True, slots=True)
class Admin:
    """One instance's admin API. `address` is `host:port` or `unix:/path`."""

    address: str

    def get(self, path: str, **query: str) -> Answer:
        """Ask for something."""
        return self.ask("GET", path, query=query)

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = SECONDS_MAX,
    ) -> Answer:
        """Send one request; an answer that is an error is raised as what it means."""
        target = _target(path, query or {})
        status, plain, named = self._exchange(method, target, body, headers or {}, seconds)
        if status >= 400:
            problem = plain if isinstance(plain, dict) else {}
            raise RefusedError(status, problem)
        return Answer(status, plain, named)

    def readiness(self, seconds: float = SECONDS_MAX) -> tuple[bool, str]:
        """Whether the instance is ready, and if not, why."""
        status, plain, _ = self._exchange("GET", "/readyz", None, {}, seconds)
        reason = plain.get("reason", "") if isinstance(plain, dict) else ""
        return status == 200, str(reason)

    @contextmanager
    def stream(
        self, path: str, query: dict[str, str], headers: dict[str, str], silence: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Open an answer that goes on and on; `silence` is how long nothing may come."""
        connection = self._connection(silence)
        try:
            response = self._opened(connection, _target(path, query), headers)
            if response.status >= 400:
                plain = _parse(response.read(ANSWER_BYTES_MAX), self.address)
                raise RefusedError(response.status, plain if isinstance(plain, dict) else {})
            yield response
        finally:
            connection.close()

    def _opened(
        self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        sent = {**_headers(), "Accept": "text/event-stream", **headers}
        try:
            connection.request("GET", target, headers=sent)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise self._lost("GET", error) from None

    def _exchange(
        self,
        method: str,
        target: str,
        body: dict[str, Any] | None,
        headers: dict[str, str],
        seconds: float,
    ) -> tuple[int, Any, dict[str, str]]:
        connection = self._connection(seconds)
        sent = {**_headers(), "Accept": "application/json", **headers}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise UnreachableError(
                f"no instance answers at {self.address}: {error.strerror or error}",
                "is it running? which one is meant: --admin, $LB_ADMIN or admin.address",
            ) from None
        try:
            connection.request(method, target, body=data, headers=sent)
            response = connection.getresponse()
            raw = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(method, error) from None
        finally:
            connection.close()
        return response.status, _parse(raw, self.address), dict(response.getheaders())

    def _lost(self, method: str, error: Exception) -> OperatorError:
        what = str(error) or type(error).__name__
        if method == "GET":
            return UnreachableError(f"{self.address} did not answer: {what}")
        return UnknownOutcomeError(
            f"{self.address} was asked, and did not answer: {what}",
            "look with lb status, or repeat it: that is safe",
        )

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), seconds)
        return http.client.HTTPConnection(self.address, timeout=seconds)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _target(path: str, query: dict[str, str]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _headers() -> dict[str, str]:
    """Return what every request says of us."""
    token = _token()
    return {
        "User-Agent": f"lb/{__version__}",
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }


def _parse(raw: bytes, address: str) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        raise UnreachableError(
            f"what answers at {address} is not an Accord admin API", "is the address right?"
        ) from None


def _token() -> str:
    if token := os.environ.get("LB_TOKEN", ""):
        return token
    path = os.environ.get("LB_TOKEN_FILE", "")
    if not path:
        return ""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(TOKEN_BYTES_MAX).strip()
    except (OSError, UnicodeError) as error:
        raise UnreachableError(f"LB_TOKEN_FILE cannot be read: {error}") from None


# Which instance


def find_admin(given: str | None, config: str | None) -> Admin:
    """Return the instance that is meant: by option, environment, config file or default."""
    chosen = given or os.environ.get("LB_ADMIN") or _of_config(config) or DEFAULT_ADMIN
    return Admin(admin_address(chosen))


def admin_address(text: str) -> str:
    """Read a URL, an address or a unix socket's path as `host:port` or `unix:/path`."""
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        return f"unix:{path}"
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "http":
            raise UsageError(f'"{text}": {parts.scheme}:// admin addresses are not yet supported')
        text = parts.netloc
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, DEFAULT_ADMIN.rpartition(":")[2]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f'"{text}" is no admin address', "write host:port or unix:/path")
    return f"{host or '127.0.0.1'}:{port}"


def _of_config(given: str | None) -> str | None:
    """
    Find `admin.address` in the config file, without reading it as the daemon does.

    pydantic would take longer than the whole command may, and a file with errors must not keep
    anyone from asking the instance how it is.
    """
    for path in (given or os.environ.get("LB_CONFIG"), "lb.toml", "/etc/lb/lb.toml"):
        if not path:
            continue
        try:
            return address_in(path)
        except (OSError, UnicodeError) as error:
            if path == given:
                raise UsageError(f"{path} cannot be read: {error}", "see -c") from None
            if not isinstance(error, FileNotFoundError):
                say(f"{path} cannot be read, so its admin.address is not known: {error}")
            if path == os.environ.get("LB_CONFIG"):
                return None  # The file that is meant is known; others are not.
    return None


def address_in(path: str, depth: int = 0) -> str | None:
    """Return `admin.address` of a config file or of what it includes; None if it is not there."""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(FILE_BYTES_MAX)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return _expand(_salvage(text))
    admin = tree.get("admin")
    if isinstance(admin, dict) and isinstance(admin.get("address"), str):
        return _expand(admin["address"])
    for included in _includes(path, tree.get("include")) if depth < INCLUDES_DEEP_MAX else ():
        with suppress(OSError, UnicodeError):
            if address := address_in(included, depth + 1):
                return address
    return None


def _includes(path: str, include: object) -> list[str]:
    """Return the files that a file includes."""
    patterns = include if isinstance(include, list) else [include]
    folder = os.path.dirname(path)
    return [
        name
        for pattern in patterns
        if isinstance(pattern, str)
        for name in sorted(glob(os.path.join(folder, _expand(pattern) or "")))
    ]


def _salvage(text: str) -> str | None:
    """Find the address in a file that is not TOML at present: line by line."""
    inside = False
    for line in text.splitlines():
        if line.lstrip().startswith("["):
            inside = _ADMIN_SECTION.match(line) is not None
        elif inside and (found := _ADMIN_ADDRESS.match(line)):
            return found[1]
    return None


def _expand(text: str | None) -> str | None:
    return text if text is None else replace(text, os.environ)[0]


def admin_options(command: Any) -> Any:
    """Give a command `--admin` and `-c`, by which it finds its instance."""
    command = click.option(
        "-c",
        "--config",
        metavar="FILE",
        help="The config file whose admin.address is meant.",
    )(command)
    return click.option(
        "--admin", metavar="URL", help="The instance: http://host:port or unix:/path."
    )(command)


def path_of(*words: str) -> str:
    """Join path segments, each percent-encoded whole."""
    return "/" + "/".join(quote(word, safe=":") for word in words)
