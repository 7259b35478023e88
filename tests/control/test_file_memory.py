"""The file's memory: an edit acts once, whenever the machine stops."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from file_store import FileStore

from lb.config.schema import Config
from lb.control.disk import Disk, seal
from lb.control.file_memory import (
    MEMORY_FILE,
    UPSTREAMS_MAX,
    FileMemory,
    FileOutcome,
    FileSays,
    plan_proposals,
    plan_sync,
    propose_all,
    try_all,
)
from lb.control.store import NoQuorum, UnknownOutcome
from lb.errors import AccordError, StartError
from lb.registry import (
    By,
    Code,
    Command,
    Fields,
    Outcome,
    PatchBackend,
    PutBackend,
    Registry,
    Reply,
    Said,
    apply,
)

BY = By(member="a", source="file")
NEW = Registry("0" * 32)
TIMES = itertools.count(1_000)


def says(version: int = 0, min_active: float = 0.0, **upstreams: str | None) -> FileSays:
    """`app="a=1 b=3"` is a file whose upstream `app` has these; None where it says nothing."""
    return FileSays(
        {name: None if text is None else said(text) for name, text in upstreams.items()},
        version,
        dict.fromkeys(upstreams, min_active),
    )


def said(text: str) -> tuple[Said, ...]:
    words = [word.partition("=") for word in text.split()]
    return tuple(Said(f"{name}:80", name, int(weight or 1)) for name, _, weight in words)


class Group:
    """A store in memory that two instances share; fails as told."""

    def __init__(self) -> None:
        self.registry = NEW
        self.error: AccordError | None = None
        self.lose_answers = False

    async def propose(self, command: Command) -> Reply:
        if self.error:
            raise self.error
        self.registry, reply = apply(self.registry, command)
        if self.lose_answers:
            raise UnknownOutcome("the leader is gone")
        return reply

    def subscribe(self, on_change: Any) -> None:
        raise AssertionError("nobody listens here")

    def holds(self, upstream: str = "app") -> str:
        backends = self.registry.upstreams[upstream].backends
        return " ".join(f"{key}={each.weight}" for key, each in sorted(backends.items()))

    def api(self, command: type[PatchBackend] | type[PutBackend], key: str, weight: int) -> None:
        fields = Fields(address=f"{key}:80", weight=weight)
        at = float(next(TIMES))
        write = command(upstream="app", by=By(member="b"), at=at, key=key, fields=fields)
        self.registry, reply = apply(self.registry, write)
        assert reply.refusal is None


class Box:
    """One instance with its data_dir, which reloads."""

    def __init__(self, group: Group, data_dir: Path, member: str = "a") -> None:
        self.group = group
        self.data_dir = data_dir
        self.member = member
        data_dir.mkdir(exist_ok=True)

    def reload(self, file: FileSays, *, force: bool = False) -> FileOutcome:
        """Reload, each time as after a restart."""
        memory = FileMemory.open(self.data_dir)
        assert not memory.warning
        by, at = By(member=self.member, source="file"), float(next(TIMES))
        plans = plan_proposals(memory, file, self.group.registry, by=by, at=at, force=force)
        return asyncio.run(propose_all(self.group, memory, plans))


@pytest.fixture
def group() -> Group:
    return Group()


@pytest.fixture
def box(group: Group, tmp_path: Path) -> Box:
    return Box(group, tmp_path / "a")


# --- What is proposed -------------------------------------------------------------------------


def test_a_file_that_has_not_changed_proposes_nothing(group: Group, box: Box) -> None:
    assert box.reload(says(app="a b", web="x")).replies.keys() == {"app", "web"}
    group.api(PatchBackend, "a", 9)

    assert box.reload(says(app="b a", web="x")).replies == {}
    assert box.reload(says(app="b a", web="y")).replies.keys() == {"web"}
    assert group.holds() == "a=9 b=1"  # What was set through the API survived restarts.


def test_a_config_says_what_the_registry_is_told() -> None:
    config = Config.model_validate(
        {
            "listener": {"web": {"address": "127.0.0.1:8080", "upstream": "app"}},
            "upstream": {
                "app": {
                    "backends": [
                        "10.0.0.1:80",
                        {"address": "10.0.0.2:80", "name": "b", "weight": 3, "backup": True},
                    ],
                    "min_active": "20%",
                },
                "none": {"backends": []},
                "silent": {},
            },
            "version": 7,
        }
    )

    file = FileSays.of(config)

    assert file.upstreams == {
        "app": (Said("10.0.0.1:80"), Said("10.0.0.2:80", "b", 3, True)),
        "none": (),
        "silent": None,
    }
    assert file.version == 7
    assert file.min_active["app"] == 0.2


def test_an_upstream_without_backends_key_is_made_known_once(group: Group, box: Box) -> None:
    assert box.reload(says(app=None)).replies["app"].outcome is Outcome.CREATED
    assert box.reload(says(app=None)).replies == {}


def test_memory_is_kept_when_an_upstream_leaves_the_file(group: Group, box: Box) -> None:
    box.reload(says(app="a b", web="x"))
    group.api(PatchBackend, "a", 9)

    box.reload(says(web="x"))
    box.reload(says(web="x", app=None))
    outcome = box.reload(says(web="x", app="a b=2"))

    assert outcome.changed() == [
        {"upstream": "app", "backend": "b", "what": "changed", "fields": ["weight"]}
    ]
    assert group.holds() == "a=9 b=2"


def test_a_refused_upstream_does_not_move_the_memory(group: Group, box: Box) -> None:
    box.reload(says(app="a b", web="x"))

    outcome = box.reload(says(app="", web="x=2"))

    refused = outcome.refused()
    assert [each["upstream"] for each in refused] == ["app"]
    assert refused[0]["reason"] == Code.WOULD_EMPTY
    assert group.holds("web") == "x=2"  # The rest of the reload stands.
    assert box.reload(says(app="", web="x=2")).refused() == refused
    assert box.reload(says(app="", web="x=2"), force=True).refused() == []
    assert group.holds() == ""


def test_min_active_goes_with_the_proposal(group: Group, box: Box) -> None:
    box.reload(says(app="a b c d"))

    assert box.reload(says(app="a", min_active=0.5)).refused()


def test_a_dry_run_says_the_same_and_does_nothing(group: Group, box: Box) -> None:
    box.reload(says(app="a b", web="x"))
    before = group.registry
    memory = FileMemory.open(box.data_dir)
    file = says(app="a=2 b", web="")

    foreseen = try_all(before, plan_proposals(memory, file, before, by=BY, at=1.0))

    assert group.registry is before
    done = box.reload(file)
    assert foreseen.changed() == done.changed() != []
    assert foreseen.refused() == done.refused() != []


def test_sync(group: Group, box: Box) -> None:
    box.reload(says(app="a b", silent=None))
    memory = FileMemory.open(box.data_dir)
    plans = plan_sync(says(app="a=2 c", silent=None), by=BY, at=float(next(TIMES)))

    outcome = asyncio.run(propose_all(group, memory, plans))

    assert len(outcome.changed()) == 3
    assert group.holds() == "a=2 c=1"
    assert box.reload(says(app="a=2 c", silent=None)).replies == {}


# --- Several instances ------------------------------------------------------------------------


def test_two_boxes_one_edit(group: Group, tmp_path: Path) -> None:
    first, second = Box(group, tmp_path / "a", "a"), Box(group, tmp_path / "b", "b")
    for box in (first, second):
        box.reload(says(app="a b"))

    first.reload(says(app="a=5 b"))
    group.api(PatchBackend, "a", 9)
    assert second.reload(says(app="a=5 b")).stale() == []
    assert group.holds() == "a=9 b=1"

    first.reload(says(app="a=6 b"))
    assert second.reload(says(app="a=7 b")).stale() == [
        {"upstream": "app", "backend": "a", "reason": "stale-file"}
    ]
    assert group.holds() == "a=6 b=1"


def test_a_new_box_warns_and_then_its_edits_act(group: Group, tmp_path: Path) -> None:
    Box(group, tmp_path / "a").reload(says(app="a b"))
    new = Box(group, tmp_path / "b", "b")

    assert new.reload(says(app="a=2 b")).differs() == [{"upstream": "app", "backend": "a"}]
    assert group.holds() == "a=1 b=1"
    assert new.reload(says(app="a=2 b")).replies == {}
    new.reload(says(app="a=2 b=4"))
    assert group.holds() == "a=1 b=4"


def test_a_new_box_with_a_higher_version_is_believed(group: Group, tmp_path: Path) -> None:
    Box(group, tmp_path / "a").reload(says(app="a b", version=3))

    Box(group, tmp_path / "b", "b").reload(says(app="a=2 b", version=4))

    assert group.holds() == "a=2 b=1"


def test_a_try_that_was_refused_is_not_taken_for_anothers_success(
    group: Group, tmp_path: Path
) -> None:
    """We tried, were refused and took the edit back; another then had it passed by force."""
    first, second = Box(group, tmp_path / "a", "a"), Box(group, tmp_path / "b", "b")
    for box in (first, second):
        box.reload(says(app="a b"))
    assert first.reload(says(app="")).refused()
    assert first.reload(says(app="a b")).replies == {}
    second.reload(says(app=""), force=True)

    assert first.reload(says(app="a b")).replies == {}
    assert group.holds() == ""


# --- Without quorum, and with answers lost ----------------------------------------------------


def test_without_quorum_it_is_proposed_later(group: Group, box: Box) -> None:
    box.reload(says(app="a b"))
    group.error = NoQuorum("no leader is known")

    outcome = box.reload(says(app="a=2 b"))
    assert (outcome.pending, outcome.why_pending) == (["app"], "no leader is known")
    assert group.holds() == "a=1 b=1"

    group.error = None
    assert box.reload(says(app="a=2 b")).pending == []
    assert group.holds() == "a=2 b=1"


def test_a_lost_answer_does_not_make_an_edit_act_twice(group: Group, box: Box) -> None:
    box.reload(says(app="a b"))
    group.lose_answers = True
    assert box.reload(says(app="a=2 b")).pending == ["app"]
    group.api(PatchBackend, "a", 9)
    group.lose_answers = False

    outcome = box.reload(says(app="a=2 b"))

    assert (outcome.pending, outcome.changed(), outcome.stale()) == ([], [], [])
    assert group.holds() == "a=9 b=1"


def test_an_edit_after_a_lost_answer_is_not_stale(group: Group, box: Box) -> None:
    box.reload(says(app="a b"))
    group.lose_answers = True
    box.reload(says(app="a=2 b"))
    group.lose_answers = False

    outcome = box.reload(says(app="a=3 b"))

    assert outcome.stale() == []
    assert group.holds() == "a=3 b=1"


# --- Damage and bad disks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"{", seal(1, [1]), seal(1, {"app": {"said": 1}}), seal(9, {})]
)
def test_a_damaged_memory_is_none_and_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MEMORY_FILE).write_bytes(data)

    memory = FileMemory.open(tmp_path)

    assert "lb config sync" in memory.warning
    assert MEMORY_FILE in memory.warning
    assert memory.last_said("app", NEW, "a") is None


def test_a_memory_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / MEMORY_FILE).mkdir()

    with pytest.raises(StartError, match=MEMORY_FILE):
        FileMemory.open(tmp_path)


def test_a_full_disk_costs_the_memory_and_no_edit(group: Group, tmp_path: Path) -> None:
    class Full(Disk):
        def sync(self, descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    memory = FileMemory.open(tmp_path, Full())
    plans = plan_proposals(memory, says(app="a b"), NEW, by=BY, at=1.0)

    outcome = asyncio.run(propose_all(group, memory, plans))

    assert group.holds() == "a=1 b=1"
    assert any("No space left" in warning for warning in outcome.warnings)
    assert Box(group, tmp_path).reload(says(app="a b")).changed() == []


def test_the_memory_is_bounded(tmp_path: Path) -> None:
    memory = FileMemory.open(tmp_path)
    memory.note_said({f"u{n}": said("a") for n in range(UPSTREAMS_MAX)})
    memory.note_said({"u0": said("b"), "new": said("a")})

    again = FileMemory.open(tmp_path)

    assert again.last_said("u1", NEW, "a") is None  # The one longest unheard of.
    assert again.last_said("u0", NEW, "a") == said("b")
    assert again.last_said("new", NEW, "a") == said("a")


# --- A crash at each step ---------------------------------------------------------------------


class PowerCutError(Exception):
    """The machine stops; nothing is tidied up after it."""


class CutDisk(Disk):
    """Stops at its step number `last`; what was written and not yet synced is torn."""

    def __init__(self, last: int) -> None:
        self.left = last

    def _step(self) -> None:
        if self.left <= 0:
            raise PowerCutError
        self.left -= 1

    def write(self, path: Path, data: bytes) -> None:
        if self.left <= 1:
            path.write_bytes(data[: len(data) // 2])
        self._step()
        super().write(path, data)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)


async def live(data_dir: Path, disk: Disk, files: Sequence[str], answered: list[str]) -> None:
    """Start, read one file after the other, and after each let the API set a weight."""
    store = FileStore.open(data_dir, disk)
    memory = FileMemory.open(data_dir, disk)
    for number, file in enumerate(files):
        by, at = BY, float(next(TIMES))
        plans = plan_proposals(memory, says(app=file), store.registry, by=by, at=at)
        outcome = await propose_all(store, memory, plans)
        assert not outcome.stale()
        answered.append(f"file {number}")
        key, fields = "xy"[number % 2], Fields(weight=10 + number)
        write = PatchBackend(upstream="app", by=by, at=at, key=key, fields=fields)
        reply = await store.propose(write)
        assert reply.refusal is None
        answered.append(f"{key}={10 + number}")


def life(data_dir: Path, disk: Disk, files: Sequence[str], answered: list[str]) -> bool:
    """Return whether it came to its end; a power cut is no news to the loop."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        await live(data_dir, disk, files, answered)

    try:
        asyncio.run(main())
    except (PowerCutError, AccordError):
        return False
    return True


