"""
An edition: everything a worker needs in order to serve, numbered, immutable, swapped whole.

It travels in parts, so that only what changed is sent and none takes long to decode:
`config` (a `model.Plans`), `upstream/<name>/<k>` (at most 500 backends each), `verdicts`,
`ejections` while there are any, and what is named by its digest: certificates, plugins' code.
Parts named `control/...` ride along to the next controller and are never sent to workers.
The controller composes (`Composer`), the supervisor keeps it (`pack`), workers read it
(`Assembly`). Only the registry decides which backends there are; the file is asked for an
upstream that the registry does not know yet.

Not here: compression (an edition never leaves the machine) and checksums (nor does it touch a
disk).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from lb.errors import OurError
from lb.model import HTTPS, Endpoint, Health, Plans, State
from lb.outlier import Ejected, Ejection, ejections_from_plain, ejections_to_plain
from lb.plans import NO_CERTIFICATES, Certificates, plan, sources_of

if TYPE_CHECKING:
    from lb.config import schema
    from lb.registry import Registry, UpstreamEntry

FORMAT = 1
READABLE = frozenset({FORMAT})  # And the one before, once there is one.
MAGIC = b"ACCE"
PREFACE = struct.Struct(">4sHI")  # Magic, format, bytes of the table that follows.

SRV = "srv://"  # What the address of a service begins with, whose endpoints DNS names.

CONFIG = "config"
VERDICTS = "verdicts"
EJECTIONS = "ejections"
UPSTREAM = "upstream/"
CONTROL = "control/"
TLS = "tls/"  # By digest: what somebody shows, or accepts.
PLUGIN = "plugin/"  # By digest: the source of one.

PART_BACKENDS_MAX = 500
ADDRESSES_REMEMBERED = 32_768
SCALE_MAX = 5_040  # Of weights; what 1 to 10 addresses divide evenly, and 12, 14, 15, 16 too.

Verdicts = Mapping[str, Mapping[str, Health]]  # Upstream, endpoint address.
Resolved = Mapping[str, tuple[str, ...]]  # A backend's address by name, its endpoints' addresses.

_STATES = {state.value: state for state in State}
_HEALTHS = {health.value: health for health in Health}


class FormatError(OurError):
    """A packed edition that this program cannot read: of another format, or cut short."""


@dataclass(frozen=True, slots=True)
class Edition:
    """`revision` is the registry's; bodies of parts that did not change are the same objects."""

    number: int
    revision: int
    parts: dict[str, bytes]

    def for_workers(self) -> dict[str, bytes]:
        """The parts that workers get."""
        return {name: body for name, body in self.parts.items() if not name.startswith(CONTROL)}


@dataclass(frozen=True, slots=True)
class UpstreamPart:
    """`revision` is the newest among the backends that this part holds; 0 if from the file."""

    upstream: str
    index: int
    revision: int
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """What an edition is made from. None of it is changed afterwards, only replaced."""

    config: schema.Config
    generation: int
    registry: Registry
    verdicts: Verdicts = field(default_factory=dict)
    resolved: Resolved = field(default_factory=dict)
    certificates: Certificates = NO_CERTIFICATES
    ejections: Ejected = field(default_factory=dict)
    forced: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    instances: int = 1  # Of the group, that live.


class BackendRow(NamedTuple):
    """One backend as an upstream has it now, from wherever that is decided."""

    key: str
    address: str
    weight: int
    state: str
    backup: bool
    revision: int


# Addresses


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def is_name(address: str) -> bool:
    """Whether a backend's address must be resolved before anyone can connect to it."""
    if address.startswith(SRV):
        return True
    address = address.removeprefix(HTTPS)
    if address.startswith(("unix:", "[")):
        return False
    host = address.rpartition(":")[0]
    # No top-level domain is all digits, so this tells names from dotted addresses.
    return not host.rpartition(".")[2].isdigit()


def endpoints_of(address: str, resolved: Resolved) -> tuple[str, ...]:
    """The addresses that a backend stands for; none while its name is not resolved yet."""
    return resolved.get(address, ()) if is_name(address) else (address,)


def backends_of(
    name: str, upstream: schema.Upstream, entry: UpstreamEntry | None
) -> list[BackendRow]:
    """The backends that an upstream has: the registry's, or the file's until it knows it."""
    if entry is not None:
        return [
            BackendRow(key, b.address, b.weight, str(b.state), b.backup, b.revision)
            for key, b in entry.backends.items()
        ]
    return [
        BackendRow(b.key, b.address, b.weight, State.ACTIVE.value, b.backup, 0)
        for b in upstream.backends or ()
    ]


