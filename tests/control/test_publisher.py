"""The publisher: what each worker is sent, when it is called live, and who waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from lb.config.schema import Config
from lb.control.publisher import UNLIVE_MAX, Publisher
from lb.edition import Assembly, Change, Composer, Edition, Sources, digest, unpack
from lb.model import Health
from lb.registry import Registry

Test = Callable[[], Coroutine[Any, Any, None]]


def config_of(*backends: str, **upstreams: list[str]) -> Config:
    return Config.model_validate(
        {
            "listener": {"web": {"address": "127.0.0.1:8080", "upstream": "app"}},
            "upstream": {
                "app": {"backends": list(backends), "health": {"path": "/"}},
                **{name: {"backends": each} for name, each in upstreams.items()},
            },
        }
    )


class Worker:
    """The other end of a way: reads frames as a worker does; says `live` if given how."""

    def __init__(self, on_live: Callable[[int], None] | None = None) -> None:
        self.on_live = on_live
        self.assembly = Assembly()
        self.frames: list[tuple[str, str | int]] = []
        self.changes: list[Change] = []

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        if kind == "part":
            self.assembly.put(fields["name"], body)
        elif kind == "gone":
            self.assembly.drop(fields["name"])
        else:
            assert kind == "commit"
            self.changes.append(self.assembly.commit(fields["number"]))
            if self.on_live is not None:
                asyncio.get_running_loop().call_soon(self.on_live, fields["number"])
        self.frames.append((kind, fields.get("name", fields.get("number", 0))))

    def read(self) -> list[tuple[str, str | int]]:
        frames, self.frames = self.frames, []
        return frames


class House:
    """A publisher and all that it asks and tells."""

    def __init__(self, config: Config, last: Edition | None = None) -> None:
        self.sources = Sources(config, 1, Registry("r"))
        self.kept: list[Edition] = []
        self.extra: Mapping[str, bytes] = {}
        self.publisher = Publisher(
            Composer("n", "lb-00000000"),
            lambda: self.sources,
            lambda number, packed: self.kept.append(unpack(packed)),
            lambda: self.extra,
            last,
        )

    def change(self, **fields: Any) -> None:
        was = self.sources
        self.sources = Sources(
            config=fields.get("config", was.config),
            generation=fields.get("generation", was.generation),
            registry=fields.get("registry", was.registry),
            verdicts=fields.get("verdicts", was.verdicts),
            resolved=fields.get("resolved", was.resolved),
        )

    def verdict(self, health: Health) -> None:
        self.change(verdicts={"app": {"10.0.0.1:80": health}})


def run(test: Test) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_new_worker_gets_every_part_and_then_the_commit() -> None:
    async def scene() -> None:
        house, worker = House(config_of("10.0.0.1:80")), Worker()
        house.publisher.attach(0, worker)
        assert worker.read() == [
            ("part", "config"),
            ("part", "upstream/app/0"),
            ("part", "verdicts"),
            ("commit", 1),
        ]
        assert worker.changes[0].upstreams is not None
        assert [each.key for each in worker.changes[0].upstreams["app"]] == ["10.0.0.1:80"]

    run(scene)


def test_only_what_changed_is_sent() -> None:
    async def scene() -> None:
        house, worker = House(config_of("10.0.0.1:80", api=["10.0.0.2:80"])), Worker()
        house.publisher.attach(0, worker)
        house.publisher.on_live(0, 1)
        worker.read()
        house.verdict(Health.HEALTHY)
        house.publisher.publish()
        assert worker.read() == [("part", "verdicts"), ("commit", 2)]
        house.change(config=config_of("10.0.0.1:80", "10.0.0.9:80"), generation=2)
        house.publisher.on_live(0, 2)
        house.publisher.publish()
        assert worker.read() == [
            ("gone", "upstream/api/0"),
            ("part", "config"),
            ("part", "upstream/app/0"),
            ("commit", 3),
        ]

    run(scene)


def test_nothing_is_sent_where_nothing_changed() -> None:
    async def scene() -> None:
        house, worker = House(config_of("10.0.0.1:80")), Worker()
        house.publisher.attach(0, worker)
        worker.read()
        house.extra = {"control/health": b"{}"}
        assert house.publisher.publish().number == 1
        assert worker.read() == []
        assert len(house.kept) == 1

    run(scene)


def test_changes_close_together_are_one_edition() -> None:
    async def scene() -> None:
        house = House(config_of("10.0.0.1:80"))
        worker = Worker(lambda number: house.publisher.on_live(0, number))
        house.publisher.attach(0, worker)
        assert await house.publisher.wait_live(1, 5) == set()
        for health in (Health.HEALTHY, Health.UNHEALTHY, Health.HEALTHY, Health.UNHEALTHY):
            house.verdict(health)
            house.publisher.touch()
        started = time.monotonic()
        assert await house.publisher.wait_live(2, 5) == set()
        assert time.monotonic() - started < 0.05
        assert worker.changes[-1].verdicts == {"app": {"10.0.0.1:80": Health.UNHEALTHY}}
        assert [change.number for change in worker.changes] == [1, 2]

    run(scene)


def test_a_slow_worker_gets_the_newest_and_not_each_in_turn() -> None:
    async def scene() -> None:
        house, slow, quick = House(config_of("10.0.0.1:80")), Worker(), Worker()
        house.publisher.attach(0, slow)
        house.publisher.attach(1, quick)
        house.publisher.on_live(1, 1)
        for turn in range(10):
            house.verdict(Health.HEALTHY if turn % 2 else Health.UNHEALTHY)
            house.publisher.on_live(1, house.publisher.publish().number)
        assert [change.number for change in slow.changes] == list(range(1, UNLIVE_MAX + 1))
        assert [change.number for change in quick.changes] == list(range(1, 12))
        assert house.publisher.behind(11) == {0}
        house.publisher.on_live(0, 1)
        assert slow.changes[-1].number == 11
        assert slow.changes[-1].verdicts == quick.changes[-1].verdicts

    run(scene)


def test_a_worker_that_comes_again_gets_what_it_does_not_hold() -> None:
    async def scene() -> None:
        house, before, after = House(config_of("10.0.0.1:80")), Worker(), Worker()
        house.publisher.attach(0, before)
        house.publisher.detach(0)
        house.verdict(Health.HEALTHY)
        house.publisher.publish()
        after.assembly.load(house.kept[0])
        after.assembly.put("upstream/old/0", house.kept[0].parts["upstream/app/0"])
        house.publisher.attach(0, after, after.assembly.digests, number=1)
        assert after.read() == [
            ("gone", "upstream/old/0"),
            ("part", "verdicts"),
            ("commit", 2),
        ]
        parts = house.publisher.edition.for_workers()
        assert after.assembly.digests == {name: digest(body) for name, body in parts.items()}

    run(scene)


def test_numbers_go_on_after_those_of_a_controller_before_us() -> None:
    async def scene() -> None:
        last = Edition(41, 0, {})
        house, worker = House(config_of("10.0.0.1:80"), last), Worker()
        house.publisher.attach(0, worker)
        assert worker.changes[0].number == 42
        ahead = Worker()
        house.publisher.attach(1, ahead, {}, number=50)
        assert ahead.changes[0].number == 51
        assert worker.changes[-1].number == 51
        assert house.kept[-1].number == 51

    run(scene)


def test_waiting_for_workers() -> None:
    async def scene() -> None:
        house = House(config_of("10.0.0.1:80"))
        publisher = house.publisher
        publisher.attach(0, Worker())
        publisher.attach(1, Worker())
        assert await publisher.wait_live(1, 0.01) == {0, 1}

        async def become_live() -> None:
            publisher.on_live(0, 1)
            publisher.on_live(1, 1)

        behind, _ = await asyncio.gather(publisher.wait_live(1, 5), become_live())
        assert behind == set()

    run(scene)


def test_nobody_waits_for_a_worker_that_is_gone() -> None:
    async def scene() -> None:
        house = House(config_of("10.0.0.1:80"))
        publisher = house.publisher
        publisher.attach(0, Worker())
        publisher.attach(1, Worker())
        publisher.on_live(0, 1)

        async def leave() -> None:
            publisher.detach(1)

        behind, _ = await asyncio.gather(publisher.wait_live(1, 5), leave())
        assert behind == set()

    run(scene)


def test_a_revision_is_routed_once_every_worker_has_it() -> None:
    async def scene() -> None:
        house = House(config_of("10.0.0.1:80"))
        publisher = house.publisher
        assert not await publisher.wait_routed(1, 0.01)
        publisher.attach(0, Worker(lambda number: publisher.on_live(0, number)))
        silent = Worker()
        publisher.attach(1, silent)
        assert await publisher.wait_live(1, 0.01) == {1}
        house.change(registry=Registry("r", revision=7))
        publisher.touch()
        assert not await publisher.wait_routed(7, 0.05)
        assert silent.changes[-1].number == 2

        async def become_live() -> None:
            publisher.on_live(1, 2)

        routed, _ = await asyncio.gather(publisher.wait_routed(7, 5), become_live())
        assert routed
        assert publisher.routed_revision() == 7

    run(scene)


def test_a_closed_publisher_lets_everybody_go() -> None:
    async def scene() -> None:
        house = House(config_of("10.0.0.1:80"))
        house.publisher.attach(0, Worker())

        async def close() -> None:
            house.publisher.close()

        behind, _ = await asyncio.gather(house.publisher.wait_live(1, 5), close())
        assert behind == {0}
        house.publisher.touch()

    run(scene)


def test_only_the_newest_parts_of_a_controller_are_kept_for_the_next() -> None:
    async def scene() -> None:
        house, worker = House(config_of("10.0.0.1:80")), Worker()
        house.extra = {"control/config": b"{}"}
        house.publisher.attach(0, worker)
        assert house.kept[0].parts["control/config"] == b"{}"
        assert "control/config" not in worker.assembly.digests

    run(scene)