FILES = ("x y a", "x y a=2 b", "x y a=3 c")


@pytest.mark.parametrize("then", ["x y a=3 c", "x y a=4 b=9"], ids=["same file", "edited since"])
def test_a_crash_at_any_step_is_harmless(tmp_path: Path, then: str) -> None:
    for step in itertools.count():
        data_dir = tmp_path / str(step)
        data_dir.mkdir()
        answered: list[str] = []
        whole = life(data_dir, CutDisk(step), FILES, answered)

        store, memory = FileStore.open(data_dir), FileMemory.open(data_dir)
        assert not memory.warning
        known = store.registry
        told = sum(each.startswith("file") for each in answered)
        assert known.revision >= len(answered)  # All that was answered is there.
        plans = plan_proposals(memory, says(app=then), known, by=BY, at=float(next(TIMES)))
        outcome = asyncio.run(propose_all(store, memory, plans))

        assert not outcome.stale()
        assert not outcome.refused()
        backends = store.registry.upstreams["app"].backends
        weights = {key: each.weight for key, each in backends.items()}
        wanted = {each.key: each.weight for each in said(then)}
        assert {key: weights[key] for key in wanted if key not in "xy"} == {
            key: weight for key, weight in wanted.items() if key not in "xy"
        }
        assert weights.keys() == wanted.keys()
        for each in (each for each in answered if "=" in each):
            key, _, weight = each.partition("=")
            assert weights[key] >= int(weight), (step, told)  # No restart undid it.
        if whole:
            assert step > 20
            return
