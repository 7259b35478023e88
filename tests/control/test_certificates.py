"""Certificates as the controller keeps them, and what it says of files that cannot be used."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ParamSpec

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from lb.config.certificates import BadCertificateError, read_bundle, read_pair
from lb.config.load import load
from lb.config.schema import Config
from lb.config.schema import Health as Check
from lb.control.certificates import CertificateStore
from lb.control.probe import Answer, Asker, Subject
from lb.edition import Composer, Sources, decode_config, decode_upstream, pack
from lb.registry import Registry

CA = trustme.CA()
CERT = CA.issue_cert("a.example", "*.b.example")
OTHER = CA.issue_cert("other.example")
P = ParamSpec("P")
NOW = 1_764_000_000.0


class Files:
    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = folder / "a.pem", folder / "a.key", folder / "ca.pem"
        self.put(CERT)
        self.ca.write_bytes(CA.cert_pem.bytes())

    def put(self, cert: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))
        self.key.write_bytes(cert.private_key_pem.bytes())

    @property
    def config(self) -> Config:
        pair = {"cert": str(self.cert), "key": str(self.key)}
        return Config.model_validate(
            {
                "listener": {"web": {"address": "127.0.0.1:1", "tls": pair}},
                "upstream": {
                    "app": {
                        "backends": ["https://api.example:8443"],
                        "tls": {"ca": str(self.ca), **pair},
                    }
                },
            }
        )

    def read(self) -> tuple[str, ...]:
        return read_pair(str(self.cert), str(self.key), NOW).names


def in_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 20))

    return run


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def locked(files: Files) -> None:
    key = serialization.load_pem_private_key(CERT.private_key_pem.bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


def test_a_pair_says_whom_it_is_for(files: Files) -> None:
    assert files.read() == ("a.example", "*.b.example")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files: files.cert.unlink(), "no such file"),
        (lambda files: files.cert.write_bytes(b"\xff\0"), "holds no certificate"),
        (lambda files: files.cert.write_bytes(files.cert.read_bytes()[:500]), "no certificate"),
        (lambda files: files.cert.write_bytes(b"x" * (1024 * 1024 + 1)), "larger than 1 MiB"),
        (lambda files: files.key.write_bytes(files.cert.read_bytes()), "holds no private key"),
        (lambda files: files.key.write_bytes(OTHER.private_key_pem.bytes()), "is not the key of"),
        (locked, "wants a passphrase"),
    ],
)
def test_what_cannot_be_used_is_said_in_words(
    files: Files, spoil: Callable[[Files], Any], words: str
) -> None:
    spoil(files)
    with pytest.raises(BadCertificateError, match=words):
        files.read()


def test_a_bundle_may_have_comments(files: Files) -> None:
    files.ca.write_bytes("# Größte Stelle\n".encode() + files.ca.read_bytes() * 2)

    assert read_bundle(str(files.ca)).pem.count(b"BEGIN") == 2
    with pytest.raises(BadCertificateError, match="holds no certificates"):
        read_bundle(str(files.key))


async def store_of(files: Files, changes: list[int], patience: float = 0.0) -> CertificateStore:
    store = CertificateStore(lambda: NOW, lambda: changes.append(1), patience=patience)
    await store.prepare(files.config)
    store.follow(files.config)
    return store


@in_a_loop
async def test_material_is_in_its_parts_and_nowhere_else(files: Files) -> None:
    store = await store_of(files, [])
    sources = Sources(files.config, 1, Registry("id"), certificates=store.current)
    edition = Composer("n", "lb-0").compose(sources, 1, {"control/certificates": store.to_part()})

    assert b"BEGIN PRIVATE" in pack(edition).replace(b"RSA ", b"").replace(b"EC ", b"")
    for name, body in edition.parts.items():
        assert name.startswith("tls/") or b"BEGIN" not in body
    assert "BEGIN" not in repr(store.current)
    tls = decode_config(edition.parts["config"]).listeners[0].tls
    assert tls is not None
    assert tls.certificates[0].names == ("a.example", "*.b.example")
    assert f"tls/{tls.certificates[0].digest}" in edition.parts
    assert decode_upstream(edition.parts["upstream/app/0"]).endpoints == ()


@in_a_loop
async def test_a_new_pair_is_taken_up(files: Files) -> None:
    changes: list[int] = []
    store = await store_of(files, changes)
    before = store.current
    await store.look()
    assert store.current is before
    files.put(OTHER)
    await store.look()
    assert changes == [1]
    assert store.standing()[0]["names"] == ["other.example"]


@in_a_loop
async def test_a_bad_one_keeps_the_old_and_is_told_when_patience_ends(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    changes: list[int] = []
    store = await store_of(files, changes, patience=0.0)
    before = store.current
    files.key.write_bytes(OTHER.private_key_pem.bytes())
    await store.look()
    assert store.standing()[0]["error"] is None
    await store.look()
    assert "is not the key of" in store.standing()[0]["error"]
    assert "is not the key of" in caplog.text
    assert store.current is before
    assert not changes
    files.put(OTHER)
    await store.look()
    assert store.standing()[0]["error"] is None
    assert store.standing()[0]["names"] == ["other.example"]


@in_a_loop
async def test_the_next_controller_goes_on_from_the_edition(files: Files) -> None:
    store = await store_of(files, [])
    kept = {**store.current.parts, "control/certificates": store.to_part()}
    files.cert.unlink()
    files.ca.unlink()
    fresh = CertificateStore(lambda: NOW, lambda: None)
    with pytest.raises(BadCertificateError):
        await fresh.prepare(files.config, lenient=True)
    fresh.restore(kept)
    await fresh.prepare(files.config, lenient=True)
    fresh.follow(files.config)
    assert fresh.current == store.current
    assert "no such file" in fresh.standing()[0]["error"]


@in_a_loop
async def test_the_end_of_a_certificate_is_foretold(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    ends = read_pair(str(files.cert), str(files.key), NOW).ends
    now = ends - 5 * 86_400
    store = CertificateStore(lambda: now, lambda: None)
    await store.prepare(files.config)
    store.follow(files.config)
    await store.look()
    await store.look()
    assert caplog.text.count("expires in 5.0 days") == 1


# What the file may say


@pytest.mark.parametrize(
    ("listener", "upstream", "words"),
    [
        ('client_auth = "require"', "", "client_auth means nothing without tls"),
        ('TLS\nclient_auth = "require"', "", "nobody's certificate could be checked"),
        ('TLS\nclient_ca = "ca.pem"', "", 'client_ca means nothing while client_auth is "none"'),
        ('TLS\ntls_min = "1.1"', "", "1.1"),
        ("", 'tls = { cert = "a.pem" }', "cert needs its key"),
        ("", 'tls = { ca = "none.pem" }', "none.pem: no such file"),
        ("", 'tls = { ca = "ca.pem", verify = false }', "ca means nothing without verify"),
        ("", 'tls = { name = "a b" }', "is not a host"),
    ],
)
def test_what_makes_no_sense_is_an_error(
    files: Files, tmp_path: Path, listener: str, upstream: str, words: str
) -> None:
    listener = listener.replace("TLS", 'tls = { cert = "a.pem", key = "a.key" }')
    text = (
        f'[listener.web]\naddress = ":1"\n{listener}\n[upstream.app]\nbackends = []\n{upstream}\n'
    )
    (tmp_path / "lb.toml").write_text(text)
    with pytest.raises(Exception, match="nothing was changed") as raised:
        load(str(tmp_path / "lb.toml"), {})
    assert words in str(raised.value)


# Probes


async def probe(origin_cert: trustme.LeafCert, name: str, **fields: Any) -> Answer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    origin_cert.configure_cert(context)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cadata=CA.cert_pem.bytes().decode())
    asker = Asker()
    try:
        check = Check.model_validate({"path": "/", **fields})
        address = f"https://127.0.0.1:{port}"
        return await asker.ask(Subject("app", address, "a.example:443", check, trusting, name))
    finally:
        await asker.close()
        server.close()
        await server.wait_closed()


@in_a_loop
async def test_a_probe_speaks_tls() -> None:
    assert await probe(CERT, "a.example") == Answer(True, "status 200")


@pytest.mark.parametrize(
    ("cert", "name"), [(OTHER, "a.example"), (trustme.CA().issue_cert("a.example"), "a.example")]
)
@in_a_loop
async def test_a_probe_believes_no_stranger(cert: trustme.LeafCert, name: str) -> None:
    answer = await probe(cert, name)
    assert not answer.ok
    assert "the certificate is not accepted: " in answer.reason
