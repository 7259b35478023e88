"""Another path for the backend than the client's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
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


@pytest.mark.parametrize("target", ["/u/../../x", "/u/ %00", "/u/a%"])
def test_what_would_be_no_path_is_400(target: str) -> None:
    config = {"match": "^/u(.*)", "to": r"\1"}
    head = f"GET {target.replace(' ', '')}"
    outcome = call(PLUGIN, head, config={**config})
    assert outcome.got.status == 400


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
        ({"match": "a", "to": "b", "strip": "/x"}, "leave these out"),
        ({"strip": "x"}, "is not a path"),
        ({"host": "a b"}, "is not a host"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
