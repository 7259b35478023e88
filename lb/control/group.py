"""This instance's part in its group, from the first start on: the `Store` of all that is agreed.

An instance alone is a group of one, by the same code. One that is to have fellows asks them
before it founds or joins (`forming`), and meanwhile serves by its file. Whatever befalls the
group's part (no quorum, a damaged log, a failed disk), the last good registry stays what is
routed by: see `last_good`.

What operators ask is in `group_desk`, what a leader sees to in `duties`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb import __version__
from lb.build import BUILD
from lb.config.schema import Group as GroupConfig
from lb.control.agreement import Agreement
from lb.control.chores import Chores
from lb.control.duties import Duties, Wish
from lb.control.founding import Founding
from lb.control.last_good import LastGood
from lb.control.peer_security import Files
from lb.control.peers import (
    PROTOCOL,
    Claim,
    Method,
    PeerRefused,
    Peers,
    PeerTimeout,
    PeerUnreachable,
    Security,
)
from lb.control.replica import Outside, Replica
from lb.control.seat import Seat, SeatFiles, Standing
from lb.control.state_machine import Applied, BadStateError
from lb.control.store import (
    NoQuorum,
    NotStored,
    OnChange,
    RefusedError,
    UnknownOutcome,
)
from lb.control.wal import DamagedLog
from lb.errors import AccordError
from lb.raft.messages import NOBODY, SoftState
from lb.registry import LEVEL, By, Command, MoveMember, Registry, Reply

log = logging.getLogger(__name__)

LEAD_SECONDS_MAX = 3.0  # For an instance alone to lead itself, at a start.
NEWS_EVERY = 2.0  # Seconds between two rounds of asking members how they are.
NEWS_SOON = 0.2  # The same while somebody has just joined.
TRANSFER_SECONDS_MAX = 1.0
REMOVED = "removed:"  # How a refusal begins that is final.

OnApplied = Callable[[Applied], None]
Plain = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why this instance takes no part: `state` as in `desk.GroupState`, and what to do."""

    state: str
    detail: str


