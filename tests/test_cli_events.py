"""`lb events`: follows, resumes where it was, and says why a stream ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_admin import FakeAdmin, fake_admin

from lb.cli import events
from lb.cli.events import lines_of
from lb.cli.stream import Event
from lb.cli.tree import lb


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from finding an instance or a file of the person who runs them."""
    monkeypatch.chdir(tmp_path)
    for name in ("LB_ADMIN", "LB_CONFIG", "LB_TOKEN", "LB_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeAdmin]:
    with fake_admin() as opened:
        opened.says("GET /v1/status", {"group": {"revision": 5}})
        yield opened


def run(fake: FakeAdmin, *words: str) -> Result:
    env = {"LB_ADMIN": fake.address}
    return CliRunner().invoke(lb, ["events", *words], env=env, prog_name="lb")


def frame(number: int, *said: str, **plain: Any) -> str:
    """Return the event of one revision: `x:1 added`, or any other fields."""
    changes = [
        {"upstream": "app", "key": key, "what": what}
        for key, _, what in (each.partition(" ") for each in said)
    ]
    whole = {"revision": number, "kind": "put-backend", "changes": changes, **plain}
    return f"id: {number}\ndata: {json.dumps(whole)}\n\n"


def created(first: int) -> str:
    return f'retry: 1000\nevent: created\ndata: {{"revision": 5, "from": {first}}}\n\n'


def bookmark(number: int) -> str:
    return f"event: bookmark\nid: {number}\ndata: {{}}\n\n"


def closed(detail: str, number: int) -> str:
    plain = json.dumps({"reason": "no-leader", "detail": detail, "resume": number + 1})
    return f"event: closed\nid: {number}\ndata: {plain}\n\n"


def asked_from(fake: FakeAdmin) -> list[tuple[str | None, str | None]]:
    """Return where each stream was taken up: the query, and the header."""
    return [
        (each.query.get("from"), each.headers.get("Last-Event-ID"))
        for each in fake.asked
        if each.path == "/v1/events"
    ]


def test_what_is_remembered_is_printed_up_to_now(fake: FakeAdmin) -> None:
    by = {"token": "ops", "member": "a", "source": "api", "note": "more"}
    stream = created(1) + frame(4, "x:1 added", by=by) + bookmark(4) + frame(5, "y removed")
    fake.says("GET /v1/events", ": hello\n\n" + stream + frame(6, "later added"))

    result = run(fake)

    assert result.exit_code == 0
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "4 - app: x:1 added (ops through a: more)",
        "5 - app: y removed",
    ]
    assert asked_from(fake) == [("0", None)]


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        (
            {"changes": [{"upstream": "app", "key": "x:1", "what": "changed"}
                         | {"fields": ["weight", "state"]}
                         | {"backend": {"weight": 3, "state": "draining"}}]},
            "app: x:1 changed: weight 3, state draining",
        ),
        (
            {"changes": [{"upstream": "app", "key": "x:1", "what": "added"}
                         | {"backend": {"weight": 3}}]},
            "app: x:1 added: weight 3",
        ),
        ({"kind": "member-add", "member": "d", "changes": [], "by": None}, "member-add d"),
        ({"kind": "remove-upstream", "upstream": "old", "changes": []}, "remove-upstream old"),
    ],
)  # fmt: skip
def test_an_event_is_said_in_words(plain: dict[str, Any], says: str) -> None:
    assert list(lines_of(Event("message", 7, plain))) == [f"     7  -  {says}"]


def test_json_is_one_object_a_line(fake: FakeAdmin) -> None:
    fake.says("GET /v1/events", frame(4) + frame(5))

    result = run(fake, "-o", "json")

    assert [json.loads(line)["revision"] for line in result.stdout.splitlines()] == [4, 5]


def test_what_was_compacted_away_is_passed_over_unless_it_was_asked_for(fake: FakeAdmin) -> None:
    gone = {"code": "compacted", "detail": "revision 0 is gone", "oldest": 5, "newest": 5}
    fake.answers["GET", "/v1/events"] = [(410, gone), (200, frame(5))]

    result = run(fake)
    fake.answers["GET", "/v1/events"] = [(410, gone)]
    asked = run(fake, "--from", "1")

    assert result.exit_code == 0
    assert asked_from(fake) == [("0", None), ("5", None), ("1", None)]
    assert asked.exit_code == 1
    assert "revision 0 is gone" in asked.stderr


def test_a_stream_that_ends_too_early_is_no_end(fake: FakeAdmin) -> None:
    fake.says("GET /v1/events", frame(4) + closed("the leader is lost", 4))

    result = run(fake)

    assert result.exit_code == 4
    assert "the leader is lost" in result.stderr
    assert "--from 5" in result.stderr


def test_following_goes_on_where_it_was(fake: FakeAdmin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed with a reason, broken off within a frame, refused for a while, and gone on with."""
    monkeypatch.setattr(events, "AGAIN_SECONDS", (0.0,))
    fake.answers["GET", "/v1/events"] = [
        (200, created(6)),
        (200, created(6) + frame(6, "one x") + bookmark(8) + closed("the leader is lost", 8)),
        (200, created(9) + frame(9, "two x") + "id: 10\ndata: {"),
        (503, {"code": "no-quorum", "detail": "the group has no quorum"}),
        (200, created(10) + frame(10, "three x")),
        (410, {"code": "compacted", "detail": "that is the end of the test", "oldest": 99}),
    ]

    result = run(fake, "-f")

    assert result.exit_code == 1
    assert [line.split()[3] for line in result.stdout.splitlines()] == ["one", "two", "three"]
    assert asked_from(fake) == [
        (None, None), ("6", None), ("9", "8"), ("10", "9"), ("10", "9"), ("11", "10")
    ]  # fmt: skip
    assert "the stream ended: the leader is lost; going on from revision 9" in result.stderr
    assert "that is the end of the test" in result.stderr


def test_who_may_not_is_told_so(fake: FakeAdmin) -> None:
    fake.refuses("GET /v1/events", 401, "no-token", "a token is needed")

    assert run(fake, "-f").exit_code == 4


def test_nobody_there_is_exit_status_4() -> None:
    nobody = FakeAdmin("127.0.0.1:1")

    assert run(nobody).exit_code == 4
    assert run(nobody, "-f").exit_code == 4
