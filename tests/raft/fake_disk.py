"""A disk with a page cache, for power cuts: what is not synced may be there afterwards, or not.

- Each file has what was written and what is sure. `sync` makes the first the second.
- A power cut keeps any subset of the 512-byte sectors that were written and not synced, and
  any subset of the names that were made, moved or taken away and not synced.
- A sync that fails has dropped what it should have written, as Linux may: the next one
  succeeds, reading still shows the data, and a power cut loses it.
- `stop_before(n)` cuts the power before the n-th system call that changes anything.

Whatever is random comes from the `rng` that the disk was given.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

SECTOR = 512


class PowerCut(BaseException):
    """The machine stopped. No code of ours may catch this, or go on after it."""


class Contents:
    """A file's bytes, written and sure. It outlives its names, like an inode."""

    def __init__(self, path: str) -> None:
        self.path = path  # By which it was last seen.
        self.written = bytearray()
        self.sure = bytearray()
        self.dirty: set[int] = set()  # Sectors written and not synced.

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if end > len(self.written):
            self.written.extend(bytes(end - len(self.written)))
        self.written[offset:end] = data
        self.dirty.update(range(offset // SECTOR, -(-end // SECTOR)))

    def sync(self) -> None:
        self._resize(len(self.written))
        for sector in self.dirty:
            self._settle(sector)
        self.dirty.clear()

    def lose_dirty(self) -> None:
        self.dirty.clear()

    def power_cut(self, keeps: Callable[[], bool]) -> None:
        if len(self.written) != len(self.sure) and keeps():
            self._resize(len(self.written))
        for sector in sorted(self.dirty):
            if keeps() and sector * SECTOR < len(self.sure):
                self._settle(sector)
        self.dirty.clear()
        self.written = bytearray(self.sure)

    def _resize(self, size: int) -> None:
        if size > len(self.sure):
            self.sure.extend(bytes(size - len(self.sure)))
        else:
            del self.sure[size:]

    def _settle(self, sector: int) -> None:
        start = sector * SECTOR
        stop = min(start + SECTOR, len(self.sure))
        self.sure[start:stop] = self.written[start:stop]


@dataclass
class Folder:
    """A directory's names, as they are seen and as they are sure, and what lies between."""

    seen: dict[str, Contents] = field(default_factory=dict)
    sure: dict[str, Contents] = field(default_factory=dict)
    steps: list[dict[str, Contents | None]] = field(default_factory=list)  # None: name gone.

    def change(self, step: dict[str, Contents | None]) -> None:
        self.steps.append(step)
        apply_step(self.seen, step)

    def sync(self) -> None:
        self.sure = dict(self.seen)
        self.steps.clear()

    def files(self) -> list[Contents]:
        """All that has, had, or may again have a name here, in an order that never varies."""
        held = [*self.seen.values(), *self.sure.values()]
        held += [contents for step in self.steps for contents in step.values() if contents]
        return list({id(contents): contents for contents in held}.values())

    def power_cut(self, keeps: Callable[[], bool]) -> None:
        for step in self.steps:
            if keeps():
                apply_step(self.sure, step)
        self.steps.clear()
        self.seen = dict(self.sure)


def apply_step(names: dict[str, Contents], step: dict[str, Contents | None]) -> None:
    for name, contents in step.items():
        if contents is None:
            names.pop(name, None)
        else:
            names[name] = contents


class FakeFile:
    """A handle; of no use once the power was cut."""

    def __init__(self, disk: FakeDisk, contents: Contents) -> None:
        self._disk = disk
        self._contents = contents
        self._boot = disk.boot

    def pwrite(self, data: bytes, offset: int) -> None:
        self._use("pwrite")
        self._disk.take_room(offset + len(data) - len(self._contents.written))
        self._contents.write(data, offset)
        self._disk.spend("pwrite", len(data))

    def sync(self) -> None:
        try:
            self._use("sync")
        except OSError:
            self._contents.lose_dirty()
            raise
        self._disk.spend("sync", len(self._contents.dirty) * SECTOR)
        self._contents.sync()

    def preallocate(self, size: int) -> None:
        self._use("preallocate")
        more = size - len(self._contents.written)
        if more > 0:
            self._disk.take_room(more)
            self._contents.written.extend(bytes(more))
        self._disk.spend("preallocate", 0)

    def close(self) -> None:
        if self._disk.locks.get(self._contents.path) is self:
            del self._disk.locks[self._contents.path]
        self._boot = -1

    def _use(self, call: str) -> None:
        assert self._boot == self._disk.boot, "a file that was closed, or opened before a crash"
        self._disk.enter(call, self._contents.path)


class FakeDisk:
    """A `FileSystem` in memory. One machine's: give each member its own."""

    def __init__(self, rng: random.Random, capacity: int | None = None) -> None:
        self.rng = rng
        self.capacity = capacity  # In bytes; None: never full.
        self.folders: dict[str, Folder] = {"": Folder()}
        self.boot = 0
        self.calls = 0  # System calls that change something, so far.
        self.trace: list[str] | None = None  # Set to a list, it fills with those calls.
        self.fired: Counter[str] = Counter()  # Faults that happened, by kind.
        self.locks: dict[str, FakeFile] = {}
        self.elapsed = 0.0  # Seconds that all calls took; see `delays`.
        self.delays: Callable[[str, int], float] | None = None  # (call, bytes) -> seconds.
        self.fault: Callable[[str, str], int] | None = None  # (call, path) -> errno, or 0.
        self.keep = 0.5  # The chance of each unsynced sector and name to survive a power cut.
        self._stop_at: int | None = None

    # --- What a `FileSystem` does -------------------------------------------------------------

    def open(self, path: str, create: bool = False) -> FakeFile:
        folder, name = self._place(path)
        if create:
            self.enter("create", path)
            if name in folder.seen:
                raise FileExistsError(errno.EEXIST, "exists", path)
            folder.change({name: Contents(path)})
        return FakeFile(self, self._find(path))

    def read(self, path: str) -> bytes:
        if self.fault is not None and (code := self.fault("read", path)):
            self._fail("read", code, path)
        return bytes(self._find(path).written)

    def exists(self, path: str) -> bool:
        folder, name = self._place(path)
        return path in self.folders or name in folder.seen

    def list_directory(self, path: str) -> list[str]:
        folder = self.folders.get(path)
        return sorted(folder.seen) if folder else []

    def make_directory(self, path: str) -> None:
        # Directories are sure at once: the log makes one in its life, and files matter more.
        self.enter("make_directory", path)
        if path in self.folders:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self.folders[path] = Folder()

    def rename(self, source: str, target: str) -> None:
        self.enter("rename", target)
        folder, name = self._place(source)
        contents = self._find(source)
        assert os.path.dirname(source) == os.path.dirname(target), "one directory is enough"
        folder.change({name: None, os.path.basename(target): contents})
        contents.path = target

    def unlink(self, path: str) -> None:
        self.enter("unlink", path)
        self._find(path)
        folder, name = self._place(path)
        folder.change({name: None})

    def sync_directory(self, path: str) -> None:
        self.enter("sync_directory", path)
        self.folders[path.rstrip("/")].sync()
        self.spend("sync_directory", 0)

    def lock(self, path: str) -> FakeFile:
        folder, name = self._place(path)
        if path in self.locks:
            raise BlockingIOError(errno.EAGAIN, "locked", path)
        if name not in folder.seen:
            folder.change({name: Contents(path)})
        self.locks[path] = FakeFile(self, self._find(path))
        return self.locks[path]

    # --- What a test does ---------------------------------------------------------------------

    def power_cut(self) -> None:
        """Lose what a machine loses, and start it again. All open files are dead."""
        for path in sorted(self.folders):
            folder = self.folders[path]
            for one in folder.files():
                if one.dirty or len(one.written) != len(one.sure):
                    self.fired["unsynced"] += 1
                one.power_cut(self._keeps)
            folder.power_cut(self._keeps)
        self._restart()

    def kill(self) -> None:
        """End the process only: the page cache keeps what was written."""
        self._restart()

    def wipe(self) -> None:
        """Give the machine a new empty disk."""
        self.folders = {"": Folder()}
        self._restart()

    def stop_before(self, call: int) -> None:
        """Raise PowerCut in the place of the `call`-th system call from now, counted from 0."""
        self._stop_at = self.calls + call

    def flip(self, path: str, offset: int, mask: int = 1) -> None:
        """Damage one byte, on the disk and in what is read."""
        contents = self._find(path)
        contents.written[offset] ^= mask
        if offset < len(contents.sure):
            contents.sure[offset] ^= mask
        self.fired["flip"] += 1

    def cut(self, path: str, size: int) -> None:
        """Shorten a file."""
        contents = self._find(path)
        del contents.written[size:], contents.sure[size:]
        contents.dirty = {sector for sector in contents.dirty if sector * SECTOR < size}

    def put(self, path: str, data: bytes) -> None:
        """Have a file with these contents, surely."""
        folder, name = self._place(path)
        contents = Contents(path)
        contents.write(data, 0)
        contents.sync()
        folder.seen[name] = folder.sure[name] = contents

    @property
    def used(self) -> int:
        """Bytes that files take up."""
        return sum(len(c.written) for folder in self.folders.values() for c in folder.seen.values())

    # --- What files and calls share -----------------------------------------------------------

    def enter(self, call: str, path: str) -> None:
        """Begin a call that changes something: the power may go, or the call may fail."""
        if self._stop_at is not None and self.calls >= self._stop_at:
            self._stop_at = None
            self.fired["stop"] += 1
            raise PowerCut(f"before {call} {path}")
        self.calls += 1
        if self.trace is not None:
            self.trace.append(f"{call} {os.path.basename(path)}")
        if self.fault is not None and (code := self.fault(call, path)):
            self._fail(call, code, path)

    def take_room(self, size: int) -> None:
        if self.capacity is not None and size > 0 and self.used + size > self.capacity:
            self._fail("room", errno.ENOSPC, "")

    def spend(self, call: str, size: int) -> None:
        if self.delays is not None:
            self.elapsed += self.delays(call, size)

    def _fail(self, call: str, code: int, path: str) -> None:
        self.fired[f"{call} {errno.errorcode[code]}"] += 1
        raise OSError(code, os.strerror(code), path)

    def _keeps(self) -> bool:
        return self.rng.random() < self.keep

    def _restart(self) -> None:
        self.boot += 1
        self.locks.clear()
        self._stop_at = None

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        if parent not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return self.folders[parent], name

    def _find(self, path: str) -> Contents:
        folder, name = self._place(path)
        if name not in folder.seen:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return folder.seen[name]
