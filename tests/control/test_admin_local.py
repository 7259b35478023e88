"""What an operator does on this instance alone: force a backend, cut what runs on a removed one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from office import Office, office_in

from lb.control.forced import Overrides
from lb.edition import Assembly, Composer, Sources
from lb.model import Health, State
from lb.outlier import Ejection

BACKEND = "/v1/upstreams/app/backends/127.0.0.1:9001"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with office_in(tmp_path) as opened:
        yield opened


def test_forcing_is_loud_and_needs_no_write(office: Office) -> None:
    answer = office.ask("POST", f"{BACKEND}/force?note=it+lies", {"to": "down"})
    assert answer.status == 200
    assert answer.plain == {
        "upstream": "app", "backend": "127.0.0.1:9001", "forced": "down", "member": "a",
    }  # fmt: skip
    assert office.ask("GET", BACKEND).plain["forced"] == "down"
    said = [{"upstream": "app", "backend": "127.0.0.1:9001", "to": "down"}]
    assert office.ask("GET", "/v1/status").plain["forced"] == said
    assert 'lb_backend_forced{backend="127.0.0.1:9001",to="down",upstream="app"} 1.0' in (
        office.ask("GET", "/metrics").body.decode()
    )
    office.ask("POST", f"{BACKEND}/force", {"to": "auto"})
    assert office.ask("GET", "/v1/status").plain["forced"] == []


def test_what_is_no_force(office: Office) -> None:
    assert office.ask("POST", f"{BACKEND}/force", {"to": "sideways"}).status == 400
    assert office.ask("POST", f"{BACKEND}/force", {"up": True}).status == 400
    assert office.ask("POST", "/v1/upstreams/app/backends/1.1.1.1:1/force", {}).status == 404
    assert office.ask("POST", "/v1/upstreams/no/backends/1.1.1.1:1/force", {}).status == 404


def test_a_removal_cuts_only_when_told_to(office: Office) -> None:
    assert office.ask("DELETE", BACKEND).status == 200
    assert office.desk.cuts == []
    other = "/v1/upstreams/app/backends/127.0.0.1:9002"
    assert office.ask("DELETE", f"{other}?now=true&force=true").status == 200
    assert office.desk.cuts == [("app", "127.0.0.1:9002")]


def test_what_is_forced_lies_over_everything_else(office: Office) -> None:
    one, two = "127.0.0.1:9001", "127.0.0.1:9002"
    sources = Sources(
        office.desk.config,
        1,
        office.desk.store.registry,
        verdicts={"app": {one: Health.UNHEALTHY, two: Health.HEALTHY}},
        ejections={"app": {one: Ejection(0.0, 9e9, 1, "status", 0)}},
    )
    overrides = Overrides(lambda: None)
    composer = Composer("a", "lb-00000000")

    def change() -> tuple[dict[str, State], dict[str, Health], dict[str, Ejection]]:
        made = Assembly().load(composer.compose(overrides.over(sources), 1))
        assert made.upstreams is not None
        assert made.verdicts is not None
        states = {each.key: each.state for each in made.upstreams["app"]}
        return states, made.verdicts["app"], (made.ejections or {}).get("app", {})

    before = change()
    overrides.force("app", one, "up", "")
    overrides.force("app", two, "down", "")
    states, verdicts, ejections = change()
    assert states == {one: State.ACTIVE, two: State.DISABLED}
    assert verdicts[one] is Health.HEALTHY
    assert ejections == {}
    after = Overrides(lambda: None)
    after.restore(overrides.to_plain())
    assert after.forced == overrides.forced
    overrides.force("app", one, "auto", "")
    overrides.force("app", two, "auto", "")
    assert change() == before
    assert overrides.over(sources) is sources
