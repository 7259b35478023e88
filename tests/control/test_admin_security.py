"""Who may do what through the admin API, how they prove it, and what hostile callers get."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import ssl
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office import PATIENCE, Answer, Office

from lb.config.admin import ROLES, AdminTls, Token
from lb.config.schema import Config
from lb.control import admin_door, admin_guard
from lb.control.admin import AdminServer, ProbeServer
from lb.control.admin_roles import COVERS, NEEDS, Need, need_of
from lb.control.admin_session import COOKIE, SESSION_SECONDS, SESSIONS_OF_ONE_MAX, Sessions
from lb.control.admin_tokens import (
    ADDRESSES_MAX,
    TOLD_SECONDS,
    WRONG_SECONDS,
    WRONG_TOKENS_MAX,
    Caller,
    WrongTokens,
    find_token,
)
from lb.control.certificates import CertificateStore
from lb.control.openapi import document
from lb.registry import By, Fields, PutBackend

TOKENS = {role: f"{role}-0123456789abcdef" for role in ROLES}
APP = "/v1/upstreams/app"
FIRST = f"{APP}/backends/127.0.0.1:9001"
LEASED = f"{APP}/backends/127.0.0.1:9100"
DENIED = {"unauthorized", "not-allowed"}

# Who may: r, g, w, a for read, register, write and admin; - for a token of any role; * for all.
MAY = {
    "GET /": "*",
    "POST /v1/session": "*",
    "DELETE /v1/session": "-",
    "GET /livez": "-",
    "GET /readyz": "-",
    "GET /openapi.json": "-",
    "GET /metrics": "rwa",
    "GET /v1/status": "rwa",
    "GET /v1/upstreams": "rwa",
    "GET /v1/upstreams/{upstream}": "rwa",
    "PATCH /v1/upstreams/{upstream}": "wa",
    "DELETE /v1/upstreams/{upstream}": "a",
    "GET /v1/upstreams/{upstream}/backends/{backend}": "rwa",
    "PUT /v1/upstreams/{upstream}/backends/{backend}": "gwa",
    "PATCH /v1/upstreams/{upstream}/backends/{backend}": "wa",
    "DELETE /v1/upstreams/{upstream}/backends/{backend}": "gwa",
    "POST /v1/upstreams/{upstream}/backends/{backend}/renew": "gwa",
    "POST /v1/upstreams/{upstream}/backends/{backend}/force": "wa",
    "GET /v1/events": "rwa",
    "GET /v1/group": "rwa",
    "GET /v1/group/ok-to-stop": "rwa",
    "PUT /v1/group/members/{name}": "a",
    "DELETE /v1/group/members/{name}": "a",
    "POST /v1/group/transfer": "a",
    "POST /v1/group/found": "a",
    "POST /v1/group/recover": "a",
    "GET /v1/group/backup": "a",
    "POST /v1/group/restore": "a",
    "GET /v1/locks": "rwa",
    "PUT /v1/locks/{name}": "wa",
    "DELETE /v1/locks/{name}": "wa",
    "POST /v1/rollouts": "a",
    "GET /v1/rollouts/{id}": "rwa",
    "POST /v1/rollouts/{id}/confirm": "a",
    "GET /v1/config": "rwa",
    "POST /v1/config/reload": "a",
    "POST /v1/config/sync": "a",
    "POST /v1/explain": "rwa",
    "GET /v1/exchanges/{id}": "rwa",
    "GET /v1/plugins": "rwa",
    "POST /v1/stop": "a",
    "POST /v1/upgrade": "a",
}
LETTERS = {"read": "r", "register": "g", "write": "w", "admin": "a"}
OPERATIONS = [
    (method.upper(), path)
    for path, methods in document()["paths"].items()
    for method in methods
    if method in {"get", "put", "post", "patch", "delete"}
]


def may(role: str, operation: str) -> bool:
    letters = MAY[operation]
    return letters in ("*", "-") or LETTERS[role] in letters


def tokens() -> list[Token]:
    return [
        Token(
            name=role,
            token=text,
            role=role,
            upstreams=["app"] if role == "register" else [],
        )
        for role, text in TOKENS.items()
    ]


def with_admin(config: Config, **keys: Any) -> Config:
    return config.model_copy(update={"admin": config.admin.model_copy(update=keys)})


def bearer(role: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with Office(tmp_path) as opened:
        opened.desk.config = with_admin(opened.desk.config, tokens=tokens())
        yield opened


@pytest.fixture
def open_office(tmp_path: Path) -> Iterator[Office]:
    with Office(tmp_path) as opened:
        yield opened


def lease(office: Office, key: str = "127.0.0.1:9100") -> None:
    office.propose(PutBackend(upstream="app", by=By(), at=1.0, key=key, fields=Fields(ttl=15.0)))


# --- Roles ------------------------------------------------------------------------------------


def test_every_operation_has_its_line_in_both_tables() -> None:
    """A new path fails here until somebody has decided who may use it."""
    written = {f"{method} {path}" for method, path in OPERATIONS}

    assert written <= MAY.keys()
    assert {tuple(each.split(" ")) for each in MAY} | {("GET", "/{file}")} == NEEDS.keys()


def test_every_route_of_the_server_has_its_line(office: Office) -> None:
    server = AdminServer(office.desk)
    served = {
        (route.method, resource.canonical)
        for resource in server._app().router.resources()
        for route in resource
        if route.method not in ("HEAD", "*")
    }

    assert served <= NEEDS.keys()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_the_table_says_of_each_role(method: str, path: str) -> None:
    need = need_of(method, path)

    for role in ROLES:
        assert (need in COVERS[role]) is may(role, f"{method} {path}")


def test_what_is_in_no_table_wants_everything() -> None:
    assert need_of("POST", "/v1/brand-new") is Need.ADMIN
    assert need_of("DELETE", "/v1/status") is Need.ADMIN
    assert need_of("HEAD", "/v1/status") is Need.READ
    assert COVERS["admin"] == frozenset(Need)


def concrete(path: str) -> str:
    names = {"upstream": "app", "backend": "127.0.0.1:9100", "name": "x", "id": "1"}
    for name, text in names.items():
        path = path.replace(f"{{{name}}}", text)
    return path


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_the_server_holds_to_the_table(office: Office, method: str, path: str) -> None:
    lease(office)
    config = office.desk.config
    body = {"ttl": "15s"} if method == "PUT" else {} if method in ("POST", "PATCH") else None
    allowed = {}
    for role in ROLES:
        office.desk.config = config  # A reload before may have taken up another.
        status, code = _head(office, method, concrete(path), body, bearer(role))
        if path.endswith("/session"):
            code = ""  # Who asks for a session is judged by the token in it.
        allowed[role] = status < 400 or code not in DENIED
    office.desk.config = config
    status, _ = _head(office, method, concrete(path), body, {})

    assert allowed == {role: may(role, f"{method} {path}") for role in ROLES}
    assert (status == 401) is (MAY[f"{method} {path}"] != "*" or path == "/v1/session")


def _head(
    office: Office, method: str, path: str, body: Any, headers: dict[str, str]
) -> tuple[int, str]:
    """Ask, and read no more of an answer than a problem: a stream has no end."""
    connection = http.client.HTTPConnection("127.0.0.1", office.port, timeout=PATIENCE)
    data = None if body is None else json.dumps(body).encode()
    named = {**headers, **({} if data is None else {"Content-Type": "application/json"})}
    with contextlib.closing(connection):
        connection.request(method, path, body=data, headers=named)
        with contextlib.closing(connection.getresponse()) as response:
            if response.status < 400:
                return response.status, ""
            return response.status, str(json.loads(response.read())["code"])


# --- Who it is --------------------------------------------------------------------------------


def test_without_a_token_there_is_401_and_what_to_send(office: Office) -> None:
    answer = office.get("/v1/status")

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "LB_TOKEN" in answer.plain["hint"]


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer x", f"Bearer {TOKENS['admin']}x", "Bearer é"],
)
def test_a_wrong_token_is_401(office: Office, header: str) -> None:
    answer = office.get("/v1/status", Authorization=header)

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert TOKENS["admin"] not in answer.body.decode()


def test_what_does_not_exist_is_not_shown_to_strangers(office: Office) -> None:
    assert office.get("/v1/nothing").status == 401
    assert office.ask("POST", "/v1/status", {}).status == 401
    assert office.get("/v1/nothing", **bearer("read")).status == 404
    assert office.ask("POST", "/v1/status", {}, **bearer("read")).status == 405


def test_the_page_and_its_files_need_no_token(office: Office) -> None:
    assert office.get("/").status == 200
    assert office.get("/app.js").status == 200
    assert office.get("/no-such-file").status == 404


def test_what_a_role_does_not_cover_is_403(office: Office) -> None:
    answer = office.ask("PATCH", FIRST, {"weight": 2}, **bearer("read"))

    assert (answer.status, answer.code) == (403, "not-allowed")
    assert "read" in answer.plain["detail"]
    assert office.desk.store.registry.upstreams["app"].backends["127.0.0.1:9001"].weight == 1


def test_without_tokens_this_machine_may_do_everything(open_office: Office) -> None:
    assert open_office.ask("PATCH", FIRST, {"weight": 2}).status == 200
    assert open_office.get("/v1/status", Authorization="Bearer whatever").status == 200


def test_an_address_that_waits_for_its_restart_is_not_open(open_office: Office) -> None:
    """The file has a loopback address again, and no tokens; what we listen on is the old one."""
    open_office.desk.config = with_admin(open_office.desk.config, address="0.0.0.0:9900")

    assert open_office.get("/v1/status").status == 401


def test_a_unix_socket_may_do_everything_and_is_named_by_its_token(tmp_path: Path) -> None:
    with Office(tmp_path, unix=True) as office:
        office.desk.config = with_admin(office.desk.config, tokens=tokens())

        assert office.ask("PATCH", FIRST, {"weight": 2}).status == 200
        assert by_of(office)["token"] == ""
        assert office.ask("PATCH", FIRST, {"weight": 3}, **bearer("read")).status == 200
        assert by_of(office)["token"] == "read"
        stale = office.ask("PATCH", FIRST, {"weight": 4}, Authorization="Bearer old")
        assert stale.status == 200


def by_of(office: Office, key: str = "127.0.0.1:9001") -> dict[str, Any]:
    return office.desk.store.registry.upstreams["app"].backends[key].changed.by.to_plain()


def test_the_token_s_name_is_in_what_was_changed(office: Office) -> None:
    office.ask("PATCH", f"{FIRST}?note=why", {"weight": 2}, **bearer("write"))

    assert by_of(office) == {"token": "write", "member": "a", "source": "api", "note": "why"}


def test_new_tokens_count_from_the_next_request_on(office: Office) -> None:
    office.desk.config = with_admin(
        office.desk.config, tokens=[Token(name="new", token="another-token", role="read")]
    )

    assert office.get("/v1/status", **bearer("admin")).status == 401
    assert office.get("/v1/status", Authorization="Bearer another-token").status == 200


def test_the_probe_address_wants_no_token_and_knows_little(office: Office) -> None:
    assert office.ask("GET", "/livez", port=office.probe_port).status == 200
    assert office.ask("GET", "/metrics", port=office.probe_port).status == 200
    assert office.ask("GET", "/v1/status", port=office.probe_port).status == 404


def test_a_token_is_kept_as_its_digest_only() -> None:
    token = Token(name="x", token="very-secret-indeed", role="admin")

    assert token.token.startswith("sha256:")
    assert "very-secret-indeed" not in repr(token)
    assert "sha256:" not in repr(token)
    assert find_token([token], "very-secret-indeed") is token
    assert find_token([token], token.token) is None
    assert find_token([token], "x" * 10_000_000) is None


# --- Register tokens --------------------------------------------------------------------------


def test_a_register_token_keeps_to_leases_of_its_upstreams(office: Office) -> None:
    mine = bearer("register")

    created = office.ask("PUT", LEASED, {"ttl": "15s"}, **mine)
    again = office.ask("PUT", LEASED, {"ttl": "15s", "weight": 2}, **mine)
    renewed = office.ask("POST", f"{LEASED}/renew", **mine)
    removed = office.ask("DELETE", LEASED, **mine)

    assert [each.status for each in (created, again, renewed, removed)] == [201, 200, 200, 200]


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", LEASED, {"weight": 2}, "for a time"),
        ("PUT", LEASED, None, "for a time"),
        ("PUT", FIRST, {"ttl": "15s"}, "no lease"),
        ("DELETE", FIRST, None, "no lease"),
        ("POST", f"{FIRST}/renew", None, "no lease"),
        ("DELETE", f"{LEASED}?force=true", None, "force"),
        ("PUT", "/v1/upstreams/images/backends/127.0.0.1:9100", {"ttl": "15s"}, "images"),
        ("PUT", "/v1/upstreams/none/backends/127.0.0.1:9100", {"ttl": "15s"}, "none"),
        ("PATCH", LEASED, {"weight": 2}, "role register"),
        ("GET", LEASED, None, "role register"),
    ],
)
def test_what_a_register_token_may_not(
    office: Office, method: str, path: str, body: object, words: str
) -> None:
    lease(office)
    before = office.desk.store.registry

    answer = office.ask(method, path, body, **bearer("register"))

    assert (answer.status, answer.code) == (403, "not-allowed")
    assert words in answer.plain["detail"]
    assert office.desk.store.registry is before


def test_another_spelling_of_an_address_is_the_same_backend(office: Office) -> None:
    for spelling in ("127.0.0.1:09001", "127.0.0.1%3A9001"):
        path = f"{APP}/backends/{spelling}"
        answer = office.ask("PUT", path, {"ttl": "15s"}, **bearer("register"))
        assert answer.status in (400, 403)
    assert office.desk.store.registry.upstreams["app"].backends["127.0.0.1:9001"].ttl is None


# --- Guessing ---------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_whoever_shows_many_wrong_tokens_gets_no_more_answers(office: Office) -> None:
    for guess in range(WRONG_TOKENS_MAX):
        assert office.get("/v1/status", Authorization=f"Bearer guess-{guess}").status == 401

    refused = office.get("/v1/status", **bearer("admin"))

    assert (refused.status, refused.code) == (429, "too-many-attempts")
    assert refused.headers["Retry-After"] == "60"
    assert office.ask("POST", "/v1/session", {"token": TOKENS["admin"]}).status == 429


def test_one_token_that_is_out_of_date_shuts_nobody_out(office: Office) -> None:
    for _ in range(WRONG_TOKENS_MAX * 2):
        assert office.get("/v1/status", Authorization="Bearer out-of-date").status == 401

    assert office.get("/v1/status", **bearer("admin")).status == 200


def test_guesses_are_forgotten_after_a_while() -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    for guess in range(WRONG_TOKENS_MAX + 5):
        wrong.add("10.0.0.1", f"{guess}")

    assert 0 < wrong.too_many("10.0.0.1") <= WRONG_SECONDS
    assert wrong.too_many("10.0.0.2") == 0
    clock.now += WRONG_SECONDS
    assert wrong.too_many("10.0.0.1") == 0
    wrong.add("10.0.0.1", "x")
    assert wrong.too_many("10.0.0.1") == 0


def test_a_whole_ipv6_network_is_one_caller() -> None:
    wrong = WrongTokens(Clock())
    for guess in range(WRONG_TOKENS_MAX):
        wrong.add(f"2001:db8::{guess:x}", f"{guess}")

    assert wrong.too_many("2001:db8::ffff") > 0
    assert wrong.too_many("2001:db8:0:1::1") == 0
    assert wrong.too_many("fe80::1%eth0") == 0
    assert wrong.too_many("") == 0


def test_addresses_that_are_remembered_are_bounded() -> None:
    wrong = WrongTokens(Clock())
    for each in range(ADDRESSES_MAX + 10):
        wrong.add(f"10.0.{each // 256}.{each % 256}", "x")

    assert len(wrong._by_address) == ADDRESSES_MAX


def test_guesses_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    wrong = WrongTokens(clock)
    with caplog.at_level(logging.WARNING, logger="lb.admin"):
        for guess in range(50):
            wrong.add("10.0.0.1", f"secret-{guess}")
        clock.now += TOLD_SECONDS
        wrong.add("10.0.0.2", "secret")

    assert len(caplog.messages) == 2
    assert "50 wrong tokens" in caplog.messages[1]
    assert "10.0.0.2" in caplog.messages[1]
    assert "secret" not in caplog.text


# --- Sessions ---------------------------------------------------------------------------------


def cookie_of(answer: Answer) -> str:
    found = str(answer.headers["Set-Cookie"]).partition(";")[0]
    assert found.startswith(f"{COOKIE}=")
    return found


def sign_in(office: Office, role: str) -> str:
    return cookie_of(office.ask("POST", "/v1/session", {"token": TOKENS[role]}))


def test_a_browser_swaps_its_token_for_a_cookie(office: Office) -> None:
    answer = office.ask("POST", "/v1/session", {"token": TOKENS["write"]})
    cookie = cookie_of(answer)
    attributes = {each.strip() for each in answer.headers["Set-Cookie"].split(";")[1:]}

    assert answer.plain == {"name": "write", "role": "write", "seconds": int(SESSION_SECONDS)}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= attributes
    assert "Secure" not in attributes  # There is no TLS here.
    assert TOKENS["write"] not in str(answer.headers)
    assert office.get("/v1/status", Cookie=cookie).status == 200
    assert office.ask("PATCH", FIRST, {"weight": 2}, Cookie=cookie).status == 200
    assert by_of(office)["token"] == "write"
    assert office.ask("POST", "/v1/stop", {}, Cookie=cookie).status == 403


def test_a_session_ends_when_it_is_closed(office: Office) -> None:
    cookie = sign_in(office, "read")

    closed = office.ask("DELETE", "/v1/session", Cookie=cookie)

    assert closed.status == 200
    assert "Max-Age=0" in closed.headers["Set-Cookie"]
    gone = office.get("/v1/status", Cookie=cookie)
    assert (gone.status, gone.plain["detail"]) == (401, "the session has ended")


def test_a_session_is_as_good_as_its_token(office: Office) -> None:
    cookie = sign_in(office, "admin")
    kept = [each for each in tokens() if each.name != "admin"]
    changed = Token(name="admin", token="a-new-one", role="admin")

    office.desk.config = with_admin(office.desk.config, tokens=kept)
    assert office.get("/v1/status", Cookie=cookie).status == 401
    office.desk.config = with_admin(office.desk.config, tokens=[*kept, changed])
    assert office.get("/v1/status", Cookie=cookie).status == 401


def test_a_page_of_another_site_cannot_use_the_cookie(office: Office) -> None:
    cookie = sign_in(office, "admin")

    answer = office.ask("DELETE", FIRST, Cookie=cookie, Origin="http://127.0.0.1:1")

    assert (answer.status, answer.code) == (403, "origin-not-allowed")


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": 7}, {"token": "wrong"}])
def test_no_session_without_a_token(office: Office, body: object) -> None:
    answer = office.ask("POST", "/v1/session", body)

    assert (answer.status, answer.code) == (401, "unauthorized")
    assert "Set-Cookie" not in answer.headers


def test_where_nobody_needs_a_token_there_is_no_cookie(open_office: Office) -> None:
    answer = open_office.ask("POST", "/v1/session", {})

    assert answer.plain == {"name": "", "role": "admin", "seconds": None}
    assert "Set-Cookie" not in answer.headers


def test_sessions_are_bounded_and_end_by_themselves() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    one, other = tokens()[0], tokens()[3]
    first = sessions.open(other)
    values = [sessions.open(one) for _ in range(SESSIONS_OF_ONE_MAX + 5)]

    assert len(sessions) == SESSIONS_OF_ONE_MAX + 1
    assert sessions.token_of(values[-1], [one, other]) is one
    assert sessions.token_of(values[0], [one, other]) is None
    assert sessions.token_of(first, [one, other]) is other
    assert len(set(values)) == len(values)
    clock.now += SESSION_SECONDS
    assert sessions.token_of(first, [one, other]) is None
    sessions.open(one)
    assert len(sessions) == 1


def test_events_come_by_the_cookie(office: Office) -> None:
    """EventSource can send no header."""
    cookie = sign_in(office, "read")

    status, code = _head(office, "GET", "/v1/events", None, {"Cookie": cookie})

    assert (status, code) in [(200, ""), (501, "not-yet-supported")]


# --- TLS --------------------------------------------------------------------------------------


class TlsOffice(Office):
    """An office that speaks TLS by the files that its config names."""

    def __init__(self, folder: Path, tls: AdminTls) -> None:
        super().__init__(folder)
        self.desk.config = with_admin(self.desk.config, tokens=tokens(), tls=tls)
        self.certificates = CertificateStore(time.time, lambda: None)

    def __enter__(self) -> TlsOffice:
        super().__enter__()
        return self

    async def _open(self) -> None:
        await self.desk.take_file()
        await self.certificates.prepare(self.desk.config)
        self.certificates.follow(self.desk.config)
        self.admin = AdminServer(
            self.desk, lambda: self.certificates.admin_context(self.desk.config)
        )
        self._probe = ProbeServer(self.desk)
        await self.admin.start(self._sock)
        await self._probe.start(self._probe_sock)

    def securely(
        self, context: ssl.SSLContext, method: str, path: str, body: Any = None, **headers: str
    ) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            named["Content-Type"] = "application/json"
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=PATIENCE, context=context
        )
        with contextlib.closing(connection):
            connection.request(method, path, body=data, headers=named)
            with contextlib.closing(connection.getresponse()) as response:
                return Answer(response)


CA = trustme.CA()
OTHERS = trustme.CA()


def put(folder: Path, cert: trustme.LeafCert) -> AdminTls:
    (folder / "a.pem").write_bytes(b"".join(each.bytes() for each in cert.cert_chain_pems))
    (folder / "a.key").write_bytes(cert.private_key_pem.bytes())
    (folder / "ca.pem").write_bytes(CA.cert_pem.bytes())
    return AdminTls(cert=str(folder / "a.pem"), key=str(folder / "a.key"))


def client(authority: trustme.CA = CA, shows: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if shows is not None:
        shows.configure_cert(context)
    return context


def test_the_admin_speaks_tls_and_the_cookie_is_secure(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        assert office.securely(client(), "GET", "/v1/status").status == 401
        assert office.securely(client(), "GET", "/v1/status", **bearer("read")).status == 200
        session = office.securely(client(), "POST", "/v1/session", {"token": TOKENS["read"]})
        assert "Secure" in session.headers["Set-Cookie"]
        with pytest.raises(ssl.SSLCertVerificationError):
            office.securely(client(OTHERS), "GET", "/")


def test_plain_http_on_the_tls_port_is_closed_without_a_word(tmp_path: Path) -> None:
    with (
        TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office,
        socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock,
    ):
        sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"HTTP" not in read_all(sock)
        assert office.securely(client(), "GET", "/").status == 200


def test_who_says_nothing_in_a_handshake_is_put_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(admin_door.HANDSHAKE, "ssl_handshake_timeout", 0.2)
    with (
        TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office,
        socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock,
    ):
        assert read_all(sock) == b""
        assert office.securely(client(), "GET", "/").status == 200


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            pieces.append(piece)
    return b"".join(pieces)


def test_replaced_files_count_from_the_next_handshake_on(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        put(tmp_path, OTHERS.issue_cert("127.0.0.1"))
        office.run(office.certificates.look())

        assert office.securely(client(OTHERS), "GET", "/").status == 200
        (tmp_path / "a.key").write_bytes(CA.issue_cert("x").private_key_pem.bytes())
        office.run(office.certificates.look())
        assert office.securely(client(OTHERS), "GET", "/").status == 200


def test_a_client_certificate_is_demanded_and_names_the_client(tmp_path: Path) -> None:
    tls = put(tmp_path, CA.issue_cert("127.0.0.1"))
    tls = tls.model_copy(update={"client_ca": str(tmp_path / "ca.pem")})
    alice = CA.issue_cert("alice@example.org", common_name="alice")
    stranger = OTHERS.issue_cert("mallory@example.org", common_name="alice")
    with TlsOffice(tmp_path, tls) as office:
        for shows in (None, stranger):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                office.securely(client(shows=shows), "GET", "/")
        context = client(shows=alice)
        assert office.securely(context, "GET", "/v1/status").status == 401
        answer = office.securely(context, "PATCH", FIRST, {"weight": 2}, **bearer("write"))

        assert answer.status == 200
        token = by_of(office)["token"]
        assert token.startswith("write (CN=alice,")


def test_the_admin_s_key_never_reaches_workers(tmp_path: Path) -> None:
    with TlsOffice(tmp_path, put(tmp_path, CA.issue_cert("127.0.0.1"))) as office:
        store = office.certificates
        assert store.current.parts == {}
        assert store.current.pairs == {}
        assert [each["used_by"] for each in store.standing()] == [["admin"]]

        # A controller that comes next starts from what this one held, should the files be bad.
        again = CertificateStore(time.time, lambda: None)
        again.restore({"control/certificates": store.to_part()})
        (tmp_path / "a.pem").write_text("broken")
        office.run(again.prepare(office.desk.config, lenient=True))
        again.follow(office.desk.config)
        assert again.admin_context(office.desk.config) is not None


# --- Hostile input ----------------------------------------------------------------------------

hostile = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WRITES = [(method, path) for method, path in OPERATIONS if method != "GET"]
printable = st.text(string.printable.replace("\r", "").replace("\n", ""), max_size=40)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | printable,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["address", "weight", "state", "ttl", "labels", "backup", "name", "backends", "method"]


def sound(answer: Answer) -> bool:
    """Whether an answer is a good one, or a whole problem that is not our own fault."""
    if answer.status < 400:
        return True
    return answer.status != 500 and bool(answer.code)


@hostile
@given(
    operation=st.sampled_from(WRITES),
    body=plain | st.dictionaries(st.sampled_from(FIELDS), plain, max_size=4),
)
def test_any_json_gets_an_answer(office: Office, operation: tuple[str, str], body: object) -> None:
    method, path = operation
    assert sound(office.ask(method, concrete(path), body, **bearer("admin")))


@hostile
@given(operation=st.sampled_from(WRITES), data=st.binary(min_size=1, max_size=200))
def test_any_bytes_get_an_answer(office: Office, operation: tuple[str, str], data: bytes) -> None:
    method, path = operation
    answer = office.ask(
        method, concrete(path), data=data, Content_Type="application/json", **bearer("admin")
    )
    assert sound(answer)


@hostile
@given(segment=st.text(min_size=1, max_size=60), query=printable)
def test_any_path_gets_an_answer(office: Office, segment: str, query: str) -> None:
    quoted = "".join(f"%{octet:02X}" for octet in segment.encode("utf-8", "surrogatepass"))
    query = "".join(f"%{octet:02X}" for octet in query.encode())
    for method in ("GET", "PUT", "DELETE"):
        path = f"{APP}/backends/{quoted}?note={query}"
        assert sound(office.ask(method, path, **bearer("admin")))


@hostile
@given(header=st.binary(max_size=60))
def test_any_authorization_is_401_or_400(office: Office, header: bytes) -> None:
    clean = header.translate(None, b"\r\n\0")
    with socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock:
        sock.sendall(
            b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            b"Authorization: Bearer " + clean + b"\r\n\r\n"
        )
        status = int(read_all(sock).split(b" ", 2)[1])
    assert status in (400, 401, 429)


def test_a_body_that_is_too_large_is_413(office: Office) -> None:
    answer = office.ask(
        "PUT",
        LEASED,
        data=b" " * (admin_guard.BODY_BYTES_MAX + 1),
        Content_Type="application/json",
        **bearer("register"),
    )

    assert (answer.status, answer.code) == (413, "too-large")


def test_a_body_that_is_too_slow_is_408(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_guard, "BODY_SECONDS_MAX", 0.2)
    monkeypatch.setattr(admin_door, "LINGER_SECONDS_MAX", 0.0)
    head = (
        f"PUT {LEASED} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: 100\r\nAuthorization: Bearer {TOKENS['register']}\r\n\r\n{{"
    )
    with socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock:
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
        read_all(sock)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content_Type": "text/plain"}, 415, "not-json"),
        ({"Content_Type": "multipart/form-data"}, 415, "not-json"),
        ({"Host": "evil.example"}, 403, "host-not-allowed"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "host-not-allowed"),
        ({"Origin": "http://evil.example"}, 403, "origin-not-allowed"),
        ({"Origin": "null"}, 403, "origin-not-allowed"),
    ],
)
def test_what_a_browser_could_be_made_to_send(
    office: Office, headers: dict[str, Any], status: int, code: str
) -> None:
    """With the right token even: a page may have got hold of a session."""
    named = {"Content_Type": "application/json", **headers, **bearer("admin")}

    answer = office.ask("PATCH", FIRST, data=b'{"weight": 9}', **named)

    assert (answer.status, answer.code) == (status, code)
    assert office.desk.store.registry.upstreams["app"].backends["127.0.0.1:9001"].weight == 1


def test_a_stranger_s_body_is_not_read(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """401 comes before anything is read, so that nobody fills our memory without a token."""
    monkeypatch.setattr(admin_door, "LINGER_SECONDS_MAX", 0.0)
    head = (
        f"PUT {LEASED} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Content-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", office.port), PATIENCE) as sock:
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")
        read_all(sock)


# --- Names ------------------------------------------------------------------------------------


def test_who_a_caller_is() -> None:
    assert Caller("admin").who == ""
    assert Caller("admin", "ops").who == "ops"
    assert Caller("admin", "", "CN=alice").who == "CN=alice"
    assert Caller("admin", "ops", "CN=alice").who == "ops (CN=alice)"
