"""Reloads: what goes live, what is refused, and that a failure leaves everything as it was."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from file_store import FileStore

from lb.config.load import ConfigErrors, Loaded, load
from lb.control import reloader as reloaders
from lb.control.file_memory import FileMemory
from lb.control.in_force import InForce
from lb.control.names import Found, NoSuchNameError
from lb.control.parser import Parser
from lb.control.publisher import Publisher
from lb.control.reloader import RELOADS_MAX, Hands, Reloader, keep_restart_keys
from lb.control.resolver import Resolver
from lb.control.store import NotStored
from lb.edition import Assembly, Composer, Sources
from lb.errors import OperatorError, StartError
from lb.registry import By, Command, PatchBackend, Reply
from lb.registry.commands import Fields

FILE = """
[listener.web]
address = "127.0.0.1:8080"
upstream = "app"

[upstream.app]
backends = ["10.0.0.1:80", "10.0.0.2:80"]
"""

BY = By(member="a", source="reload")


class Sockets:
    """The supervisor: holds addresses, refuses those that others have, replaces workers."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.taken: set[str] = set()
        self.replaced: list[int] = []

    async def ensure(self, addresses: Iterable[str]) -> None:
        wanted = set(addresses)
        if busy := wanted & self.taken:
            raise StartError(f"{busy.pop()} is in use", "stop who has it")
        self.held |= wanted

    def forget(self, addresses: Iterable[str]) -> None:
        self.held -= set(addresses)

    def replace(self, slot: int) -> None:
        self.replaced.append(slot)


class Worker:
    """Takes editions up at once, unless it is silent."""

    def __init__(self, house: House, slot: int) -> None:
        self.assembly = Assembly()
        self.silent = False
        self.upstreams: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self._house = house
        self._slot = slot

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        if kind == "part":
            self.assembly.put(fields["name"], body)
        elif kind == "gone":
            self.assembly.drop(fields["name"])
        elif not self.silent:
            change = self.assembly.commit(fields["number"])
            if change.upstreams is not None:
                self.upstreams = {
                    name: [each.address for each in endpoints]
                    for name, endpoints in change.upstreams.items()
                }
            if change.plans is not None:
                self.addresses = [a for each in change.plans.listeners for a in each.addresses]
            loop = asyncio.get_running_loop()
            loop.call_soon(self._house.publisher.on_live, self._slot, change.number)


