"""
`lb demo --group`: three instances that agree, four toy backends, on one machine.

The process that a person started keeps everything else: it starts toys and instances, starts
a killed one again, sends a trickle through each instance, and says what to try and who leads.
Instances are in process groups of their own, so that Ctrl-C is for the keeper alone; should it
be killed itself, the kernel tells them to stop (PR_SET_PDEATHSIG), and toys end with their input.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb import supervisor
from lb.demo import (
    LOOK_SECONDS,
    REST_SECONDS,
    answer_of,
    end_toy,
    free_ports,
    lb_command,
    package_path,
    say,
    start_toy,
)
from lb.errors import StartError

NAMES = "abc"
FILED, SPARE = "abc", "d"  # Toys that the file names, and one that waits to be added.
FORMED_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 10.0
TRICKLE_SECONDS = 0.25
WATCH_SECONDS = 0.5
PR_SET_PDEATHSIG = 1

CONFIG = """\
[node]
name = "{name}"
data_dir = "{folder}/{name}"
workers = 1
grace = "0s"
drain = "1s"

[admin]
address = "127.0.0.1:{admin}"

[log]
level = "warning"
output = "{folder}/{name}.log"

[access_log]
output = "{folder}/{name}-access.log"

[group]
listen = "127.0.0.1:{peer}"
members = {{ {members} }}
secret_file = "{folder}/secret"

[listener.web]
address = "127.0.0.1:{proxy}"

[upstream.demo]
backends = [
{backends}
]
health = {{ path = "/healthz", interval = "1s", timeout = "500ms", rise = 2, fall = 2 }}
"""

ADVICE = """
  Accord is running: three instances, a, b and c, that agree on one set of backends.

{table}

  Try, in another terminal:

    {lb} group status{first}
    {lb} backend add demo 127.0.0.1:{spare} --name d --wait all{first}
    {lb} backend list demo{last}
    {loop}
    {lb} backend drain demo b{last}
    {lb} events -f{first}
    kill -9 {victim}   ({leader} leads; another takes over, and {leader} is back after {rest:.0f} s)

  Logs and data are in {folder}.
  Ctrl-C stops everything.
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Ports of one instance."""

    name: str
    proxy: int
    admin: int
    peer: int


def run(proxy: int, admin: int, first_toy: int) -> int:
    """Run the demo until it is stopped. `proxy` and `admin` are the first of three ports each."""
    fixed = {*range(proxy, proxy + 3), *range(admin, admin + 3)}
    if len(fixed) < 6 or max(fixed) > 65535:
        raise StartError("three ports from each on are needed", "choose others, ten apart")
    peers = free_ports(admin + 10, len(NAMES), taken=fixed)
    toys = free_ports(first_toy, len(FILED + SPARE), taken={*fixed, *peers})
    places = [
        Places(name, proxy + index, admin + index, peers[index]) for index, name in enumerate(NAMES)
    ]
    folder = tempfile.mkdtemp(prefix="lb-demo-")
    try:
        write_files(folder, places, toys)
        return asyncio.run(Keeper(folder, places, toys).main())
    except KeyboardInterrupt:
        return 0  # Before the keeper listened for it.
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_files(folder: str, places: Sequence[Places], toys: Sequence[int]) -> None:
    """Write the secret and each instance's config file."""
    secret = Path(folder, "secret")
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32) + "\n", encoding="ascii")
    members = ", ".join(f'{each.name} = "127.0.0.1:{each.peer}"' for each in places)
    backends = ",\n".join(
        f'  {{ name = "{letter}", address = "127.0.0.1:{port}" }}'
        for letter, port in zip(FILED, toys, strict=False)
    )
    for each in places:
        text = CONFIG.format(
            name=each.name,
            folder=folder,
            admin=each.admin,
            peer=each.peer,
            proxy=each.proxy,
            members=members,
            backends=backends,
        )
        Path(folder, f"{each.name}.toml").write_text(text, encoding="utf-8")


