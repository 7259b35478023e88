"""An admin API to ask: the real server over a real store, and a desk small enough to read."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from lb.config.diff import diff
from lb.config.load import load
from lb.config.schema import Config
from lb.control.admin import AdminServer, ProbeServer
from lb.control.admin_guard import wall_time
from lb.control.desk import Check, GroupStanding, MemberStanding, Standing, WorkerStanding
from lb.control.forced import Forced, Overrides
from lb.control.state_machine import Applied
from lb.control.store import Store
from lb.edition import Composer, Edition, Resolved, Sources
from lb.errors import AccordError, OperatorError
from lb.metrics import Meters, Reading, create_memory
from lb.model import Health
from lb.outlier import Ejected
from lb.registry import (
    ApplyFile,
    By,
    Command,
    Registry,
    Reply,
    Said,
    apply,
    registry_to_plain,
)

PATIENCE = 10.0
T = TypeVar("T")

CONFIG = """
[node]
name = "a"

[listener.web]
address = "127.0.0.1:8080"
upstream = "app"

[route.images]
path = "/images/"
upstream = "images"

[route.old]
host = "old.example"
respond = { status = 308, location = "https://new.example/" }

[route.posts]
path = "/posts"
method = "POST"
upstream = "app"

[upstream.app]
backends = ["127.0.0.1:9001", "127.0.0.1:9002"]
health = { path = "/healthz" }

[upstream.images]
backends = [{ name = "one", address = "127.0.0.1:9003", weight = 3 }]
"""


class MemoryStore:
    """A real registry, committed at once; whoever wants to hears of each revision."""

    def __init__(self) -> None:
        self.registry = Registry(id="0" * 32)
        self.proposed: list[Command] = []
        self.on_applied: list[Callable[[Applied], object]] = []
        self._on_change: list[Callable[[Registry], None]] = []

    async def propose(self, command: Command) -> Reply:
        self.proposed.append(command)
        before = self.registry
        self.registry, reply = apply(before, command)
        if self.registry.revision != before.revision:
            self.tell(Applied(0, 1, self.registry, True, command, reply))
        return reply

    def tell(self, applied: Applied) -> None:
        """Take an entry for applied."""
        self.registry = applied.registry
        for on_applied in self.on_applied:
            on_applied(applied)
        for on_change in self._on_change:
            on_change(self.registry)

    def subscribe(self, on_change: Callable[[Registry], None]) -> None:
        self._on_change.append(on_change)


class Group:
    """A group as a test says it is: `said` are the other members' answers, by method and name."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.leader = "a"
        self.quorum = True
        self.members = [MemberStanding("a", "127.0.0.1:9901", "voter", 1, 7, 0, 0, live=True)]
        self.said: dict[str, dict[str, Any]] = {}
        self.called: list[tuple[Any, ...]] = []
        self.error: AccordError | None = None
        self.hangs = False
        self.more: dict[str, Any] = {}

    def joined(self, name: str, *, voter: bool = True, live: bool = True) -> None:
        """Let there be another member."""
        role: Literal["voter", "learner"] = "voter" if voter else "learner"
        id_ = len(self.members) + 1
        self.members.append(
            MemberStanding(name, f"127.0.0.1:990{id_}", role, id_, 5, 2, 40, live=live)
        )

    @property
    def term(self) -> int:
        return 3

    def standing(self) -> GroupStanding:
        return GroupStanding(
            id=self._store.registry.id,
            role="leader" if self.leader == "a" else "follower",
            leader=self.leader,
            term=self.term,
            revision=self._store.registry.revision,
            commit=9,
            applied=8,
            quorum=self.quorum,
            state="ok" if self.quorum else "no-quorum",
            members=tuple(self.members),
            **self.more,
        )

    async def confirm(self) -> None:
        await self._note("confirm")

    async def add_member(self, name: str, address: str, by: By) -> dict[str, Any]:
        return await self._note("add", name, address, by.member)

    async def remove_member(self, name: str, by: By, *, force: bool) -> dict[str, Any]:
        return await self._note("remove", name, force)

    async def transfer(self, to: str | None, by: By) -> dict[str, Any]:
        await self._note("transfer", to)
        return {"leader": to or "b"}

    async def found(self, by: By) -> dict[str, Any]:
        return await self._note("found")

    async def recover(self, lost: tuple[str, ...], by: By) -> dict[str, Any]:
        return await self._note("recover", lost)

    async def renew(self, upstream: str, key: str, by: By) -> dict[str, Any]:
        await self._note("renew", upstream, key)
        return {"ttl": 15.0, "suspect": False}

    async def ask_all(
        self, method: str, params: dict[str, Any], seconds: float
    ) -> Mapping[str, dict[str, Any]]:
        self.called.append((method, params))
        return self.said.get(method, {})

    def backup(self) -> dict[str, Any]:
        return registry_to_plain(self._store.registry)

    async def _note(self, *what: Any) -> dict[str, Any]:
        self.called.append(what)
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return {"revision": self._store.registry.revision}


