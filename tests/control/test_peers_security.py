"""TLS between members, secrets that change while members are connected, and files that do."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from peers_kit import (
    Instance,
    Stranger,
    Wire,
    claim_of,
    instances,
    message,
    run,
    some,
    until,
    with_secret,
)

from lb.config.certificates import BadCertificateError
from lb.control import peer_connection, peers
from lb.control.peer_connection import PeerConnection
from lb.control.peer_handshake import Purpose
from lb.control.peer_security import names_of
from lb.control.peers import PeerRefused, PeerUnreachable, Security
from lb.errors import OperatorError

CA, OTHER_CA = trustme.CA(), trustme.CA()
NEW, OLD = b"the new secret", b"the old secret"


class Files:
    """A member's files; `put` writes others."""

    def __init__(self, folder: Path, name: str, ca: trustme.CA = CA) -> None:
        self.cert, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self.ca = folder / f"{name}-ca.pem"
        self.put(name, ca)
        self.trust(CA)

    def put(self, name: str, ca: trustme.CA = CA) -> None:
        made = ca.issue_cert(common_name=name)
        self.cert.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        self.key.write_bytes(made.private_key_pem.bytes())

    def trust(self, *authorities: trustme.CA) -> None:
        self.ca.write_bytes(b"".join(each.cert_pem.bytes() for each in authorities))

    def security(self) -> Security:
        return Security.tls(str(self.cert), str(self.key), str(self.ca))


def members(folder: Path, *names: str) -> list[Instance]:
    return [
        Instance(claim_of(name, number), Files(folder, name).security())
        for number, name in enumerate(names, 1)
    ]


def test_members_with_certificates_of_their_group(tmp_path: Path) -> None:
    async def test() -> None:
        a, b = members(tmp_path, "a", "b")
        async with instances(a, b), Wire(b.address) as wire:
            a.meet(b, by={"b": wire.address})
            await until(lambda: a.reaches(b) and b.reaches(a))
            said = [message(1, 2, n) + b"x" * size for n, size in enumerate((0, 9, 1 << 20, 3))]
            assert all(a.peers.send(2, each) for each in said)
            assert b.peers.send(1, message(2, 1))
            await until(lambda: len(b.heard) == len(said) and a.heard)

            assert [data for _, data in b.heard] == said
            assert await a.peers.call(b.address, "standing", {}, 5.0)
            assert b"accrdgrp" not in wire.dialled[0]

    run(test())


