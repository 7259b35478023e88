"""What every child of the supervisor does first, last and each second.

Children share the terminal's process group and hear its signals, which are not for them:
they obey their channel and that channel's end.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import uvloop

from lb.build import BUILD
from lb.errors import OperatorError, UsageError
from lb.link import BEAT, Channel, Message

log = logging.getLogger(__name__)

FOR_THE_SUPERVISOR = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
DESCRIPTORS_MAX = 1_048_576
EXIT_DISK_FAILED = 74  # A controller's, whose log could not be made sure. EX_IOERR of sysexits.h


class Post:
    """
    A child's end of its channel: says hello, beats each second, hands on what it is told.

    `take_asked` says whether anybody asked for readiness since it was last called. `on_beat`
    hears at each beat by how many seconds it was late.
    """

    def __init__(
        self,
        fd: int,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[], None],
        take_asked: Callable[[], bool],
        on_beat: Callable[[float], None] = lambda late: None,
        **hello: Any,
    ) -> None:
        self._take_asked = take_asked
        self._on_beat = on_beat
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(socket.socket(fileno=fd), self._loop, on_message, on_end)
        self._channel.send("hello", build=BUILD, pid=os.getpid(), **hello)
        self._due = self._loop.time() + BEAT
        self._timer = self._loop.call_at(self._due, self._beat)

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Say one thing to the supervisor."""
        self._channel.send(kind, fds, **fields)

    def close(self) -> None:
        """Say nothing more."""
        self._timer.cancel()
        self._channel.close()

    def beat_now(self) -> None:
        """Pass on whether anybody asked for readiness, as a stop wants to know."""
        self._channel.send("beat", asked=self._take_asked(), lag=0.0)

    def _beat(self) -> None:
        lag = self._loop.time() - self._due
        self._on_beat(lag)
        self._channel.send("beat", asked=self._take_asked(), lag=round(lag, 4))
        self._due = self._loop.time() + BEAT
        self._timer = self._loop.call_at(self._due, self._beat)


def refuse_optimised() -> None:
    """Refuse `python -O`: the asserts are part of the program."""
    if not __debug__:
        raise UsageError(
            "python -O takes the asserts out, and Accord relies on them",
            "run without -O and without PYTHONOPTIMIZE",
        )


def take_descriptors() -> None:
    """Raise the limit of open files as far as we may: each client costs one or two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parse_words(**wanted: type) -> argparse.Namespace:
    """Read our command line, which only the supervisor writes."""
    parser = argparse.ArgumentParser(description="Started by `lb run`, never by hand.")
    for name, kind in wanted.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser.parse_args()


def main(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a child's `work` and return its exit status; what went wrong is one line on stderr."""
    for number in FOR_THE_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
    # The supervisor held these back until now, or one could have ended us.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_SUPERVISOR)
    try:
        refuse_optimised()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work())
    except OperatorError as error:
        return tell(error)


def tell(error: OperatorError) -> int:
    """Write what is wrong and its cure on stderr; return the exit status that goes with it."""
    text = error.message
    if "\n" not in text:  # Errors of a config, and only they, have lines and say where they are.
        text = f"lb: {text}"
    if error.hint:
        text = f"{text}\n    {error.hint}"
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return error.exit_status
