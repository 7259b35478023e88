"""What the log is for: registers and lists that clients use, and the real registry beside them.

Changes of members go into the registry too, which holds them by name and address.

Commands carry the client and the number of its call. The newest answer of each client is part
of the state, and so of snapshots: a retry is answered from there and not done again.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import orjson

from lb.raft.members import Change, decode_change
from lb.raft.messages import ConfState, Entry
from lb.raft.messages import Kind as EntryKind
from lb.registry import (
    ApplyFile,
    By,
    Changed,
    Command,
    Member,
    Registry,
    Reply,
    Said,
    apply,
    change_member,
    decode_command,
    encode_command,
    registry_from_plain,
    registry_to_plain,
    state_hash,
)
from simulator.histories import Effect, Kind, Value
from simulator.revisions import initial

REGISTRY_ID = "5" * 32
UPSTREAM = "app"
NOBODY = By(source="simulator")
WORDS = {Change.ADD_LEARNER: "add", Change.PROMOTE: "promote", Change.REMOVE: "remove"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call was answered: `value` is what its key holds after it."""

    number: int
    done: bool
    value: Value
    revision: int


def encode(client: int, number: int, kind: Kind, key: str, args: tuple[int, int]) -> bytes:
    """Write down a client's command; `args` are what it puts, and what a CAS expects."""
    return b"%d %d %s %s %d %d" % (client, number, kind.value.encode(), key.encode(), *args)


def encode_for_registry(command: Command) -> bytes:
    """Write down a command of the registry, as it stands in a log."""
    return b"R" + encode_command(command)


def founded(conf: ConfState, backends: int) -> Registry:
    """Return the registry that a group begins with: its members, and what their file says."""
    never = Changed(NOBODY, 0, 0.0)
    members = {
        number: Member(number, f"m{number}", address_of(number), number in conf.voters, never)
        for number in sorted(conf.members)
    }
    said = tuple(Said(f"10.9.0.{number}:80") for number in range(1, backends + 1))
    command = ApplyFile(upstream=UPSTREAM, by=NOBODY, at=0.0, remembered=None, said=said)
    return apply(Registry(REGISTRY_ID, members=members), command)[0]


def address_of(number: int) -> str:
    """Return where a member listens."""
    return f"10.1.0.{number}:9901"


@dataclass(slots=True)
class Machine:
    """The state of one member, changed only by `take`. Equal states have equal marks."""

    values: dict[str, Value] = field(default_factory=dict)
    revision: int = 0
    answers: dict[int, Answer] = field(default_factory=dict)
    registry: Registry = field(default_factory=lambda: Registry(REGISTRY_ID))
    term: int = 0  # Of the entry applied last.
    mark: int = 0
    command: Command | None = None  # Of the registry, that was applied last; else None.
    reply: Reply | None = None
    effect: Effect | None = None  # Of the command applied last, if it had one.

    def take(self, entry: Entry) -> tuple[int, Answer] | None:
        """Apply one entry of the log; return the client and the answer, if a client asked."""
        self.effect = self.command = self.reply = None
        self.term = entry.term
        if entry.kind is EntryKind.NORMAL:
            return self.apply(entry.data, entry.term)
        if entry.kind is EntryKind.CONF:
            self._change(entry.data)
        return None

    def _change(self, data: bytes) -> None:
        change = decode_change(data)
        self._hold(change_member(self.registry, WORDS[change.what], change.member, change.context))

    def apply(self, data: bytes, term: int) -> tuple[int, Answer] | None:
        """Apply one command; see `take`."""
        if not data:
            return None
        if data.startswith(b"R"):
            self.command = decode_command(data[1:])
            registry, self.reply = apply(self.registry, self.command, term)
            self._hold(registry)
            return None
        parts = data.split(b" ")
        client, number = int(parts[0]), int(parts[1])
        last = self.answers.get(client)
        if last is not None and last.number >= number:
            # Done before. One older than the newest is a late copy that nobody waits for.
            return (client, last) if last.number == number else None
        kind, key = Kind(parts[2].decode()), parts[3].decode()
        answer = self._do(number, kind, key, (int(parts[4]), int(parts[5])))
        if answer.done:
            self.effect = Effect(client, number, key, answer.value)
        self.answers[client] = answer
        self._mark(b"%d %d %d %d" % (client, number, answer.revision, answer.done))
        return client, answer

    def _do(self, number: int, kind: Kind, key: str, args: tuple[int, int]) -> Answer:
        put, expected = args
        held = self.values.get(key, initial(key))
        if kind is Kind.CAS and held != expected:
            return Answer(number, False, held, self.revision)
        after: Value = (*held, put) if isinstance(held, tuple) else put
        self.values[key] = after
        self.revision += 1
        return Answer(number, True, after, self.revision)

    def _hold(self, registry: Registry) -> None:
        if registry is not self.registry:
            self.registry = registry
            self._mark(state_hash(registry).encode())

    def _mark(self, data: bytes) -> None:
        self.mark = zlib.crc32(data, self.mark)

    def read(self, key: str) -> tuple[Value, int]:
        """Return what a key holds, and the revision at which it does."""
        return self.values.get(key, initial(key)), self.revision

    def save(self) -> bytes:
        """Write the whole state down; packed, or it would be many pieces in every run."""
        plain = orjson.dumps(
            {
                "values": self.values,
                "revision": self.revision,
                "answers": [
                    [client, one.number, one.done, one.value, one.revision]
                    for client, one in self.answers.items()
                ],
                "registry": registry_to_plain(self.registry),
                "term": self.term,
                "mark": self.mark,
            }
        )
        return zlib.compress(plain, level=1)

    @classmethod
    def load(cls, data: bytes) -> Machine:
        """Read what `save` wrote."""
        plain = orjson.loads(zlib.decompress(data))
        return cls(
            values={key: _value(value) for key, value in plain["values"].items()},
            revision=plain["revision"],
            answers={
                client: Answer(number, done, _value(value), revision)
                for client, number, done, value, revision in plain["answers"]
            },
            registry=registry_from_plain(plain["registry"]),
            term=plain["term"],
            mark=plain["mark"],
        )


def _value(plain: int | list[int]) -> Value:
    return tuple(plain) if isinstance(plain, list) else plain
