"""The network: every pair of members has two links, one each way, with faults of their own.

A message may be late, lost, there twice, or overtaken by a later one. Whatever arrives is
what was sent: between members that check their peers, a changed message is a lost one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lb.raft.messages import Message
from simulator.agenda import SECOND, Agenda
from simulator.plan import Links
from simulator.tally import Tally

HEADER_BYTES = 64


@dataclass(slots=True)
class Link:
    """One direction between two members."""

    cut: int = 0  # How many faults cut it just now: each is healed by itself.
    bandwidth: int = 0  # Bytes a second; 0 has no bound.
    busy_until: int = 0
    newest: int = 0  # When the latest of all messages so far arrives.


class Network:
    """Carries messages. `deliver` is called with each that arrives."""

    def __init__(
        self,
        agenda: Agenda,
        links: Links,
        rng: random.Random,
        tally: Tally,
        deliver: Callable[[Message], None],
    ) -> None:
        self._agenda = agenda
        self._knobs = links
        self._rng = rng
        self._tally = tally
        self._deliver = deliver
        self._links: dict[tuple[int, int], Link] = {}
        self._calm = False

    def link(self, frm: int, to: int) -> Link:
        """Return one direction between two members."""
        link = self._links.get((frm, to))
        if link is None:
            link = self._links[frm, to] = Link()
        return link

    def calm_down(self) -> None:
        """End all faults, for good."""
        self._calm = True
        for link in self._links.values():
            link.cut = link.bandwidth = 0

    def cut(self, pairs: Iterable[tuple[int, int]]) -> Callable[[], None]:
        """Cut links; what is returned heals them."""
        links = [self.link(frm, to) for frm, to in pairs]
        for link in links:
            link.cut += 1

        def heal() -> None:
            for link in links:
                link.cut = max(link.cut - 1, 0)

        return heal

    def send(self, message: Message) -> None:
        """Take a message to be carried, perhaps."""
        link = self.link(message.frm, message.to)
        if link.cut:
            self._tally.fired["message cut off"] += 1
            return
        knobs, rng = self._knobs, self._rng
        delay = knobs.delay_min + int(knobs.delay_spread * rng.random())
        if not self._calm:
            if knobs.loss and rng.random() < knobs.loss:
                self._tally.fired["message lost"] += 1
                return
            if knobs.late and rng.random() < knobs.late:
                self._tally.fired["message late"] += 1
                delay += int(knobs.late_max * rng.random())
            if knobs.duplicate and rng.random() < knobs.duplicate:
                self._tally.fired["message twice"] += 1
                again = delay + int(knobs.late_max * rng.random())
                self._agenda.after(again, self._arrive, link, message)
        if link.bandwidth:
            start = max(link.busy_until, self._agenda.now)
            link.busy_until = start + size_of(message) * SECOND // link.bandwidth
            delay += link.busy_until - self._agenda.now
            self._tally.fired["message on a slow link"] += 1
        when = self._agenda.now + delay
        if when < link.newest:
            if knobs.in_order:
                delay += link.newest - when
            else:
                self._tally.fired["message overtook"] += 1
        else:
            link.newest = when
        self._agenda.after(delay, self._arrive, link, message)

    def _arrive(self, link: Link, message: Message) -> None:
        if link.cut:
            self._tally.fired["message cut off"] += 1
            return
        self._deliver(message)


def size_of(message: Message) -> int:
    """Return about how long a message is on the wire."""
    size = HEADER_BYTES + sum(HEADER_BYTES + len(entry.data) for entry in message.entries)
    return size + (len(message.chunk.data) if message.chunk is not None else 0)


def show(message: Message) -> str:
    """Return a message in one line, without what it does not use."""
    parts = [f"{message.frm}: {message.type.name} term {message.term}"]
    if message.log_index or message.log_term:
        parts.append(f"at {message.log_term}/{message.log_index}")
    if message.entries:
        parts.append(f"entries {[(e.term, e.index) for e in message.entries]}")
    if message.commit:
        parts.append(f"commit {message.commit}")
    if message.reject:
        parts.append(f"no, hint {message.hint_term}/{message.hint_index}")
    if message.chunk is not None:
        parts.append(f"chunk {message.chunk.meta.index} from {message.chunk.offset}")
    return " ".join(parts)
