"""
Request and response heads: from octets to facts.

Nothing here trusts one parser alone, since parsers differ and each difference is a way to
smuggle. httptools judges a whole head (and nothing but the head: `framing` says why); the
start line and the fields are then read by our own rules, which are the stricter ones.

A client that keeps its connection mostly repeats its fields to the byte, and often its whole
head; so does a backend within one second. What is read here depends on the octets alone, so
a connection may keep its last head and use that, or its fields, again for equal octets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import httptools

from lb.errors import BackendError, ClientError

END_OF_HEAD: Final = b"\r\n\r\n"
HEAD_REMEMBERED_MAX: Final = 4096  # octets: a longer one is read anew each time
REPLY_HEAD_BYTES_MAX: Final = 64 * 1024
REPLY_FIELDS_MAX: Final = 256
LENGTH_DIGITS_MAX: Final = 18  # 10**18 octets: more than anyone has, less than 2**63.

# No `#` in a target (RFC 9112 3.2): who cuts it there sees another path than who does not.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!\"$-~]+) HTTP/([0-9]\.[0-9])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*)?\r\n")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?"  # RFC 3986 3.2.2
)
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#]+)([^#]*)")
_TIMEOUT = re.compile(rb"timeout=([0-9]{1,6})")


class _Sink:
    """httptools looks its callbacks up on this; none means that it only judges."""


_SINK = _Sink()

# Fields that end at us (RFC 9110 7.6.1), whatever Connection says. Trailer goes because we
# drop trailers; HTTP2-Settings because h2c never passes.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# What a client may not say in our name: we write these ourselves.
_OURS: Final = frozenset(
    {
        b"forwarded",
        b"x-client-cert-subject",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-forwarded-server",
        b"x-real-ip",
        b"x-request-id",
    }
)
_DROPPED_FROM_REQUEST: Final = HOP_BY_HOP | _OURS
# Fields that Connection may name without losing them: they frame or route the message.
# The last three are no fields: two options, and what stands between two commas.
_NEVER_NOMINATED: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"via", b"close", b"keep-alive", b""}
)
# httptools knows these, and objects to them in HTTP; to us they are methods like any unknown one.
_OF_OTHER_PROTOCOLS: Final = frozenset(
    b"ANNOUNCE DESCRIBE FLUSH GET_PARAMETER PAUSE PLAY PRI RECORD REDIRECT SETUP SET_PARAMETER"
    b" TEARDOWN".split()
)
NAMES_KEPT_MAX: Final = 1024  # field names whose rule is remembered


class RequestFields:
    """
    What the field block of a request says, and what of it goes on.

    `length` is -1 without Content-Length. `kept` holds the lines that go on to the backend,
    each led by CRLF, without Host, Content-Length, Via and what ends here. `wire_host` is the
    Host line's value as it came. `memo` belongs to whoever keeps the fields.
    """

    __slots__ = (
        "block",
        "chunked",
        "close",
        "expects_continue",
        "hops",
        "host",
        "kept",
        "length",
        "memo",
        "memo_key",
        "upgrade",
        "via",
    )

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.host: bytes | None = None
        self.length = -1
        self.chunked = False
        self.close = False
        self.expects_continue = False
        self.hops = -1  # Max-Forwards, -1 without
        self.upgrade = b""  # the token, in lower case, if Connection names Upgrade too
        self.via = b""
        self.kept = b""
        self.memo = b""
        self.memo_key: object = None

    def copy(self) -> RequestFields:
        """Return fields that may be changed: those of a head are its next one's too."""
        fields = RequestFields(self.block)
        for name in RequestFields.__slots__:
            setattr(fields, name, getattr(self, name))
        fields.memo_key = None
        return fields


class RequestHead:
    """A whole request head, read and judged. `minor` is 0 or 1."""

    __slots__ = ("fields", "method", "minor", "octets", "target")

    def __init__(
        self, octets: bytes, method: bytes, target: bytes, minor: int, fields: RequestFields
    ) -> None:
        self.octets = octets
        self.method = method
        self.target = target
        self.minor = minor
        self.fields = fields

    def with_authority(self, authority: bytes, target: bytes) -> RequestHead:
        """Return it in origin-form, its Host the target's authority (RFC 9112 3.2.2)."""
        fields = self.fields.copy()
        fields.host = authority
        return RequestHead(self.octets, self.method, target, self.minor, fields)


class ResponseHead:
    """A whole response head, read and judged. `text` is code and reason as they came."""

    __slots__ = ("fields", "minor", "octets", "status", "text")

    def __init__(
        self, octets: bytes, minor: int, status: int, text: bytes, fields: ResponseFields
    ) -> None:
        self.octets = octets
        self.minor = minor
        self.status = status
        self.text = text
        self.fields = fields


