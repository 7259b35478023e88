"""The store of an instance alone: committed is what lies whole on the disk, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lb.control.data_dir import LOCK_FILE, lock_data_dir, settle_name
from lb.control.disk import DamagedError, Disk, seal, spare_path, unseal
from lb.control.store import (
    PROPOSALS_MAX,
    REGISTRY_FILE,
    DamagedRegistryError,
    FileStore,
    NotStored,
    UnknownOutcome,
)
from lb.errors import StartError
from lb.registry import (
    ApplyFile,
    By,
    Code,
    Fields,
    Outcome,
    PatchBackend,
    PutBackend,
    Registry,
    Said,
)

A, B = "10.0.0.1:80", "10.0.0.2:80"
BASE: dict[str, Any] = {"upstream": "app", "by": By(member="a"), "at": 1.5}
FILE = ApplyFile(remembered=None, said=(Said(A), Said(B)), **BASE)


def weight(of: str, to: int, **more: Any) -> PatchBackend:
    return PatchBackend(key=of, fields=Fields(weight=to), **BASE | more)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


class BadDisk(Disk):
    """Fails at the named step, as often as told."""

    def __init__(self, step: str, error: OSError, times: int = 1) -> None:
        self.step = step
        self.error = error
        self.times = times

    def _maybe(self, step: str) -> None:
        if step == self.step and self.times:
            self.times -= 1
            raise self.error

    def sync(self, descriptor: int) -> None:
        self._maybe("sync")
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._maybe("rename")
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self._maybe("sync_directory")
        super().sync_directory(path)


class WatchedDisk(Disk):
    """Says which system calls were made, in order, and on what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def sync(self, descriptor: int) -> None:
        self.calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.calls.append(("rename", target.name))
        super().rename(source, target)


