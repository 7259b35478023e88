"""What a seed means: the group, its knobs, and every fault with its time, drawn beforehand.

A plan is a value. The shrinker takes faults out of it and runs the rest again, with all other
chance as it was.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from lb.raft.node import Config
from simulator.agenda import MS, SECOND, stream

LEADER = -1  # As a fault's target: whoever leads when it strikes.

FOUNDERS_MAX = 5
MEMBERS_MAX = 7


class Strike(StrEnum):
    """Kinds of fault that strike at a time of their own. Links lose messages all the time."""

    CRASH = "crash"
    CRASH_AT = "crash at a point"
    RESTART_ALL = "all crash at once"
    PAUSE = "pause"
    SLOW_LOOP = "slow loop"
    CLOCK_RATE = "clock rate"
    CLOCK_JUMP = "clock jump"
    WIPE = "wiped disk"
    SLOW_DISK = "slow disk"
    DISK_ERROR = "fsync error"
    DISK_FULL = "disk full"
    CUT_ONE_WAY = "one-way cut"
    SPLIT = "split"
    ISOLATE = "isolated member"
    BRIDGE = "bridge"
    RING = "ring"
    SWIZZLE = "swizzle"
    SLOW_LINK = "slow link"
    ADD = "member added"
    REMOVE = "member removed"
    TRANSFER = "leadership transfer"
    COMPACT = "log compacted"


POINTS = (
    "before sending",
    "before saving",
    "while saving",
    "after saving, before the ack",
    "after the ack, before sending",
    "while sending what was saved",
    "before applying",
    "while applying",
    "before installing",
    "after installing",
    "before compacting",
    "while compacting",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when, on whom, for how long. `extra` is whatever else its kind needs."""

    at: int
    kind: Strike
    target: int = 0
    length: int = 0
    extra: int = 0

    def __str__(self) -> str:
        target = "the leader" if self.target == LEADER else f"#{self.target}"
        point = f" ({POINTS[self.extra % len(POINTS)]})" if self.kind is Strike.CRASH_AT else ""
        return (
            f"{self.at / SECOND:8.3f} s  {self.kind.value}{point}, target {target}, "
            f"{self.length / SECOND:.3f} s, extra {self.extra}"
        )


@dataclass(frozen=True, slots=True)
class Links:
    """How the network treats messages while there are faults; times in microseconds."""

    delay_min: int
    delay_spread: int
    loss: float = 0.0
    duplicate: float = 0.0
    late: float = 0.0
    late_max: int = 0
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All of one run that is decided before it starts."""

    seed: int
    members: int
    learners: int
    tick: int
    election_ticks: int
    heartbeat_ticks: int
    pre_vote: bool
    check_quorum: bool
    links: Links
    real_disks: bool  # The real code for the log, on a disk that tears; else plain values.
    sync: int  # About how long an fdatasync takes.
    clients: int
    calls: int  # Of all clients together, at most.
    pause_between: int  # About how long a client waits between calls.
    tenants: int  # Backends that are registered with a lease, and renewed.
    chaos: int
    faults: tuple[Fault, ...]
    compact_every: int  # Applied entries between two snapshots.
    keep_entries: int  # Left in the log before a snapshot.
    append_bytes: int
    inflight: int
    chunk_bytes: int
    apply_bytes: int
    payload: int  # Bytes of ballast in each of the clients' commands.
    lease_second: int  # By which TTLs are counted.

    @property
    def election(self) -> int:
        """The shortest time after which a member campaigns."""
        return self.tick * self.election_ticks


def draw(seed: int, long: bool = False) -> Plan:
    """Return the plan of a seed. Long ones have more of everything."""
    rng = stream(seed, "plan")
    tick = rng.choice((10, 20, 40)) * MS
    election_ticks = rng.choice((5, 10, 10, 20))
    election = tick * election_ticks
    chaos = election * (rng.randrange(40, 120) if long else rng.randrange(8, 24))
    members = rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5) if not long else (1, 2, 3, 3, 4, 5, 5))
    clients = rng.randrange(1, 6 if long else 5)
    return Plan(
        seed=seed,
        members=members,
        learners=rng.choice((0, 0, 0, 1)),
        tick=tick,
        election_ticks=election_ticks,
        heartbeat_ticks=rng.choice((1, 1, 2)),
        pre_vote=rng.random() < 0.9,
        check_quorum=rng.random() < 0.85,
        links=_draw_links(rng, election),
        sync=rng.choice((100, 500, 2_000, election // 20)),
        real_disks=stream(seed, "disks").random() < (0.5 if long else 0.25),
        clients=clients,
        calls=rng.randrange(20, 60) * (6 if long else 1),
        pause_between=rng.choice((1, 5, 20)) * MS + election // 8,
        tenants=rng.choice((0, 0, 0, 1)) * stream(seed, "tenants").choice((1, 2, 4, 6)),
        chaos=chaos,
        faults=_draw_faults(rng, chaos, election, members),
        compact_every=rng.choice((5, 15, 40, 1_000)),
        keep_entries=rng.choice((0, 3, 10, 30)),
        append_bytes=rng.choice((1, 200, 1_000, 65_536)),
        inflight=rng.choice((1, 2, 8, 256)),
        chunk_bytes=rng.choice((64, 256, 4_096)),
        apply_bytes=rng.choice((100, 1_000, 65_536)),
        payload=rng.choice((0, 0, 30, 200, 900)),
        lease_second=int(election * stream(seed, "leases").choice((0.3, 0.5, 1.0))),
    )


def _draw_links(rng: random.Random, election: int) -> Links:
    delay = rng.choice((100, 1_000, election // 40))
    return Links(
        delay_min=delay,
        delay_spread=rng.choice((0, delay, 4 * delay)),
        loss=rng.choice((0.0, 0.0, 0.02, 0.1, 0.25)),
        duplicate=rng.choice((0.0, 0.0, 0.02, 0.15)),
        late=rng.choice((0.0, 0.0, 0.05, 0.2)),
        late_max=rng.choice((election // 10, election // 2, 3 * election)),
        in_order=rng.random() < 0.3,
    )


def _draw_faults(rng: random.Random, chaos: int, election: int, members: int) -> tuple[Fault, ...]:
    """Draw from a few kinds only: all kinds at once hide each other's marks."""
    kinds = rng.sample(list(Strike), rng.randrange(2, 9))
    if rng.random() < 0.05:
        return ()
    if rng.random() < 0.6:
        kinds.append(Strike.CRASH_AT)  # One kind by name, and a dozen by its points.
    count = rng.randrange(2, 4 + chaos // election // 2)
    faults = []
    for _ in range(count):
        kind = rng.choice(kinds)
        length = int(election * rng.choice((0.3, 1.0, 3.0, 6.0)) * (0.5 + rng.random()))
        target = LEADER if rng.random() < 0.4 else rng.randrange(MEMBERS_MAX)
        at = rng.randrange(election // 2, chaos)
        faults.append(Fault(at, kind, target, length, rng.randrange(1 << 16)))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def config_of(plan: Plan, number: int) -> Config:
    """Return a member's settings."""
    return Config(
        id=number,
        election_ticks=plan.election_ticks,
        heartbeat_ticks=plan.heartbeat_ticks,
        pre_vote=plan.pre_vote,
        check_quorum=plan.check_quorum,
        max_append_bytes=plan.append_bytes,
        inflight_max=plan.inflight,
        snapshot_chunk_bytes=plan.chunk_bytes,
        apply_bytes_max=plan.apply_bytes,
    )
