"""What must hold after every event, whatever went wrong before.

Each check costs as much as has changed. Nothing here trusts the core: logs, votes and
configurations are followed from what it says to save, send and apply, and compared.

The names of the rules are those that a mutant is caught by:

- `election safety`: a term has one leader at most.
- `one vote a term`: what is on a disk never says otherwise.
- `leader append-only`: a leader never takes back an entry of its own log.
- `log matching`: equal index and term, equal logs up to there.
- `leader completeness`: a leader's log holds all that was committed in earlier terms.
- `state machine safety`: members apply the same entries, and are then in the same state.
- `no step back`: term, commit and applied never decrease, on disk and in memory.
- `committed is durable`: what is committed first is on the disks of a quorum in force.
- `configuration`: the one in force is the log's, one change at most is pending, and the
  registry has the members that the log made.
- `promises are durable`: no message leaves before what it promises is on the disk.
- `disks keep`: what was sure before a crash is there after it, and nothing else but what was
  being written.
- `a failed sync is the end`: nobody writes to a disk after its sync failed.
- `snapshots keep what follows`: an installed snapshot drops no entries that fit.
- `stable is on the disk`: what a core takes to be on its disk is there, and the same.
- `acknowledgements are of this term`: a leader counts none that a follower gave in another.
- `own term first`: a leader commits by an entry of its own term.
- `pre-votes change nothing`: a member that asks for votes in advance stays in its term.
- `reads are fresh`: a read is confirmed at an index that covers all committed when it came.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from lb.raft.messages import (
    Entry,
    HardState,
    Kind,
    Message,
    MessageType,
    Persist,
    Role,
    SnapMeta,
)
from simulator.shadow import Atlas, Place, ShadowLog, ViolationError

if TYPE_CHECKING:
    from lb.raft.node import Node
    from lb.registry import Registry
    from simulator.disks import Contents
    from simulator.tally import Tally

NO_HARD = HardState(0, 0, 0)


class Shadow:
    """What is known of one member: its log in memory and on disk, its votes, where it stood."""

    __slots__ = (
        "applied", "commit", "disk", "hard", "leads", "led_last", "log", "number", "role", "term",
        "writing",
    )  # fmt: skip

    def __init__(self, number: int, start: Place) -> None:
        self.number = number
        self.log = ShadowLog(start)
        self.disk = ShadowLog(start)
        self.hard = NO_HARD
        self.writing: list[Persist] = []  # When it crashed.
        self.role = Role.FOLLOWER
        self.term = 0
        self.commit = 0
        self.applied = 0
        self.leads = 0  # The term in which it leads, or 0.
        self.led_last: Place | None = None


class Invariants:
    """Follows all members of one run; each method is called when what it names has happened."""

    def __init__(self, atlas: Atlas, tally: Tally) -> None:
        self.atlas = atlas
        self.committed: list[Place] = [atlas.start]
        self._committed_in: list[int] = [0]  # The terms in which that was.
        self._marks: dict[int, int] = {}  # The machine's, by index.
        self._leaders: dict[int, int] = {}
        self._votes: dict[tuple[int, int], int] = {}
        self._proved: set[int] = set()  # Indexes known to be on the disks of a quorum.
        self._tally = tally
        self.members: dict[int, Shadow] = {}

    @property
    def commit(self) -> int:
        """The highest index that anyone has found committed."""
        return len(self.committed) - 1

    def join(self, number: int) -> Shadow:
        """A member with an empty disk comes up for the first time."""
        shadow = self.members[number] = Shadow(number, self.atlas.start)
        return shadow

    def started(self, shadow: Shadow, contents: Contents) -> None:
        """A member has read its disk: all that was sure is there, perhaps what was being written.

        Batches under way at a crash are kept or lost in their order, each as a whole.
        """
        log, hard = shadow.disk, shadow.hard
        possible = [(log.copy(), hard)]
        for persist in shadow.writing:
            log, hard = log.copy(), persist.hard or hard
            self._save(log, persist)
            possible.append((log, hard))
        shadow.writing = []
        base = self.atlas.get(contents.base, contents.base_term)
        found = ShadowLog(base or self.atlas.start)
        if contents.entries:
            found.append(self._places(found, contents.entries))
        for log, hard in possible:
            if log.last is found.last and contents.hard.term == hard.term:
                shadow.disk, shadow.hard = found, contents.hard
                break
        else:
            raise ViolationError(
                "disks keep",
                f"{shadow.number} starts with {contents.hard}, last {found.last!r};"
                f" had {[(hard, log.last) for log, hard in possible]}",
            )
        if contents.hard.vote != hard.vote:
            raise ViolationError("disks keep", f"{shadow.number}: {contents.hard}, not {hard}")
        shadow.log = found.copy()
        shadow.term, shadow.commit = contents.hard.term, contents.hard.commit
        shadow.leads, shadow.led_last, shadow.role = 0, None, Role.FOLLOWER

    # --- Disk and messages --------------------------------------------------------------------

    def handed_out(self, shadow: Shadow, persist: Persist) -> None:
        """The core has told its driver what to save: so its log in memory is like that now."""
        self._save(shadow.log, persist)
        if shadow.leads and any(entry.kind is Kind.CONF for entry in persist.entries):
            self._check_pending(shadow)

    def _save(self, log: ShadowLog, persist: Persist) -> None:
        if persist.snapshot is not None:
            log.install(self._snapshot_place(persist.snapshot.index, persist.snapshot.term))
        if persist.entries:
            log.append(self._places(log, persist.entries))

    def _places(self, log: ShadowLog, entries: tuple[Entry, ...]) -> list[Place]:
        before = log.at(entries[0].index - 1)
        if before is None:
            raise ViolationError("no gaps", f"{entries[0]} written after {log.last!r}")
        places = []
        for entry in entries:
            before = self.atlas.put(before, entry)
            places.append(before)
        return places

    def _snapshot_place(self, index: int, term: int) -> Place:
        place = self.atlas.get(index, term)
        if place is None or index > self.commit or self.committed[index] is not place:
            raise ViolationError("state machine safety", f"{term}/{index} in a snapshot only")
        return place

    def durable(self, shadow: Shadow, persist: Persist) -> None:
        """A batch is on the disk, as sure as it gets."""
        self._save(shadow.disk, persist)
        if persist.hard is not None:
            self._check_hard(shadow, persist.hard)
            shadow.hard = persist.hard

    def _check_hard(self, shadow: Shadow, hard: HardState) -> None:
        old = shadow.hard
        if hard.term < old.term or hard.commit < old.commit:
            raise ViolationError("no step back", f"{shadow.number} saved {hard} over {old}")
        if hard.vote:
            voted = self._votes.setdefault((hard.term, shadow.number), hard.vote)
            if voted != hard.vote:
                raise ViolationError(
                    "one vote a term",
                    f"{shadow.number} voted for {voted} and {hard.vote} in term {hard.term}",
                )

    def compacted(self, shadow: Shadow, index: int) -> None:
        """A member let go of its log up to an index."""
        if index > shadow.disk.base:
            shadow.log.release(index)
            shadow.disk.release(index)

    def taken(self, shadow: Shadow, meta: SnapMeta) -> None:
        """A member takes a snapshot of its own."""
        conf = self.committed[meta.index].conf
        if meta.conf != conf:
            raise ViolationError(
                "configuration", f"{shadow.number} puts {meta.conf} into a snapshot, not {conf}"
            )

    def read(self, shadow: Shadow, index: int, floor: int) -> None:
        """A read may be answered; `floor` was committed when it came."""
        if index < floor:
            raise ViolationError(
                "reads are fresh", f"{shadow.number} reads at {index}, {floor} was committed"
            )
        if shadow.applied < index:
            raise ViolationError(
                "reads are fresh", f"{shadow.number} reads at {index}, applied {shadow.applied}"
            )

    def sent(self, shadow: Shadow, message: Message) -> None:
        """A message leaves: what it promises must be on the disk."""
        kind = message.type
        if kind is MessageType.PRE_VOTE or (
            kind is MessageType.PRE_VOTE_REPLY and not message.reject
        ):
            return  # These carry a term that nobody is in yet.
        hard = shadow.hard
        if message.term > hard.term:
            self._broken(shadow, message, f"the term on disk is {hard.term}")
        if message.reject or message.term < hard.term:
            # Two writes made sure by one sync: the second has gone past what the first promised,
            # and with a later term on the disk nothing in the earlier one can be taken back.
            return
        if kind is MessageType.VOTE_REPLY:
            if (hard.term, hard.vote) != (message.term, message.to):
                self._broken(shadow, message, f"on disk is {hard}")
        elif kind is MessageType.APPEND_REPLY and message.log_index > shadow.disk.last.index:
            self._broken(shadow, message, f"on disk is {shadow.disk.last!r}")

    def _broken(self, shadow: Shadow, message: Message, why: str) -> None:
        raise ViolationError("promises are durable", f"{shadow.number} sent {message}: {why}")

    # --- The core -----------------------------------------------------------------------------

    def stepped(self, shadow: Shadow, node: Node) -> None:
        """A core has taken in something, and all that it asked for has been handed out."""
        term, commit = node.term, node.commit
        if term < shadow.term:
            raise ViolationError("no step back", f"{shadow.number}: term {shadow.term} to {term}")
        asks = node.role is Role.PRE_CANDIDATE and shadow.role is not Role.PRE_CANDIDATE
        if asks and term != shadow.term:
            raise ViolationError(
                "pre-votes change nothing", f"{shadow.number}: term {shadow.term} to {term}"
            )
        shadow.role = node.role
        shadow.term = term
        if node.role is Role.LEADER:
            self._check_leader(shadow, term)
        elif shadow.leads:
            shadow.leads = 0
            shadow.led_last = None
        stable = shadow.disk.at(node.ledger.log.stable)
        if stable is not None and shadow.log.at(stable.index) not in (stable, None):
            raise ViolationError(
                "stable is on the disk", f"{shadow.number} takes {stable!r} for what it has now"
            )
        if commit != shadow.commit:
            self._check_commit(shadow, commit)
        if node.conf is not shadow.log.last.conf and node.conf != shadow.log.last.conf:
            self._check_conf(shadow, node)

    def _check_leader(self, shadow: Shadow, term: int) -> None:
        last = shadow.log.last
        if shadow.leads == term:
            led = shadow.led_last
            assert led is not None
            if led is not last:
                if led.index >= shadow.log.base and shadow.log.at(led.index) is not led:
                    raise ViolationError(
                        "leader append-only", f"{shadow.number} gave up {led!r} for {last!r}"
                    )
                shadow.led_last = last
            return
        if shadow.log.base == 0 and last.index == 0:
            shadow.led_last = last
        leader = self._leaders.setdefault(term, shadow.number)
        if leader != shadow.number:
            raise ViolationError(
                "election safety", f"{leader} and {shadow.number} lead term {term}"
            )
        self._tally.seen["elections"] += 1
        shadow.leads = term
        shadow.led_last = last
        due = bisect_left(self._committed_in, term) - 1
        place = self.committed[due]
        if place.index >= shadow.log.base and shadow.log.at(due) is not place:
            raise ViolationError(
                "leader completeness",
                f"{shadow.number} leads term {term} and lacks {place!r}",
            )

    def _check_conf(self, shadow: Shadow, node: Node) -> None:
        last = shadow.log.last
        if node.status().last == last.index:  # Else something waits behind a snapshot.
            raise ViolationError(
                "configuration", f"{shadow.number} goes by {node.conf}, its log says {last.conf}"
            )

    def _check_commit(self, shadow: Shadow, commit: int) -> None:
        if commit < shadow.commit:
            raise ViolationError(
                "no step back", f"{shadow.number}: commit {shadow.commit} to {commit}"
            )
        log = shadow.log
        for index in range(max(shadow.commit, log.base) + 1, commit + 1):
            place = log.at(index)
            if place is None:
                commit = index - 1  # The rest waits to be handed out, behind a snapshot.
                break
            if index < len(self.committed):
                if self.committed[index] is not place:
                    raise ViolationError(
                        "state machine safety",
                        f"{shadow.number} commits {place!r}, others {self.committed[index]!r}",
                    )
            else:
                self.committed.append(place)
                self._committed_in.append(shadow.term)
        shadow.commit = commit
        if shadow.leads and commit >= log.base and self.committed[commit].term != shadow.term:
            raise ViolationError(
                "own term first", f"{shadow.number} commits {self.committed[commit]!r} by counting"
            )
        if len(self.committed) - 1 == commit and log.last.index >= commit:
            self._check_durable(shadow, commit)

    def _check_durable(self, shadow: Shadow, commit: int) -> None:
        """Checked whoever learns of it, against the configuration its log has in force."""
        if commit in self._proved:
            return
        self._proved.add(commit)
        place = self.committed[commit]
        voters = shadow.log.last.conf.voters
        having = sum(self._has(voter, place) for voter in voters)
        if having * 2 <= len(voters):
            raise ViolationError(
                "committed is durable",
                f"{shadow.number} commits {place!r}: on {having} disks of {sorted(voters)}",
            )

    def _has(self, voter: int, place: Place) -> bool:
        member = self.members.get(voter)
        if member is None:
            return False
        return place.index <= member.disk.base or member.disk.at(place.index) is place

    def _check_pending(self, shadow: Shadow) -> None:
        places = shadow.log.places
        if self.committed[shadow.commit].term != shadow.term:
            raise ViolationError(
                "configuration", f"{shadow.number} changes members, has committed nothing yet"
            )
        pending = 0
        for position in range(len(places) - 1, -1, -1):
            if places[position].index <= self.commit:
                break
            pending += places[position].kind is Kind.CONF
        if pending > 1:
            raise ViolationError("configuration", f"{shadow.number}: {pending} changes pending")

    def applied(self, shadow: Shadow, entry: Entry, mark: int) -> None:
        """A member's machine has taken in an entry, and is known by `mark` since."""
        index = entry.index
        if index != shadow.applied + 1:
            raise ViolationError(
                "state machine safety", f"{shadow.number} applied {index} after {shadow.applied}"
            )
        shadow.applied = index
        if index > self.commit or self.committed[index].term != entry.term:
            raise ViolationError(
                "state machine safety", f"{shadow.number} applied {entry}, not committed"
            )
        self._check_mark(shadow, index, mark)

    def registered(self, shadow: Shadow, registry: Registry) -> None:
        """Whom a member's registry has as members: those of the log, as far as it is applied."""
        conf = self.committed[shadow.applied].conf
        members = registry.members
        voters = {number for number in members if members[number].voter}
        if members.keys() != conf.members or voters != conf.voters:
            raise ViolationError(
                "configuration", f"{shadow.number} has {sorted(members)}, {conf} is in force"
            )

    def _check_mark(self, shadow: Shadow, index: int, mark: int) -> None:
        known = self._marks.setdefault(index, mark)
        if known != mark:
            raise ViolationError(
                "state machine safety", f"{shadow.number} is in another state at {index}"
            )

    def restored(self, shadow: Shadow, index: int, mark: int) -> None:
        """A member's machine is now that of a snapshot at an index."""
        shadow.applied = index
        self._check_mark(shadow, index, mark)
