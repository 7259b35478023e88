"""
Clients that cost more than they bring: handshakes without end, and those who leave at any time,
say half of a word, or claim to be somebody else. One instance takes them all: each test ends
with its others being served, and nothing is left of it.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Backend, Daemon, free_ports, until
from journeys.programs import program

CA = trustme.CA()
FLOODS = 4
FLOOD_SECONDS = 2
ASKED = 200
BUSY = 10 * FLOODS  # A request beside so many handshakes may take so many times as long as alone,
NOISE_S = 0.1  # or this, where that is little.


@pytest.fixture
def secure(backends: list[Backend], tmp_path: Path) -> str:
    CA.issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "a.pem")
    tls = f'tls = {{ cert = "{tmp_path}/a.pem", key = "{tmp_path}/a.pem" }}\n'
    return config_of(backends, listener=tls)


def context() -> ssl.SSLContext:
    made = ssl.create_default_context()
    CA.configure_trust(made)
    return made


def median_of(one: Daemon, count: int) -> float:
    """Ask over one kept connection; return what half of the requests took at most."""
    sock = socket.create_connection(("127.0.0.1", one.port), PATIENCE)
    connection = http.client.HTTPConnection("a.example")
    connection.sock = context().wrap_socket(sock, server_hostname="a.example")
    took = []
    for _ in range(count):
        began = time.monotonic()
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, len(answer.read())) == (200, 1)
        took.append(time.monotonic() - began)
    connection.close()
    return sorted(took)[count // 2]


@contextmanager
def flooded(one: Daemon, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Shake hands without end."""
    fixed = ("-connect", f"127.0.0.1:{one.port}", "-time", str(FLOOD_SECONDS))
    command = [program("openssl"), "s_time", *fixed, *words]
    floods = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(FLOODS)
    ]
    try:
        yield floods
    finally:
        for each in floods:
            each.kill()
            each.communicate()


@pytest.mark.parametrize("kind", ["-new", "-reuse"])
def test_handshakes_without_end(secure: str, daemon: Make, kind: str) -> None:
    """Fault 27: whoever is inside is served meanwhile, and so are all afterwards."""
    one = daemon(secure).start()
    alone = median_of(one, ASKED)
    with flooded(one, kind) as floods:
        assert median_of(one, ASKED) < max(BUSY * alone, NOISE_S)
        said = [each.communicate(timeout=PATIENCE)[0] for each in floods]
    assert all("connections in" in each for each in said)
    assert median_of(one, 10) < max(BUSY * alone, NOISE_S)
    assert "Traceback" not in one.log()


def test_nobody_renegotiates(secure: str, daemon: Make) -> None:
    """Fault 27: one connection costs one handshake."""
    one = daemon(secure).start()
    command = [program("openssl"), "s_client", "-tls1_2", "-connect", f"127.0.0.1:{one.port}"]
    client = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    watchdog = threading.Timer(PATIENCE, client.kill)
    watchdog.start()
    try:
        said, _ = client.communicate(b"R\n" * 3)
    finally:
        watchdog.cancel()
        client.kill()
    assert b"RENEGOTIATING" in said
    assert b"renegotiation" in said.partition(b"RENEGOTIATING")[2].lower() or client.returncode
    assert median_of(one, 10) > 0


