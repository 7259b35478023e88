"""What each kind of value takes, what it refuses, and that it writes what it reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from lb.config.kinds import (
    BackendAddress,
    Choice,
    DnsServer,
    Duration,
    Flag,
    Kind,
    ListenAddress,
    LogFormat,
    Name,
    Output,
    Share,
    Size,
    Text,
    Whole,
    Workers,
)
from lb.config.requests import (
    BackendHost,
    HeaderName,
    HostPattern,
    Method,
    PathPattern,
    RequestKey,
    Statuses,
    UrlPath,
)

LEVEL = Choice(("info", "warning"), also=(("warn", "warning"),))
OUTPUT = Output(("stdout", "off"))
KEY = RequestKey(("client_ip", "path"))


@pytest.mark.parametrize(
    ("kind", "written", "value"),
    [
        (Duration(), "2s", 2.0),
        (Duration(), "250ms", 0.25),
        (Duration(), "1m30s", 90.0),
        (Duration(), "1.5h", 5400.0),
        (Duration(), "0", 0.0),
        (Duration(), "0s", 0.0),
        (Size(), "0", 0),
        (Size(), "64KiB", 65536),
        (Size(), "1.5KiB", 1536),
        (Size(), "10MB", 10_000_000),
        (Share(), "20%", 0.2),
        (Share(), "0.07%", 0.0007),
        (Share(), "100%", 1.0),
        (Whole(0, 10), 10, 10),
        (Whole(0, 10), "7", 7),
        (Workers(8), "auto", "auto"),
        (Workers(8), "3", 3),
        (Flag(), True, True),
        (Flag(), "false", False),
        (LEVEL, "warn", "warning"),
        (Name(), "api.v1_x-2", "api.v1_x-2"),
        (Text(), "ä b", "ä b"),
        (Text(empty=True), "", ""),
        (Text(lines=True), "a\nb", "a\nb"),
        (OUTPUT, "off", "off"),
        (OUTPUT, "./stderr", "./stderr"),
        (LogFormat(), "{client} {status}", "{client} {status}"),
        (ListenAddress(), ":8080", ":8080"),
        (ListenAddress(), "0.0.0.0:80", "0.0.0.0:80"),
        (ListenAddress(), "[0:0::1]:80", "[::1]:80"),
        (ListenAddress(), "unix:/run/a.sock", "unix:/run/a.sock"),
        (BackendAddress(), "App.Example:80", "app.example:80"),
        (BackendAddress(), "[2001:DB8::1]:443", "[2001:db8::1]:443"),
        (BackendAddress(), "unix:/run/b.sock", "unix:/run/b.sock"),
        (HostPattern(), "*.Example.com", "*.example.com"),
        (HostPattern(), "10.0.0.1", "10.0.0.1"),
        (HostPattern(), "[::1]", "[::1]"),
        (KEY, "path", "path"),
        (KEY, "header:X-Id", "header:x-id"),
        (KEY, "cookie:SID", "cookie:SID"),
        (PathPattern(), "/v1/", "/v1/"),
        (PathPattern(), "=/", "=/"),
        (PathPattern(), r"~^/x/\d+$", r"~^/x/\d+$"),
        (UrlPath(query=True), "/health?deep=1", "/health?deep=1"),
        (Method(), "GET", "GET"),
        (HeaderName(), "X-Canary", "x-canary"),
        (Statuses(), "200, 204, 300-399", "200,204,300-399"),
        (Statuses(), 200, "200"),
        (BackendHost(), "app.internal:8080", "app.internal:8080"),
    ],
)
def test_taken(kind: Kind, written: Any, value: Any) -> None:
    assert kind.read(written) == value
    assert kind.read(kind.write(value)) == value


@pytest.mark.parametrize(
    ("kind", "written", "message", "hint"),
    [
        (Duration(), 5, "5 has no unit", 'write "5s"'),
        (Duration(), 0.5, "0.5 has no unit", 'write "0.5s"'),
        (Duration(), "5", '"5" is not a duration', 'write "5s"'),
        (Duration(), "", '"" is not a duration', 'like "2s"'),
        (Duration(), "5 s", '"5 s" is not a duration', 'like "2s"'),
        (Duration(), "-5s", '"-5s" is not a duration', 'like "2s"'),
        (Duration(), "5parsecs", '"5parsecs" is not a duration', 'like "2s"'),
        (Duration(), "500d", '"500d" is too long', "at most 366d"),
        (Duration(), True, "true is not text", ""),
        (Duration(zero=False), "0s", "this cannot be zero", 'like "2s"'),
        (Size(), 65536, "65536 has no unit", 'write "64KiB"'),
        (Size(), "64k", '"64k" is not a size', 'write "64KiB"'),
        (Size(), "10 mb", '"10 mb" is not a size', 'write "10MiB"'),
        (Size(), "12", '"12" is not a size', 'write "12B"'),
        (Size(), "big", '"big" is not a size', 'like "64KiB"'),
        (Size(), "0.5B", '"0.5B" is not a whole number of bytes', ""),
        (Size(1024, 2048), "1MiB", '"1MiB" is out of range', "1KiB to 2KiB"),
        (Share(), 0.2, "0.2 has no unit", 'write "20%"'),
        (Share(), 20, "20 has no unit", 'write "20%"'),
        (Share(), "20", '"20" is not a share', 'like "20%"'),
        (Share(), "120%", '"120%" is out of range', '"0%" to "100%"'),
        (Whole(1, 9), 0, "0 is out of range", "1 to 9"),
        (Whole(1, 9), 1.0, "1.0 is not a whole number", ""),
        (Whole(1, 9), True, "true is not a whole number", ""),
        (Whole(1, 9), "1x", '"1x" is not a whole number', ""),
        (Whole(1, 9), "9" * 5000, "99999999999999999999 is out of range", "1 to 9"),
        (Workers(8), "many", '"many" is neither "auto" nor a number', ""),
        (Workers(8), 0, "0 is out of range", "1 to 8"),
        (Flag(), "yes", '"yes" is not true or false', ""),
        (Flag(), 1, "1 is not true or false", ""),
        (LEVEL, "inof", '"inof" is not one of info, warning', 'did you mean "info"?'),
        (LEVEL, [], "a list is not text", ""),
        (Name(), "a b", '"a b" is not a name', None),
        (Name(), "..", '".." is not a name', None),
        (Name(), "x" * 64, f'"{"x" * 60}..." is not a name', None),
        (Text(), "a\nb", "this text holds control characters", ""),
        (Text(), "", "this cannot be empty", "leave it out"),
        (OUTPUT, "stderr", '"stderr" is not one of stdout, off', None),
        (OUTPUT, "", "this cannot be empty", "leave it out"),
        (ListenAddress(), "unix:/a\nb", "a path here has no control characters", ""),
        (Text(), 5, "5 is not text", 'write "5"'),
        (LogFormat(), "{statsu}", '"statsu" is not a field of the access log', None),
        (
            LogFormat(),
            "jsno",
            '"jsno" is neither a format nor a template with fields',
            'did you mean "json"?',
        ),
        (ListenAddress(), "8080", '"8080" has no port', 'write ":8080" or "127.0.0.1:8080"'),
        (ListenAddress(), 8080, '"8080" has no port', 'write ":8080" or "127.0.0.1:8080"'),
        (ListenAddress(), "*:80", '"*:80" is not an address', 'write ":80" for all addresses'),
        (ListenAddress(), "localhost:80", "a name cannot be listened on", 'write "127.0.0.1:80"'),
        (ListenAddress(), "h:80", '"h" is not an IP address', 'write ":80" for all addresses'),
        (ListenAddress(), "::1:80", '"::1:80" is not an address', None),
        (ListenAddress(), "[::1]", '"[::1]" is not an address', 'write "[::1]:8080"'),
        (ListenAddress(), ":0", '"0" is not a port', "1 to 65535"),
        (ListenAddress(), ":65536", '"65536" is not a port', "1 to 65535"),
        (ListenAddress(), ":1٣", '"1٣" is not a port', "1 to 65535"),
        (ListenAddress(), "unix:a.sock", '"unix:a.sock" has no absolute path', None),
        (ListenAddress(), f"unix:/{'x' * 107}", "a unix socket's path has at most 107 bytes", ""),
        (BackendAddress(), "10.0.0.5", '"10.0.0.5" has no port', 'write "10.0.0.5:80"'),
        (BackendAddress(), "", '"" has no port', ""),
        (BackendAddress(), ":80", '":80" names no host', 'write "127.0.0.1:80"'),
        (BackendAddress(), "http://a:80/x", '"http://a:80/x" is not an address', 'write "a:80"'),
        (BackendAddress(), "https://a", '"a" has no port', 'write "a:443"'),
        (
            BackendAddress(),
            "https://a:1/x",
            '"https://a:1/x" is not an address',
            'write "https://a:1"',
        ),
        (
            BackendAddress(),
            "srv://app.example",
            '"srv://app.example" is not a service',
            'like "srv://_http._tcp.app.example"',
        ),
        (
            BackendAddress(),
            "srv://_http._tcp.a:80",
            '"srv://_http._tcp.a:80" is not a service',
            'write "srv://_http._tcp.a"',
        ),
        (DnsServer(), "dns.example", None, None),
        (DnsServer(), ":53", '":53" names no server', 'write "127.0.0.1:53"'),
        (BackendAddress(), "10.0.0.256:80", None, ""),
        (BackendAddress(), "a b:80", None, ""),
        (HostPattern(), "*", '"*" is no host', "leave host out to match all"),
        (HostPattern(), "a.de:80", '"a.de:80" is not a host', 'write "a.de"; ports do not count'),
        (HostPattern(), "bücher.de", '"bücher.de" is not ASCII', "write its xn-- form"),
        (HostPattern(), "a*.de", '"a*.de" is not a host', ""),
        (KEY, "client-ip", None, 'did you mean "client_ip"?'),
        (KEY, "header:", '"" is not the name of a header', 'like "header:session"'),
        (PathPattern(), "v1", '"v1" is not a path', 'write "/v1"'),
        (PathPattern(), "/a?b", "this path cannot have a query", 'write "/a"'),
        (PathPattern(), "/a b", '"/a b" is not a path', 'like "/x"'),
        (PathPattern(), "~(", None, ""),
        (Method(), "get", '"get" is not a method', 'write "GET"'),
        (Method(), "PSOT", '"PSOT" is not a method', 'did you mean "POST"?'),
        (HeaderName(), "x y", '"x y" is not the name of a header', ""),
        (Statuses(), "20x", '"20x" is not a status', 'like "200-399"'),
        (Statuses(), "399-200", '"399-200" is not a status', 'like "200-399"'),
        (BackendHost(), "a b", '"a b" is not a host', ""),
    ],
)
def test_refused(kind: Kind, written: Any, message: str | None, hint: str | None) -> None:
    with pytest.raises(PydanticCustomError) as raised:
        kind.read(written)
    context = raised.value.context or {}
    assert message is None or context["message"] == message
    assert hint is None or context["hint"] == hint


@given(st.integers(0, 366 * 86400 * 1000))
def test_durations_come_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000

    assert Duration().read(Duration().write(seconds)) == seconds


@given(st.integers(0, 1 << 50))
def test_sizes_come_back(size: int) -> None:
    assert Size().read(Size().write(size)) == size


@given(st.integers(0, 10_000_000))
def test_shares_come_back(part: int) -> None:
    share = part / 10_000_000

    assert Share().read(Share().write(share)) == share


@given(st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.none(), st.binary()))
def test_nothing_else_is_raised(value: object) -> None:
    kinds = [Duration(), Size(), Share(), Name(), ListenAddress(), BackendAddress(), Statuses()]
    for kind in [*kinds, HostPattern(), KEY, PathPattern(), Method(), Whole(0, 9), Workers(8)]:
        try:
            kind.read(value)
        except PydanticCustomError as error:
            assert error.type == "accord"  # noqa: PT017 - both ways are right, nothing else is.
