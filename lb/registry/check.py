"""Whether a command makes sense by itself: form and bounds, before any state is looked at.

The admin API and the config checker have looked at most of this before, each in its own words;
here is the last word, which holds whatever proposed the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address

from lb.registry.commands import (
    ApplyFile,
    Code,
    Command,
    ExpireLeases,
    Fields,
    MoveMember,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    RaiseLevel,
    Refusal,
    RemoveBackend,
    RenewLease,
    Restore,
    SyncFile,
)
from lb.registry.values import BACKENDS_MAX, Entry, Said

WEIGHT_MAX = 1_000
TTL_MIN = 5  # Seconds: a shorter lease would end by a change of leaders.
TTL_MAX = 86_400
EDITS_MAX = 1_000  # Backends that one PATCH of an upstream may change.
LABELS_MAX = 32
LABEL_LENGTH_MAX = 256
NOTE_LENGTH_MAX = 1_000
NAME_LENGTH_MAX = 63
ADDRESS_LENGTH_MAX = 300
HOST_LENGTH_MAX = 253
UNIX_PATH_MAX = 107
KEY_LENGTH_MAX = 255  # Of an idempotency key.
SHOWN_LENGTH_MAX = 80  # Of what is quoted in a refusal.

ABOUT_NONE = (ExpireLeases, MoveMember, RaiseLevel, Restore)

_NAME = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?(?:\.[A-Za-z0-9_-]+)*\.?", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_LATER = ("srv://",)
_HTTPS = "https://"


def check_command(command: Command) -> Refusal | None:
    """Return why the command can never be applied, or None."""
    problem = _check_common(command)
    if problem:
        return problem
    match command:
        case PutBackend() | PatchBackend():
            return _first(
                _check_key(command.key), _check_fields(command.fields), _check_put(command)
            )
        case RemoveBackend() | RenewLease():
            return _check_key(command.key)
        case PatchUpstream():
            return _check_edits(command.edits)
        case ApplyFile() | SyncFile():
            return check_said(command.said or ())
        case _:
            return None


def check_address(address: str) -> Refusal | None:
    """Return what is wrong with a backend's address, or None."""
    if address.startswith(_LATER):
        scheme = address.partition(":")[0]
        return Refusal(Code.NOT_SUPPORTED, f"{scheme}:// addresses are not yet supported")
    sound = is_text(address, ADDRESS_LENGTH_MAX)
    if not sound or not (_is_unix(address) or _is_host_port(address.removeprefix(_HTTPS))):
        return Refusal(
            Code.INVALID,
            f'"{_shown(address)}" is not an address of a backend',
            'write "host:port", "[ipv6]:port", "https://host:port" or "unix:/path"',
        )
    return None


def check_entry(entry: Entry) -> Refusal | None:
    """Return what is wrong with a backend that came from outside, as a whole, or None."""
    if entry.name is not None and not is_name(entry.name):
        return _invalid(f'"{_shown(entry.name)}" is not a name of a backend')
    if type(entry.backup) is not bool or None in entry.labels.values() or entry.ttl == 0:
        return _invalid(f"{_shown(entry.key)} has a field of another form")
    fields = Fields(address=entry.address, weight=entry.weight, labels=entry.labels, ttl=entry.ttl)
    return _check_fields(fields)


def check_said(said: Iterable[Said]) -> Refusal | None:
    """Return what is wrong with a file's list of backends, or None."""
    seen: set[str] = set()
    for backend in said:
        if backend.name is not None and not is_name(backend.name):
            return _invalid(f'"{_shown(backend.name)}" is not a name of a backend')
        problem = _first(check_address(backend.address), _check_weight(backend.weight))
        if problem:
            return problem
        if backend.key in seen:
            return _invalid(f"{backend.key} is in the list twice")
        seen.add(backend.key)
    if len(seen) > BACKENDS_MAX:
        return Refusal(Code.TOO_MANY, f"an upstream has at most {BACKENDS_MAX} backends")
    return None


def _is_unix(address: str) -> bool:
    path = address.removeprefix("unix:")
    return (
        path != address
        and path.startswith("/")
        and "\0" not in path
        and len(path.encode()) <= UNIX_PATH_MAX
    )