class Group:
    """See above. `open` comes first, then `serve`, last `close`."""

    def __init__(
        self,
        data_dir: str | Path,
        name: str,
        config: Callable[[], GroupConfig | None],
        wall: Callable[[], float],
    ) -> None:
        self.name = name
        self.config = config
        self.wall = wall
        self.files = SeatFiles(data_dir)
        self.replica: Replica | None = None
        self.duties: Duties | None = None
        self.peers: Peers | None = None
        self.seat: Seat | None = None
        self.trouble: Trouble | None = None
        self.founding = Founding(self, data_dir)
        self.kept: Registry | None = None  # The last good one, while it is more than the log has.
        self.news: dict[str, Plain] = {}  # What each other member last said of itself.
        self.leader_changes = 0
        self.own_news: Callable[[], Plain] = dict  # What we say to others of ourselves.
        self.agreement = Agreement()
        self.stranger = ""  # A group that an instance of our file belongs to, and not ours.
        self._last_good = LastGood(data_dir)
        self._shown = Registry(id="")
        self._leader = NOBODY
        self._rung: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_change: list[OnChange] = []
        self._on_applied: list[OnApplied] = []
        self._methods: dict[str, Method] = {}
        self._met = asyncio.Event()  # Set when the members may have changed.
        self._chores = Chores()
        self._leaving: asyncio.Task[None] | None = None  # What we do when we were removed.
        self._security = Security.none()
        self._loop = asyncio.get_running_loop()
        self.kept_at = self._loop.time()  # When what is kept was the newest, for all we know.

    # --- Beginning and end --------------------------------------------------------------------

    async def open(self, failed_disk: str = "") -> None:
        """
        Go on as the member that this instance was; alone, found a group of one.

        `failed_disk`: how the disk failed under a former controller. What can be read back then
        may never have reached the disk. StartError: this data_dir can't be used at all.
        """
        self.kept = await asyncio.to_thread(self._last_good.read)
        if (written := self._last_good.written_at) is not None:
            self.kept_at -= max(0.0, self.wall() - written)
        self._show()
        try:
            await self._take_part(failed_disk)
        except DamagedLog as error:
            self._give_up("damaged", f"{error.message}; {error.hint}")
        except BadStateError as error:
            self._give_up("stopped-apply", f"{error.message}; {error.hint}")
        if self.replica is not None and self.replica.votes_alone:
            await self.until(self._knows_all, LEAD_SECONDS_MAX)

    async def _take_part(self, failed_disk: str) -> None:
        """As the member that the data_dir knows, or, alone and new, as a founder."""
        self.seat = await asyncio.to_thread(self._take_seat)
        if self.seat is not None and self.seat.standing is Standing.MEMBER:
            if failed_disk:
                self._give_up("damaged", failed_disk)
            elif self.seat.stopped:
                self._give_up("stopped-apply", self.seat.stopped)
            else:
                await self.begin()
        elif self._is_alone:
            await self.founding.found(self.kept)

    async def serve(self, sock: socket.socket | None, methods: Mapping[str, Method]) -> None:
        """Meet the others, on a listening socket of ours; without one, there are none."""
        config = self.config()
        if config is None or sock is None:
            return
        self._methods.update(methods)
        self._security = await asyncio.to_thread(security_of, config)
        self.peers = Peers(self._claim, self._security, self._hear, self._methods, self._admits)
        await self.peers.open(sock)
        self._meet()
        self._chores.begin(self._gather_news)
        if self.replica is None and self.trouble is None:
            self._chores.begin(self.founding.run)

    def adopt(self) -> None:
        """Go by the secret, or the files, that a new config names."""
        config = self.config()
        if self.peers is None or config is None:
            return
        files = config.tls and Files(config.tls.cert, config.tls.key, config.tls.ca)
        if config.security == "secret" or files != self._security.files:
            self._security.take(security_of(config))

    async def close(self) -> None:
        """Stop."""
        await self._chores.close()
        if self._leaving is not None:
            await self._leaving  # Not cut short: the log is to be closed before its lock goes.
        await self.end_replica()
        if self.peers is not None:
            await self.peers.close()
        await self._last_good.close()

    async def hand_over(self) -> None:
        """Have another lead from now on, if we do and there is one."""
        replica = self.replica
        if replica is None or self.duties is None or not replica.leads:
            return
        successor = self.duties.successor()
        if successor is None:
            return
        replica.transfer(successor.id)
        await self.until(lambda: not replica.leads, TRANSFER_SECONDS_MAX)

    def _knows_all(self) -> bool:
        """Whether all that was ever answered is applied here. Only a leader can tell."""
        return self.replica is not None and self.replica.up_to_date

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds that the group's course may bring; False: it does not."""
        until = self._loop.time() + seconds
        while not condition():
            left = until - self._loop.time()
            if left <= 0:
                return False
            await asyncio.wait({self._rung}, timeout=left)
        return True

    def _ring(self) -> None:
        rung, self._rung = self._rung, self._loop.create_future()
        rung.set_result(None)

    async def end_replica(self) -> None:
        """Stop taking part."""
        duties, self.duties = self.duties, None
        replica, self.replica = self.replica, None
        if duties is not None:
            await duties.close()
        if replica is not None:
            await replica.close()

    @property
    def _is_alone(self) -> bool:
        """Whether the config names no others, so that nobody need be asked."""
        config = self.config()
        return config is None or (not config.join and set(config.members) == {self.name})

    def _take_seat(self) -> Seat | None:
        """Read who we are; whatever was begun and not finished is undone."""
        seat = self.files.read()
        if seat is None:
            return self.files.of_log() if self.files.has_log else None
        if seat.standing is Standing.MEMBER:
            if not self.files.has_log:
                log.warning("the log of member %x is gone: this is a new member", seat.member)
                return None
            return seat
        if self.files.has_log:
            self.files.discard_unfinished()
        return seat if seat.standing is Standing.JOINING else None

    async def begin(self) -> None:
        """Take part, from what the log holds. DamagedLog: that can't be trusted."""
        assert self.seat is not None, "who takes part has a seat"
        storage, recovered = await asyncio.to_thread(self.files.open, self.seat)
        outside = Outside(
            send=self._send,
            reaches=self._reaches,
            applied=self._applied,
            restored=self._restored,
            looked=self._looked,
            halted=self._halted,
        )
        try:
            self.replica = Replica(storage, recovered, outside)
        except BadStateError:
            storage.close()
            raise
        config = self.config()
        self.duties = Duties(
            self.replica, config.voters if config else 1, self.name, self._wishes, self.wall
        )
        self._show()
        self._meet()
        self.replica.start()
        self._ring()
        self._loop.call_soon(self._changed)

    def _give_up(self, state: str, detail: str) -> None:
        """Take no part from now on; what is routed by stays."""
        self.trouble = Trouble(state, detail)
        log.error("this instance takes no part in its group: %s", detail)
        self._loop.call_soon(self._changed)

    # --- What others see ----------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        """The newest registry that this instance may route by."""
        return self._shown

    @property
    def address(self) -> str:
        """Where others reach us; empty for an instance alone."""
        config = self.config()
        return "" if config is None else config.members.get(self.name, config.listen)

    @property
    def is_removed(self) -> bool:
        """Whether the group has taken us out."""
        return self.trouble is not None and self.trouble.state == "removed"

    @property
    def has_leader(self) -> bool:
        """Whether a write would have whom to ask."""
        return self._leader != NOBODY

    @property
    def leader(self) -> int:
        """The leader's id, or nobody's."""
        return self._leader

    @property
    def _own_id(self) -> int:
        return self.seat.member if self.seat else NOBODY

    async def propose(self, command: Command) -> Reply:
        """Commit a command; see `store.Store`."""
        return await self.member().propose(command)

    def subscribe(self, on_change: OnChange) -> None:
        """Have this called after each change of what is routed by."""
        self._on_change.append(on_change)

    def subscribe_applied(self, on_applied: OnApplied) -> None:
        """Have this called for each entry that took a revision, in order."""
        self._on_applied.append(on_applied)

    def member(self) -> Replica:
        """Return our replica; NoQuorum if we take no part."""
        if self.trouble is not None:
            raise NoQuorum(
                f"this instance takes no part in its group: {self.trouble.detail}",
                "ask another instance, or see docs/group.md",
            )
        if self.replica is None:
            waiting = ", ".join(self.founding.waiting.for_)
            raise NoQuorum(
                f"the group is still forming{f'; waiting for {waiting}' if waiting else ''}",
                "start the others, or `lb group found`",
            )
        return self.replica

    # --- Between replica and peers ------------------------------------------------------------

    def _claim(self) -> Claim:
        seat = self.seat
        is_member = seat is not None and seat.standing is Standing.MEMBER
        return Claim(
            group=seat.group if seat and is_member else "",
            member=seat.member if seat and is_member else NOBODY,
            name=self.name,
            address=self.address,
            version=__version__,
            build=BUILD,
            protocol=PROTOCOL,
            level=LEVEL,
        )

    def _admits(self, claim: Claim) -> str:
        """Say why a peer is not let in; nothing if it is."""
        own = self._claim()
        if claim.group and own.group and claim.group != own.group:
            return (
                f"{self.name} belongs to group {own.group}, {claim.name} to "
                f"{claim.group}: on the one that is wrong remove raft/ in its data_dir"
            )
        if claim.member in self._shown.removed:
            return f"{REMOVED} {claim.name}, as member {claim.member:x}, is no part of the group"
        return ""

    def _send(self, to: int, data: bytes) -> bool:
        return self.peers is not None and self.peers.send(to, data)

    @property
    def instances(self) -> int:
        """How many of the group's instances live, as far as we hear of them; 1 alone."""
        return 1 + (len(self.peers.connected) if self.peers is not None else 0)

    def _reaches(self, member: int) -> bool:
        return self.peers is not None and member in self.peers.connected

    def _hear(self, frm: int, data: bytes) -> None:
        if self.replica is not None:
            self.replica.hear(frm, data)

    def _meet(self) -> None:
        """Keep connections to all other members."""
        if self.peers is not None and self.replica is not None:
            members = self.replica.registry.members
            others = {
                each.id: (each.name, each.address)
                for each in members.values()
                if each.id != self._own_id
            }
            if members:
                self.peers.meet(others)
                self._met.set()

    def _applied(self, news: Sequence[Applied]) -> None:
        """Entries were applied. Others hear of it later: we are within the replica's loop."""
        self._show()
        if self.duties is not None:
            self.duties.follow()
        self._ring()
        changed = [each for each in news if each.changed]
        if changed:
            self._loop.call_soon(self._tell, changed)

    def _tell(self, changed: Sequence[Applied]) -> None:
        for each in changed:
            self.agreement.note(each.registry)
            for on_applied in self._on_applied:
                on_applied(each)
            if each.member_change:
                self._meet()
                self._see_whether_removed(each)
        self._changed()

    def _restored(self, _: Registry) -> None:
        self._show()
        if self.duties is not None:
            self.duties.follow()
        self._loop.call_soon(self._meet)
        self._loop.call_soon(self._changed)

    def _show(self) -> None:
        """Choose what is routed by: what the log says, or what was kept while that is behind."""
        kept, replica = self.kept, self.replica
        if replica is None:
            if kept is not None:
                self._shown = kept
            return
        ours = replica.registry
        behind = kept is not None and (
            ours.revision < kept.revision if ours.id == kept.id else ours.revision == 0
        )
        if kept is None or not behind:
            self.kept = None
            self._shown = ours
            self._last_good.keep(ours)
        else:
            self._shown = kept

    def _changed(self) -> None:
        for on_change in self._on_change:
            on_change(self._shown)

    def _looked(self, soft: SoftState) -> None:
        if soft.leader not in (self._leader, NOBODY):
            self.leader_changes += 1
            if self.config() is not None:
                self._loop.call_soon(self._log_leader, soft.leader)
        self._leader = soft.leader
        self._ring()

    def _log_leader(self, leader: int) -> None:
        member = self._shown.members.get(leader)
        met = self.peers.connected.get(leader) if self.peers else None
        name = member.name if member else met.name if met else f"member {leader:x}"
        term = self.replica.node.term if self.replica else 0
        log.info("%s leads the group (term %d)", name, term)

    def _halted(self, why: str, hint: str) -> None:
        self._leader = NOBODY
        self._give_up("stopped-apply", f"{why}; {hint}")

    def _see_whether_removed(self, applied: Applied) -> None:
        if self.replica is not None and self.replica.id in applied.registry.removed:
            self.note_removed()

    def note_removed(self) -> None:
        """We are no member any more: say so, and take no part."""
        if self.trouble is None:
            hint = "stop this instance; to let it join again, remove raft/ in its data_dir"
            self._give_up("removed", f"it was removed from the group; {hint}")
            self._leader = NOBODY
            self._leaving = self._loop.create_task(self.end_replica())

    # --- How the others are -------------------------------------------------------------------

    async def _gather_news(self) -> None:
        """Ask each other member how it is, now and then."""
        asked_at = float("-inf")
        while True:
            self._met.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(NEWS_SOON if self._awaits_wishes() else NEWS_EVERY):
                    await self._met.wait()
            if self._loop.time() < asked_at + NEWS_SOON:
                await asyncio.sleep(NEWS_SOON)  # Members that come one after another.
            asked_at = self._loop.time()
            self.news = dict(await self.ask_all("standing", {}, NEWS_EVERY))
            self._heed_refusals()
            await self._compare_states()
            await self._tell_address()
            await self._look_for_strangers()

    def _awaits_wishes(self) -> bool:
        """Whether somebody has joined of whom we, as the leader, do not know if it would vote."""
        if self.replica is None or not self.replica.leads:
            return False
        learners = [each for each in self._shown.members.values() if not each.voter]
        return any("voter" not in self.news.get(each.name, {}) for each in learners)

    async def _compare_states(self) -> None:
        """
        Stop applying if the leader, by the same commands, has come to another registry.

        For good: its log and its snapshots lead to that registry again, at the next start too.
        """
        leader = self._shown.members.get(self._leader)
        said = self.news.get(leader.name, {}) if leader else {}
        revision = self.agreement.differs(said.get("hashes", []))
        if not revision or self.replica is None or self.trouble is not None or self.seat is None:
            return
        why = f"its registry differs from the leader's as of revision {revision}"
        hint = "report this; to go on, stop it, remove raft/ in its data_dir, and start it again"
        self.replica.halt(why, hint)
        self.seat = await asyncio.to_thread(self.files.stop, self.seat, f"{why}; {hint}")

    async def _tell_address(self) -> None:
        """Have the others reach us where our config says."""
        own = self._shown.members.get(self._own_id)
        if self.replica is None or own is None or own.address == self.address:
            return
        by = By(member=self.name, source="group")
        move = MoveMember(by=by, at=self.wall(), member=own.id, address=self.address)
        with suppress(NoQuorum, NotStored, UnknownOutcome):  # The next round tries again.
            await self.replica.propose(move)

    async def _look_for_strangers(self) -> None:
        """See whether an instance that our file names has got into another group."""
        config, group = self.config(), self.seat.group if self.seat else ""
        known = {each.address for each in self._shown.members.values()} | {self.address}
        if config is None or self.replica is None:
            return
        before, self.stranger = self.stranger, ""
        for address in sorted(set(config.members.values()) - known):
            answer = await self.founding.ask(address)
            if answer is not None and answer.group not in ("", group):
                self.stranger = (
                    f"{answer.name} ({address}) belongs to another group, {answer.group}: on the "
                    "one that is wrong stop it, remove raft/ in its data_dir, and start it again"
                )
        if self.stranger and self.stranger != before:
            log.warning("%s", self.stranger)

    def _heed_refusals(self) -> None:
        """See whether the others took us out while we were not there to hear of it."""
        assert self.peers is not None
        if any(why.message.startswith(REMOVED) for why in self.peers.refusals.values()):
            self.note_removed()

    async def ask_all(self, method: str, params: Plain, seconds: float) -> Mapping[str, Plain]:
        """Ask every other member something; see `desk.GroupDesk`."""
        if self.peers is None or self.replica is None:
            return {}
        peers = self.peers

        async def ask(member: int) -> Plain:
            try:
                return await peers.call(member, method, params, seconds)
            except (PeerRefused, PeerUnreachable, PeerTimeout) as error:
                return {"error": error.message}

        others = [each for each in self._shown.members.values() if each.id != self._own_id]
        answers = await asyncio.gather(*(ask(each.id) for each in others))
        return {each.name: said for each, said in zip(others, answers, strict=True)}

    def _wishes(self) -> Mapping[str, Wish]:
        return {
            name: Wish(said["voter"], said["level"], bool(said.get("full")))
            for name, said in self.news.items()
            if "voter" in said and "level" in said
        }

    async def ask_leader(self, method: str, params: Plain, seconds: float) -> Plain:
        """Have the leader do something. NoQuorum, or what it said."""
        replica = self.member()
        if self.peers is None or self._leader in (NOBODY, replica.id):
            raise NoQuorum("the group has no leader just now", "try again in a moment")
        try:
            return await self.peers.call(self._leader, method, params, seconds)
        except PeerRefused as error:
            raise as_error(error) from None
        except PeerTimeout as error:
            raise UnknownOutcome(f"the leader did not answer: {error.message}") from None
        except PeerUnreachable as error:
            if error.sent:
                raise UnknownOutcome(f"the leader was lost: {error.message}") from None
            raise NoQuorum(f"the leader can't be reached: {error.message}") from None


def security_of(config: GroupConfig) -> Security:
    """Return how members prove to each other who they are. OperatorError: it can't be used."""
    if config.tls is not None:
        return Security.tls(config.tls.cert, config.tls.key, config.tls.ca)
    if config.secret:
        return Security.secret(tuple(secret.encode() for secret in config.secret))
    return Security.none()


def as_error(refused: PeerRefused) -> AccordError:
    """Return a refusal of another member as what was raised there."""
    if refused.code == "no-quorum":
        return NoQuorum(refused.message, refused.hint)
    if refused.code == "unknown-outcome":
        return UnknownOutcome(refused.message, refused.hint)
    return RefusedError(refused.code, refused.message, refused.hint)
