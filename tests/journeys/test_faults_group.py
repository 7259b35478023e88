"""
What fate does to one group of three real instances: disks that are slow or full, clocks that
jump, a file that has lost its `[group]`. Traffic goes on throughout, and no write that was
answered is lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from journeys.conftest import MakeGroup, config_of
from journeys.group_kit import Group, Instance
from journeys.kit import PATIENCE, Backend, Load, copy_of_package, loaded, until

UNUSED = "127.0.0.1:9"
DISK_MIB = 96  # Two segments and the reserve are 48.
BULKY = [f"10.9.9.{number}:80" for number in range(60)]  # Their labels make half a megabyte.
BULKS_MAX = 60  # Of such writes, until a segment must be full.
SLOW_S = 0.3  # What one sync takes on a disk that is slow.
HOUR = 3600
CLOCK = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount and trace"),
]


@pytest.fixture(scope="module")
def farm() -> Iterator[list[Backend]]:
    made = [Backend(name) for name in "ab"]
    yield made
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, farm: list[Backend]) -> Iterator[Group]:
    """A group each of whose members has a disk, and a wall clock, of its own."""
    made = Group(tmp_path_factory.mktemp("three"), config_of(farm))
    clock = next(CLOCK, None)
    with contextlib.ExitStack() as stack:
        for each in made:
            each.data_dir.mkdir(mode=0o700)
            size = f"size={DISK_MIB}m,mode=700"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(each.data_dir)], check=True
            )
            stack.callback(subprocess.run, ["umount", "-l", str(each.data_dir)], check=True)
            if clock is not None:
                set_clock(each, 0)
                each.environ |= {
                    "LD_PRELOAD": str(clock),
                    "FAKETIME_TIMESTAMP_FILE": str(clock_file(each)),
                    "FAKETIME_CACHE_DURATION": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                }
        stack.callback(made.end)
        yield made.start()
        assert "Traceback" not in made.log(10_000)


@pytest.fixture
def three(lasting: Group) -> Group:
    for each in lasting:
        if not each.runs:
            each.launch()
    lasting.formed()
    lasting.leader()
    return lasting


@contextlib.contextmanager
def in_use(group: Group) -> Iterator[list[Load]]:
    """Keep all instances under a light load; not one of its requests may fail."""
    with contextlib.ExitStack() as stack:
        under = [stack.enter_context(loaded(each.port, clients=2)) for each in group]
        yield under
        for load in under:
            load.more(10)
    assert [load.failures for load in under] == [[], [], []]


def write(instance: Instance, key: str = UNUSED, **said: int) -> int:
    """Write something of a backend that takes no traffic; return the status."""
    return instance.put(key, state="disabled", timeout=8.0, **said).status  # type: ignore[arg-type]


# --- Disks ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def slow_disk(*instances: Instance) -> Iterator[None]:
    """Have the kernel take its time for each sync of their controllers."""
    tracer = shutil.which("strace")
    if tracer is None:
        pytest.skip("strace is not installed: it comes with `make test`")
    delay = f"inject=fsync,fdatasync:delay_exit={int(SLOW_S * 1e6)}"
    fixed = [tracer, "-f", "-e", "trace=fsync,fdatasync", "-e", delay, "-o", "/dev/null"]
    tracers = [
        subprocess.Popen([*fixed, "-p", str(each.controller())], stderr=subprocess.PIPE, text=True)
        for each in instances
    ]
    try:
        for each in tracers:
            assert each.stderr is not None
            assert "attached" in each.stderr.readline()
        yield
    finally:
        for each in tracers:
            each.send_signal(signal.SIGINT)  # It lets go of whom it traces.
            each.communicate(timeout=PATIENCE)


def test_a_slow_disk_of_one_and_of_all(three: Group) -> None:
    """Two of three are enough; with all of them slow writes are slow, and nothing else is."""
    leader = three.leader()
    term = leader.status()["term"]
    with in_use(three):
        with slow_disk(three.followers()[0]):
            took = []
            for weight in range(1, 10):
                began = time.monotonic()
                assert write(leader, weight=weight) in (200, 201)
                took.append(time.monotonic() - began)
            assert statistics.median(took) < SLOW_S, f"nobody waits for the slow one: {took}"
        with slow_disk(*three):
            for each in three:
                began = time.monotonic()
                assert write(each, weight=10 + ord(each.name)) == 200
                assert time.monotonic() - began > SLOW_S
                assert each.backends()[UNUSED]["weight"] == 10 + ord(each.name)
    assert three.leader().status()["term"] == term, "no election for it"


def fill(instance: Instance) -> Path:
    """Leave no room on a member's disk."""
    path = instance.data_dir / "filler"
    with open(path, "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * (1 << 16))
            file.flush()
    return path


def write_much(instance: Instance) -> int:
    """Write half a megabyte at once, of what cannot be made smaller; return the status."""
    edits = {
        key: {"labels": {f"label-{n}": os.urandom(125).hex() for n in range(32)}} for key in BULKY
    }
    path = "/v1/upstreams/app"
    return instance.admin(path, "PATCH", body={"backends": edits}, timeout=15.0).status


def test_full_disks(three: Group) -> None:
    """A leader without room passes leadership on; without room anywhere writes are refused."""
    for key in BULKY:
        assert write(three["a"], key) in (200, 201)
    controllers = [each.controller() for each in three]
    first = three.leader()
    writes = iter(range(BULKS_MAX))
    fillers = []
    with in_use(three):
        fillers.append(fill(first))
        # While it passes leadership on, a write may have to be tried again.
        while three.leader() is first and next(writes) is not None:
            assert write_much(first) in (200, 503)
        until(lambda: write(first, weight=1) in (200, 201), lambda: f"goes on\n{three.log()}")
        fillers += [fill(each) for each in three if each is not first]
        refused = False
        while not refused and next(writes) is not None:
            asked = three.leader()
            status = write_much(asked)
            assert status in (200, 503)
            refused = status == 503 and asked.put(UNUSED, state="disabled", weight=2).status == 503
        said = three.leader().put(UNUSED, state="disabled", weight=2)
        assert said.status == 503
        assert "disk" in said.text
        for each in three:
            assert each.admin("/v1/upstreams/app").status == 200
            assert each.admin("/readyz").status == 200
        for filler in fillers:
            filler.unlink()
        until(lambda: write(three["b"], weight=3) in (200, 201), "there is room again")
    three.everywhere(lambda each: each.backends()[UNUSED]["weight"] == 3, "what was written last")
    assert [each.controller() for each in three] == controllers, "nobody died of it"


# --- Clocks ---------------------------------------------------------------------------------------


def clock_file(instance: Instance) -> Path:
    return instance.folder / "clock"


def set_clock(instance: Instance, offset: int) -> None:
    """Have an instance's wall clock step; what time passes by stays as it is."""
    new = instance.folder / "clock.new"
    new.write_text(f"{offset:+d}\n")
    new.replace(clock_file(instance))


def stamp(instance: Instance) -> float:
    """Return when, by the clock of who leads, a write of now was made."""
    weight = int(time.monotonic() * 10) % 900 + 1
    assert write(instance, weight=weight) == 200
    return float(instance.backends()[UNUSED]["changed"]["at"])


def test_clocks_that_jump(three: Group) -> None:
    """Leases, elections and checks go by time that passes, not by what a clock shows."""
    if "LD_PRELOAD" not in three["a"].environ:
        pytest.skip("faketime is not installed: it comes with `make test`")
    assert write(three["a"]) in (200, 201)
    leader = three.leader()
    term = leader.status()["term"]
    lease = three["b"].put("10.9.8.1:80", state="disabled", ttl="15s")
    assert lease.status == 201, lease.text
    leased = time.monotonic()
    with in_use(three):
        for offset in (HOUR, -HOUR, 0):
            set_clock(leader, offset)
            until(lambda offset=offset: abs(stamp(leader) - time.time() - offset) < 60, "it shows")  # type: ignore[misc]
            assert "10.9.8.1:80" in leader.backends()
        for each in three.followers():
            set_clock(each, HOUR)
        assert write(three.followers()[0], weight=999) == 200
        three.everywhere(lambda each: each.backends()[UNUSED]["weight"] == 999, "it is there")
        assert three.leader() is leader
        assert leader.status()["term"] == term
        assert time.monotonic() - leased > 15.0 or "10.9.8.1:80" in leader.backends()
        until(lambda: "10.9.8.1:80" not in leader.backends(), "the lease ends all the same", 40.0)
        assert time.monotonic() - leased > 14.0
    for each in three:
        set_clock(each, 0)


# --- Files ----------------------------------------------------------------------------------------


def test_a_file_without_its_group(three: Group) -> None:
    """A member until it is restarted; then it serves by what it knew, and decides nothing."""
    victim = three.followers()[0]
    others = [each for each in three if each is not victim]
    whole = victim.config
    group, listener = whole.index("[group]"), whole.index("[listener.")
    assert write(victim, weight=4) in (200, 201)
    with in_use(three):
        victim.write(whole[:group] + whole[listener:])
        said = victim.admin("/v1/config/reload", "POST")
        assert said.status == 200, said.text
        assert "group" in said.text, "it is told that this waits for a restart"
        assert write(victim, weight=5) == 200, "a member as before"
    assert victim.stop() == 0
    victim.start()
    with in_use(three):
        assert victim.backends()[UNUSED]["weight"] == 5
        answer = victim.put(UNUSED, state="disabled", weight=6)
        assert answer.status == 503, answer.text
        assert write(others[0], weight=7) == 200, "two of three are enough"
        assert victim.backends()[UNUSED]["weight"] == 5
    assert victim.stop() == 0
    victim.write(whole)
    victim.start()
    three.formed()
    three.everywhere(lambda each: each.backends()[UNUSED]["weight"] == 7, "it knows what it missed")


# --- Versions -------------------------------------------------------------------------------------

HANDSHAKE = Path("lb/control/peer_handshake.py")
SPOKEN = "PROTOCOL: Final = (1, 1)"


def test_members_of_different_versions(
    group: MakeGroup, farm: list[Backend], tmp_path: Path
) -> None:
    """Of another build they agree; of a protocol that the others do not speak one is told so."""
    package = copy_of_package(tmp_path)
    handshake = package / HANDSHAKE
    text = handshake.read_text()
    handshake.write_text(text + "# Another build.\n")
    three = group(config_of(farm))
    other = three["c"]
    other.environ["PYTHONPATH"] = str(package)
    three.start()
    assert write(other) == 201
    three.everywhere(lambda each: UNUSED in each.backends(), "written by the newer, known to all")
    assert other.stop() == 0
    assert SPOKEN in text
    handshake.write_text(text.replace(SPOKEN, "PROTOCOL: Final = (2, 2)"))
    other.start()
    until(lambda: "speaks protocol 2" in other.log(), lambda: f"it is told\n{three.log()}")
    with in_use(three):
        assert write(three["a"], weight=7) == 200
        assert other.put(UNUSED, state="disabled", weight=8).status == 503
        assert other.backends()[UNUSED]["weight"] == 1
