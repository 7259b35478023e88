"""Events of the registry: in order, once each, from where one was, and never short in silence."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from office import PATIENCE, Office, office_in

from lb.control import events
from lb.control.events import DETAILS, EventLog, as_plain
from lb.control.state_machine import Applied
from lb.control.store import NoQuorum
from lb.registry import (
    By,
    Member,
    PutBackend,
    Registry,
    RemoveBackend,
    Said,
    SyncFile,
    change_member,
    encode_member,
)

APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """The registry is at revision 2: these two are compacted, this controller began after them."""
    with office_in(tmp_path) as opened:
        yield opened


@dataclass
class Frame:
    """One frame of a stream."""

    kind: str
    id: int | None
    plain: dict[str, Any]


class Stream:
    """A reader of `/v1/events`."""

    def __init__(self, office: Office, query: str = "", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection = HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
        self._connection.request("GET", f"/v1/events{query}", headers=named)
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self.headers = self._response.headers

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def next(self) -> Frame | None:
        """Return the next frame; None at the end."""
        fields: dict[str, str] = {}
        while line := self._response.readline().decode():
            if line != "\n":
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value
                continue
            id_ = int(fields["id"]) if "id" in fields else None
            return Frame(fields.get("event", "message"), id_, json.loads(fields["data"]))
        return None

    def event(self) -> Frame:
        """Return the next frame, which must be there."""
        frame = self.next()
        assert frame is not None, "the stream ended"
        return frame

    def ids(self, count: int) -> list[int | None]:
        """Return the revisions of the next events."""
        frames = [self.event() for _ in range(count)]
        assert {frame.kind for frame in frames} == {"message"}
        assert [frame.plain["revision"] for frame in frames] == [frame.id for frame in frames]
        return [frame.id for frame in frames]


def write(office: Office, weight: int) -> None:
    """Make one revision."""
    assert office.ask("PATCH", FIRST, {"weight": weight}).status == 200


# --- What an event says -----------------------------------------------------------------------


def test_a_stream_begins_with_the_revision_it_begins_at(office: Office) -> None:
    with Stream(office) as stream:
        created = stream.event()

    assert stream.headers["Content-Type"] == "text/event-stream"
    assert (stream.headers["X-Revision"], stream.headers["X-Raft-Term"]) == ("2", "3")
    assert (created.kind, created.id) == ("created", None)
    assert created.plain == {"revision": 2, "from": 3}


def test_an_event_says_what_was_changed_when_by_whom_and_how_it_is_now(office: Office) -> None:
    with Stream(office) as stream:
        stream.event()
        office.ask("PATCH", f"{FIRST}?note=ticket%2042", {"weight": 5})
        event = stream.event()

    assert (event.kind, event.id) == ("message", 3)
    plain = event.plain
    assert (plain["revision"], plain["kind"], plain["upstream"]) == (3, "patch-backend", "app")
    assert plain["by"] == {"token": "", "member": "a", "source": "api", "note": "ticket 42"}
    assert plain["at"] == pytest.approx(office.backend("127.0.0.1:9001")["changed"]["at"])
    [change] = plain["changes"]
    assert (change["upstream"], change["key"]) == ("app", "127.0.0.1:9001")
    assert (change["what"], change["fields"]) == ("changed", ["weight"])
    assert change["backend"]["weight"] == 5
    assert "changed" not in change["backend"]


def test_all_that_one_revision_changed_is_one_event(office: Office) -> None:
    with Stream(office) as stream:
        stream.event()
        body = {"backends": {"127.0.0.1:9001": None, "127.0.0.1:9009": None}}
        assert office.ask("PUT", f"{APP}/backends/127.0.0.1:9009").status == 201
        assert office.ask("PATCH", APP, body).status == 200
        added, both = stream.event(), stream.event()

    assert [change["what"] for change in added.plain["changes"]] == ["added"]
    assert added.plain["changes"][0]["backend"]["address"] == "127.0.0.1:9009"
    assert both.id == 4
    assert {(each["key"], each["what"]) for each in both.plain["changes"]} == {
        ("127.0.0.1:9001", "removed"),
        ("127.0.0.1:9009", "removed"),
    }
    assert all("backend" not in each for each in both.plain["changes"])


def test_a_write_that_changes_nothing_is_no_event(office: Office) -> None:
    with Stream(office) as stream:
        stream.event()
        write(office, 1)
        write(office, 2)

        assert stream.ids(1) == [3]


def test_members_come_and_go_in_events_too() -> None:
    by = By(token="ops", member="a")
    registry = change_member(Registry(id="g"), "add", 7, encode_member("b", "b:1", by, 9.0))
    gone = change_member(registry, "remove", 7, encode_member("", "", by, 10.0))

    made: dict[str, Any] = {"member": "b", "by": by}
    added = as_plain(Applied(1, 1, registry, True, member_change="add", at=9.0, **made))
    removed = as_plain(Applied(2, 1, gone, True, member_change="remove", at=10.0, **made))

    assert (added["revision"], added["at"], added["kind"]) == (1, 9.0, "member-add")
    assert (added["member"], added["by"]["token"], added["changes"]) == ("b", "ops", [])
    assert (removed["revision"], removed["at"], removed["kind"]) == (2, 10.0, "member-remove")
    assert (removed["member"], removed["by"]["token"]) == ("b", "ops")
    assert isinstance(registry.members[7], Member)


# --- Where it goes on -------------------------------------------------------------------------


def test_events_are_resumed_without_a_gap_and_without_one_twice(office: Office) -> None:
    for weight in range(2, 12):
        write(office, weight)  # Revisions 3 to 12.

    with Stream(office, "?from=5") as stream:
        assert stream.event().plain == {"revision": 12, "from": 5}
        assert stream.ids(3) == [5, 6, 7]
    with Stream(office, "?from=5", Last_Event_ID="7") as stream:
        assert stream.event().plain["from"] == 8
        assert stream.ids(5) == [8, 9, 10, 11, 12]
        write(office, 99)
        assert stream.ids(1) == [13]
    with Stream(office, Last_Event_ID="13") as stream:
        stream.event()
        write(office, 100)
        assert stream.ids(1) == [14]


def test_many_readers_see_the_same(office: Office) -> None:
    streams = [Stream(office) for _ in range(20)]
    for stream in streams:
        stream.event()
    for weight in range(2, 32):
        write(office, weight)

    for stream in streams:
        assert stream.ids(30) == list(range(3, 33))
        stream.__exit__()


@pytest.mark.parametrize("wanted", ["?from=0", "?from=1", "?from=2"])
def test_what_was_before_this_controller_is_compacted(office: Office, wanted: str) -> None:
    write(office, 2)

    answer = office.get(f"/v1/events{wanted}")

    assert (answer.status, answer.code) == (410, "compacted")
    plain = answer.plain
    assert (plain["compact_revision"], plain["current_revision"], plain["oldest"]) == (2, 3, 3)


def test_who_is_ahead_of_the_registry_is_told(office: Office) -> None:
    answer = office.get("/v1/events", Last_Event_ID="40")

    assert (answer.status, answer.code) == (410, "compacted")
    assert (answer.plain["compact_revision"], answer.plain["current_revision"]) == (2, 2)
    assert office.desk.group.called == [("confirm",)], "somebody else may be further than we are"


def test_who_is_ahead_of_a_member_that_lags_gets_what_is_to_come(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, store = office.desk.group, office.desk.memory_store

    async def catch_up() -> None:
        by = By(member="a")
        put = PutBackend(upstream="app", by=by, at=1.0, key="127.0.0.1:9009")
        await store.propose(put)

    monkeypatch.setattr(group, "confirm", catch_up)

    with Stream(office, Last_Event_ID="3") as stream:
        assert stream.event().plain == {"revision": 3, "from": 4}
    group.error = NoQuorum("nobody leads")
    monkeypatch.undo()
    assert office.get("/v1/events", Last_Event_ID="40").code == "no-quorum"


@pytest.mark.parametrize("query", ["?from=-1", "?from=x", "?from=", "?from=" + "9" * 30])
def test_a_revision_that_is_none_is_refused(office: Office, query: str) -> None:
    assert office.get(f"/v1/events{query}").code == "bad-request"
    assert office.get("/v1/events", Last_Event_ID="x").code == "bad-request"


def test_a_bookmark_says_that_all_was_sent(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BOOKMARK_SECONDS", 0.02)
    with Stream(office) as stream:
        stream.event()
        bookmark = stream.event()
        write(office, 2)
        while (event := stream.event()).kind == "bookmark":
            assert event.id == 2
        after = stream.event()

    assert (bookmark.kind, bookmark.id, bookmark.plain) == ("bookmark", 2, {"revision": 2})
    assert (event.kind, event.id) == ("message", 3)
    assert (after.kind, after.id) == ("bookmark", 3)


# --- How it ends ------------------------------------------------------------------------------


def end_of(stream: Stream) -> Frame:
    """Read to the last frame, after which there is nothing."""
    last = stream.event()
    while (frame := stream.next()) is not None:
        last = frame
    assert last.kind == "closed"
    assert last.plain["detail"] == DETAILS[last.plain["reason"]]
    assert last.plain["resume"] == last.plain["revision"] + 1
    assert last.id == last.plain["revision"]
    return last


def test_it_ends_with_a_reason_when_the_leader_is_lost(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LEADER_LOST_SECONDS", 0.05)
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    with Stream(office) as stream:
        stream.event()
        write(office, 2)
        office.desk.group.leader = ""
        end = end_of(stream)

    assert (end.plain["reason"], end.plain["revision"]) == ("no-leader", 3)
    assert office.get("/v1/events").code == "no-quorum", "nobody waits for a leader that is gone"
    office.desk.group.leader = "b"
    with Stream(office, Last_Event_ID="3") as stream:
        stream.event()
        write(office, 3)
        assert stream.ids(1) == [4]


def test_a_leader_that_is_back_in_time_was_never_missed(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    with Stream(office) as stream:
        stream.event()
        office.desk.group.leader = ""
        began = monotonic()
        while monotonic() - began < 0.1:
            office.get("/v1/status")
        office.desk.group.leader = "b"
        write(office, 2)
        assert stream.ids(1) == [3]


def test_it_ends_with_a_reason_when_the_instance_stops(tmp_path: Path) -> None:
    with office_in(tmp_path) as office:
        stream = Stream(office)
        stream.event()

    with stream:
        assert end_of(stream).plain["reason"] == "stopping"


def clogged(office: Office) -> socket.socket:
    """Ask for events by a connection with hardly any room, and read none."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", office.port))
    client.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 200"
    return client