class House:
    """A controller's parts around a reloader, all real but supervisor, worker and names."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lb.toml"
        self.data_dir = folder / "data"
        self.data_dir.mkdir(exist_ok=True)
        self.names: dict[str, list[str]] = {}
        self.sockets = Sockets()
        self.store = FileStore.open(self.data_dir)
        self.adopted: list[int] = []
        self.times = itertools.count(1_000.0)

    def write(self, text: str) -> None:
        self.path.write_text(text)

    async def parse(self) -> Loaded:
        return load(str(self.path), {})

    async def look_up(self, host: str) -> Found:
        if host not in self.names:
            raise NoSuchNameError(0, f"no such name: {host}")
        return Found(tuple(self.names[host]), 60.0)

    def sources(self) -> Sources:
        now = self.in_force
        return Sources(
            config=now.loaded.config,
            generation=now.generation,
            registry=self.store.registry,
            resolved=self.resolver.resolved,
        )

    def adopt(self, in_force: InForce) -> None:
        self.in_force = in_force
        self.adopted.append(in_force.generation)
        self.publisher.touch()

    async def begin(self) -> None:
        self.in_force = InForce(await self.parse(), 1, str(self.path), 0.0)
        self.resolver = Resolver(lambda: None, self.look_up)
        self.publisher = Publisher(Composer("a", "lb-0"), self.sources, lambda *_: None)
        self.store.subscribe(lambda _: self.publisher.touch())
        hands = Hands(
            parse=self.parse,
            adopt=self.adopt,
            sockets=self.sockets,
            store=self.store,
            memory=FileMemory.open(self.data_dir),
            publisher=self.publisher,
            resolver=self.resolver,
            wall=partial(next, self.times),  # No two commands carry the same time.
            member="a",
        )
        self.reloader = Reloader(hands, self.in_force)
        await self.reloader.start()
        self.worker = Worker(self, 0)
        self.publisher.attach(0, self.worker)
        await self.publisher.wait_live(1, 5)

    async def end(self) -> None:
        await self.reloader.close()
        await self.resolver.close()
        self.publisher.close()
        await self.store.close()


@asynccontextmanager
async def house_of(folder: Path, text: str = FILE) -> AsyncIterator[House]:
    house = House(folder)
    house.write(text)
    await house.begin()
    try:
        yield house
    finally:
        await house.end()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def backends(house: House, upstream: str = "app") -> dict[str, int]:
    entry = house.store.registry.upstreams[upstream]
    return {key: each.weight for key, each in entry.backends.items()}


def test_a_start_brings_the_file_into_the_registry(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            assert backends(house) == {"10.0.0.1:80": 1, "10.0.0.2:80": 1}
            assert house.worker.upstreams == {"app": ["10.0.0.1:80", "10.0.0.2:80"]}

    run(play)


def test_a_reload_is_live_in_every_worker_before_it_answers(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.write(FILE.replace("10.0.0.2", "10.0.0.3") + 'panic = "50%"\n')
            reply = await house.reloader.reload(BY)
            assert house.worker.upstreams == {"app": ["10.0.0.1:80", "10.0.0.3:80"]}
            assert reply["generation"] == 2
            assert reply["changed"] == [
                'upstream.app.panic "30%" -> "50%"',
                "upstream.app.backends - 10.0.0.2:80",
                "upstream.app.backends + 10.0.0.3:80",
            ]
            assert (reply["refused"], reply["stale"]) == ([], [])
            assert reply["edition"] == house.publisher.live_number(0)
            assert "pending" not in reply
            assert house.reloader.in_force.generation == 2

    run(play)


def test_listeners_come_and_go_with_their_sockets(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.sockets.held = {"127.0.0.1:8080"}
            house.write(FILE.replace("8080", "8081"))
            await house.reloader.reload(BY)
            assert house.sockets.held == {"127.0.0.1:8081"}
            assert house.worker.addresses == ["127.0.0.1:8081"]

    run(play)


# Failures


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.write(FILE + "wieght = 3\n")
            with pytest.raises(ConfigErrors, match="wieght"):
                await house.reloader.reload(BY)
            assert house.adopted == []
            assert house.reloader.in_force.generation == 1
            house.write(FILE)
            assert (await house.reloader.reload(BY))["generation"] == 2

    run(play)


def test_a_port_in_use_changes_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.sockets.held = {"127.0.0.1:8080"}
            house.sockets.taken = {"127.0.0.1:8082"}
            more = 'address = ["127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8082"]'
            house.write(
                FILE.replace('address = "127.0.0.1:8080"', more).replace("10.0.0.2", "10.0.0.9")
            )
            with pytest.raises(StartError, match="8082 is in use"):
                await house.reloader.reload(BY)
            assert house.sockets.held == {"127.0.0.1:8080"}
            assert set(backends(house)) == {"10.0.0.1:80", "10.0.0.2:80"}
            assert house.adopted == []

    run(play)


def test_what_cannot_be_composed_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.sockets.held = {"127.0.0.1:8080"}
            composes = house.sources

            def fails() -> Sources:
                if house.in_force.generation > 1:
                    raise KeyError("a bug")
                return composes()

            monkeypatch.setattr(house.publisher, "_sources", fails)
            house.write(FILE.replace("8080", "8081").replace("10.0.0.2", "10.0.0.9"))
            with pytest.raises(KeyError, match="a bug"):
                await house.reloader.reload(BY)
            assert house.adopted == [2, 1]
            assert house.reloader.in_force.generation == 1
            assert house.sockets.held == {"127.0.0.1:8080"}
            assert set(backends(house)) == {"10.0.0.1:80", "10.0.0.2:80"}

    run(play)


def test_a_silent_worker_is_replaced_and_the_rest_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        monkeypatch.setattr(reloaders, "LIVE_SECONDS_MAX", 0.05)
        async with house_of(tmp_path) as house:
            silent = Worker(house, 1)
            silent.silent = True
            house.publisher.attach(1, silent)
            house.write(FILE.replace("10.0.0.2", "10.0.0.3"))
            reply = await house.reloader.reload(BY)
            assert reply["replaced"] == [1]
            assert house.sockets.replaced == [1]
            assert house.worker.upstreams == {"app": ["10.0.0.1:80", "10.0.0.3:80"]}

    run(play)


# What the registry says to it


def test_an_upstream_that_would_be_emptied_keeps_its_backends_and_the_rest_stands(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.write(FILE.replace('["10.0.0.1:80", "10.0.0.2:80"]', "[]") + 'panic = "0%"\n')
            reply = await house.reloader.reload(BY)
            assert [each["upstream"] for each in reply["refused"]] == ["app"]
            assert reply["refused"][0]["reason"] == "would-empty"
            assert set(backends(house)) == {"10.0.0.1:80", "10.0.0.2:80"}
            assert house.reloader.in_force.loaded.config.upstream["app"].panic == 0.0
            # The memory was not moved: the next one asks again, and force passes it.
            assert (await house.reloader.reload(BY))["refused"]
            assert not (await house.reloader.reload(BY, force=True))["refused"]
            assert backends(house) == {}

    run(play)


def test_what_was_set_by_hand_outlives_a_reload_and_a_restart(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            weight = PatchBackend(
                upstream="app", by=BY, at=1.0, key="10.0.0.1:80", fields=Fields(weight=7)
            )
            await house.store.propose(weight)
            house.write(FILE + 'panic = "50%"\n')
            await house.reloader.reload(BY)
            assert backends(house)["10.0.0.1:80"] == 7
        async with house_of(tmp_path, FILE) as house:
            assert backends(house)["10.0.0.1:80"] == 7

    run(play)


def test_a_new_upstream_is_served_whatever_the_registry_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        monkeypatch.setattr(reloaders, "PENDING_AGAIN", 0.01)
        async with house_of(tmp_path) as house:
            propose, failing = house.store.propose, [2]

            async def fails(command: Command) -> Reply:
                if failing[0]:
                    failing[0] -= 1
                    raise NotStored("the disk is full", "make room")
                return await propose(command)

            monkeypatch.setattr(house.store, "propose", fails)
            house.write(FILE + '\n[upstream.api]\nbackends = ["10.0.0.9:80"]\n')
            known = asyncio.Event()
            house.store.subscribe(lambda _: known.set())
            reply = await house.reloader.reload(BY)
            assert reply["pending"] == {"upstreams": ["api"], "reason": "the disk is full"}
            assert house.worker.upstreams["api"] == ["10.0.0.9:80"]
            assert "api" not in house.store.registry.upstreams
            await known.wait()
            assert set(backends(house, "api")) == {"10.0.0.9:80"}

    run(play)


def test_names_that_are_new_have_addresses_from_the_first_edition_on(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.names["new.example"] = ["10.0.0.7"]
            seen: list[list[str]] = []
            send = house.worker.send

            def note(kind: str, body: bytes = b"", **fields: Any) -> None:
                send(kind, body, **fields)
                seen.append(house.worker.upstreams["app"])

            house.worker.send = note  # type: ignore[method-assign]
            text = FILE.replace('"10.0.0.1:80", "10.0.0.2:80"', '"new.example:80"')
            house.write(text)
            await house.reloader.reload(BY)
            assert seen[-1] == ["10.0.0.7:80"]
            assert [] not in seen

    run(play)


def test_what_changed_is_what_the_registry_took_up(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.write(FILE.replace('["10.0.0.1:80", "10.0.0.2:80"]', "[]"))
            refused = await house.reloader.reload(BY)
            forced = await house.reloader.reload(BY, force=True)
            house.write(FILE + '[upstream.more]\nbackends = ["10.0.0.9:80"]\n')
            back = await house.reloader.reload(BY)

            assert (refused["changed"], refused["refused"][0]["upstream"]) == ([], "app")
            assert forced["changed"] == [
                "upstream.app.backends - 10.0.0.1:80",
                "upstream.app.backends - 10.0.0.2:80",
            ]
            assert back["changed"] == [
                "upstream.app.backends + 10.0.0.1:80",
                "upstream.app.backends + 10.0.0.2:80",
                "upstream.more added",
            ]

    run(play)


# Asking first, and asking often


def test_a_dry_run_says_what_would_be_and_does_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            house.write(FILE.replace('["10.0.0.1:80", "10.0.0.2:80"]', "[]").replace("8080", "81"))
            reply = await house.reloader.reload(BY, dry_run=True)
            assert reply["dry_run"]
            assert reply["changed"] == [
                'listener.web.address ["127.0.0.1:8080"] -> ["127.0.0.1:81"]'
            ]
            assert reply["refused"][0]["reason"] == "would-empty"
            reply = await house.reloader.reload(BY, dry_run=True, force=True)
            assert "upstream.app.backends - 10.0.0.1:80" in reply["changed"]
            assert house.adopted == []
            assert house.sockets.held == set()
            assert set(backends(house)) == {"10.0.0.1:80", "10.0.0.2:80"}

    run(play)


def test_reloads_go_one_after_the_other_and_not_too_many_wait(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            replies = await asyncio.gather(
                *(house.reloader.reload(BY) for _ in range(RELOADS_MAX + 2)),
                return_exceptions=True,
            )
            done = [each["generation"] for each in replies if isinstance(each, dict)]
            refused = [each for each in replies if isinstance(each, OperatorError)]
            assert done == list(range(2, RELOADS_MAX + 2))
            assert len(refused) == 2

    run(play)


def test_keys_that_need_a_restart_are_named_until_there_was_one(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path, FILE + "\n[node]\nworkers = 2\n") as house:
            house.write(FILE + '\n[node]\nworkers = 3\ndrain = "9s"\n')
            for _ in range(2):
                reply = await house.reloader.reload(BY)
                assert reply["needs_restart"] == ["node.workers 2 -> 3"]
            node = house.reloader.in_force.loaded.config.node
            assert (node.workers, node.drain) == (2, 9.0)

    run(play)


def test_the_restart_keys_of_a_config_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "lb.toml"
    path.write_text(FILE + '\n[admin]\naddress = "127.0.0.1:1"\nhosts = ["a.example"]\n')
    running = load(str(path), {}).config
    path.write_text(FILE + '\n[admin]\naddress = "127.0.0.1:2"\nhosts = ["b.example"]\n')
    kept = keep_restart_keys(running, load(str(path), {}).config)
    assert kept.admin.address == "127.0.0.1:1"
    assert kept.admin.hosts == ["b.example"]


def test_sync_makes_the_registry_follow_the_file(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            weight = PatchBackend(
                upstream="app", by=BY, at=1.0, key="10.0.0.1:80", fields=Fields(weight=7)
            )
            await house.store.propose(weight)
            foreseen = await house.reloader.sync(BY, dry_run=True)
            assert foreseen["dry_run"]
            reply = await house.reloader.sync(BY)
            assert reply["changed"] == foreseen["changed"]
            assert (reply["refused"], reply["dry_run"]) == ([], False)
            assert reply["revision"] == house.store.registry.revision

    run(play)


def test_the_file_is_parsed_in_a_child(tmp_path: Path) -> None:
    async def play() -> None:
        async with house_of(tmp_path) as house:
            parser = Parser(str(house.path))
            house.parse = parser.parse  # type: ignore[method-assign]
            await house.end()
            house.store = FileStore.open(house.data_dir)
            await house.begin()
            house.write(FILE.replace("10.0.0.2", "10.0.0.3"))
            await house.reloader.reload(BY)
            assert set(backends(house)) == {"10.0.0.1:80", "10.0.0.3:80"}
            parser.close()

    run(play)