# --- One instance for the rest --------------------------------------------------------------------

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
STAGES = (b"", b"GET / HT", GET, POST + b"x" * 1000, b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
RESETS = 100
SILENT = 200
CROWD = 20
TUNNEL_S = 1.0


class Uploaded:
    """A backend that takes what comes on one connection at a time, and never answers."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(PATIENCE)
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.ended: list[bytes] = []  # What each connection brought until its end.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                sock, _ = self._server.accept()
                with sock:
                    sock.settimeout(PATIENCE)
                    self.ended.append(_all_of(sock))
        except OSError:
            return

    def close(self) -> None:
        self._server.close()


def _all_of(sock: socket.socket) -> bytes:
    """Read to the end, whatever end that is."""
    taken = b""
    try:
        while data := sock.recv(65536):
            taken += data
    except OSError:
        pass
    return taken


class Field:
    """An instance with all kinds of listeners and backends."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self.backends = [Backend(name) for name in "ab"]
        self.uploaded = Uploaded()
        for each in self.backends:
            self._stack.callback(each.close)
        self._stack.callback(self.uploaded.close)
        self.chat = self._stack.enter_context(serve(_echo, "127.0.0.1", 0))
        chats = threading.Thread(target=self.chat.serve_forever)
        chats.start()
        self._stack.callback(chats.join, PATIENCE)
        self._stack.callback(self.chat.shutdown)
        self.tls_port, self.proxied_port = free_ports(2)
        cert = folder / "a.pem"
        CA.issue_cert("a.example").private_key_and_cert_chain_pem.write_to_path(cert)
        self.one = Daemon(folder / "one", self.config(cert), workers=1, node='drain = "2s"')
        self._stack.callback(self.one.end)
        self.one.start()
        self.worker = self.one.workers()[0]

    def config(self, cert: Path) -> str:
        timeouts = 'timeouts = { header = "1s", stall = "1s", idle = "1s" }\n'
        chat = self.chat.socket.getsockname()[1]
        return (
            config_of(self.backends, listener=timeouts + 'upstream = "app"')
            + f'[listener.tls]\naddress = "127.0.0.1:{self.tls_port}"\nupstream = "app"\n{timeouts}'
            f'tls = {{ cert = "{cert}", key = "{cert}" }}\n'
            f'[listener.proxied]\naddress = "127.0.0.1:{self.proxied_port}"\nupstream = "app"\n'
            f'{timeouts}proxy_protocol = true\ntrusted_proxies = ["127.0.0.2/32"]\n'
            f'[upstream.sink]\nbackends = ["{self.uploaded.address}"]\n'
            f'[route.sink]\npath = "/sink"\nupstream = "sink"\n'
            f'[upstream.chat]\nbackends = ["127.0.0.1:{chat}"]\n'
            f'timeouts = {{ tunnel = "{TUNNEL_S}s" }}\n'
            f'[route.chat]\npath = "/chat"\nupstream = "chat"\n'
            f'[upstream.talk]\nbackends = ["127.0.0.1:{chat}"]\n'
            f'[route.talk]\npath = "/talk"\nupstream = "talk"\n'
            f'[upstream.small]\nbackends = ["{self.backends[0].address}"]\n'
            f'limits = {{ per_backend = 1, queue_timeout = "10s" }}\n'
            f'[route.small]\npath = "/hold"\nupstream = "small"\n'
        )

    def open(self) -> int:
        """Return how many descriptors the worker has open."""
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    def metric(self, name: str, *labels: str) -> float:
        """Return what a counter's series add up to, of those with all these labels."""
        lines = self.one.admin("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(name)]
        return sum(float(each.split()[-1]) for each in found if all(one in each for one in labels))

    def close(self) -> None:
        self._stack.close()


def _echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    made = Field(tmp_path_factory.mktemp("field"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def field(lasting: Field) -> Iterator[Field]:
    """It, with nobody there before and after; whatever was done, others are served."""
    for each in lasting.backends:
        each.hold.clear()
        each.holding.clear()
    yield lasting
    for each in lasting.backends:
        each.hold.set()
    assert lasting.one.ask().status == 200
    gone = ('lb_connections{listener="web"}', 'lb_connections{listener="tls"}')
    until(lambda: not sum(map(lasting.metric, gone)), "all are gone")
    assert lasting.one.workers() == [lasting.worker]
    assert "Traceback" not in lasting.one.log()
    assert "is ejected" not in lasting.one.log()


def knock(port: int, octets: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE, (source, 0))
    sock.sendall(octets)
    return sock


def leave_at_once(sock: socket.socket) -> None:
    """End a connection by a reset: after a mere end it might still read its answer."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_those_who_say_nothing_are_gone_in_time(field: Field) -> None:
    """Fault 21: after their time, while who goes on asking stays."""
    with ExitStack() as stack:
        live = http.client.HTTPConnection("127.0.0.1", field.one.port, timeout=PATIENCE)
        stack.callback(live.close)
        live.request("GET", "/")
        assert live.getresponse().read() in (b"a", b"b")
        kept = live.sock
        crowd = [stack.enter_context(knock(field.one.port, GET)) for _ in range(SILENT)]
        assert all(sock.recv(4096).startswith(b"HTTP/1.1 200 ") for sock in crowd)
        before = field.open()
        for sock in crowd:
            sock.setblocking(False)
        ended: set[socket.socket] = set()

        def all_ended() -> bool:
            live.request("GET", "/")
            assert live.getresponse().read() in (b"a", b"b")
            ended.update(sock for sock in crowd if sock not in ended and _is_over(sock))
            return len(ended) == SILENT

        until(all_ended, lambda: f"{len(ended)} are gone")
        assert live.sock is kept
        until(lambda: field.open() <= before - SILENT, "their descriptors")


def _is_over(sock: socket.socket) -> bool:
    try:
        return not sock.recv(4096)
    except BlockingIOError:
        return False


def test_resets_at_any_stage_leave_nothing(field: Field) -> None:
    """Fault 23."""
    assert field.one.ask().status == 200
    before = field.open()
    for number in range(RESETS):
        with knock(field.one.port, STAGES[number % len(STAGES)]) as sock:
            leave_at_once(sock)
    for each in field.backends:
        each.hold.set()
    until(lambda: field.open() <= before + len(field.backends), "descriptors")


def test_an_upload_that_is_given_up_is_never_whole(field: Field) -> None:
    """Fault 24."""
    seen = len(field.uploaded.ended)
    with knock(field.one.port, POST.replace(b" / ", b" /sink ") + b"x" * 50_000):
        until(lambda: field.metric("lb_backend_active_requests", 'upstream="sink"'), "it runs")
    until(lambda: len(field.uploaded.ended) > seen, "the backend's connection is closed")
    head, _, body = field.uploaded.ended[-1].partition(b"\r\n\r\n")
    assert b"ontent-" in head
    assert len(body) <= 50_000


def test_a_place_in_the_queue_is_free_when_who_waits_leaves(field: Field) -> None:
    """Fault 25: what left is not done, and the next has its turn."""
    hold = b"GET /hold HTTP/1.1\r\nHost: a\r\nX-Who: %s\r\n\r\n"
    backend = field.backends[0]
    done = backend.requests
    waiting = 'lb_queue_length{upstream="small"}'
    with knock(field.one.port, hold % b"first") as first:
        until(backend.holding.is_set, "it is under way")
        with knock(field.one.port, hold % b"left") as left:
            until(lambda: field.metric(waiting) == 1, "it waits")
            leave_at_once(left)
        until(lambda: field.metric(waiting) == 0, "it has left the queue")
        with knock(field.one.port, hold % b"last") as last:
            until(lambda: field.metric(waiting) == 1, "it waits")
            backend.hold.set()
            assert first.recv(4096).startswith(b"HTTP/1.1 200 ")
            assert last.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert backend.requests == done + 2
    assert backend.asked["x-who"] == "last"


def test_what_is_no_handshake_of_ours(field: Field) -> None:
    """Fault 26: an alert or an end, and counted; half of one ends at its time."""
    before = field.metric("lb_tls_handshakes_total")
    with knock(field.tls_port, GET) as plain, knock(field.tls_port, b"\x16\x03\x01\x02") as half:
        answer = _all_of(plain)
        assert b"HTTP/1.1 200" not in answer
        assert _all_of(half) == b"", "after its time"
    command = [program("openssl"), "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
    old = subprocess.run(
        [*command, "-connect", f"127.0.0.1:{field.tls_port}"],
        input=b"", capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert b"alert" in old.stderr
    until(lambda: field.metric("lb_tls_handshakes_total") >= before + 3, "all are counted")
    sock = context().wrap_socket(knock(field.tls_port), server_hostname="a.example")
    with sock:
        sock.sendall(GET)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_tunnels_that_idle_and_that_outlive_their_route(field: Field) -> None:
    """Fault 29: silence ends one with a goodbye, a reload ends none."""
    at = f"ws://127.0.0.1:{field.one.port}"
    config = field.one.config
    route = config.index("[route.talk]")
    with (
        connect(f"{at}/talk", proxy=None) as talks,
        connect(f"{at}/chat", proxy=None, ping_interval=None) as silent,
    ):
        field.one.write(config[:route] + config[config.index("[upstream.small]") :])
        assert field.one.admin("/v1/config/reload", "POST").status == 200
        talks.send("still here")
        assert talks.recv(PATIENCE) == "still here", "without its route"
        with pytest.raises(ConnectionClosed):
            silent.recv(PATIENCE)
        assert silent.close_code == 1001
        talks.send("and here")
        assert talks.recv(PATIENCE) == "and here"
    field.one.write(config)
    assert field.one.admin("/v1/config/reload", "POST").status == 200


PROXIED = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 80\r\n"


@pytest.mark.parametrize(
    ("source", "octets", "reason"),
    [
        ("127.0.0.1", PROXIED + GET, "proxy_untrusted"),
        ("127.0.0.2", b"PROXY TCP4 192.0.2.7 19", "proxy_timeout"),
        ("127.0.0.2", b"PROXY TCP9 192.0.2.7 198.51.100.1 1 2\r\n" + GET, "proxy_header"),
        ("127.0.0.2", b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c" + b"\0" * 12 + GET, "proxy_header"),
        ("127.0.0.2", GET, "proxy_header"),
    ],
)
def test_a_header_of_who_is_not_to_be_believed(
    field: Field, source: str, octets: bytes, reason: str
) -> None:
    """Fault 30: refused, counted, and the one that is as it should be is taken."""
    counted = field.metric("lb_connections_refused_total", f'reason="{reason}"')
    with knock(field.proxied_port, octets, source) as sock:
        assert _all_of(sock) == b""
    refused = ("lb_connections_refused_total", f'reason="{reason}"')
    until(lambda: field.metric(*refused) == counted + 1, "it is counted")
    with knock(field.proxied_port, PROXIED + GET, "127.0.0.2") as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
    asked = [each.asked.get("x-forwarded-for") for each in field.backends]
    assert "192.0.2.7" in asked


# --- The admin API --------------------------------------------------------------------------------

BACKEND = "/v1/upstreams/app/backends/127.0.0.1:9"


def test_too_much_for_the_admin_api_and_on_an_old_revision(field: Field) -> None:
    """Fault 53: refused with what it was, and nothing of it is done."""
    one = field.one
    made = one.admin(BACKEND, "PUT", body={"state": "disabled", "weight": 2})
    assert made.status == 201, made.text
    revision = made.json()["backend"]["revision"]
    much = one.admin(BACKEND, "PUT", body={"state": "disabled", "note": "x" * (2 << 20)})
    assert much.status == 413, much.text
    again = {"state": "disabled", "weight": 3}
    known = {"If-Match": f'"{revision}"'}
    assert one.admin(BACKEND, "PUT", body=again, fields=known).status == 200
    late = one.admin(BACKEND, "PUT", body={"state": "disabled", "weight": 4}, fields=known)
    assert (late.status, late.json()["code"]) == (412, "precondition-failed")
    assert one.admin(BACKEND).json()["weight"] == 3
    assert one.admin(BACKEND, "DELETE").status == 200


@pytest.mark.long
def test_too_slow_for_the_admin_api(field: Field) -> None:
    """Fault 53: it is told so after its ten seconds, and others are answered meanwhile."""
    head = f"PUT {BACKEND} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        slow = [
            stack.enter_context(
                knock(field.one.admin_port, head.encode() + b"Content-Length: 9\r\n\r\n{")
            )
            for _ in range(CROWD)
        ]
        for sock in slow:
            sock.setblocking(False)
        answers: dict[socket.socket, bytes] = {}

        def all_told() -> bool:
            assert field.one.admin("/livez").status == 200
            for sock in slow:
                if sock not in answers and (said := _said(sock)):
                    answers[sock] = said
            return len(answers) == CROWD

        until(all_told, "they are told")
        assert all(each.startswith(b"HTTP/1.1 408 ") for each in answers.values())


def _said(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except BlockingIOError:
        return b""
