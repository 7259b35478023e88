"""Starting child processes, noticing how they are, and how soon to try again."""

from __future__ import annotations

import asyncio
import os
import signal
import site
import subprocess
import sys
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from lb import link
from lb.child import FOR_THE_SUPERVISOR
from lb.link import Channel, Message

STEADY = 10.0  # Seconds that a child must have lived for its end not to count as a crash loop.
FIRST_WAIT = 0.1
LONGEST_WAIT = 30.0
SILENT_AFTER = 10.0  # Seconds without a beat after which a child hangs, and is no use to anybody.
SPEAKER_LATE = 3.0  # Seconds between two beats of one that judges others: more, and it cannot.
LOST_PATIENCE = 1.0  # Seconds from the end of a child's channel, which is mostly its own end.


class Standing(Enum):
    """How far a child has come."""

    STARTED = "started"
    GREETED = "greeted"  # It said hello,
    WELCOMED = "welcomed"  # and got all that it needs.
    SERVING = "serving"  # A worker that accepts clients.


class Beating(Protocol):
    """What is known of a child's beats."""

    @property
    def welcomed(self) -> bool:
        """Return whether it is up."""
        ...

    @property
    def beat_at(self) -> float:
        """Return when it last beat."""
        ...


B = TypeVar("B", bound=Beating)


class Backoff:
    """How long to wait before the next start: nothing at first, ever longer in a crash loop."""

    def __init__(self) -> None:
        self.crashes = 0  # Ends in a row, each soon after its start.

    def wait_after(self, lived: float) -> float:
        """Return the wait after a child that lived so many seconds has ended."""
        if lived >= STEADY:
            self.crashes = 0
        self.crashes += 1
        if self.crashes == 1:
            return 0.0
        return min(FIRST_WAIT * 2.0 ** min(self.crashes - 2, 16), LONGEST_WAIT)


class Child:
    """One running child process and the channel to it."""

    def __init__(
        self,
        name: str,
        words: list[str],
        on_message: Callable[[Child, Message, list[int]], None],
        on_end: Callable[[Child], None],
    ) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self.started = self.loop.time()
        self.standing = Standing.STARTED
        self.beat_at = self.started
        self._on_end = on_end
        ours, theirs = link.make_channel()
        self._process = _start([*words, "--fd", str(theirs.fileno())], theirs.fileno())
        theirs.close()
        self._pidfd = os.pidfd_open(self._process.pid)
        self.loop.add_reader(self._pidfd, self._ended)
        self.channel = Channel(
            ours,
            self.loop,
            lambda message, fds: on_message(self, message, fds),
            self._lost,
        )

    @property
    def welcomed(self) -> bool:
        """Return whether it can be told things."""
        return self.standing in (Standing.WELCOMED, Standing.SERVING)

    @property
    def serving(self) -> bool:
        """Return whether it is a worker that accepts clients."""
        return self.standing is Standing.SERVING

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def end_in_words(self) -> str:
        """Say how it ended."""
        status = self._process.returncode
        assert status is not None, "it has ended"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def kill(self) -> None:
        """End it now, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()

    def _lost(self) -> None:
        """End a child that closed its channel, or reads it no more: nobody can steer it."""
        self.loop.call_later(LOST_PATIENCE, self.kill)

    def _ended(self) -> None:
        self.loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.channel.close()
        self._on_end(self)


def silent(children: Iterable[B], speaker: Beating, now: float) -> list[B]:
    """
    Return those that have not beaten for too long, now that `speaker` beats.

    Nobody is where the speaker is late itself: then the machine stood still, and not they.
    """
    if now - speaker.beat_at > SPEAKER_LATE:
        return []
    return [
        each
        for each in children
        if each is not speaker and each.welcomed and now - each.beat_at > SILENT_AFTER
    ]


def _start(words: list[str], fd: int) -> subprocess.Popen[bytes]:
    """Start a child that inherits `fd`, of the package that we run ourselves."""
    # Held back until the child ignores them: in between they would end it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_SUPERVISOR)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def environment() -> dict[str, str]:
    """Return ours, and where the package is: `-m` would look into the working folder first."""
    words = {**os.environ, "PYTHONSAFEPATH": "1"}
    root = str(Path(__file__).parent.parent)
    if root not in (*site.getsitepackages(), site.getusersitepackages()):
        rest = words.get("PYTHONPATH")
        words["PYTHONPATH"] = f"{root}{os.pathsep}{rest}" if rest else root
    return words