class SlowDisk(Disk):
    """Waits before each write until it is let go."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go = threading.Event()
        self.writes = 0

    def write(self, path: Path, data: bytes) -> None:
        self.started.set()
        assert self.go.wait(10)
        self.writes += 1
        super().write(path, data)


# --- Committing -------------------------------------------------------------------------------


def test_the_first_start_makes_a_random_id(tmp_path: Path) -> None:
    first = FileStore.open(tmp_path).registry
    again = FileStore.open(tmp_path).registry
    (tmp_path / "other").mkdir()
    other = FileStore.open(tmp_path / "other").registry

    assert len(bytes.fromhex(first.id)) == 16
    assert again == first == Registry(first.id)
    assert other.id != first.id


def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        store = FileStore.open(tmp_path)
        created = await store.propose(FILE)
        reply = await store.propose(weight(A, 5, idempotency_key="k1"))

        assert (created.outcome, reply.outcome) == (Outcome.CREATED, Outcome.CHANGED)
        after = FileStore.open(tmp_path)
        assert after.registry == store.registry
        assert after.registry.revision == 2
        again = await after.propose(weight(A, 5, idempotency_key="k1"))
        assert again.repeated

    run(test)


def test_nothing_is_shown_before_it_is_on_the_disk(tmp_path: Path) -> None:
    async def test() -> None:
        FileStore.open(tmp_path)
        disk = SlowDisk()
        store = FileStore.open(tmp_path, disk)
        shown: list[Registry] = []
        store.subscribe(shown.append)

        proposal = asyncio.ensure_future(store.propose(FILE))
        await asyncio.to_thread(disk.started.wait, 10)
        assert store.registry.revision == 0
        assert not shown
        assert not proposal.done()

        disk.go.set()
        assert (await proposal).revision == 1
        assert shown == [store.registry]

    run(test)


def test_a_burst_is_written_together(tmp_path: Path) -> None:
    async def test() -> None:
        FileStore.open(tmp_path)
        disk = SlowDisk()
        store = FileStore.open(tmp_path, disk)
        first = asyncio.ensure_future(store.propose(FILE))
        await asyncio.to_thread(disk.started.wait, 10)

        rest = [asyncio.ensure_future(store.propose(weight(A, n))) for n in range(2, 52)]
        await asyncio.gather(*[asyncio.sleep(0) for _ in range(3)])
        disk.go.set()
        replies = await asyncio.gather(first, *rest)

        assert [reply.revision for reply in replies] == list(range(1, 52))
        assert disk.writes == 2
        assert FileStore.open(tmp_path).registry == store.registry

    run(test)


def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        store = FileStore.open(tmp_path)
        await store.propose(FILE)
        before = (tmp_path / REGISTRY_FILE).stat()
        shown: list[Registry] = []
        store.subscribe(shown.append)

        await store.propose(weight(A, 1))
        refused = await store.propose(weight("10.9.9.9:80", 1))

        assert refused.refusal
        assert refused.refusal.code is Code.NOT_FOUND
        assert (tmp_path / REGISTRY_FILE).stat().st_ino == before.st_ino
        assert not shown

    run(test)


def test_subscribers_hear_only_of_what_one_routes_by(tmp_path: Path) -> None:
    async def test() -> None:
        store = FileStore.open(tmp_path)
        shown: list[int] = []
        store.subscribe(lambda registry: shown.append(registry.revision))

        await store.propose(FILE)
        await store.propose(weight(A, 1, idempotency_key="k1"))  # Remembered, not routed by.
        await store.propose(weight(A, 2))

        assert shown == [1, 2]
        assert FileStore.open(tmp_path).registry.answers.keys() == {"/k1"}

    run(test)


def test_who_gives_up_waiting_does_not_take_the_write_back(tmp_path: Path) -> None:
    async def test() -> None:
        FileStore.open(tmp_path)
        disk = SlowDisk()
        store = FileStore.open(tmp_path, disk)
        proposal = asyncio.ensure_future(store.propose(FILE))
        await asyncio.to_thread(disk.started.wait, 10)

        proposal.cancel()
        disk.go.set()
        await store.close()

        assert proposal.cancelled()
        assert store.registry.revision == FileStore.open(tmp_path).registry.revision == 1

    run(test)


def test_waiting_writes_are_bounded(tmp_path: Path) -> None:
    async def test() -> None:
        FileStore.open(tmp_path)
        disk = SlowDisk()
        store = FileStore.open(tmp_path, disk)
        first = asyncio.ensure_future(store.propose(FILE))
        await asyncio.to_thread(disk.started.wait, 10)
        rest = [asyncio.ensure_future(store.propose(weight(A, 1))) for _ in range(PROPOSALS_MAX)]
        await asyncio.sleep(0)

        with pytest.raises(NotStored, match="are waiting already"):
            await store.propose(weight(A, 2))

        disk.go.set()
        await asyncio.gather(first, *rest)

    run(test)


# --- A disk that fails ------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["sync", "rename"])
def test_what_could_not_be_written_was_not_applied(tmp_path: Path, step: str) -> None:
    async def test() -> None:
        await FileStore.open(tmp_path).propose(FILE)
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        store = FileStore.open(tmp_path, BadDisk(step, full))

        with pytest.raises(NotStored, match=r"registry\.json.*No space left") as caught:
            await store.propose(weight(A, 5))

        assert caught.value.hint
        assert store.registry == FileStore.open(tmp_path).registry
        assert store.registry.revision == 1
        assert not spare_path(tmp_path / REGISTRY_FILE).exists()
        # There is room again: it goes on.
        assert (await store.propose(weight(A, 5))).revision == 2
        assert FileStore.open(tmp_path).registry == store.registry

    run(test)


def test_written_but_not_for_sure_is_an_unknown_outcome(tmp_path: Path) -> None:
    async def test() -> None:
        await FileStore.open(tmp_path).propose(FILE)
        store = FileStore.open(tmp_path, BadDisk("sync_directory", OSError(errno.EIO, "I/O")))
        command = weight(A, 5, idempotency_key="k1")

        with pytest.raises(UnknownOutcome, match="power cut"):
            await store.propose(command)
        # Safe to repeat: written again, and applied once.
        reply = await store.propose(command)

        assert (reply.revision, reply.repeated) == (2, False)
        assert FileStore.open(tmp_path).registry == store.registry

    run(test)


def test_data_is_on_the_disk_before_its_name_is(tmp_path: Path) -> None:
    disk = WatchedDisk()

    disk.replace(tmp_path / "x", b"data")

    assert disk.calls == [("sync", "x.new"), ("rename", "x"), ("sync", tmp_path.name)]
    assert (tmp_path / "x").read_bytes() == b"data"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_draft_that_a_crash_left_is_ignored_and_removed(tmp_path: Path) -> None:
    store = FileStore.open(tmp_path)
    draft = spare_path(tmp_path / REGISTRY_FILE)
    draft.write_bytes(b'{"format":1,"crc":"00')

    assert FileStore.open(tmp_path).registry == store.registry
    assert not draft.exists()


def test_killed_at_any_moment_what_was_answered_is_there(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "import test_store as t\n"
        "async def main():\n"
        "    store = t.FileStore.open(sys.argv[1])\n"
        "    for n in range(100_000):\n"
        "        await store.propose(t.FILE)\n"
        "        reply = await store.propose(t.weight(t.A, n % 1_000))\n"
        "        print(reply.revision, flush=True)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        answered = [int(process.stdout.readline()) for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        answered += [int(line) for line in process.stdout.read().split("\n")[:-1]]

    revision = FileStore.open(tmp_path).registry.revision
    assert answered[-1] <= revision <= answered[-1] + 1


# --- Damage -----------------------------------------------------------------------------------


def filled(data_dir: Path) -> bytes:
    async def fill() -> None:
        await FileStore.open(data_dir).propose(ApplyFile(remembered=None, said=(Said(A),), **BASE))

    asyncio.run(fill())
    return (data_dir / REGISTRY_FILE).read_bytes()


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    path = tmp_path / REGISTRY_FILE
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedRegistryError, match=r"registry\.json.*(cut short|empty|not a)"):
            FileStore.open(tmp_path)
        assert path.read_bytes() == whole[:length]  # Left for a person to look at.


def test_a_file_changed_anywhere_is_refused(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    path = tmp_path / REGISTRY_FILE
    for place in range(len(whole)):
        for flip in (1, 0x20):
            changed = bytearray(whole)
            changed[place] ^= flip
            path.write_bytes(changed)
            with pytest.raises(StartError, match=r"registry\.json") as caught:
                FileStore.open(tmp_path)
            assert caught.value.exit_status == 7


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 512, "not a file that we wrote"),
        (b"{}", "not a file that we wrote"),
        (seal(1, {"id": "x"}), "does not hold a registry"),
        (seal(1, [1]), "does not hold a registry"),
        (seal(2, {}), "has format 2, and this version reads 1"),
    ],
)
def test_the_reason_is_said(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / REGISTRY_FILE).write_bytes(data)

    with pytest.raises(StartError, match=reason) as caught:
        FileStore.open(tmp_path)

    assert str(tmp_path / REGISTRY_FILE) in caught.value.message
    assert caught.value.hint


def test_seals() -> None:
    body = {"text": 'ends in "}\n', "n": [1, 2.5, None]}
    data = seal(3, body)

    assert unseal(data) == (3, body)
    with pytest.raises(DamagedError, match="added to"):
        unseal(data + b"\n")
    with pytest.raises(DamagedError, match="checksum"):
        unseal(data.replace(b'"format":3', b'"format":4'))


# --- The data_dir -----------------------------------------------------------------------------


def test_a_data_dir_is_made_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "var" / "lib"
    with lock_data_dir(path) as lock:
        assert lock.path == path
        assert path.stat().st_mode & 0o777 == 0o700
        with pytest.raises(StartError, match=f"in use by process {os.getpid()}") as caught:
            lock_data_dir(path, wait=0)
        assert caught.value.exit_status == 7
        assert "node.data_dir" in caught.value.hint

    lock_data_dir(path, wait=0).release()


def test_a_start_waits_for_who_is_leaving(tmp_path: Path) -> None:
    first = lock_data_dir(tmp_path)
    got: list[bool] = []

    def wait() -> None:
        lock_data_dir(tmp_path, wait=10).release()
        got.append(True)

    waiter = threading.Thread(target=wait)
    waiter.start()
    first.release()
    waiter.join(10)

    assert got


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lb.control.data_dir import lock_data_dir\n"
        "lock = lock_data_dir(sys.argv[1])\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StartError, match=f"process {process.pid}"):
            lock_data_dir(tmp_path, wait=0)
        process.kill()

    lock_data_dir(tmp_path, wait=0).release()
    assert (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_data_dir_that_cannot_be_is_said(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StartError, match=r"data_dir .* cannot be used: ") as caught:
        lock_data_dir(tmp_path / place, wait=0)

    assert "node.data_dir" in caught.value.hint


def test_a_read_only_data_dir_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.

    with pytest.raises(StartError, match="cannot be written to"):
        lock_data_dir(tmp_path, wait=0)


def test_a_put_of_a_new_store_needs_the_upstream(tmp_path: Path) -> None:
    """Or the first write through the API would hide all that the file has."""

    async def test() -> None:
        store = FileStore.open(tmp_path)
        reply = await store.propose(PutBackend(key=A, **BASE))
        assert reply.refusal
        assert reply.refusal.code is Code.NOT_FOUND

    run(test)


def test_the_name_in_the_data_dir_wins(tmp_path: Path) -> None:
    assert settle_name(tmp_path, "a") == ("a", None)
    assert settle_name(tmp_path, "a") == ("a", None)

    name, warning = settle_name(tmp_path, "b")

    assert name == "a"
    assert warning
    assert 'not "b"' in warning


def test_a_damaged_name_is_said(tmp_path: Path) -> None:
    settle_name(tmp_path, "a")
    (tmp_path / "node.json").write_bytes(b"{")

    with pytest.raises(StartError, match=r"node\.json cannot be used"):
        settle_name(tmp_path, "a")
