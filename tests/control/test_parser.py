"""Who reads configurations for the controller: one process for all of them, replaced if it dies."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.kit import SMALLEST, Folder
from lb.config.load import ConfigErrors, load
from lb.config.parse import Forked, ask, forked
from lb.control import parser as module
from lb.control.parser import Parser, ParserProcess
from lb.errors import OperatorError, OurError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


@asynccontextmanager
async def parsing(
    path: str = "lb.toml", first: ParserProcess | None = None
) -> AsyncIterator[Parser]:
    made = Parser(path, first)
    try:
        yield made
    finally:
        made.close()


def parse_once() -> Any:
    async def once() -> Any:
        async with parsing() as parser:
            return await parser.parse()

    return asyncio.run(once())


def pid_of(parser: Parser) -> int:
    assert parser._process is not None
    return parser._process.pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_the_result_is_that_of_load(folder: Folder) -> None:
    folder.write(SMALLEST + "[upstream.b]\nhealth = { path = '/h', interval = '250ms' }\n")
    assert parse_once() == load("lb.toml", os.environ)


def test_errors_come_back_whole(folder: Folder) -> None:
    folder.write("x = 1\n" * 1 + "[listener.a]\n" + "".join(f"k{n} = 1\n" for n in range(200)))
    with pytest.raises(ConfigErrors) as there:
        load("lb.toml", {})
    with pytest.raises(ConfigErrors) as here:
        parse_once()

    assert here.value.problems == there.value.problems
    assert here.value.count == there.value.count
    assert str(here.value) == str(there.value)


def test_one_process_reads_them_all(folder: Folder) -> None:
    async def play() -> None:
        async with parsing() as parser:
            folder.write(SMALLEST)
            await parser.parse()
            first = pid_of(parser)
            before, same = await asyncio.gather(parser.parse(), parser.parse())
            assert before == same
            folder.write("oops")
            with pytest.raises(ConfigErrors):
                await parser.parse()
            folder.write(SMALLEST.replace("app", "web"))
            assert set((await parser.parse()).config.upstream) == {"web"}
            assert pid_of(parser) == first

    asyncio.run(play())


def test_one_that_was_killed_is_replaced(folder: Folder) -> None:
    folder.write(SMALLEST)

    async def play() -> None:
        async with parsing() as parser:
            await parser.parse()
            first = pid_of(parser)
            kill(first)
            await parser.parse()
            assert pid_of(parser) != first

    asyncio.run(play())


def test_one_that_is_killed_at_work_is_an_error_once(folder: Folder) -> None:
    folder.write(SMALLEST)

    async def play() -> None:
        async with parsing() as parser:
            await parser.parse()
            os.kill(pid_of(parser), signal.SIGSTOP)
            task = asyncio.ensure_future(parser.parse())
            await asyncio.sleep(0)
            os.kill(pid_of(parser), signal.SIGKILL)
            with pytest.raises(OurError, match="died: silently"):
                await task
            await parser.parse()

    asyncio.run(play())


def test_one_that_cannot_start(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(SMALLEST)
    folder.write("raise SystemExit('no lb here')", "lb/__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))

    with pytest.raises(OurError, match="no lb here"):
        parse_once()


def test_code_that_ends_its_reader(folder: Folder) -> None:
    code = "from lb.plugin import Plugin\nimport os\nprint('bye', flush=True)\nos._exit(1)\n"
    (folder.path / "plugins").mkdir()
    folder.write(code + "class A(Plugin):\n    name = 'a'\n", "plugins/a.py")
    folder.write(SMALLEST + "[plugins]\nfolders = 'plugins'\nuse = 'a'\n")

    with pytest.raises(OurError, match="died: bye"):
        parse_once()


def test_another_build(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write(SMALLEST)
    monkeypatch.setattr(module, "BUILD", "another")

    with pytest.raises(OperatorError, match="not the one that runs"):
        parse_once()


def test_one_that_does_not_end(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("import signal; signal.pause()", "lb/__init__.py")
    monkeypatch.setenv("PYTHONPATH", str(folder.path))
    monkeypatch.setattr(module, "PARSE_SECONDS_MAX", 0.2)

    with pytest.raises(OperatorError, match="not parsed within"):
        parse_once()


def test_workers_go_first(folder: Folder) -> None:
    folder.write(SMALLEST)
    ours = os.getpriority(os.PRIO_PROCESS, 0)

    async def play() -> None:
        async with parsing() as parser:
            await parser.parse()
            theirs = os.getpriority(os.PRIO_PROCESS, pid_of(parser))
            assert theirs == min(ours + module.NICER, 19)

    asyncio.run(play())


def test_the_loop_turns_meanwhile(folder: Folder) -> None:
    folder.write("import signal; signal.pause()", "lb/__init__.py")

    async def race() -> None:
        async with parsing() as parser:
            task = asyncio.ensure_future(parser.parse())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert parser._process is None

    asyncio.run(race())


def forked_and_asked(path: str = "lb.toml") -> Forked:
    """As a controller begins: see lb.controller_process."""
    first = forked()
    ask(first.stdin, path)
    return first


def test_the_first_one_is_a_fork_that_was_asked_before(folder: Folder) -> None:
    folder.write(SMALLEST)
    first = forked_and_asked()
    assert select.select([first.stdout], [], [], 10)[0]  # It has read the file by now.
    folder.write(SMALLEST.replace("app", "web"))

    async def play() -> None:
        async with parsing(first=first) as parser:
            assert set((await parser.parse(at_start=True)).config.upstream) == {"app"}
            assert set((await parser.parse()).config.upstream) == {"web"}
            assert pid_of(parser) == first.pid

    asyncio.run(play())


def test_what_was_asked_before_is_passed_over_by_who_wants_to_know_now(folder: Folder) -> None:
    folder.write("oops")
    first = forked_and_asked()
    assert select.select([first.stdout], [], [], 10)[0]
    folder.write(SMALLEST)

    async def play() -> None:
        async with parsing(first=first) as parser:
            assert set((await parser.parse()).config.upstream) == {"app"}
            assert set((await parser.parse(at_start=True)).config.upstream) == {"app"}

    asyncio.run(play())


def test_a_fork_that_dies_is_followed_by_a_process(folder: Folder) -> None:
    folder.write(SMALLEST)
    first = forked_and_asked()

    async def play() -> None:
        async with parsing(first=first) as parser:
            await parser.parse(at_start=True)
            kill(first.pid)
            assert set((await parser.parse()).config.upstream) == {"app"}
            assert pid_of(parser) != first.pid

    asyncio.run(play())


def test_a_fork_keeps_nothing_of_ours_and_ends_with_us(folder: Folder) -> None:
    ours, theirs = socket.socketpair()
    first = forked_and_asked()
    try:
        assert select.select([first.stdout], [], [], 10)[0]
        assert Path(f"/proc/{first.pid}/comm").read_text() == "lb-parser\n"
        assert len(os.listdir(f"/proc/{first.pid}/fd")) == 3  # Questions, answers, stderr.
        theirs.close()
        assert ours.recv(1) == b""  # Nobody else holds the other end.
        first.stdin.close()
        first.wait()
    finally:
        first.kill()
        first.stdout.close()
        ours.close()
