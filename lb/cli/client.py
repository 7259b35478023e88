"""Talking to an instance's admin API: which one, over what, and what its answers mean here.

Only http.client: this must start quickly. Not here: retries by ourselves. Every write is safe
to repeat, and the person or script that repeats it should know.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import click

from lb import __version__
from lb.cli.peek import DEFAULT_ADMIN, Named, named_by_config
from lb.errors import OperatorError, UsageError

CA = "lb.cli.ca"  # In click's notes of one call: what --ca said.
SECONDS_MAX = 15.0  # For one answer; a reload takes 5 at most, a write without quorum as long.
ANSWER_BYTES_MAX = 64 * 1024 * 1024
TOKEN_BYTES_MAX = 4096


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
        case 401 | 403 | 429:
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
    """
    One instance's admin API. `address` is `host:port` or `unix:/path`.

    Over TLS it is believed by `ca`, $LB_CA, or the system's authorities. Where our own config file
    names it, `own_cert` is the certificate that it must show, whatever names are in that.
    """

    address: str
    secure: bool = False
    own_cert: str = ""
    ca: str = ""

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
        if status in (401, 403, 429):  # Waiting for that to change would be in vain.
            raise RefusedError(status, plain if isinstance(plain, dict) else {})
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
            raise self._nobody(error) from None
        if self.secure and method != "GET":
            self._knock(connection, sent)
        try:
            connection.request(method, target, body=data, headers=sent)
            response = connection.getresponse()
            raw = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(method, error) from None
        finally:
            connection.close()
        return response.status, _parse(raw, self.address), dict(response.getheaders())

    def _nobody(self, error: OSError) -> UnreachableError:
        """Say why no connection came about."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return UnreachableError(
                f"the certificate of {self.address} is not believed: {error.verify_message}",
                "$LB_CA names the file with its authority; call it by a name that is in it",
            )
        if isinstance(error, ssl.SSLError):
            return UnreachableError(
                f"no TLS with {self.address}: {error.reason or error}",
                "$LB_CERT and $LB_KEY name a client's certificate, where one is demanded",
            )
        return UnreachableError(
            f"no instance answers at {self.address}: {error.strerror or error}",
            "is it running? which one is meant: --admin, $LB_ADMIN or admin.address",
        )

    def _knock(self, connection: http.client.HTTPConnection, headers: dict[str, str]) -> None:
        """
        See that we are let in, before anything is written.

        By TLS 1.3 a client learns only from the first answer whether its certificate will do,
        and of a write that had no answer nobody could say what became of it.
        """
        try:
            connection.request("GET", "/livez", headers=headers)
            connection.getresponse().read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._lost("GET", error) from None

    def _lost(self, method: str, error: Exception) -> OperatorError:
        what = str(error) or type(error).__name__
        if method == "GET":
            hint = "$LB_CERT names a client's certificate, if one is demanded"
            return UnreachableError(
                f"{self.address} did not answer: {what}", hint if self.secure else ""
            )
        return UnknownOutcomeError(
            f"{self.address} was asked, and did not answer: {what}",
            "look with lb status, or repeat it: that is safe",
        )

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), seconds)
        if self.secure:
            context = tls_context(self.own_cert, self.ca or os.environ.get("LB_CA", ""))
            return http.client.HTTPSConnection(self.address, timeout=seconds, context=context)
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


def tls_context(own_cert: str, ca: str) -> ssl.SSLContext:
    """Return by whom an instance is believed over TLS, and what we show it."""
    try:
        context = ssl.create_default_context(cafile=ca or own_cert or None)
        if own_cert and not ca:
            # This very certificate, by whomever it was signed: its names say nothing more.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.check_hostname = False
        if cert := os.environ.get("LB_CERT", ""):
            context.load_cert_chain(cert, os.environ.get("LB_KEY") or None)
    except OSError as error:
        raise UnreachableError(
            f"a certificate cannot be read: {error.strerror or error}",
            "see --ca, $LB_CA, $LB_CERT and $LB_KEY",
        ) from None
    return context


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
    if chosen := given or os.environ.get("LB_ADMIN"):
        return admin_at(chosen)
    named = named_by_config(config) or Named(DEFAULT_ADMIN)
    if not named.cert:
        return admin_at(named.address)
    address = admin_address(named.address)
    return Admin(address, secure=True, own_cert=named.cert, ca=_given_ca())


def admin_at(text: str) -> Admin:
    """Return the instance that an option or the environment names."""
    secure = text.startswith("https://")
    return Admin(admin_address(text), secure=secure, ca=_given_ca())


def admin_address(text: str) -> str:
    """Read a URL, an address or a unix socket's path as `host:port` or `unix:/path`."""
    if text.startswith("unix:"):
        path = "/" + text.removeprefix("unix:").lstrip("/")
        return f"unix:{path}"
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https"):
            raise UsageError(
                f'"{text}" is no admin address', "write https://host:port, host:port or unix:/path"
            )
        text = parts.netloc
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, DEFAULT_ADMIN.rpartition(":")[2]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f'"{text}" is no admin address', "write host:port or unix:/path")
    return f"{host or '127.0.0.1'}:{port}"


def _keep_ca(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    ctx.meta[CA] = value or ""


def _given_ca() -> str:
    ctx = click.get_current_context(silent=True)
    return "" if ctx is None else str(ctx.meta.get(CA, ""))


def admin_options(command: Any) -> Any:
    """Give a command `--admin`, `--ca` and `-c`, by which it finds its instance."""
    command = click.option(
        "--ca",
        metavar="FILE",
        expose_value=False,
        callback=_keep_ca,
        help="Whose certificate over TLS to believe; else $LB_CA, or the system's authorities.",
    )(command)
    command = click.option(
        "-c",
        "--config",
        metavar="FILE",
        help="The config file whose admin.address is meant.",
    )(command)
    return click.option(
        "--admin", metavar="URL", help="The instance: http(s)://host:port or unix:/path."
    )(command)


def path_of(*words: str) -> str:
    """Join path segments, each percent-encoded whole."""
    return "/" + "/".join(quote(word, safe=":") for word in words)
