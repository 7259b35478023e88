"""The prober: what a verdict takes, what it outlives, and what counts as an answer."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lb.config.schema import Config
from lb.config.schema import Health as Check
from lb.control import prober as probers
from lb.control.looptime import TICK, LoopClock
from lb.control.probe import Answer, Asker, Subject
from lb.control.prober import Prober, subjects_of
from lb.model import Health
from lb.registry import By, Changed, Entry, Registry, UpstreamEntry

GOOD = Answer(True, "status 200")
BAD = Answer(False, "connection refused")


def check_of(**fields: Any) -> Check:
    fields = {"path": "/", "interval": "10ms", "timeout": "1s", **fields}
    return Check.model_validate(fields)


def subject(address: str = "10.0.0.1:80", upstream: str = "app", **fields: Any) -> Subject:
    return Subject(upstream, address, address, check_of(**fields))


class Script:
    """Answers as it is told to, by address, and remembers who asked."""

    def __init__(self, answer: Answer = GOOD) -> None:
        self.answers: dict[str, Answer | BaseException] = {}
        self.default = answer
        self.asked: list[str] = []
        self.running: dict[str, int] = {}
        self.most = 0  # Probes under way at once, of one address.
        self.most_of_all = 0
        self.hold: asyncio.Event | None = None

    async def ask(self, subject: Subject) -> Answer:
        address = subject.address
        self.asked.append(address)
        self.running[address] = self.running.get(address, 0) + 1
        self.most = max(self.most, self.running[address])
        self.most_of_all = max(self.most_of_all, sum(self.running.values()))
        try:
            if self.hold is not None:
                await self.hold.wait()
            answer = self.answers.get(address, self.default)
            if isinstance(answer, BaseException):
                raise answer
            return answer
        finally:
            self.running[address] -= 1


class Scene:
    """A prober, its script, and a way to wait for verdicts."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.changes = 0
        self._changed = asyncio.Event()
        self.prober = Prober(script, self._note, lambda: 1_000.0, random.Random(7))

    def _note(self) -> None:
        self.changes += 1
        self._changed.set()

    def state(self, address: str = "10.0.0.1:80", upstream: str = "app") -> Health | None:
        return self.prober.verdicts.get(upstream, {}).get(address)

    async def until(self, wanted: Callable[[], bool]) -> None:
        while not wanted():
            self._changed.clear()
            await self._changed.wait()


@asynccontextmanager
async def scene_of(script: Script | None = None) -> AsyncIterator[Scene]:
    scene = Scene(script or Script())
    try:
        yield scene
    finally:
        await scene.prober.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


# Verdicts


def test_the_first_probe_is_sent_at_once_and_decides() -> None:
    async def play() -> None:
        async with scene_of(Script(BAD)) as scene:
            scene.script.answers["10.0.0.2:80"] = GOOD
            started = time.monotonic()
            scene.prober.update([subject(interval="1h"), subject("10.0.0.2:80", interval="1h")])
            assert scene.state() is Health.CHECKING
            assert scene.prober.undecided() == 2
            await scene.until(lambda: scene.state() is Health.UNHEALTHY)
            await scene.until(lambda: scene.state("10.0.0.2:80") is Health.HEALTHY)
            assert time.monotonic() - started < 1
            assert scene.prober.undecided() == 0
            seen = scene.prober.checks("app")["10.0.0.1:80"]
            assert seen.verdict is Health.UNHEALTHY
            assert seen.last_check is not None
            assert seen.last_check["reason"] == "connection refused"
            assert (seen.last_check["ok"], seen.last_check["at"]) == (False, 1_000.0)

    run(play)


def test_it_takes_fall_and_rise_probes_to_change_it() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.prober.update([subject(rise=2, fall=3)])
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            before = len(scene.script.asked)
            scene.script.default = BAD
            await scene.until(lambda: scene.state() is Health.UNHEALTHY)
            assert len(scene.script.asked) - before >= 3
            before = len(scene.script.asked)
            scene.script.default = GOOD
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            assert len(scene.script.asked) - before >= 2
            seen = scene.prober.checks("app")["10.0.0.1:80"]
            assert seen.failed >= 3
            assert seen.passed >= 3

    run(play)


def test_a_verdict_that_stays_is_told_to_nobody() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.prober.update([subject()])
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            changes, verdicts = scene.changes, scene.prober.verdicts
            scene.script.answers["10.0.0.2:80"] = BAD
            scene.prober.update([subject(), subject("10.0.0.2:80", upstream="api")])
            await scene.until(lambda: scene.state("10.0.0.2:80", "api") is Health.UNHEALTHY)
            assert scene.changes == changes + 2
            assert scene.prober.verdicts is not verdicts

    run(play)


