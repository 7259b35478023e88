"""Fields set, appended, removed and renamed, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
from lb.testing import call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "headers.py"


def test_requests() -> None:
    outcome = call(
        PLUGIN,
        "GET /\nX-Old: 1\nX-Gone: a\nX-Gone: b\nX-More: 1",
        config={
            "request": {
                "remove": ["X-Gone"],
                "rename": {"x-old": "x-new"},
                "set": {"X-Client": "{client} by {scheme}", "X-Plain": "p"},
                "append": {"X-More": "2"},
            }
        },
        client="198.51.100.7",
    )
    assert outcome.sent is not None
    assert list(outcome.sent.headers) == [
        ("x-new", "1"),
        ("X-More", "1"),
        ("X-Client", "198.51.100.7 by http"),
        ("X-Plain", "p"),
        ("X-More", "2"),
    ]


def test_responses_know_the_backend() -> None:
    outcome = call(
        PLUGIN,
        response="200 OK\nServer: x\nX-B: old",
        config={"response": {"remove": "server", "set": {"X-B": "{backend} {id} {route}"}}},
    )
    assert list(outcome.got.headers) == [("X-B", "b1 test-1 r")]


def test_responses_may_say_what_requests_may_not() -> None:
    config = {"response": {"set": {"X-Request-ID": "{id}"}, "remove": "x-real-ip"}}
    got = call(PLUGIN, config=config, response="200 OK\nX-Real-IP: 10.0.0.1").got
    assert list(got.headers) == [("X-Request-ID", "test-1")]


def test_braces_of_json_are_no_placeholders() -> None:
    said = '{"report_to": "{route}", "max_age": 1}'
    got = call(PLUGIN, config={"response": {"set": {"NEL": said}}}).got
    assert got.headers.get("nel") == '{"report_to": "r", "max_age": 1}'


def test_nothing_is_looked_at_where_nothing_is_done() -> None:
    made = make(PLUGIN, {"response": {"set": {"a": "b"}}})
    assert not hasattr(made, "on_request")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"request": {"set": {"x": "{backend}"}}}, "not known in a request"),
        ({"response": {"set": {"x": "{nobody}"}}}, "not known in a response"),
        ({"request": {"set": {"Content-Length": "3"}}}, "written by the load balancer"),
        ({"response": {"remove": ["Transfer-Encoding"]}}, "written by the load balancer"),
        ({"response": {"rename": {"x": "connection"}}}, "written by the load balancer"),
        ({"response": {"append": {"Via": "x"}}}, "written by the load balancer"),
        ({"request": {"set": {"X-Request-ID": "x"}}}, "written by the load balancer"),
        ({"response": {"set": {"a b": "3"}}}, "not the name of a header"),
        ({"response": {"set": {"x": "a\nb"}}}, "no header may have"),
        ({"request": {"set": {"a b": "3"}}}, "not the name of a header"),
        ({"request": {"append": {"x": "a\nb"}}}, "no header may have"),
        ({"request": {"put": {}}}, "put"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
