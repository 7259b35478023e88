"""The resolver: last good kept, one order, and no thread that anybody waits for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lb.config.schema import Config
from lb.control.resolver import ADDRESSES_MAX, Resolver, look_up, names_of
from lb.errors import OperatorError
from lb.registry import Registry


class Names:
    """What the system's resolver would say."""

    def __init__(self, **hosts: list[str]) -> None:
        self.hosts = hosts
        self.asked: list[str] = []
        self._questions = threading.Semaphore(0)

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        self._questions.release()
        if host not in self.hosts:
            raise socket.gaierror(-2, "Name or service not known")
        return self.hosts[host]

    async def asked_again(self) -> bool:
        """Wait for the next question, of those not waited for yet."""
        return await asyncio.to_thread(self._questions.acquire, timeout=5)


class Changes:
    """Counts calls, and lets a test wait for the next."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()

    async def next(self) -> None:
        await self._event.wait()
        self._event.clear()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


def test_names_become_endpoints_in_one_order() -> None:
    async def play() -> None:
        names = Names(app=["10.0.0.2", "::1", "10.0.0.1", "10.0.0.2", "fe80::1%eth0"])
        resolver = Resolver(Changes(), names)
        resolver.watch(["app:80", "app:81"])
        assert await resolver.first_answers(5)
        assert resolver.resolved == {
            "app:80": ("10.0.0.1:80", "10.0.0.2:80", "[::1]:80"),
            "app:81": ("10.0.0.1:81", "10.0.0.2:81", "[::1]:81"),
        }
        assert names.asked == ["app"]
        await resolver.close()

    run(play)


def test_a_failure_keeps_the_last_good_answer() -> None:
    async def play() -> None:
        names, changes = Names(app=["10.0.0.1"]), Changes()
        resolver = Resolver(changes, names, interval=0.01)
        resolver.watch(["app:80"])
        await changes.next()
        assert await names.asked_again()
        good = names.hosts.pop("app")
        # The second question from here on comes after the first one's failure.
        assert await names.asked_again()
        assert await names.asked_again()
        assert resolver.errors == {"app": "Name or service not known"}
        assert resolver.resolved == {"app:80": ("10.0.0.1:80",)}
        names.hosts["app"] = [*good, "10.0.0.9"]
        await changes.next()
        assert resolver.resolved == {"app:80": ("10.0.0.1:80", "10.0.0.9:80")}
        assert resolver.errors == {}
        assert changes.count == 2
        await resolver.close()

    run(play)


def test_a_name_that_was_never_resolved_has_no_endpoints_and_a_reason() -> None:
    async def play() -> None:
        resolver = Resolver(Changes(), Names())
        resolver.watch(["app:80"])
        assert await resolver.first_answers(5)
        assert resolver.resolved == {}
        assert resolver.errors == {"app": "Name or service not known"}
        await resolver.close()

    run(play)


def test_names_that_leave_are_forgotten() -> None:
    async def play() -> None:
        changes = Changes()
        resolver = Resolver(changes, Names(app=["10.0.0.1"], api=["10.0.0.2"]))
        resolver.watch(["app:80", "api:80"])
        assert await resolver.first_answers(5)
        resolver.watch(["api:80"])
        assert resolver.resolved == {"api:80": ("10.0.0.2:80",)}
        await resolver.close()

    run(play)


def test_names_to_come_are_held_while_they_are_needed() -> None:
    async def play() -> None:
        resolver = Resolver(Changes(), Names(app=["10.0.0.1"], api=["10.0.0.2"]))
        resolver.watch(["app:80"])
        with resolver.holding(["api:80", "10.0.0.9:80"]):
            assert await resolver.first_answers(5)
            resolver.watch(["app:80"])
            assert set(resolver.resolved) == {"app:80", "api:80"}
            resolver.watch(["api:80"])
        assert set(resolver.resolved) == {"api:80"}
        await resolver.close()

    run(play)


def test_answers_outlive_a_controller() -> None:
    async def play() -> None:
        before = Resolver(Changes(), Names(app=["10.0.0.1"]))
        before.watch(["app:80"])
        assert await before.first_answers(5)
        after = Resolver(Changes(), Names())
        after.restore(before.to_plain())
        after.watch(["app:80"])
        assert await after.first_answers(5)
        assert after.resolved == {"app:80": ("10.0.0.1:80",)}
        assert after.errors == {"app": "Name or service not known"}
        await before.close()
        await after.close()

    run(play)


def test_a_lookup_that_hangs_holds_up_nobody() -> None:
    async def play() -> None:
        let_go = threading.Event()

        def lookup(host: str) -> list[str]:
            if host == "slow":
                let_go.wait(10)
            return ["10.0.0.1"]

        changes = Changes()
        resolver = Resolver(changes, lookup)
        resolver.watch(["slow:80", "quick:80"])
        await changes.next()
        assert resolver.resolved == {"quick:80": ("10.0.0.1:80",)}
        assert not await resolver.first_answers(0.01)
        await resolver.close()
        let_go.set()

    run(play)


def test_many_addresses_are_cut() -> None:
    async def play() -> None:
        many = [f"10.0.{index}.1" for index in range(ADDRESSES_MAX + 1)]
        resolver = Resolver(Changes(), Names(app=many))
        resolver.watch(["app:80"])
        assert await resolver.first_answers(5)
        assert len(resolver.resolved["app:80"]) == ADDRESSES_MAX
        await resolver.close()

    run(play)


def test_no_names_no_waiting() -> None:
    async def play() -> None:
        resolver = Resolver(Changes(), Names())
        resolver.watch([])
        assert await resolver.first_answers(0.01)
        with pytest.raises(OperatorError, match="no name"):
            resolver.watch(["10.0.0.1:80"])
        await resolver.close()

    run(play)


def test_the_system_knows_localhost() -> None:
    assert "127.0.0.1" in look_up("localhost")


def test_the_names_of_a_config() -> None:
    config = Config.model_validate(
        {
            "upstream": {
                "a": {"backends": ["app.example:80", "10.0.0.1:80", "unix:/a"]},
                "b": {"backends": ["app.example:81"]},
            }
        }
    )
    assert names_of(config, Registry("r")) == {"app.example:80", "app.example:81"}