# Bounds


def test_one_probe_at_a_time_for_an_address_whoever_asks() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            for turn in range(20):
                subjects = [subject(upstream=name, path=f"/{turn}") for name in ("a", "b", "c")]
                scene.prober.update(subjects)
                await scene.until(
                    lambda: all(
                        scene.state(upstream=name) is Health.HEALTHY for name in ("a", "b", "c")
                    )
                )
            assert scene.script.most == 1

    run(play)


def test_there_is_a_bound_on_all_probes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        monkeypatch.setattr(probers, "PROBES_MAX", 3)
        async with scene_of() as scene:
            addresses = [f"10.0.0.{index}:80" for index in range(20)]
            scene.prober.update([subject(address) for address in addresses])
            await scene.until(
                lambda: all(scene.state(address) is Health.HEALTHY for address in addresses)
            )
            assert scene.script.most_of_all <= 3

    run(play)


def test_a_mistake_of_ours_is_reported_and_the_watch_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def play() -> None:
        monkeypatch.setattr(probers, "AFTER_A_BUG", 0.01)
        reported: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        async with scene_of() as scene:
            scene.script.answers["10.0.0.1:80"] = KeyError("oops")
            scene.script.hold = asyncio.Event()
            scene.prober.update([subject()])
            loop.call_soon(scene.script.hold.set)
            loop.call_later(0.05, scene.script.answers.clear)
            await scene.until(lambda: scene.state() is Health.HEALTHY)
        assert "app/10.0.0.1:80" in reported[0]["message"]
        assert isinstance(reported[0]["exception"].__cause__, KeyError)

    run(play)


# Our own lateness


def test_a_probe_that_takes_too_long_has_failed() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.script.hold = asyncio.Event()
            scene.prober.update([subject(timeout="50ms")])
            await scene.until(lambda: scene.state() is Health.UNHEALTHY)
            last = scene.prober.checks("app")["10.0.0.1:80"].last_check
            assert last is not None
            assert last["reason"] == "no answer within 0.05s"
            assert scene.script.most == 1

    run(play)


def test_a_probe_that_timed_out_while_the_loop_was_away_is_no_failure() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            loop = asyncio.get_running_loop()
            hold = scene.script.hold = asyncio.Event()
            scene.prober.update([subject(timeout="100ms", fall=1)])

            def away() -> None:
                # The answer lies there all the time; a few turns of the loop read it.
                block(1.0)
                in_turns(3, hold.set)

            def in_turns(count: int, act: Callable[[], None]) -> None:
                loop.call_soon(*((in_turns, count - 1, act) if count else (act,)))

            loop.call_later(0.02, away)
            await scene.until(lambda: scene.state() is not Health.CHECKING)
            assert scene.state() is Health.HEALTHY

    run(play)