class Keeper:
    """Keeps toys and instances alive until a signal comes, and tells what happens."""

    def __init__(self, folder: str, places: Sequence[Places], toys: Sequence[int]) -> None:
        self._folder = folder
        self._places = {each.name: each for each in places}
        self._toy_ports = dict(zip(FILED + SPARE, toys, strict=True))
        self._toys: dict[str, Process] = {}
        self._instances: dict[str, Process] = {}
        self._leader = ""
        self._stop = asyncio.Event()
        self._failed = 0

    async def main(self) -> int:
        """Run until SIGINT or SIGTERM, or until an instance cannot even start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        try:
            for letter, port in self._toy_ports.items():
                self._toys[letter] = await start_toy(letter, port)
            for name in self._places:
                self._instances[name] = await self._start(name)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._keep(name)) for name in self._places]
                tasks += [group.create_task(self._trickle(each)) for each in self._places.values()]
                tasks += [group.create_task(self._watch())]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*map(_end_instance, self._instances.values()))
            await asyncio.gather(*map(end_toy, self._toys.values()))
        return self._failed

    async def _start(self, name: str) -> Process:
        words = (sys.executable, "-m", "lb.demo_group", str(Path(self._folder, f"{name}.toml")))
        env = {**os.environ, "PYTHONPATH": package_path()}
        return await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, env=env, process_group=0
        )

    async def _keep(self, name: str) -> None:
        """Start an instance again when it ends; one that cannot start ends the demo."""
        while True:
            status = await self._instances[name].wait()
            if status > 0:
                self._failed = status
                self._stop.set()
                return
            say(f"instance {name} is gone; it comes back in {REST_SECONDS:.0f} s")
            await asyncio.sleep(REST_SECONDS)
            self._instances[name] = await self._start(name)
            say(f"instance {name} is back; kill -9 {self._instances[name].pid} ends it again")

    async def _trickle(self, place: Places) -> None:
        while True:
            await answer_of(place.proxy)
            await asyncio.sleep(TRICKLE_SECONDS)

    async def _watch(self) -> None:
        """Say what to try once there is a leader, and after that who leads."""
        loop = asyncio.get_running_loop()
        started, greeted = loop.time(), False
        while True:
            leader = await self._agreed_leader(0 if greeted else len(NAMES))
            if leader and not greeted:
                print(self._advice(leader), file=sys.stderr, flush=True)
                greeted = True
            elif leader and leader != self._leader:
                say(f"instance {leader} leads now; kill -9 {self._instances[leader].pid} ends it")
            elif not greeted and loop.time() - started > FORMED_SECONDS_MAX:
                say(f"the group has not formed; its logs are in {self._folder}")
                started = loop.time()
            self._leader = leader or self._leader
            await asyncio.sleep(WATCH_SECONDS if greeted else LOOK_SECONDS)

    async def _agreed_leader(self, voters: int) -> str:
        """Return whom all that answer call their leader, two at least, who know so many voters."""
        said = [each for place in self._places.values() if (each := await _group_at(place))]
        leaders = {str(each["leader"]) for each in said}
        formed = all(
            sum(member["role"] == "voter" for member in each["members"]) >= voters for each in said
        )
        return leaders.pop() if formed and len(leaders) == 1 and len(said) >= 2 else ""

    def _advice(self, leader: str) -> str:
        places = list(self._places.values())
        rows = [("instance", "proxy", "dashboard")]
        rows += [
            (
                each.name + (" (leads)" if each.name == leader else ""),
                f"http://127.0.0.1:{each.proxy}/",
                f"http://127.0.0.1:{each.admin}/",
            )
            for each in places
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["    " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        ports = " ".join(str(each.proxy) for each in places)
        first = places[0].admin
        return ADVICE.format(
            table="\n".join(lines),
            lb=lb_command(),
            first="" if first == 9900 else f" --admin 127.0.0.1:{first}",
            last=f" --admin 127.0.0.1:{places[-1].admin}",
            spare=self._toy_ports[SPARE],
            loop=f"for port in {ports}; do curl -s http://127.0.0.1:$port/; done",
            victim=self._instances[leader].pid,
            leader=leader,
            rest=REST_SECONDS,
            folder=self._folder,
        )


async def _group_at(place: Places) -> dict[str, Any] | None:
    """Return what an instance says of its group, or None where it does not answer or know."""
    body = await answer_of(place.admin, "/v1/group")
    try:
        plain = json.loads(body or b"{}")
    except ValueError:
        return None
    return plain if isinstance(plain, dict) and plain.get("leader") else None


async def _end_instance(instance: Process) -> None:
    if instance.returncode is not None:
        return
    instance.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await instance.wait()
    except TimeoutError:
        instance.kill()
        await instance.wait()


def serve(path: str) -> int:
    """Be one instance, until whoever started us is gone."""
    keeper = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != keeper:
        return 0  # It went in between, and nobody will tell us.
    return supervisor.run(path)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