def read_all(client: socket.socket) -> bytes:
    """Read until the other end closes, however it does."""
    data = b""
    try:
        while chunk := client.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        return data
    return data


def test_who_does_not_keep_up_is_cut_and_goes_on_where_it_was(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up nobody else, costs no more than a bound, and misses nothing."""
    monkeypatch.setattr(events, "BEHIND_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(events, "CLOSE_SECONDS_MAX", 0.05)
    keys = [f"10.0.{number // 250}.{number % 250 + 1}:80" for number in range(1000)]
    said = tuple(Said(key) for key in keys)
    office.propose(SyncFile(upstream="app", by=By(), at=1.0, said=said))
    with clogged(office) as slow, Stream(office) as quick:
        quick.event()
        written = 3
        while office.run(watchers(office)) == 2:
            written += 1
            body = {"backends": {key: {"weight": written} for key in keys}}
            assert written < 200, "nobody was cut"
            assert office.ask("PATCH", APP, body).status == 200
            assert quick.ids(1) == [written]
        got = read_all(slow)

    whole = re.findall(rb"(?<!closed)\nid: (\d+)\ndata: [^\n]*\n\n", got)
    seen = [int(number) for number in whole]
    assert seen == list(range(4, seen[-1] + 1))
    with Stream(office, Last_Event_ID=str(seen[-1])) as resumed:
        assert resumed.event().plain["from"] == seen[-1] + 1
        assert resumed.ids(written - seen[-1]) == list(range(seen[-1] + 1, written + 1))


async def watchers(office: Office) -> int:
    """How many streams are open."""
    return len(office.admin.events.watchers)


def test_streams_are_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WATCHERS_MAX", 1)
    with Stream(office) as first:
        first.event()
        answer = office.get("/v1/events")
        assert (answer.status, answer.code) == (503, "busy")
    deadline = monotonic() + PATIENCE
    while office.run(watchers(office)):
        write(office, random.randrange(1000))  # A reader that left is noticed by writing to it.
        assert monotonic() < deadline
    with Stream(office) as again:
        again.event()


def test_a_registry_that_came_whole_ends_streams_that_would_miss_something(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    store = office.desk.memory_store
    with Stream(office) as stream:
        stream.event()
        store.registry = replace(store.registry, revision=50)
        end = end_of(stream)

    assert (end.plain["reason"], end.plain["revision"]) == ("compacted", 2)
    assert office.get("/v1/events", Last_Event_ID="2").plain["compact_revision"] == 50
    with Stream(office, "?from=51") as stream:
        assert stream.event().plain == {"revision": 50, "from": 51}
        write(office, 9)
        assert stream.ids(1) == [51]


def test_another_group_s_registry_ends_streams(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box that was wiped and joined again may come to smaller revisions."""
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    store = office.desk.memory_store
    with Stream(office) as stream:
        stream.event()
        store.registry = replace(store.registry, id="another", revision=1)
        end = end_of(stream)

    assert end.plain["reason"] == "reset"
    assert office.get("/v1/events", Last_Event_ID="2").plain["current_revision"] == 1


# --- The history ------------------------------------------------------------------------------


def applied(registry: Registry, count: int) -> Iterator[Applied]:
    """Yield the next revisions of a registry."""
    command = RemoveBackend(upstream="app", by=By(), at=1.0, key="x")
    for number in range(1, count + 1):
        after = replace(registry, revision=registry.revision + number)
        yield Applied(number, 1, after, True, command)


def taken(log: EventLog, count: int) -> None:
    registry = Registry(id=log.id, revision=log.newest)
    for each in applied(registry, count):
        assert log.take(each)


def test_history_is_bounded_by_count_age_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    log = EventLog(Registry(id="g", revision=10), lambda: now[0])
    taken(log, events.HISTORY_REVISIONS_MAX + 5)
    assert (log.compacted, log.newest) == (15, 10 + events.HISTORY_REVISIONS_MAX + 5)

    now[0] = events.HISTORY_SECONDS_MAX - 1
    taken(log, 3)
    now[0] = events.HISTORY_SECONDS_MAX + 1
    log.trim()
    assert log.newest - log.compacted == 3
    assert [each.revision for each in log.after(log.compacted)] == [
        log.newest - 2, log.newest - 1, log.newest
    ]  # fmt: skip

    size = len(log.after(log.newest - 1)[0].frame)
    monkeypatch.setattr(events, "HISTORY_BYTES_MAX", 2 * size)
    taken(log, 4)
    assert log.newest - log.compacted == 2


def test_history_is_read_in_pieces_that_end_between_events() -> None:
    log = EventLog(Registry(id="g"), lambda: 0.0)
    taken(log, 3000)

    place, seen = 0, []
    while place < log.newest:
        piece = log.after(place)
        assert piece
        assert sum(len(each.frame) for each in piece) <= events.WRITE_BYTES
        seen += [each.revision for each in piece]
        place = piece[-1].revision

    assert seen == list(range(1, 3001))
    assert not log.after(place)


def test_a_log_that_is_read_again_tells_nothing_new() -> None:
    log = EventLog(Registry(id="g", revision=5), lambda: 0.0)

    assert not any(log.take(each) for each in applied(Registry(id="g"), 5))
    assert (log.compacted, log.newest) == (5, 5)


def test_a_gap_in_what_is_told_is_none_in_the_history() -> None:
    log = EventLog(Registry(id="g"), lambda: 0.0)
    taken(log, 4)
    assert not log.follow(Registry(id="g", revision=4))

    for each in applied(Registry(id="g", revision=9), 2):
        assert log.take(each)

    assert (log.compacted, log.newest) == (9, 11)
    assert [each.revision for each in log.after(9)] == [10, 11]
