"""
Who reads configurations for the controller, which has leases and probes to attend to meanwhile.

The process `lb.config.parse` is kept from one file to the next: what it imports costs some
hundred milliseconds of CPU, which workers would miss at each reload.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

from lb.build import BUILD
from lb.config.load import ConfigErrors, Loaded
from lb.config.parse import PARSE_SECONDS_MAX, SAID_BYTES_MAX, loaded_from_plain
from lb.errors import OperatorError, OurError

# A reload may take a moment longer where workers need the CPU for those they serve. Measured on
# two cores, by turns, the median of what was asked during a reload: 2.1 ms as it is, 1.4 with 5,
# 1.2 with 10. Its p99 shows nothing that neighbours do not hide. On a machine that is full a
# reload takes 3.6 s, 4.4 and 6.7.
NICER = 5


class Parser:
    """Reads one file, as often as it is asked to, one at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._turn = asyncio.Lock()
        self._child: Process | None = None

    async def start(self) -> None:
        """Have the process make itself ready, which takes its time, while others do too."""
        async with self._turn:
            await self._running()

    async def parse(self) -> Loaded:
        """Load the configuration. Raises what `config.load.load` raises."""
        async with self._turn:
            whole = False
            try:
                async with asyncio.timeout(PARSE_SECONDS_MAX):
                    loaded = await self._ask(await self._running())
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
                    await self._end()
        return loaded

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _running(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lb.config.parse"), stdin=PIPE, stdout=PIPE, stderr=PIPE
            )
            nice = os.getpriority(os.PRIO_PROCESS, 0) + NICER
            with suppress(ProcessLookupError):  # It has ended already; `_ask` says why.
                os.setpriority(os.PRIO_PROCESS, self._child.pid, nice)
        return self._child

    async def _ask(self, child: Process) -> Loaded:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(self._path).encode() + b"\n")
            await child.stdin.drain()
            size = int(await child.stdout.readline())
            plain = json.loads(await child.stdout.readexactly(size))
        except (OSError, ValueError, asyncio.IncompleteReadError):
            with suppress(ProcessLookupError):  # Or we would wait for what it does not say.
                child.kill()
            raise _died(await _last_words(child)) from None
        if plain["build"] != BUILD:
            raise OperatorError(
                "the lb on disk is not the one that runs", "run the new one with `lb upgrade`"
            )
        if "died" in plain:
            raise _died(plain["died"])
        if "errors" in plain:
            raise ConfigErrors.from_plain(plain)
        return loaded_from_plain(plain)

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
        await child.wait()


async def _last_words(child: Process) -> str:
    assert child.stderr is not None
    return (await child.stderr.read(SAID_BYTES_MAX)).decode(errors="replace").strip()


def _died(words: str) -> OurError:
    return OurError(f"the parser of the configuration died: {words[-500:] or 'silently'}")
