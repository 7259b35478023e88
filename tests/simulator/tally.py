"""What happened in runs, counted: a fault that never fires proves nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from simulator.plan import POINTS, Strike

LINK_FAULTS = (
    "message lost",
    "message twice",
    "message late",
    "message overtook",
    "message cut off",
    "message on a slow link",
)
DISK_FAULTS = ("write lost", "write kept", "write torn", "torn write cut off")
ARMED = {Strike.CRASH_AT}  # These count by the point at which they happened.

FAULTS = (
    *LINK_FAULTS,
    *DISK_FAULTS,
    *(strike.value for strike in Strike if strike not in ARMED),
    *(f"crash {point}" for point in POINTS),
)


@dataclass(slots=True)
class Tally:
    """Counts of one run, or of many added up. `fired` is faults by kind."""

    runs: int = 0
    events: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # Elections, snapshots, calls and so on.

    def add(self, other: Tally) -> None:
        """Add another's counts."""
        self.runs += other.runs
        self.events += other.events
        self.fired.update(other.fired)
        self.seen.update(other.seen)


def report(total: Tally, seconds: float) -> str:
    """Return all counts as a table; faults that never fired are in it, with their 0."""
    pace = f" in {seconds:.1f} s: {total.runs / seconds * 60:,.0f} runs/min" if seconds else ""
    pace += f", {total.events / seconds:,.0f} events/s" if seconds else ""
    lines = [f"{total.runs:,} runs, {total.events:,} events{pace}", "faults that fired:"]
    lines += [f"  {fault:36} {total.fired[fault]:10,}" for fault in FAULTS]
    others = sorted(set(total.fired) - set(FAULTS))
    lines += [f"  {fault:36} {total.fired[fault]:10,}" for fault in others]
    lines.append("what happened:")
    lines += [f"  {what:36} {count:10,}" for what, count in sorted(total.seen.items())]
    return "\n".join(lines)
