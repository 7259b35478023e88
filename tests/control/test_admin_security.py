"""Who may do what through the admin API, how they prove it, and what hostile callers get."""

from __future__ import annotations

import socket
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guarded import (
    APP,
    FIRST,
    TOKENS,
    ask_head,
    bearer,
    by_of,
    guarded,
    read_all,
    tokens,
    with_admin,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office import PATIENCE, Answer, Office

from lb.config.admin import ROLES, Token
from lb.control import admin_door, admin_guard
from lb.control.admin import AdminServer
from lb.control.admin_roles import COVERS, NEEDS, Need, need_of
from lb.control.admin_tokens import (
    Caller,
    find_token,
)
from lb.control.openapi import document
from lb.registry import By, Fields, PutBackend

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


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with guarded(tmp_path) as opened:
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
        status, code = ask_head(office, method, concrete(path), body, bearer(role))
        if path.endswith("/session"):
            code = ""  # Who asks for a session is judged by the token in it.
        allowed[role] = status < 400 or code not in DENIED
    office.desk.config = config
    status, _ = ask_head(office, method, concrete(path), body, {})

    assert allowed == {role: may(role, f"{method} {path}") for role in ROLES}
    assert (status == 401) is (MAY[f"{method} {path}"] != "*" or path == "/v1/session")


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
