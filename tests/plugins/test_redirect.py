"""Clients sent elsewhere, and never further than meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import ClientError, OperatorError
from lb.testing import call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "redirect.py"


def where(head: str, config: dict[str, Any], **more: Any) -> tuple[int, str | None]:
    got = call(PLUGIN, head, config=config, **more).got
    return got.status, got.headers.get("location")


@pytest.mark.parametrize(
    ("config", "head", "expected"),
    [
        ({"https": True}, "GET /a?b=c", (308, "https://example.com/a?b=c")),
        ({"https": True}, "GET /\nHost: [::1]:80", (308, "https://[::1]/")),
        ({"https": True}, "GET /\nHost: [::1]", (308, "https://[::1]/")),
        ({"to": "/new", "status": 301}, "GET /old", (301, "/new")),
        ({"to": "https://b.example{path}?{query}"}, "GET /a?x=1", (308, "https://b.example/a?x=1")),
        ({"to": "/n/\\1", "match": "^/o/(.*)"}, "GET /o/7", (308, "/n/7")),
        ({"to": "/n", "match": "^/o"}, "GET /p", (200, None)),
        ({"https": True}, "GET /\nHost: x.example:8080", (308, "https://x.example/")),
        ({"https": True, "match": "^/(?!open)"}, "GET /open/x", (200, None)),
        ({"https": True, "match": "^/(?!open)"}, "GET /shut", (308, "https://example.com/shut")),
        ({"https": True}, "OPTIONS *", (200, None)),
        (
            {"to": "https://{host}:8443{path}"},
            "GET /a\nHost: x.example:8080",
            (308, "https://x.example:8443/a"),
        ),
        ({"to": "https://www.{host}{path}"}, "GET /a", (308, "https://www.example.com/a")),
        ({"to": "https://[2001:db8::1]:8443/x"}, "GET /a", (308, "https://[2001:db8::1]:8443/x")),
        ({"to": "/x?{query}"}, "GET /a?b=\\1", (308, "/x?b=\\1")),
        ({"to": "/x?{query}"}, "GET /a", (308, "/x")),
        ({"to": "/\\2\\1", "match": "^/(a)(b)?"}, "GET /a", (308, "/a")),
        ({"to": "{path}/"}, "GET //evil.example/a", "refused"),
        ({"to": "/{path}"}, "GET /evil.example", (308, "/evil.example")),
        ({"to": "\\1", "match": "x(.*)"}, "GET /", "refused"),
    ],
)
def test_where(config: dict[str, Any], head: str, expected: Any) -> None:
    if expected == "refused":
        with pytest.raises(OperatorError):
            make(PLUGIN, config)
    else:
        assert where(head, config) == expected


def test_who_came_by_https_stays() -> None:
    assert where("GET /", {"https": True}, scheme="https") == (200, None)


@given(st.text(st.sampled_from("/\\.@a%5Cevil:"), max_size=12))
def test_no_path_leads_to_another_host(rest: str) -> None:
    for config in ({"https": True}, {"to": "/x{path}"}, {"to": "/\\1", "match": "^(.*)$"}):
        try:
            _, location = where(f"GET /{rest}", config)
        except ClientError:
            continue
        if location is not None and not location.startswith("https://example.com/"):
            assert location.startswith("/")
            assert not location.startswith(("//", "/\\"))


ODD = st.text(st.sampled_from("/\\.@:?#a%09\t"), max_size=10)


@given(ODD, ODD)
def test_no_request_chooses_the_host(path: str, query: str) -> None:
    for config, host in (
        ({"to": "https://a.example{path}?{query}"}, "a.example"),
        ({"to": "https://a.example/\\1", "match": "^(.*)$"}, "a.example"),
        ({"to": "https://a.example?{query}"}, "a.example"),
        ({"to": "/{query}"}, "here"),
        ({"to": "/\\1{query}", "match": "^/(.*)$"}, "here"),
        ({"to": "{scheme}://{host}{path}"}, "example.com"),
    ):
        try:
            _, location = where(f"GET /{path}?{query}", config)
        except ClientError:
            continue
        assert location is not None
        # As a browser reads it: a backslash is a slash, tabs are nothing (URL standard, 4.4).
        read = location.replace("\\", "/").replace("\t", "")
        assert urlsplit(urljoin("https://here/b", read)).netloc == host


def test_who_says_no_host_cannot_be_sent_to_it() -> None:
    got = call(PLUGIN, "GET /\nHost: ", config={"https": True}).got
    assert got.status == 400
    assert call(PLUGIN, "GET /\nHost: ", config={"to": "/x"}).got.status == 308


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "one of the two"),
        ({"https": True, "to": "/x"}, "one of the two"),
        ({"to": "/x", "status": 200}, "status is one of"),
        ({"to": "//x"}, "begins with"),
        ({"to": "x"}, "begins with"),
        ({"to": "ftp://x"}, "begins with"),
        ({"to": "/{port}"}, "not known"),
        ({"to": "https://a.example\\1", "match": "^/o(.*)"}, "choose the host"),
        ({"to": "https://a.example{query}"}, "choose the host"),
        ({"to": "https://{path}"}, "choose the host"),
        ({"to": "https://a.example@b.example/"}, "choose the host"),
        ({"to": "{scheme}://{query}"}, "choose the host"),
        ({"to": "https:///x"}, "choose the host"),
        ({"to": "/\\2", "match": "(a)"}, "has 1 groups"),
        ({"to": "/\\1"}, "group of match"),
        ({"to": "/x", "match": "("}, "not a regular expression"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
