"""The resolver: last good kept, one order, and no thread that anybody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from lb.config.schema import Config
from lb.control import resolver as resolving
from lb.control.names import Found, LookupFailedError, NoSuchNameError
from lb.control.resolver import ADDRESSES_MAX, Resolver, names_of
from lb.errors import OperatorError
from lb.registry import Registry


class Names:
    """What DNS would say of each host; for how long, and what goes wrong, is set later."""

    def __init__(self, **hosts: list[str]) -> None:
        self.ttl = 60.0
        self.hosts = hosts
        self.failures: dict[str, LookupFailedError] = {}
        self.asked: list[str] = []
        self._questions = asyncio.Semaphore(0)

    async def __call__(self, host: str) -> Found:
        self.asked.append(host)
        self._questions.release()
        if host in self.failures or host not in self.hosts:
            raise self.failures.get(host, UNKNOWN)
        return Found(tuple(self.hosts[host]), self.ttl)

    async def asked_again(self) -> None:
        """Wait for the next question, of those not waited for yet."""
        await self._questions.acquire()


UNKNOWN = NoSuchNameError(0, "Name or service not known")


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
        names.ttl = 0.0
        resolver = Resolver(changes, names, retry=0.01)
        resolver.watch(["app:80"])
        await changes.next()
        await names.asked_again()
        good = names.hosts.pop("app")
        # The second question from here on comes after the first one's failure.
        await names.asked_again()
        await names.asked_again()
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
        let_go = asyncio.Event()

        async def lookup(host: str) -> Found:
            if host == "slow":
                await let_go.wait()
            return Found(("10.0.0.1",), 60.0)

        changes = Changes()
        resolver = Resolver(changes, lookup)
        resolver.watch(["slow:80", "quick:80"])
        await changes.next()
        assert resolver.resolved == {"quick:80": ("10.0.0.1:80",)}
        assert not await resolver.first_answers(0.01)
        await resolver.close()

    run(play)


def test_a_name_is_asked_for_again_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "TTL_MIN", 0.01)

    async def play() -> None:
        names = Names(app=["10.0.0.1"], api=["10.0.0.2"])
        names.ttl = 0.0
        resolver = Resolver(Changes(), names)
        resolver.watch(["app:80"])
        for _ in range(5):
            await names.asked_again()
        await resolver.close()

    run(play)


def test_that_there_is_no_such_name_is_believed_only_when_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "TTL_MIN", 0.01)
    monkeypatch.setattr(resolving, "GONE_AFTER", 0.2)

    async def play() -> None:
        names, changes = Names(app=["10.0.0.1"]), Changes()
        names.ttl = 0.0
        resolver = Resolver(changes, names, retry=0.01)
        resolver.watch(["app:80"])
        await changes.next()
        names.failures["app"] = UNKNOWN
        for _ in range(4):
            await names.asked_again()
        assert resolver.resolved == {"app:80": ("10.0.0.1:80",)}, "three times, but not for long"
        await changes.next()
        assert resolver.resolved == {}
        await resolver.close()

    run(play)


def test_who_cannot_say_is_not_believed_before_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "TTL_MIN", 0.01)
    monkeypatch.setattr(resolving, "GONE_AFTER", 0.0)
    monkeypatch.setattr(resolving, "KEPT_MAX", 0.3)

    async def play() -> None:
        names, changes = Names(app=["10.0.0.1"]), Changes()
        names.ttl = 0.0
        resolver = Resolver(changes, names, retry=0.01)
        resolver.watch(["app:80"])
        await changes.next()
        names.failures["app"] = LookupFailedError(0, "SERVFAIL")
        for _ in range(6):
            await names.asked_again()
        assert resolver.resolved == {"app:80": ("10.0.0.1:80",)}
        await changes.next()
        assert resolver.resolved == {}
        await resolver.close()

    run(play)


def test_services_bring_their_ports() -> None:
    async def play() -> None:
        service = "srv://_http._tcp.app"
        names = Names()
        names.hosts[service] = ["10.0.0.2:81", "[::1]:82", "10.0.0.2:80"]
        resolver = Resolver(Changes(), names)
        resolver.watch([service])
        assert await resolver.first_answers(5)
        assert resolver.resolved == {service: ("10.0.0.2:80", "10.0.0.2:81", "[::1]:82")}
        await resolver.close()

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


def test_the_names_of_a_config() -> None:
    config = Config.model_validate(
        {
            "upstream": {
                "a": {"backends": ["app.example:80", "10.0.0.1:80", "unix:/a"]},
                "b": {"backends": ["app.example:81", "srv://_http._tcp.b.example"]},
            }
        }
    )
    assert names_of(config, Registry("r")) == {
        "app.example:80", "app.example:81", "srv://_http._tcp.b.example",
    }  # fmt: skip