def _is_host_port(address: str) -> bool:
    host, colon, port = address.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65_535:
        return False
    try:
        if host.startswith("[") and host.endswith("]"):
            IPv6Address(host[1:-1])
        elif host.rstrip(".").rpartition(".")[2].isdigit():
            IPv4Address(host)  # No name in DNS ends in a number.
        else:
            return len(host) <= HOST_LENGTH_MAX and _HOST.fullmatch(host) is not None
    except ValueError:
        return False
    return True


def _check_common(command: Command) -> Refusal | None:
    key = command.idempotency_key
    if isinstance(command, ABOUT_NONE):
        if command.upstream:
            return _invalid(f"{command.kind} is about no single upstream")
    elif not is_name(command.upstream):
        return _invalid(f'"{_shown(command.upstream)}" is not a name of an upstream')
    if not is_text(command.by.note, NOTE_LENGTH_MAX):
        return _invalid(f"a note is a text of at most {NOTE_LENGTH_MAX} characters")
    if key is not None and not (key and key.isascii() and is_text(key, KEY_LENGTH_MAX)):
        return _invalid(f"an idempotency key has 1 to {KEY_LENGTH_MAX} characters of ASCII")
    if not 0 <= command.min_active <= 1:
        return _invalid("min_active is a share, from 0 to 1")
    return None


def is_name(text: str) -> bool:
    """Whether this may name an upstream or a backend; clients take `.` and `..` out of a path."""
    fits = len(text) <= NAME_LENGTH_MAX and _NAME.fullmatch(text) is not None
    return fits and text not in {".", ".."}


def is_text(text: str, length_max: int) -> bool:
    """Whether this can be written down as UTF-8, and is not too long."""
    if len(text) > length_max:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # Half a surrogate pair, from bytes that were no UTF-8.
        return False
    return True


def _shown(text: str) -> str:
    return text[:SHOWN_LENGTH_MAX].encode("utf-8", "backslashreplace").decode()


def _check_key(key: str) -> Refusal | None:
    return None if is_name(key) else check_address(key)


def _check_put(command: Command) -> Refusal | None:
    if isinstance(command, PutBackend):
        for value in (command.fields.labels or {}).values():
            if value is None:
                return _invalid("a label has a text as its value")
    return None


def _check_fields(fields: Fields) -> Refusal | None:
    return _first(
        None if fields.ttl is None else _check_ttl(fields.ttl),
        None if fields.address is None else check_address(fields.address),
        None if fields.weight is None else _check_weight(fields.weight),
        None if fields.labels is None else _check_labels(fields.labels),
    )


def _check_ttl(ttl: float) -> Refusal | None:
    sound = type(ttl) in (int, float) and (ttl == 0 or TTL_MIN <= ttl <= TTL_MAX)
    if not sound:
        return _invalid(
            f"ttl is from {TTL_MIN} to {TTL_MAX} seconds, or 0 for no lease",
            "renew at a third of it",
        )
    return None


def _check_weight(weight: int) -> Refusal | None:
    if type(weight) is not int or not 0 <= weight <= WEIGHT_MAX:  # A bool is no weight.
        return _invalid(f"weight is a whole number from 0 to {WEIGHT_MAX}")
    return None


def _check_labels(labels: Mapping[str, str | None]) -> Refusal | None:
    if len(labels) > LABELS_MAX:
        return _invalid(f"a backend has at most {LABELS_MAX} labels")
    for name, value in labels.items():
        if not is_name(name) or not is_text(value or "", LABEL_LENGTH_MAX):
            return _invalid(f"a label is a name and a text of at most {LABEL_LENGTH_MAX}")
    return None


def _check_edits(edits: tuple[tuple[str, Fields | None], ...]) -> Refusal | None:
    if len(edits) > EDITS_MAX:
        return Refusal(Code.TOO_MANY, f"one PATCH changes at most {EDITS_MAX} backends")
    if len({key for key, _ in edits}) < len(edits):
        return _invalid("a backend is named twice")
    for key, fields in edits:
        problem = _first(_check_key(key), None if fields is None else _check_fields(fields))
        if problem:
            return problem
    return None


def _first(*problems: Refusal | None) -> Refusal | None:
    return next((problem for problem in problems if problem), None)


def _invalid(detail: str, hint: str = "") -> Refusal:
    return Refusal(Code.INVALID, detail, hint)
