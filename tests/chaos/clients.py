"""Who uses the group while it is broken: clients that write and read, watchers that follow.

A client makes one call at a time and tries it on one instance after another, a write always
under the same idempotency key, so that it is done at most once. After a while it gives up, and
then does not know the outcome unless every try was refused for certain. Some calls are writes
that replace, some replace only what the client believes to be there, some are reads.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chaos.judging import CALLS_OF_A_KEY_MAX, Told, Watched, note_of
from simulator.histories import NEVER, Call, End, History, Kind

UPSTREAMS = ("u0", "u1", "u2", "u3")
KEYS_AT_A_TIME = 8
# Then the next instance is asked: this one may be held still. The patient are told more often
# why there is no answer.
TRY_SECONDS = (2.5, 7.0)
KINDS = (Kind.READ, Kind.PUT, Kind.CAS, Kind.CAS)
PAUSE_SECONDS = 0.05  # After a try that was refused.
PATIENCE = (2.0, 6.0, 6.0, 20.0)
WATCH_SECONDS = 3.0  # Without a word for so long, a watcher goes elsewhere.
NS = 1_000_000_000

Desk = tuple[str, int]  # An instance's name and admin port.


class Notes:
    """What all clients share: the history, and what they have last seen, to write by."""

    def __init__(self, seed: int, calls_max: int) -> None:
        self.history = History()
        self.counts: Counter[str] = Counter()
        self.surprises: list[str] = []  # Answers that no client should get.
        self.stopping = threading.Event()
        self.calm = threading.Event()  # Faults have ended: nobody gives up any more.
        self._rng = random.Random(seed)
        self._calls_max = calls_max
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, int]] = {}  # Value, and the revision it is of.
        self._of_key: Counter[str] = Counter()
        self._keys: list[str] = []
        self._made = 0

    @property
    def completed(self) -> int:
        """Return how many calls ended with an answer."""
        return self.counts["ok"]

    def think(self, client: int, kinds: Sequence[Kind]) -> tuple[Call, int] | None:
        """Make up a call, with the revision that a CAS is to find; None if there were enough."""
        with self._lock:
            if len(self.history.calls) >= self._calls_max or self.stopping.is_set():
                return None
            key = self._rng.choice(self._open_keys())
            self._of_key[key] += 1
            kind = self._rng.choice(kinds)
            expected, revision = self._seen.get(key, (0, 0))
            number = len(self.history.calls) + 1
            call = Call(client, number, kind, key, time.monotonic_ns(), number, expected)
            self.history.calls.append(call)
            return call, revision

    def told(self, call: Call, end: End, seen: tuple[int, int] | None = None) -> None:
        """Note a call's end, and what its key held."""
        with self._lock:
            if seen is not None and seen[1] >= self._seen.get(call.key, (0, 0))[1]:
                self._seen[call.key] = seen
            self.counts[end.value] += 1
            call.end = end
            call.returned = NEVER if end is End.UNKNOWN else time.monotonic_ns()

    def surprise(self, text: str) -> None:
        """Note an answer that no client should get."""
        with self._lock:
            self.surprises.append(text)

    def _open_keys(self) -> list[str]:
        """Keep so many keys in use that each has few calls, and those close to each other."""
        self._keys = [key for key in self._keys if self._of_key[key] < CALLS_OF_A_KEY_MAX]
        while len(self._keys) < KEYS_AT_A_TIME:
            self._made += 1
            upstream = UPSTREAMS[self._made % len(UPSTREAMS)]
            self._keys.append(f"{upstream}/10.9.{self._made >> 8}.{self._made & 255}:80")
        return self._keys


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of an instance."""

    status: int
    plain: dict[str, Any]
    etag: str


class Client(threading.Thread):
    """
    One client. `consistent` reads ask for what is true now, others for what is known here; of
    clients that ask so, every second one does nothing else, and stays wherever it is answered.
    """

    def __init__(
        self, number: int, desks: Sequence[Desk], notes: Notes, *, consistent: bool = True
    ) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._number = number
        self._desks = desks
        self._notes = notes
        self._consistent = consistent
        self._kinds = KINDS if consistent or number % 2 else (Kind.READ,)
        self._patience = TRY_SECONDS[number % len(TRY_SECONDS)]
        self._rng = random.Random(number)
        self._at = number % len(desks)
        self._connection: http.client.HTTPConnection | None = None
        self._pause = threading.Event().wait

    def run(self) -> None:
        """Make calls until there were enough."""
        try:
            while (thought := self._notes.think(self._number, self._kinds)) is not None:
                self._make(*thought)
                self._pause(0.02 * self._rng.random())
        finally:
            self._leave()

    def _make(self, call: Call, revision: int) -> None:
        notes = self._notes
        give_up = time.monotonic() + self._rng.choice(PATIENCE)
        unsure = False
        while True:
            try:
                said = self._ask(call, revision)
            except (OSError, http.client.HTTPException, ValueError):
                unsure = True
                self._leave()
                self._pause(PAUSE_SECONDS)
            else:
                if said.status in (200, 201, 404, 412):
                    self._take(call, said)
                    return
                if said.status == 504:
                    unsure = True
                    notes.counts["told unknown"] += 1
                elif said.status == 503:
                    notes.counts["told no quorum"] += 1
                else:
                    notes.surprise(f"{call}: {said.status} {said.plain}")
                self._leave()
                self._pause(PAUSE_SECONDS)
            if time.monotonic() > give_up and not notes.calm.is_set():
                wrote = call.kind is not Kind.READ
                notes.told(call, End.UNKNOWN if unsure and wrote else End.FAILED)
                return

    def _take(self, call: Call, said: Said) -> None:
        """Take an answer that decides the call."""
        notes = self._notes
        seen: tuple[int, int] | None = None
        if call.kind is Kind.READ:
            call.revision = said.plain["revision"]
            shown = {each["address"]: each for each in said.plain["backends"]}
            backend = shown.get(call.key.partition("/")[2])
            if backend is not None:
                call.value = int(backend["labels"]["v"])
                seen = call.value, backend["revision"]
        elif said.status in (200, 201):
            call.revision = said.plain["revision"]
            seen = call.put, call.revision
        elif said.status == 412 and call.kind is Kind.CAS:
            call.done = False
            call.revision = said.plain["revision"]
            notes.counts["told no"] += 1
        else:
            notes.surprise(f"{call}: {said.status} {said.plain}")
            notes.told(call, End.FAILED)
            return
        notes.told(call, End.OK, seen)

    def _ask(self, call: Call, revision: int) -> Said:
        upstream, _, backend = call.key.partition("/")
        path = f"/v1/upstreams/{upstream}"
        if call.kind is Kind.READ:
            return self._exchange("GET", path + ("?consistent=true" if self._consistent else ""))
        fields = {"Content-Type": "application/json", "Idempotency-Key": note_of(call)}
        if call.kind is Kind.CAS:
            fields |= {"If-Match": f'"{revision}"'} if revision else {"If-None-Match": "*"}
        body = json.dumps({"state": "disabled", "labels": {"v": str(call.put)}})
        path += f"/backends/{backend}?note={note_of(call)}"
        return self._exchange("PUT", path, body, fields)

    def _exchange(
        self, method: str, path: str, body: str | None = None, fields: dict[str, str] | None = None
    ) -> Said:
        if self._connection is None:
            port = self._desks[self._at][1]
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=self._patience)
        self._connection.request(method, path, body, fields or {})
        answer = self._connection.getresponse()
        return Said(answer.status, json.loads(answer.read()), answer.headers.get("ETag", ""))

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._at = self._rng.randrange(len(self._desks))


class Watcher(threading.Thread):
    """Follows the group's events, now on one instance and now on another, from where it was."""

    def __init__(self, number: int, desks: Sequence[Desk], start: int) -> None:
        super().__init__(name=f"watcher {number}", daemon=True)
        self.watched = Watched(f"watcher {number}", start)
        self.resumed: Counter[str] = Counter()
        self.surprises: list[str] = []
        self._desks = desks
        self._rng = random.Random(number)
        self._goal: int | None = None
        self._over = threading.Event()

    @property
    def newest(self) -> int:
        """Return the last revision that it was told of."""
        told = self.watched.told
        return told[-1].revision if told else self.watched.start - 1

    def finish(self) -> None:
        """Follow no further."""
        self._over.set()

    def run(self) -> None:
        """Follow until told to stop."""
        while not self._over.is_set():
            name, port = self._rng.choice(self._desks)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WATCH_SECONDS)
            try:
                self._follow(name, connection)
            except (OSError, http.client.HTTPException):
                self.resumed["after an error"] += 1
            finally:
                connection.close()
            self._over.wait(PAUSE_SECONDS)

    def _follow(self, name: str, connection: http.client.HTTPConnection) -> None:
        fields = {"Last-Event-ID": str(self.newest)}
        connection.request("GET", "/v1/events", headers=fields)
        answer = connection.getresponse()
        if answer.status != 200:
            text = answer.read().decode()
            if answer.status == 503:
                self.resumed["refused"] += 1
            elif answer.status == 410:  # It has started since, and remembers nothing before.
                self.resumed["compacted"] += 1
            else:
                self.surprises.append(f"{name} from {self.newest}: {answer.status} {text}")
            return
        while not self._over.is_set():
            frame = read_frame(answer.readline)
            if frame is None:
                self.resumed["ended"] += 1
                return
            if (told := told_in(frame)) is not None:
                self.watched.told.append(told)


def told_in(frame: dict[str, str]) -> Told | None:
    """Return what an event tells of its revision; None if it is no more than a bookmark."""
    if "id" not in frame or frame.get("event") in ("bookmark", "created", "closed"):
        return None
    data = json.loads(frame["data"])
    by = data.get("by") or {}
    keys = tuple(f"{change['upstream']}/{change['key']}" for change in data["changes"])
    return Told(int(frame["id"]), by.get("note") or "", keys)


def read_frame(readline: Callable[[], bytes]) -> dict[str, str] | None:
    """Read one server-sent event, comments passed over; None when the stream ended."""
    frame: dict[str, str] = {}
    while line := readline():
        text = line.decode().rstrip("\r\n")
        if not text:
            if frame:
                return frame
            continue
        name, _, value = text.partition(":")
        if name:
            value = value.removeprefix(" ")
            frame[name] = f"{frame[name]}\n{value}" if name in frame else value
    return None