class Desk:
    upgrade_fails = ""
    """A controller without workers: they route by whatever is committed, unless told not to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lb.toml"
        self.path.write_text(CONFIG)
        self.config: Config = load(str(self.path), {}).config
        self.memory_store = MemoryStore()
        self.store: Store = self.memory_store
        self.group = Group(self.memory_store)
        self.verdicts: dict[str, dict[str, Check]] = {}
        self.memory = create_memory()
        self.meters = Meters(self.memory)
        self.why_unready = ""
        self.name = "a"
        self.asked = 0
        self.routes_by_newest = True
        self.stopped_with: list[float | None] = []
        self.overrides = Overrides(lambda: None)
        self.cuts: list[tuple[str, str]] = []
        self.broken = False
        self.error: str | None = None
        self.pid = 1

    @property
    def edition(self) -> Edition:
        verdicts = {
            upstream: {address: check.verdict for address, check in checks.items()}
            for upstream, checks in self.verdicts.items()
        }
        sources = Sources(self.config, 1, self.store.registry, verdicts)
        number = self.store.registry.revision + 1
        return Composer("a", "lb-00000000").compose(sources, number)

    def standing(self) -> Standing:
        if self.broken:
            raise ZeroDivisionError("a secret of ours")
        return Standing(
            name="a",
            pid=self.pid,
            started=wall_time() - 5,
            generation=1,
            source=str(self.path),
            files=(str(self.path),),
            on_disk="same",
            error=self.error,
            reloaded=wall_time(),
            reloads={"ok": 1, "failed": 0},
            workers=[WorkerStanding(slot=0, pid=2, up=True, edition=1)],
        )

    def checks(self, upstream: str) -> Mapping[str, Check]:
        return self.verdicts.get(upstream, {})

    def ejected(self) -> Ejected:
        return {}

    def forced(self) -> Forced:
        return self.overrides.forced

    def force(self, upstream: str, key: str, to: str, why: str) -> None:
        self.overrides.force(upstream, key, to, why)

    def cut(self, upstream: str, key: str) -> None:
        self.cuts.append((upstream, key))

    def resolved(self) -> Resolved:
        return {}

    def reading(self, max_age: float = 0.0) -> Reading:
        return Reading([self.memory])

    def unready(self) -> str:
        return self.why_unready

    def note_asked(self) -> None:
        self.asked += 1

    def routed_revision(self) -> int:
        return self.store.registry.revision if self.routes_by_newest else 0

    async def wait_routed(self, revision: int, seconds: float) -> bool:
        return self.routed_revision() >= revision

    async def reload(self, by: By, *, dry_run: bool, force: bool) -> Mapping[str, Any]:
        loaded = load(str(self.path), {})
        changes = diff(self.config, loaded.config)
        if not dry_run:
            self.config = loaded.config
        return {"generation": 2, **changes.as_plain(), "refused": [], "stale": []}

    async def sync(self, by: By, *, dry_run: bool) -> Mapping[str, Any]:
        return {"changed": [], "refused": [], "dry_run": dry_run}

    async def stop(self, drain: float | None) -> None:
        self.stopped_with.append(drain)

    async def upgrade(self) -> int:
        if self.upgrade_fails:
            raise OperatorError(self.upgrade_fails, "it goes on as before")
        return 4711

    async def take_file(self) -> None:
        """Let the registry know what the file says, as a start does."""
        for name, upstream in self.config.upstream.items():
            said = tuple(
                Said(each.address, each.name, each.weight, each.backup)
                for each in upstream.backends or ()
            )
            await self.store.propose(
                ApplyFile(
                    upstream=name,
                    by=By(member="a", source="file"),
                    at=wall_time(),
                    remembered=(),
                    said=said,
                )
            )


class Answer:
    """What the admin API said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def plain(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; what carries one must be a whole problem."""
        plain = self.plain
        assert self.headers.get_content_type() == "application/problem+json"
        assert plain["type"] == f"urn:accord:{plain['code']}"
        assert plain["status"] == self.status
        assert plain["title"]
        assert plain["detail"]
        return str(plain["code"])


class Office:
    """The servers in a thread with a loop of its own, and a client."""

    def __init__(self, folder: Path, *, unix: bool = False) -> None:
        self.desk = Desk(folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._sock = _listening(folder if unix else None)
        self._probe_sock = _listening(None)
        self.unix_path = str(folder / "admin.sock") if unix else ""
        self.port = 0 if unix else self._sock.getsockname()[1]
        self.probe_port = self._probe_sock.getsockname()[1]
        self.address = f"unix:{self.unix_path}" if unix else f"127.0.0.1:{self.port}"

    def __enter__(self) -> Office:
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self.run(no_sockets_left())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        os.close(self.desk.memory)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the admin's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def propose(self, command: Any) -> Reply:
        return self.run(self.desk.store.propose(command))

    async def _open(self) -> None:
        await self.desk.take_file()
        self.admin, self._probe = AdminServer(self.desk), ProbeServer(self.desk)
        self.desk.memory_store.on_applied.append(self.admin.events.take)
        await self.admin.start(self._sock)
        await self._probe.start(self._probe_sock)

    async def _close(self) -> None:
        await self.admin.stop()
        await self._probe.stop()

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        port: int | None = None,
        data: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """Make one request; names of headers come with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            data = json.dumps(body).encode()
            named.setdefault("Content-Type", "application/json")
        connection: http.client.HTTPConnection
        if self.unix_path:
            connection = UnixConnection(self.unix_path)
        else:
            connection = http.client.HTTPConnection(
                "127.0.0.1", port or self.port, timeout=PATIENCE
            )
        with contextlib.closing(connection):
            connection.request(method, path, body=data, headers=named)
            with contextlib.closing(connection.getresponse()) as response:
                return Answer(response)

    def get(self, path: str, **headers: Any) -> Answer:
        return self.ask("GET", path, **headers)

    def judge(self, upstream: str, address: str, verdict: Health, reason: str = "200") -> None:
        """Let the prober have found this out."""
        check = {"at": 1.0, "ok": verdict is Health.HEALTHY, "reason": reason, "ms": 1.5}
        self.desk.verdicts.setdefault(upstream, {})[address] = Check(verdict, check)

    def backend(self, key: str, upstream: str = "app") -> dict[str, Any]:
        """One backend as a list shows it."""
        plain = self.get(f"/v1/upstreams/{upstream}").plain
        found = [each for each in plain["backends"] if key in (each["name"], each["address"])]
        assert found, f"{key} is not in {upstream}"
        return dict(found[0])


async def no_sockets_left() -> None:
    """Wait until what was closed has ended; whoever is left open is somebody's mistake."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE):
        while len(selector.get_map()) > 1:  # noqa: ASYNC110 - one is the loop's own
            await asyncio.sleep(0)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def _listening(folder: Path | None) -> socket.socket:
    if folder is None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(folder / "admin.sock"))
    sock.listen()
    return sock


@contextlib.contextmanager
def office_in(folder: Path, *, unix: bool = False) -> Iterator[Office]:
    """Open an office for the length of a test."""
    with Office(folder, unix=unix) as office:
        yield office
