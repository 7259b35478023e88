"""Clients that ask at a steady pace and keep what became of each request."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PATIENCE = 15.0  # Longer than the proxy's own bounds, so that it is the proxy that answers.
FAILURES_KEPT = 10_000


@dataclass(frozen=True)
class Failure:
    """A request that got no good answer: when it ran, and what there was instead."""

    began: float
    ended: float
    method: str
    kind: str  # A status, `closed`, `refused`, or `late`.


@dataclass
class Tally:
    """What one client has seen. One thread writes."""

    done: int = 0
    took: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Client(threading.Thread):
    """One of them: every `pace` seconds a request, by its own connection or a fresh one."""

    def __init__(
        self,
        port: int,
        pace: float,
        *,
        method: str = "GET",
        fresh: bool = False,
        times: bool = False,
    ) -> None:
        super().__init__(name=f"{method} {'fresh' if fresh else 'kept'}")
        self.tally = Tally()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._pace, self._method, self._fresh, self._times = pace, method, fresh, times
        self._over = threading.Event()

    def run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pace, time.monotonic() - 1.0)  # What was missed is not made up.
            began = time.monotonic()
            kind = self._ask()
            ended = time.monotonic()
            self.tally.done += 1
            if self._times:
                self.tally.took.append(ended - began)
            if kind and len(self.tally.failures) < FAILURES_KEPT:
                self.tally.failures.append(Failure(began, ended, self._method, kind))
        self._connection.close()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self.join(2 * PATIENCE)

    def _ask(self) -> str:
        body = b"x" * 2000 if self._method == "POST" else None
        try:
            self._connection.request(self._method, "/", body)
            answer = self._connection.getresponse()
            answer.read()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            self._connection.close()
            return "late"
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return "closed"
        if self._fresh:
            self._connection.close()
        return "" if answer.status == 200 else str(answer.status)


def pass_time(seconds: float) -> None:
    """Let others work for so long: here that is what is measured."""
    threading.Event().wait(seconds)


@contextmanager
def asking(clients: list[Client]) -> Iterator[list[Client]]:
    """Have clients ask for the time of the block."""
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stop()
