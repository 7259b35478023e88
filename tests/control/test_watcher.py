"""The watcher: what counts as a change on disk, and what it calls it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from lb.control.watcher import Watcher
from lb.errors import OperatorError


@dataclass
class Read:
    """Files as they were read."""

    files: tuple[str, ...]
    digest: str


class Scene:
    """One file, a watcher of it, and what was said and done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.judged = 0
        self.told: list[str] = []
        self.watcher = Watcher(self.judge, self.on_change)

    def read(self) -> Read:
        text = self.path.read_text()
        if "wrong" in text:
            raise OperatorError(f"{self.path.name}: this is wrong")
        return Read((str(self.path),), sha256(text.encode()).hexdigest())

    async def judge(self) -> Read:
        self.judged += 1
        return self.read()

    async def on_change(self) -> None:
        self.told.append(self.watcher.on_disk)

    def follow(self) -> None:
        read = self.read()
        self.watcher.follow(read.files, read.digest)

    async def rest(self) -> str:
        """Look until nothing is new: once to see it, once to see that it rests."""
        await self.watcher.look()
        await self.watcher.look()
        return self.watcher.on_disk


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    path = tmp_path / "lb.toml"
    path.write_text("one")
    scene = Scene(path)
    scene.follow()
    return scene


def test_files_that_stay_are_the_same_and_judged_once(scene: Scene) -> None:
    async def play() -> None:
        for _ in range(3):
            assert await scene.rest() == "same"
        assert scene.judged == 1
        assert scene.told == []

    run(play)


def test_a_changed_file_is_told_once(scene: Scene) -> None:
    async def play() -> None:
        scene.path.write_text("two!")
        assert await scene.rest() == "changed"
        assert await scene.rest() == "changed"
        assert scene.told == ["changed"]

    run(play)


def test_a_file_still_being_written_is_left_alone(scene: Scene) -> None:
    async def play() -> None:
        await scene.rest()
        for length in range(2, 6):
            scene.path.write_text("x" * length)
            await scene.watcher.look()
        assert scene.judged == 1
        assert await scene.rest() == "changed"

    run(play)


def test_an_invalid_file_says_why(scene: Scene) -> None:
    async def play() -> None:
        scene.path.write_text("wrong")
        assert await scene.rest() == "invalid: lb.toml: this is wrong"
        scene.path.write_text("one")
        assert await scene.rest() == "same"

    run(play)


def test_a_rename_over_the_file_is_seen(scene: Scene) -> None:
    async def play() -> None:
        await scene.rest()
        spare = scene.path.with_suffix(".new")
        spare.write_text("two")
        times = scene.path.stat()
        os.utime(spare, ns=(times.st_atime_ns, times.st_mtime_ns))
        spare.replace(scene.path)
        assert await scene.rest() == "changed"

    run(play)


def test_a_swapped_symlink_is_seen(tmp_path: Path) -> None:
    async def play() -> None:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "lb.toml").write_text(name)
        (tmp_path / "..data").symlink_to("first")
        (tmp_path / "lb.toml").symlink_to("..data/lb.toml")
        scene = Scene(tmp_path / "lb.toml")
        scene.follow()
        assert await scene.rest() == "same"
        (tmp_path / "..new").symlink_to("second")
        (tmp_path / "..new").replace(tmp_path / "..data")
        assert await scene.rest() == "changed"

    run(play)


def test_the_same_text_written_again_is_no_change(scene: Scene) -> None:
    async def play() -> None:
        await scene.rest()
        scene.path.unlink()
        scene.path.write_text("one")
        assert await scene.rest() == "same"
        assert scene.told == []

    run(play)


def test_what_was_reloaded_is_the_same_again(scene: Scene) -> None:
    async def play() -> None:
        scene.path.write_text("two")
        assert await scene.rest() == "changed"
        scene.follow()
        assert scene.watcher.on_disk == "same"
        assert await scene.rest() == "same"

    run(play)


def test_a_change_between_reading_and_following_is_found(scene: Scene) -> None:
    async def play() -> None:
        read = scene.read()
        scene.path.write_text("two")
        scene.watcher.follow(read.files, read.digest)
        assert await scene.rest() == "changed"

    run(play)


def test_a_file_that_is_gone_is_judged(scene: Scene) -> None:
    async def play() -> None:
        async def gone() -> Read:
            raise OperatorError("lb.toml: no such file")

        scene.watcher = Watcher(gone, scene.on_change)
        scene.follow()
        scene.path.unlink()
        assert await scene.rest() == "invalid: lb.toml: no such file"

    run(play)
