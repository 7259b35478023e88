"""Commands as bytes: what goes into the log comes out of it, and what is unknown stops."""

from __future__ import annotations

import json
import zlib

import pytest

from lb.registry import (
    Command,
    ExpireLeases,
    Fields,
    RaiseLevel,
    RemoveUpstream,
    RenewLease,
    Restore,
    Said,
    SyncFile,
    UnknownCommandError,
    command_to_plain,
    decode_command,
    encode_command,
    registry_to_plain,
    wire,
)
from registry.kit import BASE, BY, A, B, edit, first_file, patch, put, remove, with_backends

COMMANDS: list[Command] = [
    put(A, Fields(weight=3, ttl=15.0, labels={"zone": "é"}), if_match=(1, 2)),
    patch(A, Fields(labels={"zone": None}), if_match="*", idempotency_key="k"),
    remove(A, force=True),
    edit({A: Fields(), B: None}),
    first_file(A, B),
    SyncFile(said=(Said(A, name="x"),), version=3, **BASE),
    RemoveUpstream(named_by=("a", "b"), **BASE),
    RenewLease(key=A, **BASE),
    ExpireLeases(term=3, due=(("app", A, 7),), at=5.0),
    RaiseLevel(level=1, by=BY, at=5.0),
    Restore(content=registry_to_plain(with_backends(A)), by=BY, at=5.0),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.kind)
def test_a_command_comes_back_from_the_log(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


def test_a_long_command_is_packed() -> None:
    command = first_file(*(f"10.0.{n >> 8}.{n & 255}:80" for n in range(5_000)))

    data = encode_command(command)

    assert len(data) < len(json.dumps(command_to_plain(command))) / 5
    assert decode_command(data) == command


def as_json(**fields: object) -> bytes:
    return bytes([wire.JSON]) + json.dumps(command_to_plain(remove(A)) | fields).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00{}",
        b"\x03{}",
        b"\x01",
        b"\x01null",
        b"\x01[]",
        b"\x01{}",
        b"\x01" + b"[" * 100_000,
        b"\x01\xff",
        b"\x02not packed",
        b"\x02" + zlib.compress(b"{}" * 100)[:-3],
        b"\x02" + zlib.compress(b"{}") + b"more",
        as_json(kind="take-over"),
        as_json(colour="red"),
        as_json(kind="raise-level", level=99),
        as_json(kind="put-backend", fields={"state": "resting"}),
    ],
)
def test_what_cannot_be_read_stops_and_is_never_skipped(data: bytes) -> None:
    with pytest.raises(UnknownCommandError):
        decode_command(data)


def test_unpacking_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "COMMAND_BYTES_MAX", 1_000)

    with pytest.raises(UnknownCommandError, match="longer than 1000 bytes"):
        decode_command(bytes([wire.PACKED]) + zlib.compress(b" " * 1_001))