@pytest.mark.parametrize(
    ("shows", "by", "why"),
    [
        ("c", CA, "the certificate is for c, not b"),  # A claim that is not its name.
        ("b", OTHER_CA, ""),  # Another authority: it does not get as far as a claim.
    ],
)
def test_a_certificate_that_does_not_fit(
    shows: str, by: trustme.CA, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        (a,) = members(tmp_path, "a")
        files = Files(tmp_path, "b")
        files.put(shows, by)
        b = Instance(claim_of("b", 2), files.security())
        async with instances(a, b):
            for asks, other in ((a, b), (b, a)):
                for _ in range(2):
                    with pytest.raises((PeerRefused, PeerUnreachable)) as refused:
                        await asks.peers.call(other.address, "who", {}, 5.0)
                    assert why in str(refused.value)
            a.meet(b)
            b.meet(a)
            await until(lambda: any("cannot" in text or "refuse" in text for text in said(caplog)))
            assert not a.peers.connected
            assert not b.peers.connected

    run(test())
    if why:
        assert sum("127.0.0.1" in text and why in text for text in said(caplog)) >= 1
    else:
        assert sum("no TLS with 127.0.0.1: " in text for text in said(caplog)) == 2  # One on each.
        assert any("no TLS with 127.0.0.1:" in text and "issuer" in text for text in said(caplog))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def client_context(**changes: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    CA.configure_trust(context)
    context.check_hostname = False
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def test_no_certificate_and_old_tls_and_none_at_all(tmp_path: Path) -> None:
    async def test() -> None:
        (a,) = members(tmp_path, "a")
        async with instances(a):
            host, port = a.address.split(":")
            # With TLS 1.3 a client hears of it only after its own side of the handshake.
            reader, writer = await asyncio.open_connection(host, int(port), ssl=client_context())
            with suppress(ssl.SSLError, ConnectionResetError):
                assert not await reader.read(100)
            writer.close()
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old = client_context(maximum_version=ssl.TLSVersion.TLSv1_1)
            CA.issue_cert("b").configure_cert(old)
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.open_connection(host, int(port), ssl=old)
            plain = await Stranger.to(a.address)
            await plain.say(b"\x10\0\0\0\1accrdgrp")
            await plain.is_left()
            b = Instance(claim_of("b", 2), with_secret())
            async with instances(b):
                for asks, other in ((a, b), (b, a)):
                    with pytest.raises((PeerRefused, PeerUnreachable)):
                        await asks.peers.call(other.address, "who", {}, 5.0)

    run(test())


def test_a_new_certificate_and_a_new_authority_are_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(peers, "FILES_EVERY", 0.05)

    async def test() -> None:
        a, b = members(tmp_path, "a", "b")
        files = Files(tmp_path, "a")
        async with instances(a, b):
            a.meet(b)
            await until(lambda: a.reaches(b))
            before = set(a.peers._all)
            files.cert.write_text("half a")
            await until(lambda: said(caplog))
            assert await a.peers.call(b.address, "who", {}, 5.0), "the old pair serves"
            files.put("a", OTHER_CA)
            await until(lambda: "read again" in caplog.text)
            with pytest.raises((PeerRefused, PeerUnreachable)):
                await a.peers.call(b.address, "who", {}, 5.0)
            Files(tmp_path, "b").trust(CA, OTHER_CA)
            await until(lambda: caplog.text.count("read again") == 2)
            assert await a.peers.call(b.address, "who", {}, 5.0)
            assert before <= a.peers._all, "who is connected stays"

    caplog.set_level(logging.INFO)
    run(test())
    assert sum("stays as it was" in text for text in said(caplog)) == 1


def test_a_member_that_never_reads_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded there too, and what was let go is really gone."""
    monkeypatch.setattr(peers, "STUCK_SECONDS", 0.5)
    monkeypatch.setattr(peer_connection, "QUEUE_BYTES_MAX", 1 << 20)

    async def test() -> None:
        a, b = members(tmp_path, "a", "b")
        async with instances(a, b), Wire(b.address) as wire:
            a.meet(b, by={"b": wire.address})
            await until(lambda: a.reaches(b))
            wire.hold(back=False)
            body, sent = message(1, 2) + b"x" * 100_000, 0
            while a.peers.send(2, body):
                sent += 1
                assert sent < 1000
                await asyncio.sleep(0)
            (way,) = a.peers._all
            assert way.waiting <= 1 << 20
            await until(way.is_closed)
            assert way.reason is None

    run(test())


def test_reload_tells_what_is_wrong_and_keeps_what_was(tmp_path: Path) -> None:
    files = Files(tmp_path, "a")
    security = files.security()
    before = security.server
    assert not security.reload()
    files.key.unlink()
    with pytest.raises(BadCertificateError, match="no such file"):
        security.reload()
    assert security.server is before
    files.put("a")
    assert security.reload()
    assert security.server is not before
    with pytest.raises(OperatorError):
        Security.tls(str(tmp_path / "no"), str(files.key), str(files.ca))
    assert not Security.none().reload()


def test_contexts_are_strict(tmp_path: Path) -> None:
    security = Files(tmp_path, "a").security()
    for context in (security.server, security.client):
        assert context is not None
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert len(context.get_ca_certs()) == 1, "the group's own and none of the system's"


def test_secrets_change_while_members_are_connected() -> None:
    """
    Both everywhere, the other one first everywhere, then one: at every step they are connected,
    and what was opened with a secret that is gone is opened anew.
    """

    async def test() -> None:
        a, b = some(2, lambda: Security.secret((OLD,)))
        async with instances(a, b):
            a.meet(b)
            b.meet(a)
            await until(lambda: a.reaches(b) and b.reaches(a))
            for secrets in ((OLD, NEW), (NEW, OLD)):
                for each in (a, b):
                    before = links(each)
                    each.security.take(Security.secret(secrets))
                    assert await a.peers.call(b.address, "who", {}, 5.0)
                    assert await b.peers.call(a.address, "who", {}, 5.0)
                    assert links(each) == before
            for each in (a, b):
                each.security.take(Security.secret((NEW,)))
            await until(lambda: a.reaches(b) and b.reaches(a) and only_new(a) and only_new(b))

    run(test())


def links(instance: Instance) -> set[PeerConnection]:
    found = instance.peers._all
    return {each for each in found if not each.is_closed() and each.purpose is Purpose.LINK}


def only_new(instance: Instance) -> bool:
    secrets = [each.secret for each in links(instance)]
    return secrets == [NEW, NEW]


@pytest.mark.parametrize(
    "other", [Security.none, lambda: Security.secret((b"one", b"two", b"three"))]
)
def test_what_cannot_change(other: Callable[[], Security]) -> None:
    security = with_secret()
    with pytest.raises(OperatorError):
        security.take(other())
    with pytest.raises(OperatorError):
        Security.secret(())
    with pytest.raises(OperatorError):
        Security.secret((b"",))


def test_secrets_are_never_shown() -> None:
    assert "battery" not in repr(with_secret())


def test_names_of_a_certificate() -> None:
    certificate = {
        "subject": ((("organizationName", "x"),), (("commonName", "a"),)),
        "subjectAltName": (("DNS", "a"), ("DNS", "a.example"), ("IP Address", "127.0.0.1")),
    }

    assert names_of(certificate) == ("a", "a.example")
    assert names_of({}) == ()