def addresses_of(upstream: schema.Upstream, entry: UpstreamEntry | None) -> Iterator[str]:
    """The addresses of those alone: asked after every write, of thousands."""
    if entry is not None:
        return (backend.address for backend in entry.backends.values())
    return (backend.address for backend in upstream.backends or ())


# The controller's end: composing


@dataclass(slots=True)
class _Composed:
    """The parts of one upstream, and what they were made from."""

    source: object  # The registry's entry, or the file's list; kept alive so that `is` is safe.
    forced: Mapping[str, str] | None  # By key: up or down, whatever its state.
    names: tuple[str, ...]  # The addresses that were resolved,
    answers: tuple[tuple[str, ...], ...]  # and what they gave.
    rows: Sequence[BackendRow]
    bodies: dict[str, bytes]


class Composer:
    """
    Makes editions, and remembers the parts of the last one.

    A part is made anew only when what it is made from was replaced: one verdict among a
    thousand backends costs the encoding of `verdicts` and nothing else.
    """

    def __init__(self, node: str, via: str) -> None:
        self._node = node
        self._via = via
        self._config: tuple[object, int, object, int, bytes] = (None, 0, None, 1, b"")
        self._verdicts: tuple[object, bytes] = (None, b"")
        self._ejections: tuple[object, bytes] = (None, b"")
        self._plugins: tuple[object, dict[str, bytes]] = (None, {})
        self._upstreams: dict[str, _Composed] = {}

    def compose(
        self, sources: Sources, number: int, extra: Mapping[str, bytes] | None = None
    ) -> Edition:
        """Make the edition `number`; `extra` are the `control/` parts."""
        parts = {CONFIG: self._config_part(sources)}
        upstreams = {}
        for name, upstream in sources.config.upstream.items():
            upstreams[name] = self._upstream_parts(name, upstream, sources)
            parts.update(upstreams[name].bodies)
        self._upstreams = upstreams  # Those that are gone are forgotten.
        parts[VERDICTS] = self._verdicts_part(sources.verdicts)
        if sources.ejections:
            parts[EJECTIONS] = self._ejections_part(sources.ejections)
        parts.update(sources.certificates.parts)
        parts.update(self._plugin_parts(sources.config))
        if extra:
            assert all(name.startswith(CONTROL) for name in extra)
            parts.update(extra)
        return Edition(number, sources.registry.revision, parts)

    def _plugin_parts(self, config: schema.Config) -> dict[str, bytes]:
        last, parts = self._plugins
        if last is not config:
            parts = {PLUGIN + mark: source for mark, source in sources_of(config).items()}
            self._plugins = (config, parts)
        return parts

    def _config_part(self, sources: Sources) -> bytes:
        config, generation, certificates, instances, body = self._config
        # Only plugins ask how many we are; else nothing changes when somebody comes or goes.
        count = sources.instances if sources.config.plugins.code else 1
        if (
            config is not sources.config
            or generation != sources.generation
            or certificates is not sources.certificates
            or instances != count
        ):
            certificates = sources.certificates
            plans = plan(
                sources.config, self._node, self._via, sources.generation, certificates, count
            )
            body = orjson.dumps(plans)
            self._config = (sources.config, sources.generation, certificates, count, body)
        return body

    def _verdicts_part(self, verdicts: Verdicts) -> bytes:
        last, body = self._verdicts
        if last is not verdicts:
            body = orjson.dumps({name: dict(each) for name, each in verdicts.items()})
            self._verdicts = (verdicts, body)
        return body

    def _ejections_part(self, ejections: Ejected) -> bytes:
        last, body = self._ejections
        if last is not ejections:
            plain = {name: ejections_to_plain(each) for name, each in ejections.items()}
            body = orjson.dumps(plain)
            self._ejections = (ejections, body)
        return body

    def _upstream_parts(self, name: str, upstream: schema.Upstream, sources: Sources) -> _Composed:
        entry = sources.registry.upstreams.get(name)
        source = upstream.backends if entry is None else entry
        last = self._upstreams.get(name)
        forced = sources.forced.get(name)
        if (
            last is not None
            and last.source is source
            and source is not None
            and last.forced == forced
        ):
            answers = tuple(sources.resolved.get(address, ()) for address in last.names)
            if answers == last.answers:
                return last
        rows = backends_of(name, upstream, entry)
        if forced:
            rows = [_forced(row, forced.get(row.key)) for row in rows]
        names = tuple({row.address: None for row in rows if is_name(row.address)})
        answers = tuple(sources.resolved.get(address, ()) for address in names)
        # One backend among thousands changed: only its part is encoded anew.
        known = last is not None and (last.names, last.answers) == (names, answers)
        alike = last if known else None
        bodies = _encode_upstream(name, rows, sources.resolved, alike)
        return _Composed(source, forced, names, answers, rows, bodies)


