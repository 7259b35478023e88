"""
The transport between members: whom to be connected to, and what passes.

Each member dials the others and sends on the connection that it dialled; what it gets from them
comes on those that they dialled. So exactly one connection carries the messages of each direction,
nobody has to agree on which of two to keep when both dial at once, and a connection that stands
says that *we* reach *them*, which is what a sender has to know. (One connection that the lower id
dials would be half as many. But a member that has been away does not know the address of a leader
who joined meanwhile, and would wait for it to dial, as it would wait.) Connections work both ways
all the same: until ours stands, we answer on theirs.

A call to an address, for who is no member yet, has a connection of its own.

Not here: what messages mean, and who is a member. `admits` says whom we talk to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lb.config.addresses import BadAddressError, backend_address
from lb.control.peer_connection import (
    CallRefused,
    PeerConnection,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    Plain,
    State,
)
from lb.control.peer_copies import Copies
from lb.control.peer_entrance import Entrance, is_loopback
from lb.control.peer_handshake import (
    BOOT_BYTES,
    NONCE_BYTES,
    PROTOCOL,
    Answerer,
    Claim,
    Dialer,
    Mode,
    Ourselves,
    Purpose,
    Refusal,
)
from lb.control.peer_security import Security
from lb.errors import AccordError, OperatorError
from lb.raft.codec import BadMessageError, ends_of

__all__ = [
    "PROTOCOL",
    "CallRefused",
    "Claim",
    "Method",
    "PeerRefused",
    "PeerStanding",
    "PeerTimeout",
    "PeerUnreachable",
    "Peers",
    "Plain",
    "Security",
]

log = logging.getLogger(__name__)

Method = Callable[[Claim, Plain], Awaitable[Plain]]

OPEN_METHODS: Final = frozenset({"who", "join", "invite"})  # For who is no member of our group.
DIAL_SECONDS: Final = 2.0  # To connect, shake hands and be ready.
CALLERS_MAX: Final = 64  # Connections made for a call or two.
RUNNING_MAX: Final = 256  # Calls that we carry out at a time.
RUNNING_SECONDS: Final = 60.0
SAID_MAX: Final = 1024  # Causes that were logged and are not logged again.
LOOK: Final = 0.25  # Seconds from look to look at all connections.
PING: Final = 0.5
SILENCE: Final = 1.7  # With a look, that is noticed within two seconds.
STUCK_SECONDS: Final = 5.0
LINGER: Final = 1.0  # For what was sent last.
RETRY_FIRST: Final = 0.05
RETRY_MAX: Final = 1.0
STOOD: Final = 5.0  # After that a connection was a good one: the next may follow soon.
FILES_EVERY: Final = 2.0  # Seconds from look to look at certificates,
FILES_LOOKS: Final = 5  # after so many of which somebody is told that they are no good.


@dataclass(frozen=True, slots=True)
class PeerStanding:
    """A member that we can send to. Times are on the loop's clock, which is monotonic."""

    name: str
    version: str
    build: str
    level: int
    protocol: tuple[int, int]
    last_heard: float
    rtt: float


@dataclass(slots=True)
class _Link:
    """A member to be connected to, and how that goes."""

    member: int
    name: str
    address: str
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    connection: PeerConnection | None = None
    nudge: asyncio.Event = field(default_factory=asyncio.Event, repr=False)


