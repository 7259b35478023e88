"""A client stays with its backend, and chooses none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
from lb.plugin import Plugin
from lb.testing import Sent, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "sticky.py"
SECRET = "a secret of some length"
BACKENDS = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")


def cookie_of(made: Plugin[Any], backend: str, **more: Any) -> str:
    got = call(made, backends=(backend,), **more).got
    (cookie,) = got.headers.all("set-cookie")
    return cookie


def sent_with(made: Plugin[Any], cookie: str, backends: tuple[str, ...] = BACKENDS) -> Sent:
    sent = call(made, f"GET /\nCookie: {cookie.partition(';')[0]}", backends=backends).sent
    assert sent is not None
    return sent


def test_a_client_comes_back_to_its_backend_and_gets_no_second_cookie() -> None:
    made = make(PLUGIN, {"secret": SECRET})
    cookie = cookie_of(made, "10.0.0.2:80")
    assert "10.0.0.2" not in cookie
    fresh = make(PLUGIN, {"secret": SECRET})  # Another worker.
    assert sent_with(fresh, cookie).preferred == "10.0.0.2:80"
    again = call(fresh, f"GET /\nCookie: {cookie.partition(';')[0]}", backends=BACKENDS)
    assert again.got.headers.all("set-cookie") == []


def test_a_backend_that_left_is_followed_by_another_and_a_new_cookie() -> None:
    made = make(PLUGIN, {"secret": SECRET})
    cookie = cookie_of(made, "10.0.0.2:80")
    left = ("10.0.0.1:80", "10.0.0.3:80")
    outcome = call(made, f"GET /\nCookie: {cookie.partition(';')[0]}", backends=left)
    assert outcome.got.headers.all("set-cookie")


def test_a_backend_that_comes_is_known_by_its_cookie() -> None:
    made = make(PLUGIN, {"secret": SECRET})
    assert sent_with(made, "lb_sticky=made-up", BACKENDS[:2]).preferred == ""
    assert sent_with(made, "lb_sticky=made-up", BACKENDS[:2]).preferred == ""
    cookie = cookie_of(make(PLUGIN, {"secret": SECRET}), BACKENDS[2])
    assert sent_with(made, cookie).preferred == BACKENDS[2]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(PLUGIN, {"secret": [SECRET, "the older one of the two"]})
    monkeypatch.setitem(type(made).start.__globals__, "TOKENS_KEPT_MAX", 8)
    inside: Any = made
    for upstream in range(5):
        backends = tuple(f"10.0.{upstream}.{number}:80" for number in range(3))
        cookie = cookie_of(made, backends[1], upstream=f"u{upstream}")
        head = f"GET /\nCookie: {cookie.partition(';')[0]}"
        sent = call(made, head, backends=backends, upstream=f"u{upstream}").sent
        assert sent is not None
        assert sent.preferred == backends[1]
        assert len(inside._known) <= 8
        assert len(inside._tokens) <= 8


@pytest.mark.parametrize("value", ["", "x", "A" * 24, "10.0.0.2:80", "\xe9" * 24])
def test_nobody_chooses_by_writing_one(value: str) -> None:
    made = make(PLUGIN, {"secret": SECRET})
    assert sent_with(made, f"lb_sticky={value}").preferred == ""


def test_another_upstream_s_cookie_means_nothing() -> None:
    made = make(PLUGIN, {"secret": SECRET})
    cookie = cookie_of(made, "10.0.0.2:80", upstream="other")
    assert sent_with(made, cookie).preferred == ""


def test_a_secret_is_changed_without_losing_anybody() -> None:
    old = make(PLUGIN, {"secret": SECRET})
    cookie = cookie_of(old, "10.0.0.2:80")
    both = make(PLUGIN, {"secret": ["the newer one of the two", SECRET]})
    outcome = call(both, f"GET /\nCookie: {cookie.partition(';')[0]}", backends=BACKENDS)
    assert outcome.sent is not None
    assert outcome.sent.preferred == "10.0.0.2:80"
    (renewed,) = outcome.got.headers.all("set-cookie")
    newer = make(PLUGIN, {"secret": "the newer one of the two"})
    assert sent_with(newer, renewed).preferred == "10.0.0.2:80"
    assert sent_with(newer, cookie).preferred == ""


@pytest.mark.parametrize(
    ("config", "scheme", "words"),
    [
        ({}, "http", "Path=/; HttpOnly; SameSite=Lax"),
        ({}, "https", "SameSite=Lax; Secure"),
        ({"same_site": "None"}, "http", "SameSite=None; Secure"),
        ({"max_age": "500ms"}, "http", "Max-Age=1;"),
        ({"max_age": "1h", "path": "/app"}, "http", "Path=/app; Max-Age=3600"),
    ],
)
def test_attributes(config: dict[str, Any], scheme: str, words: str) -> None:
    made = make(PLUGIN, {"secret": SECRET, **config})
    assert words in cookie_of(made, "10.0.0.1:80", scheme=scheme)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "secret"),
        ({"secret": "short"}, "at least 16"),
        ({"secret": [SECRET, SECRET, SECRET]}, "one secret, or two"),
        ({"secret": [SECRET, SECRET]}, "the same one"),
        ({"secret": SECRET, "path": "/a;b"}, "ends at a ;"),
        ({"secret": SECRET, "cookie": "a=b"}, "not the name"),
        ({"secret": SECRET, "same_site": "lax"}, "Lax"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