def _forced(row: BackendRow, to: str | None) -> BackendRow:
    if to is None:
        return row
    state = State.ACTIVE if to == "up" else State.DISABLED
    return row._replace(state=state.value)


def _encode_upstream(
    name: str, rows: Sequence[BackendRow], resolved: Resolved, last: _Composed | None
) -> dict[str, bytes]:
    """
    Lay out an upstream's parts: at least one, since an empty upstream exists as well.

    Those of `last` are taken as they are, the same objects, where their rows are the same.
    """
    addresses = [endpoints_of(row.address, resolved) for row in rows]
    scale = share_scale({len(each) for each in addresses})
    parts = {}
    for index, start in enumerate(range(0, len(rows) or 1, PART_BACKENDS_MAX)):
        end = start + PART_BACKENDS_MAX
        part = f"{UPSTREAM}{name}/{index}"
        if last is not None and part in last.bodies and last.rows[start:end] == rows[start:end]:
            parts[part] = last.bodies[part]
            continue
        endpoints = [
            (
                *(row.key, address, share_weight(row.weight, len(each), scale)),
                *(row.state, row.backup, *host_in(row.address)),
            )
            for row, each in zip(rows[start:end], addresses[start:end], strict=True)
            for address in each
        ]
        revision = max((row.revision for row in rows[start:end]), default=0)
        parts[part] = orjson.dumps(
            {"upstream": name, "index": index, "revision": revision, "endpoints": endpoints}
        )
    return parts


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def host_in(address: str) -> tuple[str, ...]:
    """The name or address in an `https://` address; nothing for others."""
    if not address.startswith(HTTPS):
        return ()
    return (address.removeprefix(HTTPS).rpartition(":")[0].strip("[]"),)


def share_scale(counts: Collection[int]) -> int:
    """What to multiply all weights of an upstream by, so that each can be shared evenly."""
    scale = math.lcm(*(count for count in counts if count))
    return min(scale, SCALE_MAX)


def share_weight(weight: int, count: int, scale: int) -> int:
    """One endpoint's share of its backend's weight; even to 0.1 % where the scale was cut."""
    if weight == 0:
        return 0
    return max(1, round(weight * scale / count))


# Keeping and passing on


def pack(edition: Edition) -> bytes:
    """The whole edition as bytes: a format number, a table of the parts, the parts."""
    table = orjson.dumps(
        {
            "number": edition.number,
            "revision": edition.revision,
            "parts": [(name, len(body)) for name, body in edition.parts.items()],
        }
    )
    return b"".join(
        (PREFACE.pack(MAGIC, FORMAT, len(table)), table, *edition.parts.values()),
    )


def unpack(data: bytes) -> Edition:
    """Read what `pack` wrote; FormatError if it is of a format that we do not know."""
    if len(data) < PREFACE.size:
        raise FormatError(f"an edition of {len(data)} bytes is cut short")
    magic, number, table_bytes = PREFACE.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("this is no edition")
    if number not in READABLE:
        raise FormatError(f"an edition of format {number}; this program reads {FORMAT}")
    start = PREFACE.size + table_bytes
    try:
        table = orjson.loads(data[PREFACE.size : start])
    except orjson.JSONDecodeError as error:
        raise FormatError("an edition's table is damaged") from error
    if len(data) != start + sum(length for _, length in table["parts"]):
        raise FormatError("an edition's parts are cut short")
    parts = {}
    for name, length in table["parts"]:
        parts[name] = data[start : start + length]
        start += length
    return Edition(table["number"], table["revision"], parts)


def digest(body: bytes) -> str:
    """What stands for a part where only its sameness matters."""
    return blake2b(body, digest_size=12).hexdigest()


# The worker's end: reading


def decode_config(body: bytes) -> Plans:
    """Read the `config` part."""
    return Plans.from_plain(orjson.loads(body))


def decode_upstream(body: bytes) -> UpstreamPart:
    """Read one `upstream/<name>/<k>` part."""
    plain = orjson.loads(body)
    endpoints = tuple(
        Endpoint(key, address, weight, _STATES[state], backup, *host)
        for key, address, weight, state, backup, *host in plain["endpoints"]
    )
    return UpstreamPart(plain["upstream"], plain["index"], plain["revision"], endpoints)


