"""Several instances of one group: real ones, each a daemon of its own, on the loopback."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from journeys.kit import Answer, Daemon, free_ports, until

SECRET = "a-secret-of-the-tests-0123456789"
FORMING_SECONDS = 60.0  # The machine may be busy; see the bench for how long it really takes.
ELECTION_SECONDS = 60.0
NODE = 'grace = "100ms"\ndrain = "2s"'


class Network(Protocol):
    """What may stand between members: see `chaos.proxy`."""

    def expect(self, name: str, target: tuple[str, int]) -> str:
        """Return the address by which others reach the member that listens at `target`."""
        ...


class Instance(Daemon):
    """One instance of a group. `peer_address` is how the others reach it."""

    def __init__(
        self, folder: Path, name: str, *, network: Network | None = None, **more: Any
    ) -> None:
        [self.peer_port] = free_ports(1)
        self.peer_address = f"127.0.0.1:{self.peer_port}"
        if network is not None:
            self.peer_address = network.expect(name, ("127.0.0.1", self.peer_port))
        more.setdefault("workers", 1)
        more.setdefault("node", NODE)
        super().__init__(folder, "", name=name, **more)

    def configure(
        self, config: str, members: Mapping[str, str], *, secret: str = SECRET, more: str = ""
    ) -> None:
        """Write its file: `config`, and who the first members are. `more` is more of [group]."""
        listed = ", ".join(f'{name} = "{address}"' for name, address in members.items())
        lines = [f'[group]\nlisten = "127.0.0.1:{self.peer_port}"']
        if members:
            lines.append(f"members = {{ {listed} }}")
        if secret:
            lines.append(f'secret = "{secret}"')
        self.write("\n".join([*lines, more, config]))

    # --- What it says ---------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what it says of its part in the group."""
        return dict(self.admin("/v1/status", timeout=5.0).json()["group"])

    def standing(self) -> dict[str, Any]:
        """Return what it says of the group."""
        return dict(self.admin("/v1/group", timeout=5.0).json())

    def voters(self) -> set[str]:
        """Return the names of those who vote, as it knows them."""
        return {each["name"] for each in self.standing()["members"] if each["role"] == "voter"}

    def backends(self, upstream: str = "app", query: str = "") -> dict[str, dict[str, Any]]:
        """Return an upstream's backends as it shows them, by name or address."""
        shown = self.admin(f"/v1/upstreams/{upstream}{query}", timeout=8.0).json()
        return {each.get("name") or each["address"]: each for each in shown["backends"]}

    def put(
        self,
        key: str,
        *,
        upstream: str = "app",
        query: str = "",
        match: str = "",
        timeout: float = 12.0,
        **said: Any,
    ) -> Answer:
        """Write one backend. `match` is an If-Match."""
        fields = {"If-Match": match} if match else {}
        path = f"/v1/upstreams/{upstream}/backends/{key}{query}"
        return self.admin(path, "PUT", body=said, fields=fields, timeout=timeout)

    def routes(self, asked: int = 20) -> set[str]:
        """Return who answered, of so many requests over fresh connections."""
        return {self.ask(timeout=5.0).text for _ in range(asked)}

    # --- What is done to it ---------------------------------------------------------------------

    def stop(self) -> int:
        """Stop it gracefully; return its exit status."""
        self.send(signal.SIGTERM)
        return self.wait()

    def wipe(self) -> None:
        """Take away all that it knows, as a new box in its place would have it."""
        shutil.rmtree(self.data_dir)

    @property
    def runs(self) -> bool:
        """Whether its supervisor does."""
        return self.process is not None and self.process.poll() is None


class Group:
    """Instances that were given each other's addresses. Made, not yet started."""

    def __init__(
        self,
        folder: Path,
        config: str,
        names: Iterable[str] = "abc",
        *,
        network: Network | None = None,
        secret: str = SECRET,
        more: str = "",
        **options: Any,
    ) -> None:
        self.instances = {
            name: Instance(folder / name, name, network=network, **options) for name in names
        }
        self.members = {each.name: each.peer_address for each in self.instances.values()}
        self.config = config
        for instance in self:
            instance.configure(config, self.members, secret=secret, more=more)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances.values())

    def __getitem__(self, name: str) -> Instance:
        return self.instances[name]

    def start(self) -> Group:
        """Start all at once, and wait until all of them vote."""
        for instance in self:
            instance.launch()
        self.formed()
        return self

    def formed(self, names: Iterable[str] | None = None) -> None:
        """Wait until these (all, by default) are ready and know each other as voters."""
        wanted = set(self.instances if names is None else names)
        here = [self[name] for name in sorted(wanted)]
        for instance in here:
            instance.ready()

        def agreed() -> bool:
            return all(each.voters() == wanted for each in here)

        until(agreed, lambda: f"{sorted(wanted)} vote\n{self.log()}", FORMING_SECONDS)

    def leader(self, patience: float = ELECTION_SECONDS) -> Instance:
        """Wait for a leader that all who run agree on, and return it."""

        def one() -> Instance | None:
            said = [each.status() for each in self if each.runs]
            names = {each["leader"] for each in said}
            terms = {each["term"] for each in said}
            if len(names) == len(terms) == 1 and "" not in names:
                return self.instances.get(names.pop())
            return None

        found = until(one, lambda: f"a leader\n{self.log()}", patience)
        assert found is not None
        return found

    def followers(self) -> list[Instance]:
        """Return those who run and do not lead."""
        leader = self.leader()
        return [each for each in self if each.runs and each is not leader]

    def everywhere(self, what: Callable[[Instance], object], says: str) -> None:
        """Wait until something is so on every instance that runs."""
        for instance in self:
            if instance.runs:
                until(partial(what, instance), lambda: f"this everywhere: {says}\n{self.log()}")

    def agree(self, what: str = "labels", *, upstream: str = "app") -> dict[str, Any]:
        """Wait until all who run show the same of every backend; return that."""

        def same() -> list[dict[str, Any]] | None:
            shown = [
                {key: each.get(what) for key, each in instance.backends(upstream).items()}
                for instance in self
                if instance.runs
            ]
            return shown if all(each == shown[0] for each in shown) else None

        found = until(same, "the same everywhere")
        assert found
        return found[0]

    def log(self, lines: int = 12) -> str:
        """Return the ends of all logs."""
        return "\n".join(
            f"--- {each.name}\n" + "\n".join(each.log().splitlines()[-lines:]) for each in self
        )

    def end(self) -> None:
        """Leave nothing behind."""
        for instance in self:
            instance.end()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def answers(instance: Instance) -> bool:
    """Whether its admin API answers at all."""
    try:
        return instance.admin("/livez", timeout=2.0).status == 200
    except (OSError, http.client.HTTPException):
        return False
