"""The audit log: what a line says, and that there is one for each thing that can be written."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lb.control import audit
from lb.control.audit import LINE_MAX, line_of, write_down
from lb.control.state_machine import Applied, StateMachine
from lb.model import State
from lb.raft.members import Change, ConfChange
from lb.raft.messages import Entry, Kind
from lb.registry import (
    ApplyFile,
    By,
    Command,
    ExpireLeases,
    Fields,
    MoveMember,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    RaiseLevel,
    Registry,
    RemoveBackend,
    RemoveUpstream,
    RenewLease,
    Restore,
    Said,
    SyncFile,
    encode_member,
    registry_to_plain,
)
from lb.registry.commands import COMMANDS
from lb.registry.wire import encode_command

OPS = By(token="ops", member="b", source="api", note="rack 7 moves")
AT = 1_764_000_000.0
END = "at 2025-11-24T16:00:00Z, by ops on b (api): rack 7 moves"
FILE = By(member="a", source="file")


class Log:
    """A log whose entries are applied as a member does it."""

    def __init__(self, *, knows_app: bool = True) -> None:
        self.machine = StateMachine(Registry(id="0" * 32))
        self.index = 0
        if knows_app:
            self.write(ApplyFile(**common(by=FILE, remembered=None, said=None)))

    def entry(self, kind: Kind, data: bytes) -> Applied:
        self.index += 1
        return self.machine.apply(Entry(self.index, 1, kind, data))

    def write(self, command: Command) -> str:
        applied = self.entry(Kind.NORMAL, encode_command(command))
        assert applied.changed, applied.reply
        return line_of(applied)

    def member(self, what: Change, context: bytes) -> str:
        return line_of(self.entry(Kind.CONF, ConfChange(what, 7, context).encode()))


def common(**more: Any) -> dict[str, Any]:
    return {"upstream": "app", "by": OPS, "at": AT, **more}


def test_a_line_says_what_at_which_revision_by_whom_and_why() -> None:
    log = Log()

    assert log.write(PutBackend(**common(key="a:1"))) == (
        f"audit: app: a:1 added; revision 2 {END}"
    )
    assert log.write(
        PatchBackend(**common(key="a:1", fields=Fields(weight=3, labels={"zone": "x"})))
    ) == (f"audit: app: a:1 now has weight 3, labels zone=x; revision 3 {END}")


def test_every_kind_of_write_has_its_words() -> None:
    log = Log(knows_app=False)
    said = (Said("a:1", None, 1, False),)
    lines = {
        "apply-file": log.write(ApplyFile(**common(by=FILE, remembered=(), said=said))),
        "sync-file": log.write(SyncFile(**common(by=FILE, said=(*said, Said("b:1", "n", 2))))),
        "put-backend": log.write(PutBackend(**common(key="c:1", fields=Fields(ttl=15.0)))),
        "patch-backend": log.write(
            PatchBackend(**common(key="a:1", fields=Fields(state=State.DRAINING)))
        ),
        "patch-upstream": log.write(
            PatchUpstream(**common(edits=(("a:1", Fields(weight=2)), ("c:1", Fields(weight=4)))))
        ),
        "remove-backend": log.write(RemoveBackend(**common(key="n"))),
    }
    saved = registry_to_plain(log.machine.registry)
    renewal = Applied(9, 1, log.machine.registry, True, RenewLease(**common(key="c:1")), _reply())
    lines["renew-lease"] = line_of(renewal)
    lease = log.machine.registry.upstreams["app"].backends["c:1"].lease
    lines["expire-leases"] = log.write(ExpireLeases(at=AT, term=1, due=(("app", "c:1", lease),)))
    log.member(Change.ADD_LEARNER, encode_member("c", "10.0.0.3:9901", OPS, AT))
    lines["move-member"] = log.write(MoveMember(by=OPS, at=AT, member=7, address="10.0.0.4:9901"))
    lines["remove-upstream"] = log.write(RemoveUpstream(**common(force=True)))
    lines["restore"] = log.write(Restore(by=OPS, at=AT, content=saved))

    assert set(lines) | {"raise-level"} == set(COMMANDS)
    starts = {
        "apply-file": "a:1 added; revision 1 ",
        "sync-file": "n added; ",
        "patch-backend": "a:1 now has state draining; ",
        "patch-upstream": "a:1 now has weight 2; c:1 now has weight 4; ",
        "remove-backend": "n removed; ",
        "renew-lease": "c:1 has its lease anew; ",
        "remove-upstream": "forgotten; ",
    }
    for kind, start in starts.items():
        assert lines[kind].startswith(f"audit: app: {start}")
    assert lines["apply-file"].endswith("by file on a")
    assert lines["expire-leases"].startswith(
        "audit: nobody renewed: app c:1 is suspect, and kept; "
    )
    assert lines["expire-leases"].endswith("by lease")
    assert lines["move-member"].startswith("audit: c is at 10.0.0.4:9901 now; ")
    assert lines["restore"].startswith("audit: restored from a backup: app ")


def test_members_come_and_go_by_somebody() -> None:
    log = Log(knows_app=False)
    context = encode_member("c", "10.0.0.3:9901", OPS, AT)

    lines = [log.member(what, context) for what in Change]

    assert lines == [
        f"audit: member c added, as a learner; revision 1 {END}",
        f"audit: member c votes from now on; revision 2 {END}",
        f"audit: member c removed; revision 3 {END}",
    ]


def test_somebody_on_this_machine_is_called_that() -> None:
    line = Log().write(PutBackend(upstream="app", by=By(member="a"), at=AT, key="a:1"))

    assert line.endswith("by this machine's operator on a (api)")


def test_a_level_is_raised() -> None:
    registry = Registry(id="0" * 32)
    command = RaiseLevel(by=By(source="group"), at=0.0, level=1)

    line = line_of(Applied(1, 1, registry, True, command, _reply()))

    assert line == "audit: feature level 1; revision 0, by group"


def _reply() -> Any:
    applied = Log().entry(
        Kind.NORMAL, encode_command(PutBackend(upstream="app", by=OPS, at=AT, key="a:1"))
    )
    return applied.reply


def test_a_line_is_bounded() -> None:
    log = Log()
    said = tuple(Said(f"a:{number}", None, 1, False) for number in range(1, 101))
    labels = {f"{index:02}" + "k" * 60: "v" * 250 for index in range(8)}

    added = log.write(ApplyFile(**common(remembered=(), said=said)))
    edits = tuple((each.address, Fields(labels=labels)) for each in said)
    line = log.write(PatchUpstream(**common(edits=edits)))
    by = By(token="t", member="a", note="n" * 10_000)

    assert "and 95 more" in added
    assert len(line) == LINE_MAX
    assert line.endswith(f"...; revision 3 {END}")
    noted = line_of(
        Applied(1, 1, log.machine.registry, True, RaiseLevel(by=by, at=AT, level=1), _reply())
    )
    assert len(noted) < 400


def test_it_is_written_whatever_the_level_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        write_down(log.entry(Kind.NORMAL, encode_command(PutBackend(**common(key="a:1")))))
    finally:
        logging.getLogger().setLevel(before)

    assert audit.log.name == "lb.audit"
    assert [record.getMessage() for record in caplog.records if record.name == "lb.audit"] == [
        f"audit: app: a:1 added; revision 2 {END}"
    ]