def block(seconds: float) -> None:
    """Be away as a starved process is: no timer and no socket is looked at meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_the_clock_stands_still_while_the_loop_does() -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        clock = LoopClock(loop)
        began, real = clock.now(), loop.time()
        block(1.0)
        assert clock.now() - began <= TICK + 0.05
        async with clock.limit(5):
            await asyncio.wait([loop.create_task(_after(0.25))])
        assert loop.time() - real > 1.2
        assert 0.2 < clock.now() - began < 0.6
        clock.close()

    run(play)


async def _after(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_later(seconds, future.set_result, None)
    await future


def test_the_limit_of_a_clock_is_kept() -> None:
    async def play() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        with pytest.raises(TimeoutError):
            async with clock.limit(0.05):
                await asyncio.get_running_loop().create_future()
        async with clock.limit(0.05):
            pass
        clock.close()

    run(play)


# What verdicts outlive


def test_a_verdict_outlives_a_reload_that_leaves_its_check() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.prober.update([subject(fall=3)])
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            verdicts = scene.prober.verdicts
            scene.script.hold = asyncio.Event()
            scene.prober.update([subject(fall=5, interval="1h", timeout="1h")])
            assert scene.prober.verdicts is verdicts
            assert scene.prober.checks("app")["10.0.0.1:80"].last_check is not None

    run(play)


@pytest.mark.parametrize(
    "fields", [{"path": "/other"}, {"port": 81}, {"type": "tcp"}, {"expect": "200"}, {"body": "x"}]
)
def test_another_check_starts_anew(fields: dict[str, Any]) -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.prober.update([subject()])
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            scene.script.hold = asyncio.Event()
            scene.prober.update([subject(**fields)])
            assert scene.state() is Health.CHECKING
            assert scene.prober.checks("app")["10.0.0.1:80"].last_check is None

    run(play)


def test_endpoints_that_leave_are_forgotten() -> None:
    async def play() -> None:
        async with scene_of() as scene:
            scene.prober.update([subject(), subject("10.0.0.2:80")])
            await scene.until(lambda: scene.state() is Health.HEALTHY)
            scene.prober.update([subject("10.0.0.2:80")])
            assert scene.state() is None
            assert set(scene.prober.checks("app")) == {"10.0.0.2:80"}
            scene.prober.update([])
            assert scene.prober.verdicts == {}
            scene.script.hold = asyncio.Event()
            scene.prober.update([subject()])
            assert scene.state() is Health.CHECKING

    run(play)


def test_verdicts_outlive_a_controller() -> None:
    async def play() -> None:
        async with scene_of(Script(BAD)) as scene:
            scene.prober.update([subject(), subject("10.0.0.2:80")])
            await scene.until(lambda: scene.state() is Health.UNHEALTHY)
            await scene.until(lambda: scene.state("10.0.0.2:80") is Health.UNHEALTHY)
            plain = scene.prober.to_plain()
        async with scene_of() as after:
            after.script.hold = asyncio.Event()
            after.prober.restore(plain)
            after.prober.update([subject(), subject("10.0.0.2:80", path="/other")])
            assert after.state() is Health.UNHEALTHY
            assert after.state("10.0.0.2:80") is Health.CHECKING
            last = after.prober.checks("app")["10.0.0.1:80"].last_check
            assert last is not None
            assert last["reason"] == "connection refused"

    run(play)


def test_an_endpoint_that_turns_up_later_has_its_verdict_too() -> None:
    async def play() -> None:
        async with scene_of(Script(BAD)) as scene:
            scene.prober.update([subject()])
            await scene.until(lambda: scene.state() is Health.UNHEALTHY)
            plain = scene.prober.to_plain()
        async with scene_of() as after:
            after.script.hold = asyncio.Event()
            after.prober.restore(plain)
            after.prober.update([])  # Its name is not resolved yet.
            after.prober.update([subject()])
            assert after.state() is Health.UNHEALTHY

    run(play)


# Who is probed


def test_subjects_are_the_endpoints_of_checked_upstreams() -> None:
    config = Config.model_validate(
        {
            "upstream": {
                "app": {"health": {"path": "/up"}, "backends": ["a.example:80", "unix:/a"]},
                "tcp": {"health": {"type": "tcp"}, "backends": ["10.0.0.1:80"]},
                "not": {"health": {"interval": "1s"}, "backends": ["10.0.0.1:80"]},
                "none": {"backends": ["10.0.0.1:80"]},
            }
        }
    )
    changed = Changed(By(), 1, 0.0)
    registry = Registry(
        "r", 1, {"tcp": UpstreamEntry(1, {"10.0.0.9:80": Entry("10.0.0.9:80", changed)})}
    )
    found = subjects_of(config, registry, {"a.example:80": ("10.0.0.1:80", "10.0.0.2:80")})
    assert [(each.upstream, each.address, each.host) for each in found] == [
        ("app", "10.0.0.1:80", "a.example:80"),
        ("app", "10.0.0.2:80", "a.example:80"),
        ("app", "unix:/a", "localhost"),
        ("tcp", "10.0.0.9:80", "10.0.0.9:80"),
    ]


# Asking, over real sockets


class Backend:
    """A server that answers each connection with given bytes, and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.address = ""
        self._connections: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await writer.drain()
            if self.answer:
                writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    @asynccontextmanager
    async def listening(self, path: str = "") -> AsyncIterator[Backend]:
        if path:
            server = await asyncio.start_unix_server(self.serve, path)
            self.address = f"unix:{path}"
        else:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for writer in self._connections:
                writer.close()
            await server.wait_closed()


def reply(status: int, body: bytes = b"", *more: bytes) -> bytes:
    head = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *more, b"", body]
    return b"\r\n".join(head)


async def ask(backend: Backend, host: str = "app.example:80", **fields: Any) -> Answer:
    asker = Asker()
    try:
        return await asker.ask(Subject("app", backend.address, host, check_of(**fields)))
    finally:
        await asker.close()


