"""Which sites' pages may use what is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import ClientError, OperatorError
from lb.testing import Got, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "cors.py"
ONE = {"origins": ["https://a.example"]}


def preflight(origin: str, config: dict[str, Any]) -> Got:
    head = f"OPTIONS /\nOrigin: {origin}\nAccess-Control-Request-Method: PUT"
    outcome = call(PLUGIN, f"{head}\nAccess-Control-Request-Headers: x-a, x-b", config=config)
    assert outcome.sent is None
    return outcome.got


def test_a_preflight_is_answered_here() -> None:
    got = preflight("https://a.example", {**ONE, "credentials": True, "max_age": "1m"})
    assert got.status == 204
    assert got.headers.get("access-control-allow-origin") == "https://a.example"
    assert got.headers.get("access-control-allow-credentials") == "true"
    assert got.headers.get("access-control-allow-headers") == "x-a, x-b"
    assert "PUT" in (got.headers.get("access-control-allow-methods") or "")
    assert got.headers.get("access-control-max-age") == "60"
    assert "Origin" in (got.headers.get("vary") or "")


def test_a_stranger_s_preflight_is_refused() -> None:
    got = preflight("https://evil.example", ONE)
    assert got.status == 403
    assert "access-control-allow-origin" not in got.headers
    assert "Origin" in (got.headers.get("vary") or "")


def test_an_options_of_the_application_goes_on() -> None:
    assert call(PLUGIN, "OPTIONS /\nOrigin: https://a.example", config=ONE).sent is not None


@pytest.mark.parametrize(
    ("pattern", "origin", "may"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://a.example", "HTTPS://A.example", True),
        ("https://a.example", "http://a.example", False),
        ("https://a.example", "https://a.example.evil", False),
        ("https://*.a.example", "https://x.a.example", True),
        ("https://*.a.example", "https://x.y.a.example", True),
        ("https://*.a.example", "https://a.example", False),
        ("https://*.a.example", "https://evil.example/.a.example", False),
        ("https://*.a.example", "https://xa.example", False),
        ("https://*.a.example:8443", "https://x.a.example:8443", True),
        ("null", "null", True),
    ],
)
def test_origins(pattern: str, origin: str, may: bool) -> None:
    got = call(PLUGIN, f"GET /\nOrigin: {origin}", config={"origins": pattern}).got
    assert got.headers.get("access-control-allow-origin") == (origin if may else None)
    assert got.headers.all("vary") == ["Origin"]


def test_everybody() -> None:
    got = call(PLUGIN, "GET /\nOrigin: https://x.example", config={"origins": "*"}).got
    assert got.headers.get("access-control-allow-origin") == "*"
    assert "vary" not in got.headers


def test_what_the_backend_says_of_it_is_taken_out() -> None:
    got = call(
        PLUGIN,
        "GET /\nOrigin: https://evil.example",
        config=ONE,
        response="200 OK\nAccess-Control-Allow-Origin: *\nVary: Origin, Accept",
    ).got
    assert "access-control-allow-origin" not in got.headers
    assert got.headers.all("vary") == ["Origin, Accept"]


@pytest.mark.parametrize(
    ("vary", "becomes"),
    [
        (["X-Original-Host"], ["X-Original-Host", "Origin"]),
        (["Accept", "origin"], ["Accept", "origin"]),
        (["*"], ["*"]),
        ([], ["Origin"]),
    ],
)
def test_vary_is_read_by_names(vary: list[str], becomes: list[str]) -> None:
    response = "".join(["200 OK", *(f"\nVary: {value}" for value in vary)])
    assert call(PLUGIN, config=ONE, response=response).got.headers.all("vary") == becomes


def test_errors_of_ours_carry_the_fields() -> None:
    got = call(PLUGIN, "GET /\nOrigin: https://a.example", config=ONE, backends=()).got
    assert got.status == 503
    assert got.headers.get("access-control-allow-origin") == "https://a.example"
    assert got.headers.all("vary") == ["Origin"]


@given(st.text(st.sampled_from("htps:/.*a@evil-xmple?#\\"), max_size=30))
def test_only_names_below_it_fit_a_star(origin: str) -> None:
    config = {"origins": "https://*.a.example"}
    made = make(PLUGIN, config)
    for said in (origin, f"https://{origin}", f"https://{origin}.a.example"):
        try:
            got = call(made, f"GET /\nOrigin: {said}").got
        except ClientError:
            continue
        if "access-control-allow-origin" in got.headers:
            parts = urlsplit(said)
            assert parts.scheme == "https"
            assert (parts.hostname or "").endswith(".a.example")
            assert parts.netloc == parts.hostname


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "origins"),
        ({"origins": []}, "empty"),
        ({"origins": "*", "credentials": True}, "name the origins"),
        ({"origins": "null", "credentials": True}, "not with credentials"),
        ({**ONE, "methods": ["G T"]}, "name of a method"),
        ({**ONE, "methods": ["*"]}, "name of a method"),
        ({"origins": ["*", "https://a.example"]}, "leave the others out"),
        ({"origins": "a.example"}, "no origin"),
        ({"origins": "https://a.example/x"}, "no origin"),
        ({"origins": "https://a*.example"}, "before a dot"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