def decode_verdicts(body: bytes) -> dict[str, dict[str, Health]]:
    """Read the `verdicts` part: of every checked endpoint, by upstream and address."""
    plain: dict[str, dict[str, str]] = orjson.loads(body)
    return {
        upstream: {address: _HEALTHS[value] for address, value in verdicts.items()}
        for upstream, verdicts in plain.items()
    }


def decode_ejections(body: bytes) -> dict[str, dict[str, Ejection]]:
    """Read the `ejections` part: of the endpoints that are out, by upstream and address."""
    plain = orjson.loads(body)
    return {upstream: ejections_from_plain(each) for upstream, each in plain.items()}


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    CONFIG: decode_config,
    VERDICTS: decode_verdicts,
    EJECTIONS: decode_ejections,
}


@dataclass(frozen=True, slots=True)
class Change:
    """
    What a commit brought: None where nothing changed since the one before.

    `upstreams` always names all of them; the tuple of one that did not change is the same
    object as before.
    """

    number: int
    plans: Plans | None
    upstreams: dict[str, tuple[Endpoint, ...]] | None
    verdicts: dict[str, dict[str, Health]] | None
    material: dict[str, bytes] | None = field(default=None, repr=False)
    ejections: dict[str, dict[str, Ejection]] | None = None
    sources: dict[str, bytes] | None = field(default=None, repr=False)  # With the plans.


class Assembly:
    """
    Parts as they come in, and the whole that a commit makes of them.

    Each `put` decodes one part; give the loop a turn between two. What is held is bounded by
    the sender, which has few editions on their way.
    """

    def __init__(self) -> None:
        self.number = 0  # Of the edition last committed.
        self.digests: dict[str, str] = {}  # Of the parts held, as said in a worker's hello.
        self._parts: dict[str, Any] = {}
        self._changed: set[str] = set()
        self._upstreams: dict[str, tuple[Endpoint, ...]] = {}

    def put(self, name: str, body: bytes) -> None:
        """Take in one part of the next edition."""
        if name.startswith(CONTROL):
            return
        if name.startswith((TLS, PLUGIN)):
            self._parts[name] = body
        else:
            self._parts[name] = _DECODERS.get(name, decode_upstream)(body)
        self.digests[name] = digest(body)
        self._changed.add(name)

    def drop(self, name: str) -> None:
        """The next edition has no such part."""
        if self._parts.pop(name, None) is not None:
            del self.digests[name]
            self._changed.add(name)

    def commit(self, number: int) -> Change:
        """Make an edition of the parts as they are now."""
        changed, self._changed = self._changed, set()
        if CONFIG not in self._parts or VERDICTS not in self._parts:
            raise OurError(f"edition {number} was committed before it was whole")
        self.number = number
        return Change(
            number=number,
            plans=self._parts[CONFIG] if CONFIG in changed else None,
            upstreams=self._join_upstreams(changed),
            verdicts=self._parts[VERDICTS] if VERDICTS in changed else None,
            material=self._join_material(changed),
            ejections=self._parts.get(EJECTIONS, {}) if EJECTIONS in changed else None,
            sources=self._named_by_digest(PLUGIN) if CONFIG in changed else None,
        )

    def load(self, edition: Edition) -> Change:
        """Take in a whole edition at once, as a worker does when it starts; only what differs."""
        for name in self._parts.keys() - edition.parts.keys():
            self.drop(name)
        for name, body in edition.parts.items():
            if self.digests.get(name) != digest(body):
                self.put(name, body)
        return self.commit(edition.number)

    def _join_material(self, changed: Iterable[str]) -> dict[str, bytes] | None:
        if not any(name.startswith(TLS) for name in changed):
            return None
        return self._named_by_digest(TLS)

    def _named_by_digest(self, prefix: str) -> dict[str, bytes]:
        return {
            name.removeprefix(prefix): body
            for name, body in self._parts.items()
            if name.startswith(prefix)
        }

    def _join_upstreams(self, changed: Iterable[str]) -> dict[str, tuple[Endpoint, ...]] | None:
        touched = {name.split("/")[1] for name in changed if name.startswith(UPSTREAM)}
        if not touched:
            return None
        pieces: dict[str, list[UpstreamPart]] = {}
        for name, part in self._parts.items():
            if name.startswith(UPSTREAM):
                pieces.setdefault(part.upstream, []).append(part)
        joined = {}
        for upstream, parts in pieces.items():
            if upstream in self._upstreams and upstream not in touched:
                joined[upstream] = self._upstreams[upstream]
                continue
            parts.sort(key=lambda part: part.index)
            joined[upstream] = tuple(endpoint for part in parts for endpoint in part.endpoints)
        self._upstreams = joined
        return dict(joined)
