"""
Who reads configurations for the controller, which has leases and probes to attend to meanwhile.

The process `lb.config.parse` is kept from one file to the next: what it imports costs some
hundred milliseconds of CPU, which workers would miss at each reload.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, Protocol

from lb.build import BUILD
from lb.config.load import ConfigErrors, Loaded
from lb.config.parse import PARSE_SECONDS_MAX, SAID_BYTES_MAX, ask, loaded_from_plain
from lb.errors import OperatorError, OurError

# A reload may take a moment longer where workers need the CPU for those they serve. Measured on
# two cores, by turns, the median of what was asked during a reload: 2.1 ms as it is, 1.4 with 5,
# 1.2 with 10. Its p99 shows nothing that neighbours do not hide. On a machine that is full a
# reload takes 3.6 s, 4.4 and 6.7.
NICER = 5


class ParserProcess(Protocol):
    """What is needed of a process: `subprocess.Popen` and `config.parse.Forked` have it."""

    pid: int

    @property
    def stdin(self) -> IO[bytes] | None: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    @property
    def stderr(self) -> IO[bytes] | None: ...
    def poll(self) -> object: ...
    def kill(self) -> None: ...
    def wait(self) -> object: ...


class Parser:
    """
    Reads one file, as often as it is asked to, one at a time.

    `first` is a process that is there already, and has been asked once.
    """

    def __init__(self, path: str, first: ParserProcess | None = None) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._process = first
        self._answers: asyncio.StreamReader | None = None
        self._pipe: asyncio.BaseTransport | None = None
        self._owed = 0 if first is None else 1  # Answers to come that nobody waits for yet.
        if first is not None:
            _be_nicer(first.pid)

    async def parse(self, *, at_start: bool = False) -> Loaded:
        """
        Load the configuration. Raises what `config.load.load` raises.

        `at_start` makes do with what the file said when this process began.
        """
        async with self._turn:
            whole = False
            try:
                async with asyncio.timeout(PARSE_SECONDS_MAX):
                    loaded = await self._ask(at_start=at_start)
                whole = True
            except ConfigErrors:
                whole = True
                raise
            except TimeoutError:
                raise OperatorError(
                    f"{self._path} was not parsed within {PARSE_SECONDS_MAX:.0f} s",
                    "make it simpler",
                ) from None
            finally:
                if not whole:  # It may be in the midst of an answer that nobody waits for.
                    self.close()
        return loaded

    async def _ask(self, *, at_start: bool) -> Loaded:
        process = self._process
        if process is None or process.poll() is not None:
            self.close()
            process = self._process = _started()
        if self._answers is None:
            await self._listen(process)
        try:
            if not (at_start and self._owed):
                assert process.stdin is not None, "a pipe to it"
                ask(process.stdin, self._path)
                self._owed += 1
            answer = b""
            while self._owed:
                answer = await self._next_answer()
                self._owed -= 1
            plain = json.loads(answer)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            raise _died(_last_words(process)) from None
        if plain["build"] != BUILD:
            raise OperatorError(
                "the lb on disk is not the one that runs", "run the new one with `lb upgrade`"
            )
        if "died" in plain:
            raise _died(plain["died"])
        if "errors" in plain:
            raise ConfigErrors.from_plain(plain)
        return loaded_from_plain(plain)

    async def _listen(self, process: ParserProcess) -> None:
        loop = asyncio.get_running_loop()
        answers = self._answers = asyncio.StreamReader()
        self._pipe, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), process.stdout
        )

    async def _next_answer(self) -> bytes:
        assert self._answers is not None, "see _listen"
        size = int(await self._answers.readline())
        return await self._answers.readexactly(size)

    def close(self) -> None:
        """End the process; the next file has another."""
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        self._answers, self._owed = None, 0
        if process is not None:
            process.kill()
            process.wait()
            for file in (process.stdin, process.stderr, None if pipe else process.stdout):
                if file is not None:
                    file.close()
        if pipe is not None:
            pipe.close()  # And stdout with it.


def _started() -> ParserProcess:
    process = subprocess.Popen(
        [sys.executable, "-m", "lb.config.parse"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    _be_nicer(process.pid)
    return process


def _be_nicer(pid: int) -> None:
    with suppress(ProcessLookupError):  # It has ended already, and whoever asks it will be told.
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)


def _last_words(process: ParserProcess) -> str:
    process.kill()  # Or we would wait for what it does not say.
    process.wait()
    if process.stderr is None:
        return ""
    return os.read(process.stderr.fileno(), SAID_BYTES_MAX).decode(errors="replace").strip()


def _died(words: str) -> OurError:
    return OurError(f"the parser of the configuration died: {words[-500:] or 'silently'}")