class ResponseFields:
    """
    What the field block of a response says, and what of it goes on.

    `keep_alive` is the backend's own `timeout=` in seconds, or -1. `kept` as for requests,
    without Content-Length.
    """

    __slots__ = (
        "block",
        "chunked",
        "close",
        "dated",
        "keep_alive",
        "kept",
        "length",
        "persists",
        "upgrade",
    )

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.length = -1
        self.chunked = False
        self.close = False
        self.persists = False  # Connection: keep-alive, which HTTP/1.0 needs to say
        self.dated = False
        self.keep_alive = -1
        self.kept = b""
        self.upgrade = b""


def read_request_head(
    octets: bytes, before: RequestHead | None, line_max: int, fields_max: int
) -> RequestHead:
    """
    Read a head that ends with an empty line; `before` is the connection's last one, if any.

    ClientError with the status to answer by, and the limit met in its hint.
    """
    method, target, minor, line_end = read_request_line(octets)
    if line_end > line_max:
        raise ClientError(414, "the request line is too long", "limits.request_line")
    judge_request(octets)
    if method == b"CONNECT":
        raise ClientError(501, "tunnels are not made here")  # Whatever its target looks like.
    block = octets[line_end:-2]
    if before is not None and before.fields.block == block:
        fields = before.fields
    else:
        fields = read_request_fields(block, fields_max)
    if not minor and fields.chunked:
        raise ClientError(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112 6.1
    if fields.host is None and minor:
        raise ClientError(400, "no Host")  # RFC 9112 3.2
    return RequestHead(octets, method, target, minor, fields)


def read_response_head(octets: bytes, before: ResponseHead | None) -> ResponseHead:
    """Read a head that ends with an empty line; `before` as for requests. BackendError."""
    judge_response(octets)
    minor, status, line_end = read_status_line(octets)
    block = octets[line_end:-2]
    if before is not None and before.fields.block == block:
        fields = before.fields
    else:
        fields = read_response_fields(block)
    return ResponseHead(octets, minor, status, octets[9:line_end], fields)


def altered(
    head: RequestHead, *, target: bytes, kept: bytes, host: bytes | None, length: int, chunked: bool
) -> RequestHead:
    """Return a head in which these are others; what it was read from stays as it is."""
    fields = head.fields.copy()
    fields.kept, fields.host = kept, host
    fields.length, fields.chunked = length, chunked
    return RequestHead(head.octets, head.method, target, head.minor, fields)


def made_head(status: int, named: Iterable[tuple[str, str]], length: int) -> ResponseHead:
    """Return the head of an answer of our own, with these fields."""
    lines = "".join(f"\r\n{name}: {value}" for name, value in named).encode("latin-1")
    fields = ResponseFields(lines + b"\r\n")
    fields.kept, fields.length = lines, length
    return ResponseHead(b"", 1, status, b"", fields)


def judge_request(head: bytes) -> None:
    """Let httptools object to a whole request head: ClientError 400, or 501 for a method."""
    try:
        httptools.HttpRequestParser(_SINK).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # Means nothing by itself: `forwarding` decides on Upgrade.
    except httptools.HttpParserInvalidMethodError:
        raise ClientError(501, "unknown method") from None
    except httptools.HttpParserError as error:
        if head.partition(b" ")[0] in _OF_OTHER_PROTOCOLS:
            raise ClientError(501, "unknown method") from None
        raise ClientError(400, f"malformed request: {error}") from None


def judge_response(head: bytes) -> None:
    """Let httptools object to a whole response head: BackendError."""
    try:
        httptools.HttpResponseParser(_SINK).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BackendError(f"malformed response: {error}") from None


def read_request_line(head: bytes) -> tuple[bytes, bytes, int, int]:
    """Return method, target, minor version, and where the line's CRLF starts. ClientError."""
    match = _REQUEST_LINE.match(head)
    if match is None:
        raise ClientError(400, "malformed request line")
    method, target, version = match.groups()
    if version == b"1.1":
        return method, target, 1, match.end() - 2
    if version[:1] != b"1":
        # HTTP/0.9 never had a version to write, so a written 0 is as odd as a 7.
        raise ClientError(505 if version >= b"2" else 400, "only HTTP/1.x is spoken here")
    return method, target, int(version != b"1.0"), match.end() - 2


def read_request_fields(block: bytes, fields_max: int) -> RequestFields:
    """
    Read the lines between request line and empty line; `block` starts and ends with CRLF.

    ClientError 400, 431 or 501, by RFC 9112 5 and 6 and `RequestFields`.
    """
    fields = RequestFields(block)
    lines = _lines(block)
    if lines is None:
        raise ClientError(400, "bare CR, LF or NUL in the head")
    if len(lines) > fields_max:
        raise ClientError(431, "too many header fields", "limits.headers")
    kept = [b""]
    nominated: set[bytes] = set()
    for line in lines:
        name, colon, value = line.partition(b":")
        rule = _request_rule(name) if colon else None
        if rule is _keep:
            kept.append(line)
        elif rule is None:
            raise ClientError(400, "malformed header field")
        else:
            rule(fields, value.strip(b" \t"), nominated)
    if fields.chunked and fields.length >= 0:
        raise ClientError(400, "both Content-Length and Transfer-Encoding")  # RFC 9112 6.1
    if b"upgrade" not in nominated:
        fields.upgrade = b""  # RFC 9110 7.8
    fields.kept = _join_kept(kept, nominated)
    return fields


def read_status_line(head: bytes) -> tuple[int, int, int]:
    """Return minor version, status, and where the line's CRLF starts. BackendError."""
    match = _STATUS_LINE.match(head)
    if match is None:
        raise BackendError("malformed status line")
    return int(match[1]), int(match[2]), match.end() - 2


def read_response_fields(block: bytes) -> ResponseFields:
    """Read a response's lines between status line and empty line. BackendError."""
    fields = ResponseFields(block)
    lines = _lines(block)
    if lines is None:
        raise BackendError("bare CR, LF or NUL in the response head")
    if len(lines) > REPLY_FIELDS_MAX:
        raise BackendError(f"more than {REPLY_FIELDS_MAX} header fields")
    kept = [b""]
    nominated: set[bytes] = set()
    for line in lines:
        name, colon, value = line.partition(b":")
        rule = _response_rule(name) if colon else None
        if rule is _keep:
            kept.append(line)
        elif rule is None:
            raise BackendError("malformed header field")
        elif rule is _response_date:
            fields.dated = True
            kept.append(line)
        else:
            rule(fields, value.strip(b" \t"), nominated)
    if fields.chunked and fields.length >= 0:
        raise BackendError("both Content-Length and Transfer-Encoding")
    fields.kept = _join_kept(kept, nominated)
    return fields


def split_absolute(target: bytes) -> tuple[bytes, bytes]:
    """Return authority and origin-form of an absolute-form target (RFC 9112 3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None or _HOST.fullmatch(match[1]) is None:
        raise ClientError(400, "malformed target")
    path = match[2]
    return match[1], path if path.startswith(b"/") else b"/" + path


def field_values(block: bytes, name: bytes) -> list[bytes]:
    """Return the values of every field `name` in a block, in order; for routing and hashing."""
    found = re.findall(rb"\r\n(?i:" + re.escape(name) + rb"):([^\r]*)", block)
    return [value.strip(b" \t") for value in found]


def cookie_value(block: bytes, name: bytes) -> bytes | None:
    """Return the first cookie `name` that the block's Cookie fields hold (RFC 6265 5.4)."""
    for line in field_values(block, b"cookie"):
        for pair in line.split(b";"):
            key, equals, value = pair.partition(b"=")
            if equals and key.strip(b" \t") == name:
                return value.strip(b" \t")
    return None


def _lines(block: bytes) -> list[bytes] | None:
    """Cut a block into lines; None where an octet could pass for a line end elsewhere."""
    lines = block[2:-2].split(b"\r\n") if len(block) > 2 else []
    ends = len(lines) + 1
    if block.count(b"\n") != ends or block.count(b"\r") != ends or b"\0" in block:
        return None
    return lines


def _join_kept(kept: list[bytes], nominated: set[bytes]) -> bytes:
    """Join lines, each led by CRLF, without those that Connection named (RFC 9110 7.6.1)."""
    leaving = nominated - _NEVER_NOMINATED
    if leaving:
        kept = [line for line in kept if line.partition(b":")[0].lower() not in leaving]
    return b"\r\n".join(kept)


def _read_length(known: int, value: bytes) -> int:
    """Return a Content-Length, -1 if it is none or differs from the one `known`."""
    # int() would take +5, 1_0 and odd spaces.
    if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
        return -1
    length = int(value)
    return length if known in (-1, length) else -1


def _request_host(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    if fields.host is not None:
        raise ClientError(400, "more than one Host")  # RFC 9112 3.2
    if _HOST.fullmatch(value) is None:
        raise ClientError(400, "malformed Host")
    fields.host = value


def _request_length(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    # A repeated length is refused even where equal: the other parser may take another one.
    if fields.length >= 0 or (length := _read_length(-1, value)) < 0:
        raise ClientError(400, "malformed Content-Length")
    fields.length = length


def _request_coding(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    if fields.chunked:
        raise ClientError(400, "more than one Transfer-Encoding")
    if value.lower() != b"chunked":
        last = value.lower().rpartition(b",")[2].strip(b" \t")
        # RFC 9112 6.3: without chunked at the end the length is unknowable.
        raise ClientError(501 if last == b"chunked" else 400, "Transfer-Encoding is not chunked")
    fields.chunked = True


def _request_connection(fields: RequestFields, value: bytes, nominated: set[bytes]) -> None:
    options = {option.strip(b" \t") for option in value.lower().split(b",")}
    nominated |= options
    fields.close = fields.close or b"close" in options


def _request_upgrade(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    fields.upgrade = value.lower()


def _response_upgrade(fields: ResponseFields, value: bytes, _: set[bytes]) -> None:
    fields.upgrade = value.lower()


def _request_expect(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    if value.lower() != b"100-continue":
        raise ClientError(417, "unknown expectation")  # RFC 9110 10.1.1
    fields.expects_continue = True


def _request_hops(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    if not value.isdigit() or len(value) > LENGTH_DIGITS_MAX:
        raise ClientError(400, "malformed Max-Forwards")
    fields.hops = int(value)


def _request_via(fields: RequestFields, value: bytes, _: set[bytes]) -> None:
    fields.via = fields.via + b", " + value if fields.via else value


def _response_length(fields: ResponseFields, value: bytes, _: set[bytes]) -> None:
    if (length := _read_length(fields.length, value)) < 0:
        raise BackendError("malformed Content-Length")
    fields.length = length


def _response_coding(fields: ResponseFields, value: bytes, _: set[bytes]) -> None:
    if fields.chunked or value.lower() != b"chunked":
        raise BackendError("a Transfer-Encoding other than chunked")
    fields.chunked = True


def _response_connection(fields: ResponseFields, value: bytes, nominated: set[bytes]) -> None:
    options = {option.strip(b" \t") for option in value.lower().split(b",")}
    nominated |= options
    fields.close = fields.close or b"close" in options
    fields.persists = fields.persists or b"keep-alive" in options


def _response_keep_alive(fields: ResponseFields, value: bytes, _: set[bytes]) -> None:
    match = _TIMEOUT.search(value.lower())
    if match is not None:
        fields.keep_alive = int(match[1])


def _response_date(fields: ResponseFields, value: bytes, _: set[bytes]) -> None:
    raise AssertionError("told apart by identity: the line is kept as well")


def _keep(fields: Any, value: bytes, _: set[bytes]) -> None:
    raise AssertionError("told apart by identity, never called")


def _drop(fields: Any, value: bytes, _: set[bytes]) -> None:
    """Let a field end here."""


_RequestRule = Callable[[RequestFields, bytes, set[bytes]], None]
_ResponseRule = Callable[[ResponseFields, bytes, set[bytes]], None]

_REQUEST_RULES: Final[dict[bytes, _RequestRule]] = {
    b"connection": _request_connection,
    b"content-length": _request_length,
    b"expect": _request_expect,
    b"host": _request_host,
    b"max-forwards": _request_hops,
    b"transfer-encoding": _request_coding,
    b"upgrade": _request_upgrade,
    b"via": _request_via,
}
_RESPONSE_RULES: Final[dict[bytes, _ResponseRule]] = {
    b"connection": _response_connection,
    b"content-length": _response_length,
    b"date": _response_date,
    b"keep-alive": _response_keep_alive,
    b"transfer-encoding": _response_coding,
    b"upgrade": _response_upgrade,
}


@lru_cache(maxsize=NAMES_KEPT_MAX)
def _request_rule(name: bytes) -> _RequestRule | None:
    """Return what happens to a request's field `name`, None where that is no name."""
    if _NAME.fullmatch(name) is None:
        return None
    lower = name.lower()
    if lower in _REQUEST_RULES:
        return _REQUEST_RULES[lower]
    # X_Forwarded_For reaches WSGI and CGI under the same name as X-Forwarded-For.
    return _drop if lower in _DROPPED_FROM_REQUEST or b"_" in lower else _keep


@lru_cache(maxsize=NAMES_KEPT_MAX)
def _response_rule(name: bytes) -> _ResponseRule | None:
    """Return what happens to a response's field `name`, None where that is no name."""
    if _NAME.fullmatch(name) is None:
        return None
    lower = name.lower()
    if lower in _RESPONSE_RULES:
        return _RESPONSE_RULES[lower]
    return _drop if lower in HOP_BY_HOP else _keep
