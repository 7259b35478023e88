"""What a request is called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
from lb.testing import call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "request_id.py"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def test_as_it_is_and_told() -> None:
    outcome = call(PLUGIN, "GET /\nX-Request-ID: mine-mine-mine")
    assert outcome.sent is not None
    assert outcome.sent.id == "test-1"
    assert outcome.got.headers.get("x-request-id") == "test-1"


@pytest.mark.parametrize(("form", "pattern"), [("uuid", UUID), ("hex", "[0-9a-f]{32}")])
def test_forms(form: str, pattern: str) -> None:
    sent = call(PLUGIN, config={"form": form, "echo": "x-trace"}).sent
    assert sent is not None
    assert re.fullmatch(pattern, sent.id)


@pytest.mark.parametrize(
    ("claimed", "taken"),
    [("abc-12345", True), ("short", False), ('has"quote12', False), ("x" * 129, False)],
)
def test_a_client_s_own_if_it_is_sane(claimed: str, taken: bool) -> None:
    sent = call(PLUGIN, f"GET /\nX-Request-ID: {claimed}", config={"accept": True}).sent
    assert sent is not None
    assert (sent.id == claimed) is taken


@pytest.mark.parametrize(
    ("client", "taken"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("192.0.2.1", False), ("unix:", False)],
)
def test_only_from_those_who_are_believed(client: str, taken: bool) -> None:
    config = {"accept": True, "accept_from": "10.0.0.0/8"}
    sent = call(PLUGIN, "GET /\nX-Request-ID: theirs-123", config=config, client=client).sent
    assert sent is not None
    assert (sent.id == "theirs-123") is taken


def test_from_socket_files_if_they_are_named() -> None:
    config = {"accept": True, "accept_from": "unix"}
    sent = call(PLUGIN, "GET /\nX-Request-ID: theirs-123", config=config, client="unix:").sent
    assert sent is not None
    assert sent.id == "theirs-123"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"echo": "content-length"}, "no field for this"),
        ({"accept_from": "10.0.0.0/8"}, "accept = true"),
        ({"form": "uuid7"}, "uuid"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        make(PLUGIN, config)
