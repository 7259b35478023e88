"""Faults that strike at a time of their own, and what each does.

Each counts itself when it has really done something: a cut between members that are down, or a
crash of nobody, is no fault. Those that last are ended by what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import TYPE_CHECKING

from simulator.agenda import SECOND
from simulator.plan import LEADER, POINTS, Fault, Strike

if TYPE_CHECKING:
    from simulator.member import Member
    from simulator.world import World

SLOW_BYTES = 20_000  # A second, on a slow link.
CLOCK_JUMP = 3_600 * SECOND
SLOW_DISK_TIMES = 50
STALL_TICKS = 6

Pairs = list[tuple[int, int]]


class Striker:
    """Carries out the faults of a plan on a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._network = world.network
        self._rng = world.chance("faults")
        self._acts: dict[Strike, Callable[[Fault, Member], bool]] = {
            Strike.CRASH: self._crash,
            Strike.CRASH_AT: self._crash_at,
            Strike.RESTART_ALL: self._restart_all,
            Strike.PAUSE: self._pause,
            Strike.SLOW_LOOP: self._slow_loop,
            Strike.CLOCK_RATE: self._clock_rate,
            Strike.CLOCK_JUMP: self._clock_jump,
            Strike.WIPE: self._wipe,
            Strike.SLOW_DISK: self._slow_disk,
            Strike.DISK_ERROR: self._disk_error,
            Strike.DISK_FULL: self._disk_full,
            Strike.CUT_ONE_WAY: self._cut_one_way,
            Strike.SPLIT: self._split,
            Strike.ISOLATE: self._isolate,
            Strike.BRIDGE: self._bridge,
            Strike.RING: self._ring,
            Strike.SWIZZLE: self._swizzle,
            Strike.SLOW_LINK: self._slow_link,
            Strike.ADD: self._add,
            Strike.REMOVE: self._remove,
            Strike.TRANSFER: self._transfer,
            Strike.COMPACT: self._compact,
        }

    def strike(self, fault: Fault) -> None:
        """Let one fault happen, if there is anything it can happen to."""
        world = self._world
        if world.calm:
            return
        target = world.leader() if fault.target == LEADER else None
        if target is None:
            running = [member for member in world.members if member.running]
            if not running:
                return
            target = running[fault.target % len(running)]
        if self._acts[fault.kind](fault, target):
            world.tally.fired[fault.kind.value] += 1
            world.note(f"fault: {fault.kind.value} on {target.number}")

    def _until(self, fault: Fault, end: Callable[[], None]) -> None:
        self._world.agenda.after(fault.length, end)

    # --- Members ------------------------------------------------------------------------------

    def _crash(self, fault: Fault, target: Member) -> bool:
        target.crash()
        self._until(fault, target.start)
        return True

    def _crash_at(self, fault: Fault, target: Member) -> bool:
        """Arm a crash at a named point; it counts by that name when it happens."""
        point = POINTS[fault.extra % len(POINTS)]
        if "installing" in point:  # Nobody knows who will need a snapshot.
            for member in self._world.members:
                member.crash_at(point, 0, fault.length)
        else:
            target.crash_at(point, fault.extra // 64 % 4, fault.length)
        return False

    def _restart_all(self, fault: Fault, target: Member) -> bool:
        del target
        for member in self._world.members:
            if member.running:
                member.crash()
                self._until(fault, member.start)
        return True

    def _pause(self, fault: Fault, target: Member) -> bool:
        target.pause(fault.length)
        return True

    def _slow_loop(self, fault: Fault, target: Member) -> bool:
        """Stall the event loop again and again, each time for some ticks."""
        plan = self._world.plan
        stall = plan.tick * (1 + fault.extra % STALL_TICKS)
        for start in range(0, fault.length, 2 * stall):
            self._world.agenda.after(start, target.pause, stall)
        return True

    def _clock_rate(self, fault: Fault, target: Member) -> bool:
        target.tick_scale = 0.5 + 1.5 * (fault.extra % 1000) / 1000
        self._until(fault, target.even_clock)
        return True

    def _clock_jump(self, fault: Fault, target: Member) -> bool:
        """Move the wall clock, which times are stamped by; nothing may hang on it."""
        target.wall_offset += CLOCK_JUMP if fault.extra % 2 else -CLOCK_JUMP
        return True

    def _wipe(self, fault: Fault, target: Member) -> bool:
        if not self._world.may_lose(target):
            return False
        self._world.replace(target, fault.length)
        return True

    def _slow_disk(self, fault: Fault, target: Member) -> bool:
        target.disk_scale = SLOW_DISK_TIMES
        self._until(fault, target.even_disk)
        return True

    def _disk_error(self, fault: Fault, target: Member) -> bool:
        """Arm an error of the next sync. Who has it must be gone, and is replaced."""
        if self._world.may_lose(target):
            target.fail_disk(fault.length)
        return False

    def _disk_full(self, fault: Fault, target: Member) -> bool:
        target.fill_disk()
        self._until(fault, target.free_disk)
        return True

    # --- Links --------------------------------------------------------------------------------

    def _numbers(self) -> list[int]:
        return [member.number for member in self._world.members if member.running]

    def _cut(self, fault: Fault, pairs: Pairs) -> bool:
        if not pairs:
            return False
        self._until(fault, self._network.cut(pairs))
        return True

    def _cut_one_way(self, fault: Fault, target: Member) -> bool:
        others = [number for number in self._numbers() if number != target.number]
        if not others:
            return False
        some = self._rng.sample(others, self._rng.randrange(1, len(others) + 1))
        if fault.extra % 2:
            return self._cut(fault, [(target.number, other) for other in some])
        return self._cut(fault, [(other, target.number) for other in some])

    def _split(self, fault: Fault, target: Member) -> bool:
        """Part the members into two; the target is on the smaller side half of the time."""
        numbers = [number for number in self._numbers() if number != target.number]
        self._rng.shuffle(numbers)
        count = (len(numbers) + 1) // 2 - 1 + fault.extra % 2
        return self._cut(fault, across([target.number, *numbers[:count]], numbers[count:]))

    def _isolate(self, fault: Fault, target: Member) -> bool:
        others = [number for number in self._numbers() if number != target.number]
        return self._cut(fault, across([target.number], others))

    def _bridge(self, fault: Fault, target: Member) -> bool:
        """Two sides that only the target sees both of."""
        numbers = [number for number in self._numbers() if number != target.number]
        half = len(numbers) // 2
        return self._cut(fault, across(numbers[:half], numbers[half:]))

    def _ring(self, fault: Fault, target: Member) -> bool:
        """Let each see only its two neighbours."""
        del target
        numbers = self._numbers()
        size = len(numbers)
        places = permutations(range(size), 2)
        apart = [(a, b) for a, b in places if (a - b) % size not in (1, size - 1)]
        return self._cut(fault, [(numbers[a], numbers[b]) for a, b in apart])

    def _swizzle(self, fault: Fault, target: Member) -> bool:
        """Cut members off one by one, and heal them in another order."""
        numbers = self._numbers()
        some = self._rng.sample(numbers, min(len(numbers), 1 + fault.extra % 3))
        if len(numbers) < 2:
            return False
        agenda = self._world.agenda
        ends = self._rng.sample(range(1, len(some) + 1), len(some))
        step = fault.length // len(some)
        for place, (number, end) in enumerate(zip(some, ends, strict=True)):
            others = [other for other in numbers if other != number]
            start, length = place * step, fault.length + end * step - place * step
            agenda.after(start, self._cut_for, length, across([number], others))
        del target
        return True

    def _cut_for(self, length: int, pairs: Pairs) -> None:
        if not self._world.calm:
            self._world.agenda.after(length, self._network.cut(pairs))

    def _slow_link(self, fault: Fault, target: Member) -> bool:
        links = [
            link
            for other in self._numbers()
            if other != target.number
            for link in (
                self._network.link(target.number, other),
                self._network.link(other, target.number),
            )
        ]
        for link in links:
            link.bandwidth = SLOW_BYTES

        def heal() -> None:
            for link in links:
                link.bandwidth = 0

        self._until(fault, heal)
        return bool(links)

    # --- The group ----------------------------------------------------------------------------

    def _add(self, fault: Fault, target: Member) -> bool:
        del target
        return self._world.grow(voter=fault.extra % 3 > 0)

    def _remove(self, fault: Fault, target: Member) -> bool:
        del fault
        return self._world.shrink(target)

    def _transfer(self, fault: Fault, target: Member) -> bool:
        leader = self._world.leader()
        if leader is None or leader.node is None:
            return False
        numbers = self._numbers()
        leader.hand_over(numbers[fault.extra % len(numbers)])
        del target
        return True

    def _compact(self, fault: Fault, target: Member) -> bool:
        return target.snapshot(keep=fault.extra % 4)


def across(one: list[int], other: list[int]) -> Pairs:
    """Return both directions of every link between two sides."""
    return list(_across(one, other))


def _across(one: list[int], other: list[int]) -> Iterator[tuple[int, int]]:
    for here in one:
        for there in other:
            yield here, there
            yield there, here
