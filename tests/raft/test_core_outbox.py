"""Nothing leaves before what it promises is on the disk, and old writes vouch for nothing new."""

from __future__ import annotations

from lb.raft.ledger import Ledger
from lb.raft.log import MemoryLog
from lb.raft.messages import (
    ConfState,
    Entry,
    HardState,
    Kind,
    Message,
    MessageType,
    Persist,
    SnapMeta,
    Snapshot,
)

CONF = ConfState(frozenset({1, 2, 3}))


class Disk:
    """A ledger and what is on its disk."""

    def __init__(self, hard: HardState | None = None, entries: tuple[Entry, ...] = ()) -> None:
        self.view = MemoryLog(entries)
        self.ledger = Ledger(1, self.view, hard or HardState(1), CONF, writes_max=4)

    def hand_out(self) -> tuple[tuple[Message, ...], Persist | None]:
        return self.ledger.outbox.hand_out(self.ledger.hard, self.ledger.log)

    def write(self) -> Persist:
        """Hand out a write, and have it end later."""
        _, persist = self.hand_out()
        assert persist is not None
        return persist

    def end(self, persist: Persist, install: Snapshot | None = None) -> None:
        self.view.save(persist, install)
        self.ledger.acknowledge(persist.seq)


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, Kind.NORMAL, b"%d/%d" % (term, index))


def promise(disk: Disk) -> None:
    disk.ledger.send(MessageType.APPEND_REPLY, 2, log_index=disk.ledger.log.last)


def test_a_promise_goes_with_the_write_that_it_hangs_on() -> None:
    disk = Disk()
    disk.ledger.append((entry(1, 1),))
    promise(disk)

    now, persist = disk.hand_out()

    assert not now
    assert persist is not None
    assert persist.must_sync
    assert [message.log_index for message in persist.then_send] == [1]


def test_the_same_promise_again_waits_for_the_write_under_way() -> None:
    disk = Disk()
    disk.ledger.append((entry(1, 1),))
    first = disk.write()
    promise(disk)  # An append that the network repeated: nothing is new, nothing is sure.

    now, second = disk.hand_out()

    assert not now
    assert second is not None
    assert not second.must_sync
    assert not second.entries
    disk.end(first)
    disk.end(second)
    promise(disk)
    now, third = disk.hand_out()
    assert len(now) == 1
    assert third is None


def test_no_message_carries_a_term_that_is_not_on_the_disk() -> None:
    disk = Disk()
    disk.ledger.adopt(2)
    disk.ledger.send(MessageType.HEARTBEAT_REPLY, 2)
    disk.ledger.send(MessageType.PRE_VOTE, 2, term=3)

    now, persist = disk.hand_out()

    assert [message.type for message in now] == [MessageType.PRE_VOTE]
    assert persist is not None
    assert persist.hard == HardState(2, 0, 0)
    assert [message.type for message in persist.then_send] == [MessageType.HEARTBEAT_REPLY]


def test_a_vote_and_its_term_are_one_record() -> None:
    disk = Disk()
    disk.ledger.adopt(2)
    disk.ledger.give_vote(3)
    disk.ledger.send(MessageType.VOTE_REPLY, 3)

    assert disk.write().hard == HardState(2, 3, 0)


def test_a_commit_index_alone_is_no_reason_to_write() -> None:
    disk = Disk(entries=(entry(1, 1),))
    disk.ledger.commit_to(1)

    assert not disk.ledger.outbox.has_work(disk.ledger.hard, disk.ledger.log)
    disk.ledger.append((entry(2, 1),))
    assert disk.write().hard == HardState(1, 0, 1)


def test_a_write_that_was_written_over_makes_nothing_sure() -> None:
    """Hazard 5: the very same entry is written, written over, and written again."""
    disk = Disk(HardState(1))
    disk.ledger.append((entry(1, 1), entry(2, 1)))
    first = disk.write()
    disk.ledger.adopt(2)
    disk.ledger.overwrite_from(2)
    disk.ledger.append((entry(2, 2),))
    second = disk.write()
    disk.ledger.adopt(3)
    disk.ledger.overwrite_from(2)
    disk.ledger.append((entry(2, 1),))  # As before, index and term, by a leader that had it.
    third = disk.write()

    disk.end(first)
    assert disk.ledger.log.stable == 0
    disk.end(second)
    assert disk.ledger.log.stable == 0
    disk.end(third)
    assert disk.ledger.log.stable == 2


def test_what_was_on_the_disk_before_a_cut_stays_sure() -> None:
    disk = Disk(HardState(1), (entry(1, 1), entry(2, 1), entry(3, 1)))
    disk.ledger.adopt(2)
    disk.ledger.overwrite_from(3)
    disk.ledger.append((entry(3, 2),))

    assert disk.ledger.log.stable == 2
    disk.end(disk.write())
    assert disk.ledger.log.stable == 3
    assert [disk.view.term(index) for index in (1, 2, 3)] == [1, 1, 2]


def test_nothing_is_written_behind_a_snapshot_until_it_is_sure() -> None:
    disk = Disk(HardState(2), (entry(1, 1),))
    snapshot = Snapshot(SnapMeta(9, 2, CONF), b"state")
    disk.ledger.restore(snapshot)
    persist = disk.write()
    assert persist.snapshot == snapshot.meta
    assert persist.hard == HardState(2, 0, 9)
    disk.ledger.append((entry(10, 2),))
    promise(disk)

    assert disk.hand_out() == ((), None)
    assert disk.ledger.log.stable == 0
    disk.end(persist, snapshot)
    assert disk.ledger.log.stable == 9
    assert disk.write().entries == (entry(10, 2),)


def test_writes_under_way_have_a_bound() -> None:
    disk = Disk()
    for index in range(1, 5):
        disk.ledger.append((entry(index, 1),))
        disk.write()
    disk.ledger.append((entry(5, 1),))

    assert not disk.ledger.outbox.has_work(disk.ledger.hard, disk.ledger.log)


def test_one_acknowledgement_stands_for_all_before_it() -> None:
    disk = Disk()
    writes = []
    for index in (1, 2, 3):
        disk.ledger.append((entry(index, 1),))
        writes.append(disk.write())
    for persist in writes:
        disk.view.save(persist)

    disk.ledger.acknowledge(writes[-1].seq)

    assert disk.ledger.log.stable == 3
    disk.ledger.acknowledge(writes[0].seq)  # Late, and nothing new.
    assert disk.ledger.log.stable == 3
