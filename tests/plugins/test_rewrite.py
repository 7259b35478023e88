"""Another path for the backend than the client's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import ClientError, OperatorError
from lb.routing import normalise
from lb.testing import call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "rewrite.py"


@pytest.mark.parametrize(
    ("config", "target", "becomes"),
    [
        ({"strip": "/api"}, "/api/v1?x=1", "/v1?x=1"),
        ({"strip": "/api/"}, "/api", "/"),
        ({"strip": "/api"}, "/apis", "/apis"),
        ({"strip": "/api"}, "/api?q", "/?q"),
        ({"add": "/v2"}, "/a", "/v2/a"),
        ({"strip": "/a", "add": "/b"}, "/a/c", "/b/c"),
        ({"match": r"^/u/(\d+)(.*)", "to": r"/user?id=\1&rest=\2"}, "/u/7/x", "/user?id=7&rest=/x"),
        ({"match": "^/no", "to": "/yes"}, "/other", "/other"),
        ({"match": "^/a/(.*)", "to": r"/\1"}, "/a/b", "/b"),
        ({"match": "^/a(/.*)", "to": r"/\1"}, "/a/b", "/b"),
        ({"match": "^/api/", "to": "/"}, "/%61pi/x", "/"),
        ({"strip": "/api"}, "/%61pi/x", "/x"),
        ({"strip": "/api"}, "/x/../api/y", "/y"),
        ({"strip": "/api"}, "/api//evil.example", "/evil.example"),
        ({"strip": "/caf%c3%a9"}, "/caf%C3%A9/x", "/x"),
        ({"strip": "/api"}, "/x/../%61", "/x/../%61"),
        ({"strip": "/a", "add": "/b"}, "/a", "/b"),
    ],
)
def test_paths(config: dict[str, Any], target: str, becomes: str) -> None:
    sent = call(PLUGIN, f"GET {target}", config=config).sent
    assert sent is not None
    assert sent.target == becomes


def test_the_host() -> None:
    sent = call(PLUGIN, "GET /", config={"host": "inner.example:81"}).sent
    assert sent is not None
    assert sent.host == "inner.example:81"
    assert sent.target == "/"


@pytest.mark.parametrize(
    ("to", "target"),
    [(r"/..\1", "/u/x"), (r"/%\1", "/u/x"), (r"\1", "/u"), (r"/%00\1", "/u"), ("/ ", "/u")],
)
def test_what_would_be_no_path_is_400(to: str, target: str) -> None:
    outcome = call(PLUGIN, f"GET {target}", config={"match": "^/u(.*)", "to": to})
    assert outcome.got.status == 400


SEGMENTS = st.lists(
    st.sampled_from(["a", "api", "%61pi", "..", ".", "", "%2e%2E", "b%2Fc"]), max_size=6
)


@given(SEGMENTS)
def test_nobody_gets_around_a_prefix(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    try:
        seen = normalise(path)
    except ClientError:
        return  # Nobody's, and never gets here.
    sent = call(PLUGIN, f"GET {path}", config={"strip": "/api", "add": "/v2"}).sent
    assert sent is not None
    assert normalise(sent.target).startswith("/v2")
    inside = seen == "/api" or seen.startswith("/api/")
    assert normalise(sent.target) == "/v2" + (seen[4:] if inside else seen)


def test_a_request_for_the_whole_server_goes_on() -> None:
    sent = call(PLUGIN, "OPTIONS *", config={"strip": "/api"}).sent
    assert sent is not None
    assert sent.target == "*"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "nothing to do"),
        ({"match": "("}, "go together"),
        ({"match": "(", "to": ""}, "not a regular expression"),
        ({"match": "a", "to": r"\3"}, "not a regular expression"),
        ({"match": "a", "to": "/b", "strip": "/x"}, "leave these out"),
        ({"match": "a", "to": "b"}, 'write "/b"'),
        ({"strip": "x"}, "is not a path"),
        ({"host": "a b"}, "is not a host"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
