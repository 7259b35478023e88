"""What is routed by without a group: written soon, and never all the time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from lb.control import last_good
from lb.control.disk import Disk
from lb.control.last_good import LAST_GOOD_FILE, LastGood
from lb.registry import Registry


class SlowDisk(Disk):
    """Takes its time, as packing a large registry does."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def replace(self, path: Path, data: bytes) -> None:
        threading.Event().wait(0.05)
        super().replace(path, data)
        self.written += 1


@pytest.mark.parametrize(("costs", "writes"), [(0.0, 3), (20.0, 1)])
def test_the_longer_a_write_takes_the_fewer_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costs: float, writes: int
) -> None:
    monkeypatch.setattr(last_good, "WRITE_EVERY", 0.01)
    monkeypatch.setattr(last_good, "WRITE_COSTS", costs)

    async def work() -> None:
        disk = SlowDisk()
        kept = LastGood(tmp_path, disk)
        loop = asyncio.get_running_loop()
        began = loop.time()
        revision = 0
        while loop.time() < began + 0.9 and disk.written < 3:
            revision += 1
            kept.keep(Registry(id="g", revision=revision))
            await asyncio.sleep(0)
        assert disk.written == writes
        await kept.close()
        read = LastGood(tmp_path).read()
        assert read is not None
        assert read.revision == revision
        assert (tmp_path / LAST_GOOD_FILE).exists()

    asyncio.run(work())
