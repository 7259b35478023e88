"""Octets that readers of HTTP/1.1 understand in more than one way, or should all refuse."""

from __future__ import annotations

from typing import Final

LAST: Final = b"Connection: close\r\n\r\n"
CHUNKS: Final = b"4\r\nbody\r\n0\r\n\r\n"
SMUGGLED: Final = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def get(line: bytes = b"GET / HTTP/1.1", *fields: bytes, host: bytes = b"Host: a\r\n") -> bytes:
    return line + b"\r\n" + host + b"".join(each + b"\r\n" for each in fields) + LAST


def field(*fields: bytes) -> bytes:
    return get(b"GET / HTTP/1.1", *fields)


def post(*fields: bytes, body: bytes = b"body", version: bytes = b"1.1") -> bytes:
    return get(b"POST / HTTP/" + version, *fields) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def te(coding: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + coding, body=CHUNKS)


START_LINES: Final = {
    "plain": get(),
    "HTTP/1.0": get(b"GET / HTTP/1.0"),
    "HTTP/0.9": b"GET /\r\n",
    "HTTP/0.9 as a version": get(b"GET / HTTP/0.9"),
    "HTTP/1.2": get(b"GET / HTTP/1.2"),
    "HTTP/2.0": get(b"GET / HTTP/2.0"),
    "HTTP/9.9": get(b"GET / HTTP/9.9"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": get(b"GET / HTTP/1.10"),
    "http in lower case": get(b"GET / http/1.1"),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "empty line before": b"\r\n" + get(),
    "ten empty lines before": b"\r\n" * 10 + get(),
    "bare LF before": b"\n" + get(),
    "space before the method": get(b" GET / HTTP/1.1"),
    "two spaces": get(b"GET  / HTTP/1.1"),
    "tab for space": get(b"GET\t/ HTTP/1.1"),
    "space after the version": get(b"GET / HTTP/1.1 "),
    "space in the target": get(b"GET /a b HTTP/1.1"),
    "no target": get(b"GET HTTP/1.1"),
    "unknown method": get(b"BREW / HTTP/1.1"),
    "method in lower case": get(b"get / HTTP/1.1"),
    "method with odd octets": get(b"G(T / HTTP/1.1"),
    "method of RTSP": get(b"DESCRIBE / HTTP/1.1"),
    "method of WebDAV": get(b"PROPFIND / HTTP/1.1"),
    "TRACE": get(b"TRACE / HTTP/1.1"),
    "CONNECT": get(b"CONNECT a:80 HTTP/1.1"),
    "CONNECT with a path": get(b"CONNECT / HTTP/1.1"),
    "long target": get(b"GET /" + b"x" * 9000 + b" HTTP/1.1"),
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n" + LAST,
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: a\nConnection: close\n\n",
    "bare CR after the request line": b"GET / HTTP/1.1\rHost: a\r\n" + LAST,
}
TARGETS: Final = {
    "absolute-form": get(b"GET http://b/p?q HTTP/1.1"),
    "absolute-form with https": get(b"GET https://b/p HTTP/1.1"),
    "absolute-form without a path": get(b"GET http://b HTTP/1.1"),
    "absolute-form with a user": get(b"GET http://u@b/ HTTP/1.1"),
    "absolute-form of another scheme": get(b"GET ftp://b/ HTTP/1.1"),
    "asterisk for OPTIONS": get(b"OPTIONS * HTTP/1.1"),
    "asterisk for GET": get(b"GET * HTTP/1.1"),
    "no slash first": get(b"GET a HTTP/1.1"),
    "fragment": get(b"GET /a#b HTTP/1.1"),
    "dot segments": get(b"GET /a/../b/./c HTTP/1.1"),
    "above the root": get(b"GET /../b HTTP/1.1"),
    "encoded dots": get(b"GET /a/%2e%2e/b HTTP/1.1"),
    "encoded dots above the root": get(b"GET /%2e%2e/b HTTP/1.1"),
    "encoded slash": get(b"GET /a%2fb HTTP/1.1"),
    "encoded slash in dot segments": get(b"GET /a/..%2fb HTTP/1.1"),
    "backslash": get(b"GET /a\\b HTTP/1.1"),
    "backslash in dot segments": get(b"GET /a/..\\b HTTP/1.1"),
    "parameter in dot segments": get(b"GET /a/..;x/b HTTP/1.1"),
    "two slashes": get(b"GET //a//b HTTP/1.1"),
    "%00": get(b"GET /%00 HTTP/1.1"),
    "% without digits": get(b"GET /%zz HTTP/1.1"),
    "quote and angles": get(b'GET /"<> HTTP/1.1'),
    "raw octet above 0x7e": get(b"GET /\xff HTTP/1.1"),
    "DEL in the target": get(b"GET /\x7f HTTP/1.1"),
    "control octet in the target": get(b"GET /\x01 HTTP/1.1"),
}
HOSTS: Final = {
    "no Host": get(host=b""),
    "no Host in HTTP/1.0": get(b"GET / HTTP/1.0", host=b""),
    "two Hosts": get(host=b"Host: a\r\nHost: b\r\n"),
    "two equal Hosts": get(host=b"Host: a\r\nHost: a\r\n"),
    "empty Host": get(host=b"Host:\r\n"),
    "Host with a space": get(host=b"Host: a b\r\n"),
    "Host with a path": get(host=b"Host: a/b\r\n"),
    "Host with a user": get(host=b"Host: u@a\r\n"),
    "Host with a bad port": get(host=b"Host: a:x\r\n"),
    "Host with a raw octet": get(host=b"Host: \xff\r\n"),
    "Host against the target": get(b"GET http://b/ HTTP/1.1", host=b"Host: c\r\n"),
    "Host after a space": get(host=b"Host : a\r\n"),
    "Connection names Host": field(b"Connection: Host"),
}
FIELDS: Final = {
    "space before the colon": field(b"X-Odd : 1"),
    "tab before the colon": field(b"X-Odd\t: 1"),
    "folded line": field(b"X-Odd: 1\r\n 2"),
    "folded first line": get(host=b" X-Odd: 1\r\nHost: a\r\n"),
    "bare LF in a field": field(b"X-Odd: 1\nX-Odd2: 2"),
    "bare CR in a field": field(b"X-Odd: 1\rX-Odd2: 2"),
    "NUL in a field": field(b"X-Odd: 1\x002"),
    "control octet in a field": field(b"X-Odd: 1\x012"),
    "raw octet in a field": field(b"X-Odd: \xff"),
    "raw octet in a name": field(b"X-Odd\xff: 1"),
    "space in a name": field(b"X-Odd 2: 1"),
    "parenthesis in a name": field(b"X-Odd(: 1"),
    "no name": field(b": 1"),
    "no colon": field(b"X-Odd"),
    "underscore in a name": field(b"X_Odd: 1"),
    "empty value": field(b"X-Odd:"),
    "101 fields": field(*[b"X: 1"] * 101),
    "a field of 40,000 octets": field(b"X: " + b"y" * 40_000),
    "Connection names a field": field(b"Connection: X-Odd", b"X-Odd: 1"),
    "Connection names nothing": field(b"Connection: ,", b"X-Odd: 1"),
    "TE": field(b"TE: trailers"),
    "Upgrade to h2c": field(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"),
    "Upgrade that Connection does not name": field(b"Upgrade: websocket"),
    "unknown expectation": field(b"Expect: 42"),
}
LENGTHS: Final = {
    "length": post(b"Content-Length: 4"),
    "two equal lengths": post(b"Content-Length: 4", b"Content-Length: 4"),
    "two lengths": post(b"Content-Length: 4", b"Content-Length: 3"),
    "listed length": post(b"Content-Length: 4, 4"),
    "length with a plus": post(b"Content-Length: +4"),
    "length with a minus": post(b"Content-Length: -4"),
    "length in hexadecimal": post(b"Content-Length: 0x4"),
    "length with a space within": post(b"Content-Length: 4 4"),
    "length with leading zeros": post(b"Content-Length: 0004"),
    "empty length": post(b"Content-Length:"),
    "length over 64 bits": post(b"Content-Length: 18446744073709551620"),
    "length after a space": post(b"Content-Length : 4"),
    "no length at all": post(body=b""),
    "GET with a body": get(b"GET / HTTP/1.1", b"Content-Length: 4") + b"body",
    "short body": post(b"Content-Length: 9"),
    "octets after the body": post(b"Content-Length: 4", body=b"body" + SMUGGLED),
}
CODINGS: Final = {
    "chunked": te(b"chunked"),
    "chunked in capitals": te(b"CHUNKED"),
    "chunked and length": post(
        b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "length and chunked": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 6", body=b"0\r\n\r\n" + SMUGGLED
    ),
    "chunked in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=CHUNKS, version=b"1.0"),
    "chunked twice": post(*[b"Transfer-Encoding: chunked"] * 2, body=CHUNKS),
    "chunked, chunked": te(b"chunked, chunked"),
    "gzip, chunked": te(b"gzip, chunked"),
    "chunked, gzip": te(b"chunked, gzip"),
    "gzip alone": te(b"gzip"),
    "identity": te(b"identity"),
    "xchunked": te(b"xchunked"),
    "quoted chunked": te(b'"chunked"'),
    "vertical tab before chunked": te(b"\x0bchunked"),
    "raw octet before chunked": te(b"\xa0chunked"),
    "NUL before chunked": te(b"\x00chunked"),
    "chunked with a parameter": te(b"chunked;q=1"),
    "empty coding": te(b""),
    "folded coding": post(b"Transfer-Encoding:\r\n chunked", body=CHUNKS),
    "coding after a space": post(b"Transfer-Encoding : chunked", body=CHUNKS),
    "coding with an underscore": post(
        b"Transfer_Encoding: chunked", b"Content-Length: 4", body=b"body"
    ),
}
BODIES: Final = {
    "chunk extension": chunked(b"4;a=b\r\nbody\r\n0\r\n\r\n"),
    "long chunk extension": chunked(b"4;" + b"x" * 20_000 + b"\r\nbody\r\n0\r\n\r\n"),
    "bare LF in a chunk extension": chunked(b"4;\nx\r\nbody\r\n0\r\n\r\n"),
    "chunk size with leading zeros": chunked(b"0004\r\nbody\r\n000\r\n\r\n"),
    "chunk size in capitals": chunked(b"A\r\n0123456789\r\n0\r\n\r\n"),
    "chunk size with a plus": chunked(b"+4\r\nbody\r\n0\r\n\r\n"),
    "chunk size with a minus": chunked(b"-4\r\nbody\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x4\r\nbody\r\n0\r\n\r\n"),
    "space before a chunk size": chunked(b" 4\r\nbody\r\n0\r\n\r\n"),
    "space after a chunk size": chunked(b"4 \r\nbody\r\n0\r\n\r\n"),
    "chunk size over 64 bits": chunked(b"10000000000000004\r\nbody\r\n0\r\n\r\n"),
    "bare LF after a chunk size": chunked(b"4\nbody\r\n0\r\n\r\n"),
    "bare LF after a chunk": chunked(b"4\r\nbody\n0\r\n\r\n"),
    "chunk longer than its size": chunked(b"3\r\nbody\r\n0\r\n\r\n"),
    "trailer": chunked(b"4\r\nbody\r\n0\r\nX-Odd: 1\r\n\r\n"),
    "trailer without a colon": chunked(b"4\r\nbody\r\n0\r\nX-Odd\r\n\r\n"),
    "trailer with a length": chunked(b"4\r\nbody\r\n0\r\nContent-Length: 9\r\n\r\n"),
    "no last chunk": chunked(b"4\r\nbody\r\n"),
    "octets after the last chunk": chunked(CHUNKS + SMUGGLED),
}
INPUTS: Final = {**START_LINES, **TARGETS, **HOSTS, **FIELDS, **LENGTHS, **CODINGS, **BODIES}