@pytest.mark.parametrize(
    ("answer", "fields", "ok", "reason"),
    [
        (reply(200), {}, True, "status 200"),
        (reply(302, b"", b"Location: http://127.0.0.1:1/"), {}, True, "status 302"),
        (reply(302), {"expect": "200-299"}, False, "status 302, expected 200-299"),
        (reply(503), {}, False, "status 503, expected 200-399"),
        (reply(503), {"expect": "200,503"}, True, "status 503"),
        (reply(200, b"all is well"), {"body": "is well"}, True, "status 200"),
        (reply(200, b"ill"), {"body": "well"}, False, "status 200, but the body lacks 'well'"),
        (reply(200, b"x" * 70_000 + b"well"), {"body": "well"}, False, "the body lacks"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {}, False, "not a valid answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwe", {"body": "well"}, False, "not a valid"),
    ],
)
def test_what_counts_as_an_answer(
    answer: bytes, fields: dict[str, Any], ok: bool, reason: str
) -> None:
    async def play() -> None:
        async with Backend(answer).listening() as backend:
            found = await ask(backend, **fields)
            assert (found.ok, reason in found.reason) == (ok, True), found

    run(play)


def test_how_we_ask() -> None:
    async def play() -> None:
        async with Backend(reply(200)).listening() as backend:
            await ask(backend, path="/up?a=%2F&b")
            lines = backend.heads[0].split(b"\r\n")
            assert lines[0] == b"GET /up?a=%2F&b HTTP/1.1"
            assert b"Connection: close" in lines
            agent = next(line for line in lines if line.startswith(b"User-Agent:"))
            assert agent.startswith(b"User-Agent: accord-lb/")
            assert agent.endswith(b" health")

    run(play)


@pytest.mark.parametrize(
    ("host", "check", "sent"),
    [
        ("app.example:80", None, b"Host: app.example"),
        ("10.0.0.1:8080", None, b"Host: 10.0.0.1:8080"),
        ("[::1]:80", None, b"Host: [::1]"),
        ("app.example:80", "other.example", b"Host: other.example"),
    ],
)
def test_which_host_is_named(host: str, check: str | None, sent: bytes) -> None:
    async def play() -> None:
        async with Backend(reply(200)).listening() as backend:
            asker = Asker()
            await asker.ask(Subject("app", backend.address, host, check_of(host=check)))
            await asker.close()
            assert sent in backend.heads[0].split(b"\r\n")

    run(play)


def test_another_port_can_be_asked() -> None:
    async def play() -> None:
        async with Backend(reply(200)).listening() as backend:
            port = int(backend.address.rpartition(":")[2])
            backend.address = "127.0.0.1:1"
            assert (await ask(backend, port=port)).ok
            assert (await ask(backend, type="tcp", port=port)).ok

    run(play)


def test_nobody_there() -> None:
    async def play() -> None:
        async with Backend(reply(200)).listening() as backend:
            pass
        assert await ask(backend) == Answer(False, "connection refused")
        assert await ask(backend, type="tcp") == Answer(False, "connection refused")

    run(play)


def test_tcp_only_connects() -> None:
    async def play() -> None:
        async with Backend(reply(500)).listening() as backend:
            assert await ask(backend, type="tcp") == Answer(True, "connected")
            assert backend.heads == []

    run(play)


def test_unix_sockets_are_asked_too(tmp_path: Path) -> None:
    async def play() -> None:
        path = str(tmp_path / "app.sock")
        async with Backend(reply(200)).listening(path) as backend:
            assert (await ask(backend, host="localhost")).ok
            assert (await ask(backend, type="tcp")).ok
        backend.address = f"unix:{tmp_path}/none.sock"
        assert await ask(backend) == Answer(False, "no such socket")
        assert await ask(backend, type="tcp") == Answer(False, "no such socket")

    run(play)


def test_a_backend_that_hangs_is_given_up_and_let_go() -> None:
    async def play() -> None:
        async with Backend(b"").listening() as backend:
            asker = Asker()
            told = asyncio.Event()
            prober = Prober(asker, told.set, lambda: 1_000.0, random.Random(7))
            prober.update([Subject("app", backend.address, "a", check_of(timeout="50ms"))])
            told.clear()
            await told.wait()
            assert prober.verdicts["app"][backend.address] is Health.UNHEALTHY
            await prober.close()
            await asker.close()

    run(play)
