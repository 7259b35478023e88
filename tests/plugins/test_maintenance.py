"""Closed, but not to everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lb.errors import OperatorError
from lb.testing import Bench, call, make

PLUGIN = Path(__file__).parents[2] / "plugins" / "maintenance.py"


def test_closed() -> None:
    got = call(PLUGIN, config={"body": "later\n", "retry_after": "5m"}).got
    assert (got.status, got.body) == (503, b"later\n")
    assert got.headers.get("retry-after") == "300"
    assert got.headers.get("cache-control") == "no-store"


def test_a_page_of_its_own(tmp_path: Path) -> None:
    page = tmp_path / "back-soon.html"
    page.write_bytes(b"<h1>soon</h1>")
    config = {"page": str(page), "content_type": "text/html"}
    got = call(PLUGIN, config=config).got
    assert got.body == b"<h1>soon</h1>"
    assert got.headers.get("content-type") == "text/html"


def test_a_page_has_a_bound(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        make(PLUGIN, {"page": str(page)})


def test_nobody_is_told_to_come_at_once() -> None:
    assert call(PLUGIN, config={"retry_after": "200ms"}).got.headers.get("retry-after") == "1"


def test_who_gets_through_and_where() -> None:
    made = make(PLUGIN, {"allow": ["10.0.0.0/8", "2001:db8::/32"], "open": ["/healthz/"]})
    local = make(PLUGIN, {"allow": "unix"})
    assert call(local, client="unix:").got.status == 200
    assert call(local).got.status == 503
    for client, path, status in (
        ("10.1.1.1", "/", 200),
        ("::ffff:10.1.1.1", "/", 200),
        ("2001:db8::7", "/", 200),
        ("192.0.2.1", "/", 503),
        ("unix:", "/", 503),
        ("192.0.2.1", "/healthz", 200),
        ("192.0.2.1", "/healthz/x", 200),
        ("192.0.2.1", "/healthzz", 503),
    ):
        assert call(made, f"GET {path}", client=client).got.status == status, (client, path)


def test_a_switch_is_looked_at_now_and_then(tmp_path: Path) -> None:
    switch, bench = tmp_path / "closed", Bench()
    made = make(PLUGIN, {"switch": str(switch)}, bench)
    ((seconds, look),) = bench.periodic
    assert seconds == 1.0
    assert call(made).got.status == 200
    switch.touch()
    assert call(made).got.status == 200
    look()
    assert call(made).got.status == 503
    switch.unlink()
    look()
    assert call(made).got.status == 200


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"status": 200}, "from 400"),
        ({"switch": "x"}, "not absolute"),
        ({"page": "/not/there"}, "page /not/there cannot be read: No such"),
        ({"allow": "10.0.0.1/8"}, "not a network"),
        ({"open": "x"}, "not a path"),
        ({"content_type": "a\nb"}, "visible ASCII"),
        ({"content_type": ""}, "visible ASCII"),
    ],
)
def test_what_cannot_be_is_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises((OperatorError, ValueError), match=says):
        make(PLUGIN, config)
