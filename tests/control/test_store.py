"""Small files that are whole or refused, and the data_dir: locked, and named."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lb.control.data_dir import LOCK_FILE, lock_data_dir, settle_name
from lb.control.disk import DamagedError, Disk, seal, unseal
from lb.control.store import REGISTRY_FILE, DamagedRegistryError, read_registry_file
from lb.errors import StartError
from lb.registry import Registry, registry_to_plain


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


def test_data_is_on_the_disk_before_its_name_is(tmp_path: Path) -> None:
    disk = WatchedDisk()

    disk.replace(tmp_path / "x", b"data")

    assert disk.calls == [("sync", "x.new"), ("rename", "x"), ("sync", tmp_path.name)]
    assert (tmp_path / "x").read_bytes() == b"data"
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


# --- Damage -----------------------------------------------------------------------------------


def filled(data_dir: Path) -> bytes:
    data = seal(1, registry_to_plain(Registry(id="g", revision=7)))
    (data_dir / REGISTRY_FILE).write_bytes(data)
    assert read_registry_file(data_dir) == Registry(id="g", revision=7)
    return data


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    path = tmp_path / REGISTRY_FILE
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedRegistryError, match=r"registry\.json.*(cut short|empty|not a)"):
            read_registry_file(tmp_path)
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
                read_registry_file(tmp_path)
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
        read_registry_file(tmp_path)

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
