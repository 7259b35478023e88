"""
Our own answers: short, valid, and clear about whose fault it is and what to change.

`Proxy-Status` (RFC 9209) names the error by its registered type, and in `details` the reason
and the setting, so that nobody needs to guess which of our bounds was met.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
RETRY_AFTER_S: Final = 1
BODILESS: Final = frozenset({204, 304})  # RFC 9110 15.3.5, 15.4.5

# RFC 9209 2.3, by the word that the access log uses for the same end.
PROXY_ERRORS: Final = {
    "backend_refused": "connection_refused",
    "backend_connect_timeout": "connection_timeout",
    "backend_dns": "dns_error",
    "backend_reset": "connection_terminated",
    "backend_closed": "connection_terminated",
    "backend_timeout": "http_response_timeout",
    "backend_bad_response": "http_protocol_error",
    "no_backend": "destination_unavailable",
    "queue_timeout": "connection_limit_reached",
    "limited": "connection_limit_reached",
    "overloaded": "proxy_internal_error",
    "too_large": "http_request_error",
    "client_error": "http_request_error",
    "client_limited": "connection_limit_reached",
    "client_slow": "http_request_error",
    "client_timeout": "http_request_error",
    "denied": "http_request_denied",
    "plugin_error": "proxy_internal_error",
    "no_route": "http_request_denied",
    "shutdown": "proxy_internal_error",
    "loop": "proxy_loop_detected",
    "our_error": "proxy_internal_error",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """
    An answer that no backend gave.

    `end` is the access log's word, or "ok" for an answer that was asked for (`respond`).
    """

    status: int
    end: str
    detail: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    body: str | bytes | None = None


def no_backend(upstream: str) -> Reply:
    """Return the answer where nobody may be asked."""
    return Reply(503, "no_backend", f"upstream {upstream} has no backend that may be used")


def render(reply: Reply, *, name: bytes, date: bytes, close: bool, method: bytes) -> bytes:
    """Return the whole answer; `name` is this instance's word in Proxy-Status."""
    reason = REASONS.get(reply.status, b"Unknown")
    body = body_of(reply)
    lines = [b"HTTP/1.1 %d %b" % (reply.status, reason), b"Date: " + date]
    lines += [f"{key}: {value}".encode() for key, value in reply.fields]
    if reply.end != "ok":
        error = PROXY_ERRORS.get(reply.end, "proxy_internal_error").encode()
        if reply.status == 429 and reply.end == "limited":
            error = b"http_request_denied"  # By a rate limit: no connection is too many.
        details = b'; details="%b"' % _quoted(reply) if reply.detail else b""
        lines.append(b"Proxy-Status: %b; error=%b%b" % (name, error, details))
    given = {key.lower() for key, _ in reply.fields}
    if reply.status in (502, 503, 504) and "retry-after" not in given:
        lines.append(b"Retry-After: %d" % RETRY_AFTER_S)
    if body and "content-type" not in given:
        lines.append(b"Content-Type: text/plain; charset=utf-8")
    if reply.status not in BODILESS:
        lines.append(b"Content-Length: %d" % len(body))
    if close:
        lines.append(b"Connection: close")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head + body if has_body(reply, method) else head


def has_body(reply: Reply, method: bytes) -> bool:
    """Whether an answer goes with its body (RFC 9110 9.3.2, 15.3.5, 15.4.5)."""
    return method != b"HEAD" and reply.status not in BODILESS


def body_of(reply: Reply) -> bytes:
    """Return its body; one that was given none says its status in words."""
    if reply.body is not None:
        return reply.body if isinstance(reply.body, bytes) else reply.body.encode()
    text = b"%d %b" % (reply.status, REASONS.get(reply.status, b"Unknown"))
    return text + (b": " + reply.detail.encode() if reply.detail else b"") + b"\n"


def _quoted(reply: Reply) -> bytes:
    """Return the detail as the inside of a Structured Field string (RFC 8941 3.3.3)."""
    plain = reply.detail.encode("ascii", "replace")
    safe = bytes(octet if 0x20 <= octet <= 0x7E else 0x3F for octet in plain)
    return safe.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
