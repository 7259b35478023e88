"""
What changes between the head that came in and the head that goes out.

A message is always framed anew in canonical form: one start line of ours, the fields that
may pass as they came, then the fields that we own. Field order among the kept ones never
changes (RFC 9110 5.3).
"""

from __future__ import annotations

from typing import Final

from lb.http1.head import RequestFields, RequestHead, ResponseFields
from lb.http1.peers import Peer

COUNTS_HOPS: Final = frozenset({b"TRACE", b"OPTIONS"})  # RFC 9110 7.6.2
VIA_LOOPS_MAX: Final = 4  # An instance may rightly route to its own listener once or twice.

# RFC 9110 9.2.2; an allow-list, since an unknown method promises nothing.
IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


def request_block(
    head: RequestHead, *, host: bytes, peer: Peer, via: bytes, upgrade: bytes = b""
) -> bytes:
    """
    Return all that follows a forwarded request's request line, from CRLF to the empty line.

    `host` is what the backend sees; X-Forwarded-Host carries what the client asked for. The
    client's own X-Forwarded-* are gone already: `peer` holds what of them is believed. `upgrade` is
    the protocol to ask for, if any. The fields keep the block: those of a connection's next
    request may be the same, and with them `peer`.
    """
    fields = head.fields
    # Most blocks follow from the host alone; the others from these too.
    odd = fields.expects_continue or fields.hops >= 0 or upgrade
    key = (host, head.method, head.minor, upgrade) if odd else host
    if fields.memo_key == key:
        return fields.memo
    parts = [b"\r\nHost: ", host, fields.kept]
    if fields.chunked:
        parts.append(b"\r\nTransfer-Encoding: chunked")
    elif fields.length >= 0:
        parts.append(b"\r\nContent-Length: %d" % fields.length)
    if fields.hops >= 0:
        counts = head.method in COUNTS_HOPS
        parts.append(b"\r\nMax-Forwards: %d" % (fields.hops - counts))
    if fields.expects_continue and head.minor:  # RFC 9110 10.1.1: not from HTTP/1.0.
        parts.append(b"\r\nExpect: 100-continue")
    if upgrade:
        parts += [b"\r\nConnection: Upgrade\r\nUpgrade: ", upgrade]
    parts += [b"\r\nX-Forwarded-For: ", peer.chain, b"\r\nX-Forwarded-Proto: ", peer.proto]
    asked = peer.host or fields.host
    if asked:
        parts += [b"\r\nX-Forwarded-Host: ", asked]
    if peer.subject:
        parts += [b"\r\nX-Client-Cert-Subject: ", peer.subject]
    before = fields.via + b", " if fields.via else b""
    parts += [b"\r\nVia: ", before, b"1.1 ", via, b"\r\n\r\n"]
    fields.memo_key = key
    fields.memo = b"".join(parts)
    return fields.memo


def host_for(policy: str, asked: bytes | None, address: str) -> bytes:
    """Return the Host that a backend sees: the client's, its own address, or a fixed name."""
    if policy == "keep" and asked:
        return asked
    if policy in ("keep", "backend"):
        return b"localhost" if address.startswith("unix:") else address.encode()
    return policy.encode()


def loops(fields: RequestFields, via: bytes) -> bool:
    """Whether a request has come through us too often (RFC 9110 7.6)."""
    return fields.via.count(via) >= VIA_LOOPS_MAX


def response_head(
    status_text: bytes, fields: ResponseFields, framing: bytes, date: bytes, *, close: bool
) -> bytes:
    """
    Return the whole head of a forwarded final response.

    `status_text` is code and reason as they came, `framing` is what `response_framing`
    returned, `date` is used where the backend sent none (RFC 9110 6.6.1).
    """
    if not fields.dated:
        framing = b"%b\r\nDate: %b" % (framing, date)
    if close:
        return b"HTTP/1.1 %b%b%b\r\nConnection: close\r\n\r\n" % (status_text, fields.kept, framing)
    return b"HTTP/1.1 %b%b%b\r\n\r\n" % (status_text, fields.kept, framing)


def interim_head(status_text: bytes, fields: ResponseFields) -> bytes:
    """Return the whole head of a forwarded 1xx response."""
    return b"HTTP/1.1 %b%b\r\n\r\n" % (status_text, fields.kept)


def switching_head(status_text: bytes, fields: ResponseFields) -> bytes:
    """Return the whole head of a 101 that was asked for."""
    return b"HTTP/1.1 %b%b\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (
        status_text,
        fields.kept,
        fields.upgrade,
    )


CHUNKED: Final = b"\r\nTransfer-Encoding: chunked"


def response_framing(status: int, fields: ResponseFields, *, minor: int, open_ended: bool) -> bytes:
    """
    Return the line that tells the client where the body ends, b"" where it needs none.

    `minor` is the client's HTTP version: 1.0 never gets the chunked coding (RFC 9112 6.1) and
    learns the end from the close. No length goes with 1xx and 204 (RFC 9110 8.6).
    """
    if status == 204:
        return b""
    if fields.length >= 0:
        return b"\r\nContent-Length: %d" % fields.length
    if minor and (fields.chunked or open_ended):
        return CHUNKED
    return b""