class Peers:
    """
    All connections of this instance to others of its group.

    `claim` is asked for each handshake; when group or member in it change, connections that were
    made under the old one are made again. `hear` is called with a member's id and a message's
    bytes, for all messages of one read in one turn; an AccordError from it ends the connection.
    `admits` says why a peer is refused, or "". Make it in a running loop.
    """

    def __init__(
        self,
        claim: Callable[[], Claim],
        security: Security,
        hear: Callable[[int, bytes], None],
        methods: Mapping[str, Method],
        admits: Callable[[Claim], str],
        rng: random.Random | None = None,
    ) -> None:
        self._claim = claim
        self._security = security
        self._hear = hear
        self._methods = methods
        self._admits = admits
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()
        self._boot = os.urandom(BOOT_BYTES)
        self.copies = Copies(self._loop.time)
        self._entrance = Entrance(security, self._answer_from, self._say)
        self._links: dict[int, _Link] = {}
        self._answered: dict[int, PeerConnection] = {}  # The newest that each member dialled.
        self._ways: dict[int, PeerConnection] = {}  # What `send` uses.
        self._all: set[PeerConnection] = set()
        self._expected: dict[PeerConnection, tuple[int, str]] = {}  # Whom we dialled.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running = 0
        self._said: dict[tuple[str, str], None] = {}
        self._refusals: dict[int, PeerRefused] = {}
        self._looked_at = self._loop.time()
        self._pinged_at = self._looked_at
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(LOOK, self._look)
        if security.mode is Mode.TLS:
            self._start(self._watch_files())

    # What a replica and a controller call

    @property
    def connected(self) -> Mapping[int, PeerStanding]:
        """The members that we can send to now."""
        return {member: self._standing(member, way) for member, way in self._ways.items()}

    @property
    def refusals(self) -> Mapping[int, PeerRefused]:
        """Why members to meet refuse us, in their own words, each proved to be that member's."""
        return {member: why for member, why in self._refusals.items() if member in self._links}

    async def open(self, sock: socket.socket) -> None:
        """Serve on a listening socket, which is ours from now on."""
        self._entrance.open(sock)

    async def close(self) -> None:
        """Let go of everything, and return when it is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._entrance.close()
        leaving = [*self._tasks, *(link.task for link in self._links.values() if link.task)]
        self._links.clear()
        for task in leaving:
            task.cancel()
        for connection in list(self._all):
            connection.abort()
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.gather(*[connection.over for connection in self._all])
        self._all.clear()

    def meet(self, members: Mapping[int, tuple[str, str]]) -> None:
        """Be connected to these (id -> name, address) and to nobody else from now on."""
        for member in list(self._links):
            link = self._links[member]
            if members.get(member) != (link.name, link.address):
                self._drop(link)
        for member, (name, address) in members.items():
            if member not in self._links:
                link = self._links[member] = _Link(member, name, address)
                link.task = self._loop.create_task(self._keep(link))
        for connection in list(self._all):
            self._review(connection)

    def send(self, to: int, data: bytes) -> bool:
        """Send a message of Raft's. False: there is no way, or too much waits on it already."""
        way = self._ways.get(to)
        return way is not None and way.send(data)

    async def call(self, to: int | str, method: str, params: Plain, seconds: float) -> Plain:
        """
        Have a member, by its id, or whoever is at an address, carry out a method.

        PeerUnreachable: there is no way; `sent` says whether it may have been carried out all the
        same. PeerRefused: it will not, or will not talk to us. PeerTimeout: nobody knows.
        """
        try:
            async with asyncio.timeout(seconds):
                if isinstance(to, str):
                    return await self._call_address(to, method, params)
                way = self._ways.get(to)
                if way is None:
                    raise PeerUnreachable(f"no connection to {self._name_of(to)}")
                return await way.call(method, params)
        except TimeoutError:
            who = to if isinstance(to, str) else self._name_of(to)
            raise PeerTimeout(f"{who} did not answer {method} within {seconds:g} s") from None

    # What connections call

    def made(self, connection: PeerConnection) -> None:
        """Keep a connection until it is over."""
        self._all.add(connection)
        connection.over.add_done_callback(lambda _: self._gone(connection))

    def admit(self, connection: PeerConnection) -> None:
        """Judge a peer whose proof fitted."""
        peer, ours = connection.peer, connection.ours
        expected = self._expected.get(connection)
        if expected is not None and (peer.member, peer.name) != expected:
            member, name = expected
            if peer.name == name and not peer.is_member:
                raise Refusal("no-member", f"{name} is about to join")
            raise Refusal(
                "somebody-else",
                f"{connection.where} is {peer.name}, id {peer.member:x}, "
                f"and should be {name}, id {member:x}",
            )
        if why := self._admits(peer):
            raise Refusal("not-admitted", why)
        if connection.purpose is Purpose.LINK and not connection.of_one_group:
            if ours.is_member and peer.is_member:
                raise Refusal(
                    "other-group",
                    f"{peer.name} is of group {peer.group}, {ours.name} of group {ours.group}",
                    "to move an instance, stop it, remove raft/ in its data_dir and start it again",
                )
            raise Refusal("no-member", f"{(ours if peer.is_member else peer).name} has not joined")
        if self._is_second(connection):
            raise self.copies.refuse(peer.name)
        callers = sum(each.purpose is Purpose.CALLS and not each.dialled for each in self._all)
        if not connection.dialled and connection.purpose is Purpose.CALLS and callers > CALLERS_MAX:
            raise Refusal("busy", f"{CALLERS_MAX} others ask already")

    def _is_second(self, connection: PeerConnection) -> bool:
        """Whether the member that dials us runs where it should be, and is another process."""
        link = self._links.get(connection.peer.member)
        way = None if link is None or connection.dialled else link.connection
        alive = way is not None and self._loop.time() - way.last_byte < 2 * PING
        return alive and way is not None and way.boot != connection.boot

    def opened(self, connection: PeerConnection) -> None:
        """Use a connection from now on."""
        member = connection.peer.member
        if connection.purpose is not Purpose.LINK:
            return
        link = self._links.get(member)
        if connection.dialled:
            self._refusals.pop(member, None)
            if link is not None:
                link.connection = connection
                if (answered := self._answered.get(member)) and answered.boot != connection.boot:
                    answered.end()  # It restarted, or is a copy, which is told when it returns.
                log.info("connected to %s at %s", connection.peer.name, link.address)
        else:
            before = self._answered.get(member)
            self._answered[member] = connection
            if before is not None:
                before.end()  # It restarted, or found that connection dead before we did.
            if link is not None and link.connection is None:
                link.nudge.set()  # It is there: no reason to wait any longer.
        self._choose(member)

    def heard(self, connection: PeerConnection, data: bytes) -> None:
        """Hand on a message that is from whom the connection is, and for us."""
        if connection.purpose is not Purpose.LINK:
            raise BadMessageError("a message of Raft's on a connection for calls")
        if ends_of(data) != (connection.peer.member, connection.ours.member):
            raise BadMessageError("a message in another member's name, or for another")
        self._hear(connection.peer.member, data)

    def called(self, connection: PeerConnection, number: int, method: str, params: Plain) -> None:
        """Start to carry out a call."""
        if method not in OPEN_METHODS and not connection.of_one_group:
            detail = f"{method} is for members of the group"
            connection.fail_call(number, CallRefused("not-a-member", detail))
        elif method not in self._methods:
            detail = f"{connection.ours.name} does not know {method[:64]!r}"
            connection.fail_call(number, CallRefused("unknown-method", detail))
        elif self._running >= RUNNING_MAX:
            detail = f"{RUNNING_MAX} calls are being carried out already"
            connection.fail_call(number, CallRefused("busy", detail, "try again"))
        else:
            self._running += 1
            task = self._start(self._run(connection, number, method, params))
            task.add_done_callback(lambda done: self._ran(done, connection, number, method))

    def ended(self, connection: PeerConnection, reason: Refusal | None) -> None:
        """Do without a connection."""
        if reason is not None:
            self._tell(connection, reason)
            if reason.heard and connection.proved and connection.peer.member in self._links:
                why = PeerRefused(reason.code, reason.message, reason.hint)
                self._refusals[connection.peer.member] = why
        if not connection.greeted:
            return
        member = connection.peer.member
        link = self._links.get(member)
        if link is not None and link.connection is connection:
            link.connection = None
            if reason is None:
                log.info("the connection to %s ended", link.name)
        if self._answered.get(member) is connection:
            del self._answered[member]
        self._choose(member)

    # Dialling

    async def _keep(self, link: _Link) -> None:
        """Be connected to one member, always."""
        pause = RETRY_FIRST
        while True:
            try:
                async with asyncio.timeout(DIAL_SECONDS):
                    expected = link.member, link.name
                    connection = await self._dial(link.address, Purpose.LINK, expected)
            except TimeoutError:
                self._cannot(link, f"{link.address}: no answer")
            except (PeerUnreachable, OperatorError) as error:
                self._cannot(link, error.message)
            except PeerRefused:
                pass  # `ended` has told, or it was none of anybody's business.
            else:
                await asyncio.shield(connection.finished)
                if connection.ended_at - connection.born >= STOOD:
                    pause = RETRY_FIRST
            link.nudge.clear()
            try:
                async with asyncio.timeout(pause * self._rng.uniform(0.5, 1.0)):
                    await link.nudge.wait()
            except TimeoutError:
                pause = min(2 * pause, RETRY_MAX)

    async def _dial(
        self, address: str, purpose: Purpose, expected: tuple[int, str] | None = None
    ) -> PeerConnection:
        """Connect and shake hands. PeerUnreachable, PeerRefused, or OperatorError."""
        why = PeerUnreachable(f"{address} has no address")
        for host, port in await self._resolve(address):
            connection = self._make(Dialer, purpose, address)
            if expected is not None:
                self._expected[connection] = expected
            try:
                await self._connect(connection, host, port)
            except OSError as error:
                why = PeerUnreachable(f"{address}: {error.strerror or error}")
                if isinstance(error, ssl.SSLError):  # Nobody waits this out: it is to be seen.
                    self._say("tls", address, f"no TLS with {address}: {error.strerror or error}")
                continue
            if connection.state is State.OPEN:
                return connection
            reason = connection.reason
            if reason is not None:
                raise PeerRefused(reason.code, reason.message, reason.hint)
            why = PeerUnreachable(f"{address} closed the connection")
            if purpose is Purpose.CALLS and self._security.mode is not Mode.TLS:
                self._say("closed", address, f"{address} says nothing: has it `group.tls`?")
        raise why

    async def _connect(self, connection: PeerConnection, host: str, port: int) -> None:
        """Return when a connection is open or over. OSError: it could not be made."""
        connected = False
        try:
            await self._loop.create_connection(
                lambda: connection, host, port, ssl=self._security.client
            )
            connected = True
            await asyncio.shield(connection.opening)
        finally:
            if not connected:
                connection.give_up()
                self._expected.pop(connection, None)
            elif connection.state is State.GREETING:
                connection.abort()

    async def _resolve(self, address: str) -> list[tuple[str, int]]:
        try:
            place = backend_address(address)
        except BadAddressError as error:
            raise PeerUnreachable(str(error)) from None
        try:
            infos = await self._loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PeerUnreachable(f"{place.host}: {error.strerror or error}") from None
        found = [(host, place.port) for host in dict.fromkeys(str(info[4][0]) for info in infos)]
        if self._security.mode is Mode.NONE and not all(is_loopback(host) for host, _ in found):
            raise OperatorError(
                f"{address} is beyond this machine, and there is neither TLS nor a secret",
                "set `group.tls` or `group.secret`",
            )
        return found

    async def _call_address(self, address: str, method: str, params: Plain) -> Plain:
        connection = await self._dial(address, Purpose.CALLS)
        try:
            return await connection.call(method, params)
        finally:
            connection.end()

    def _make(
        self, kind: type[Dialer] | type[Answerer], purpose: Purpose, where: str
    ) -> PeerConnection:
        security = self._security
        nonce = os.urandom(NONCE_BYTES)
        ours = Ourselves(self._claim(), security.mode, security.secrets, self._boot, nonce)
        return PeerConnection(self, kind(ours), purpose, where)

    def _answer_from(self, host: str) -> PeerConnection:
        return self._make(Answerer, Purpose.LINK, host)

    def _gone(self, connection: PeerConnection) -> None:
        self._all.discard(connection)
        self._expected.pop(connection, None)

    # Methods

    async def _run(
        self, connection: PeerConnection, number: int, method: str, params: Plain
    ) -> None:
        try:
            async with asyncio.timeout(RUNNING_SECONDS):
                result = await self._methods[method](connection.peer, params)
        except CallRefused as refused:
            connection.fail_call(number, refused)
        except AccordError as error:
            connection.fail_call(number, CallRefused("failed", error.message, error.hint))
        except TimeoutError:
            connection.fail_call(number, CallRefused("slow", f"{method} took too long"))
        else:
            connection.answer(number, result)

    def _ran(
        self, done: asyncio.Task[None], connection: PeerConnection, number: int, method: str
    ) -> None:
        self._running -= 1
        if not done.cancelled() and (bug := done.exception()) is not None:
            log.error("%s of a peer failed; this is a bug", method, exc_info=bug)
            connection.fail_call(number, CallRefused("bug", f"{method} failed; see the log"))

    # Watching

    def _look(self) -> None:
        """See who is silent, stuck or over; time in which we stood still is not counted."""
        now = self._loop.time()
        before, self._looked_at = self._looked_at, now
        away = max(0.0, now - before - LOOK)
        self._timer = self._loop.call_later(LOOK, self._look)
        pings = now - self._pinged_at >= PING - LOOK / 2
        if pings:
            self._pinged_at = now
        claim = self._claim()
        for connection in list(self._all):
            if away > LOOK:
                connection.last_byte = min(now, connection.last_byte + away)
            if connection.state is State.CLOSED:
                if now - connection.ended_at > LINGER:
                    connection.abort()
            elif connection.state is State.OPEN:
                if before < connection.born + STOOD <= now:
                    # Who dials us may share its host with a stranger, of whom all is told.
                    self._forget_said(connection.peer.name, connection.where * connection.dialled)
                self._watch(connection, now, claim)
                way = self._ways.get(connection.peer.member)
                if pings and (connection.dialled or way is connection):
                    connection.ping()  # One side's show both that the other is there.

    def _watch(self, connection: PeerConnection, now: float, claim: Claim) -> None:
        ours, name = connection.ours, connection.peer.name
        if now - connection.last_byte > SILENCE:
            self._say(
                "silent", name, f"{name} has been silent for {now - connection.last_byte:.1f} s"
            )
            connection.abort()
        elif connection.stuck_for(now) > STUCK_SECONDS:
            self._say("stuck", name, f"{name} does not read what we send")
            connection.abort()
        elif (ours.group, ours.member) != (claim.group, claim.member) or (
            connection.secret is not None and connection.secret not in self._security.secrets
        ):
            connection.end()  # Made under what we are no more; who dialled it does so again.

    async def _watch_files(self) -> None:
        """Take up new certificates by themselves; connections that stand are left alone."""
        bad = 0
        while True:
            await asyncio.sleep(FILES_EVERY)
            try:
                changed = await asyncio.to_thread(self._security.reload)
            except OperatorError as error:
                bad += 1
                if bad == FILES_LOOKS:  # Somebody may be in the middle of replacing them.
                    log.warning("the group's TLS stays as it was: %s", error.brief)
                continue
            bad = 0
            if changed:
                log.info("the group's certificates were read again")

    def _review(self, connection: PeerConnection) -> None:
        """Ask again whether we want to know a peer: members change."""
        if connection.proved and (why := self._admits(connection.peer)):
            connection.refuse(Refusal("not-admitted", why))

    # What all of it needs

    def _choose(self, member: int) -> None:
        """Settle which connection carries what we send to a member."""
        link = self._links.get(member)
        way = None if link is None else link.connection
        way = way or self._answered.get(member)
        if way is None or way.state is not State.OPEN:
            self._ways.pop(member, None)
        else:
            self._ways[member] = way

    def _drop(self, link: _Link) -> None:
        del self._links[link.member]
        if link.task is not None:
            self._tasks.add(link.task)
            link.task.add_done_callback(self._tasks.discard)
            link.task.cancel()
        if link.connection is not None:
            link.connection.end()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _standing(self, member: int, way: PeerConnection) -> PeerStanding:
        other = self._answered.get(member)
        heard = max(way.last_heard, other.last_heard if other is not None else 0.0)
        peer = way.peer
        return PeerStanding(
            peer.name, peer.version, peer.build, peer.level, peer.protocol, heard, way.rtt
        )

    def _name_of(self, member: int) -> str:
        link = self._links.get(member)
        return link.name if link is not None else f"member {member:x}"

    # Telling, once for each cause and peer

    def _cannot(self, link: _Link, why: str) -> None:
        self._say("unreachable", link.name, f"cannot reach {link.name}: {why}")

    def _tell(self, connection: PeerConnection, reason: Refusal) -> None:
        if reason.code == "no-member":
            return
        # Before a proof a name is only a word, and one can make up many.
        said = connection.peer.name if connection.greeted else ""
        who = said if connection.proved else connection.where
        shown = who if who == said or not said else f"{who}, which says it is {said}"
        text = f"{shown} {'refuses us' if reason.heard else 'is refused'}: {reason.message}"
        self._say(reason.code, who, text + (f" ({reason.hint})" if reason.hint else ""))

    def _say(self, cause: str, who: str, text: str) -> None:
        if (cause, who) in self._said:
            return
        if len(self._said) >= SAID_MAX:
            del self._said[next(iter(self._said))]
        self._said[cause, who] = None
        log.warning("%s", text)

    def _forget_said(self, *who: str) -> None:
        """All has been well for a while: what comes next is news again."""
        for key in [key for key in self._said if key[1] in who]:
            del self._said[key]
