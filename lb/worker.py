"""One worker: serves clients by the newest edition it got, on the sockets it was given.

It obeys the supervisor's channel and takes editions from the controller's stream. Without
either controller or new editions it serves on by what it has. When the supervisor is gone
it accepts nobody any more, finishes what runs and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import sys
from collections import deque

from lb import child, daemonlog, link
from lb.build import BUILD
from lb.child import Post
from lb.edition import Assembly, Change, unpack
from lb.link import Frame, Message, Stream
from lb.metrics import Meters
from lb.proxy.listener import Listeners
from lb.proxy.shared_table import SharedTables
from lb.proxy.switchboard import Switchboard
from lb.proxy.tls_contexts import quiet_names

log = logging.getLogger(__name__)

GC_AFTER_OBJECTS = 50_000
MESSAGES_MAX = 1024  # From the supervisor and not yet obeyed.
FRAMES_MAX = 65_536  # Received and not yet decoded; the publisher has two editions on their way.

Queue = tuple[str, int]  # An address as the config writes it, and the slot whose queue it is.


class Worker:
    """All of one worker; `main` lives as long as the process."""

    def __init__(self, slot: int) -> None:
        self._slot = slot
        self._inbox: asyncio.Queue[tuple[Message, list[int]]] = asyncio.Queue(MESSAGES_MAX)
        self._held: dict[Queue, socket.socket] = {}  # Given to us, and not opened.
        self._open: set[Queue] = set()
        self._leaving: dict[Queue, bool] = {}  # Whether it is closed for good.
        self._wanted: frozenset[str] = frozenset()  # The addresses of the newest edition.
        self._frames: deque[Frame] = deque()
        self._assembly = Assembly()
        self._said_live = 0
        self._serving = False
        self._switchboard: Switchboard | None = None  # None until we are welcomed,
        self._meters: Meters | None = None  # as this is.
        self._stream: Stream | None = None
        self._drain = 0.0  # Seconds for what runs when nobody says how many.
        self._end: float | None = None  # The same, once this worker is to end.

    async def main(self, fd: int) -> int:
        """Do what the supervisor says until that is to end; return the exit status."""
        self._loop = asyncio.get_running_loop()
        self._hurry = asyncio.Event()
        self._post = Post(
            fd, self._told, self._orphaned, self._take_asked, self._show_lag, role="worker"
        )
        while self._end is None:
            message, fds = await self._inbox.get()
            await self._obey(message, fds)
            await self._tend_queues()
        if self._stream is not None:
            self._stream.close()
        if self._switchboard is not None:
            self._switchboard.ready = False
            await self._finish(self._end)
            self._switchboard.close()
        self._post.close()
        return 0

    async def _finish(self, seconds: float) -> None:
        """Accept no more and let what runs end, until it must or we are told to hurry."""
        draining = self._loop.create_task(self._listeners.drain(seconds))
        hurrying = self._loop.create_task(self._hurry.wait())
        await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if draining.done():
            draining.result()
        else:
            draining.cancel()

    # The supervisor's channel

    def _told(self, message: Message, fds: list[int]) -> None:
        if message["kind"] == "stop":
            self._hurry.set()
        self._inbox.put_nowait((message, fds))

    def _orphaned(self) -> None:
        log.warning("the supervisor is gone: accepting no more, what runs is finished")
        # A new supervisor wants our ports now, not after what stands in the inbox.
        self._inbox.put_nowait(({"kind": "drain", "seconds": self._drain}, []))

    async def _obey(self, message: Message, fds: list[int]) -> None:
        """Do one thing that the supervisor said."""
        await {
            "welcome": self._begin,
            "sockets": self._take_sockets,
            "return": self._give_back,
            "forget": self._forget,
            "link": self._open_stream,
            "settings": self._take_settings,
            "unready": self._fail_readiness,
            "drain": self._start_drain,
            "stop": self._stop,
            "reopen": self._reopen,
            "edition": self._take_edition,
            "tend": self._do_nothing,
        }[message["kind"]](message, fds)

    async def _take_settings(self, message: Message, _: list[int]) -> None:
        self._drain = message["drain"]
        daemonlog.adopt(message["log"])

    async def _take_edition(self, _: Message, fds: list[int]) -> None:
        """Serve by this edition, from the program before ours: our controller is not up yet."""
        edition = unpack(link.unseal(fds[0]))
        link.close_all(fds)
        if self._stream is None and edition.number > self._assembly.number:
            self._install(self._assembly.load(edition))

    async def _fail_readiness(self, _: Message, __: list[int]) -> None:
        self._post.beat_now()
        if self._switchboard is not None:
            self._switchboard.ready = False

    async def _start_drain(self, message: Message, _: list[int]) -> None:
        self._end = message["seconds"]

    async def _stop(self, _: Message, __: list[int]) -> None:
        self._end = 0.0

    async def _reopen(self, _: Message, __: list[int]) -> None:
        daemonlog.reopen()
        if self._switchboard is not None:
            self._switchboard.reopen_logs()

    async def _do_nothing(self, _: Message, __: list[int]) -> None:
        """Answer "tend": an edition names other addresses, and `_tend_queues` follows anyway."""

    def _take_asked(self) -> bool:
        if self._switchboard is None:
            return False
        asked, self._switchboard.ready_asked = self._switchboard.ready_asked, False
        return asked

    def _show_lag(self, seconds: float) -> None:
        """Show how late our loop was: what a worker with too much to do looks like."""
        if self._meters is not None:
            slot = self._meters.gauge("lb_worker_loop_lag_seconds", worker=str(self._slot))
            self._meters.view[slot] = max(0, int(seconds * 1e6))

    async def _begin(self, message: Message, fds: list[int]) -> None:
        """Take up what the supervisor keeps for this slot."""
        metrics, edition, tables = fds
        await self._take_settings(message, [])
        self._meters = meters = Meters(metrics)
        switchboard = Switchboard(
            self._loop,
            self._slot,
            message["workers"],
            meters,
            random.Random(),
            SharedTables(tables).table,
        )
        switchboard.ready = not message["stopping"]
        self._switchboard = switchboard
        self._listeners = Listeners(self._loop, switchboard)
        self._install(self._assembly.load(unpack(link.unseal(edition))))
        link.close_all(fds)
        # What lives from here to the end is not worth looking at in each collection, and what
        # a request makes is freed by its counts: 700 objects, the default, are 40 requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_AFTER_OBJECTS)

    # Queues

    def _queues(self) -> set[Queue]:
        return self._open | self._held.keys()

    async def _take_sockets(self, message: Message, fds: list[int]) -> None:
        for (address, slot), fd in zip(message["open"], fds, strict=True):
            assert (address, slot) not in self._held, "the supervisor gives each once"
            self._held[address, slot] = socket.socket(fileno=fd)

    async def _give_back(self, message: Message, _: list[int]) -> None:
        lent = {queue for queue in self._queues() if queue[1] == message["slot"]}
        self._leave(lent, for_good=False)

    async def _forget(self, message: Message, _: list[int]) -> None:
        given, slots = message["given"], message["slots"]
        gone = {queue for queue in self._queues() if queue[0] in message["addresses"]}
        if slots is not None:
            gone = {queue for queue in gone if queue[1] in slots}
        # What a service manager holds is to take clients again one day, ours or another's.
        kept = {queue for queue in gone if queue[0] in given}
        self._leave(gone - kept, for_good=True)
        self._leave(kept, for_good=False)

    def _leave(self, queues: set[Queue], *, for_good: bool) -> None:
        for queue in queues:
            if queue in self._held:
                self._held.pop(queue).close()
            else:
                self._leaving[queue] = for_good

    async def _tend_queues(self) -> None:
        """Close what is to leave, open what the edition names, and say so."""
        while self._leaving:
            queue, for_good = self._leaving.popitem()
            self._open.discard(queue)
            await self._listeners.close(*queue, for_good=for_good)
        for queue in [queue for queue in self._held if queue[0] in self._wanted]:
            await self._listeners.open(*queue, self._held.pop(queue))
            self._open.add(queue)
        self._say_where_we_are()

    def _say_where_we_are(self) -> None:
        """Tell that we serve, and by which edition, once all its addresses are open."""
        if self._switchboard is None or any(
            (address, self._slot) not in self._open for address in self._wanted
        ):
            return
        if not self._serving:
            self._serving = True
            self._post.send("serving")
        if self._stream is not None and self._assembly.number > self._said_live:
            if not self._switchboard.settled:
                # Live is what requests meet: some balancer is made a part at each turn.
                self._loop.call_soon(self._say_where_we_are)
                return
            self._said_live = self._assembly.number
            self._stream.send("live", number=self._said_live)

    # The controller's stream

    async def _open_stream(self, _: Message, fds: list[int]) -> None:
        if self._stream is not None:
            self._stream.close()
        self._frames.clear()  # From a controller that is gone; the next sends what we lack.
        self._stream = await link.open_stream(
            socket.socket(fileno=fds[0]), self._take_frame, self._stream_ended
        )
        assembly = self._assembly
        self._stream.send(
            "hello", slot=self._slot, build=BUILD, number=assembly.number, parts=assembly.digests
        )
        self._said_live = 0
        self._say_where_we_are()
        if self._switchboard is not None:
            self._switchboard.outliers.attach(self._stream.send)

    def _stream_ended(self, stream: Stream) -> None:
        """Decide by ourselves until there is a controller again."""
        if stream is self._stream and self._switchboard is not None:
            self._switchboard.outliers.detach()

    def _take_frame(self, stream: Stream, frame: Frame) -> None:
        if stream is not self._stream:
            return  # From a controller that another has followed.
        assert len(self._frames) < FRAMES_MAX, "a publisher waits until we are live"
        self._frames.append(frame)
        if len(self._frames) == 1:
            self._loop.call_soon(self._next_frame)

    def _next_frame(self) -> None:
        """Take in one frame; requests get their turn before the next."""
        if not self._frames:
            return
        frame = self._frames[0]
        understood = False
        try:
            self._heed(frame)
            understood = True
        finally:
            if not understood and self._stream is not None:
                # Serve on by what we have: the controller sees the end and has us replaced.
                self._frames.clear()
                self._stream.close()
        self._frames.popleft()
        if self._frames:
            self._loop.call_soon(self._next_frame)

    def _heed(self, frame: Frame) -> None:
        match frame.kind:
            case "part":
                self._assembly.put(frame.fields["name"], frame.body)
            case "gone":
                self._assembly.drop(frame.fields["name"])
            case "commit":
                self._install(self._assembly.commit(frame.fields["number"]))
            case "cut":
                assert self._switchboard is not None, "a stream comes after the welcome"
                self._switchboard.cut(**frame.fields)
            case kind:
                log.error("the controller says %r, which is no word of ours", kind)

    def _install(self, change: Change) -> None:
        """Swap to an edition. An address that it left out is closed when we are told to."""
        if change.plans is not None:
            self._wanted = frozenset(
                address for listener in change.plans.listeners for address in listener.addresses
            )
        assert self._switchboard is not None, "an edition comes with the welcome or after it"
        self._switchboard.install(
            change.plans,
            change.upstreams,
            change.verdicts,
            change.material,
            change.ejections,
            change.sources,
        )
        if any(queue[0] in self._wanted for queue in self._held):
            self._inbox.put_nowait(({"kind": "tend"}, []))
        self._say_where_we_are()


def main() -> int:
    """Run one worker."""
    words = child.parse_words(fd=int, slot=int)
    daemonlog.start(f"worker {words.slot}")
    quiet_names()
    return child.main(lambda: Worker(words.slot).main(words.fd))


if __name__ == "__main__":
    sys.exit(main())
