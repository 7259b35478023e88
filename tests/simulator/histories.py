"""What clients asked, and what they were told and when.

A call whose answer never came may have been done, once, at any time after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

NEVER = 1 << 62

Value = int | tuple[int, ...]


class Kind(Enum):
    """What a call does to its key."""

    READ = "read"
    PUT = "put"
    CAS = "cas"
    APPEND = "append"


class End(Enum):
    """How a call ended."""

    OK = "ok"
    FAILED = "failed"  # For certain not done.
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Call:
    """One call of one client. `value` is what a read saw; `done` whether a CAS took place."""

    client: int
    number: int
    kind: Kind
    key: str
    called: int
    put: int = 0
    expected: int = 0
    returned: int = NEVER
    end: End = End.UNKNOWN
    done: bool = True
    value: Value = 0
    revision: int = 0

    @property
    def name(self) -> tuple[int, int]:
        """Return what it is known by in the machine: a retry has the same."""
        return self.client, self.number

    def __str__(self) -> str:
        what = {
            Kind.READ: f"read {self.key}",
            Kind.PUT: f"put {self.key}={self.put}",
            Kind.CAS: f"cas {self.key} {self.expected}->{self.put}",
            Kind.APPEND: f"append {self.key}+{self.put}",
        }[self.kind]
        until = "never" if self.returned == NEVER else str(self.returned)
        told = f"{self.value}@{self.revision}{'' if self.done else ' not done'}"
        end = told if self.end is End.OK else self.end.value
        return f"c{self.client}.{self.number} [{self.called}, {until}] {what}: {end}"


@dataclass(slots=True)
class History:
    """All calls of one run, in the order in which they were made."""

    calls: list[Call] = field(default_factory=list)

    def by_key(self) -> dict[str, list[Call]]:
        """Split it: keys are independent of each other, and so can be judged one by one."""
        keys: dict[str, list[Call]] = {}
        for call in self.calls:
            keys.setdefault(call.key, []).append(call)
        return keys


@dataclass(frozen=True, slots=True)
class Effect:
    """What one revision did: who asked for it, and what its key holds since."""

    client: int
    number: int
    key: str
    value: Value
