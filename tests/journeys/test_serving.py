"""What a daemon serves, and how it shows it: routes, policies, logs, counters, the command line."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Answer, Backend, Daemon, ask, free_ports, until
from journeys.programs import lb, refuses

NAMES = ("app", "api", "canary", "blog")
ROUTES = """
[listener.web]
address = "127.0.0.1:{{port}}"
upstream = "app"
ready_path = "/-/ready"

[listener.other]
address = "127.0.0.1:{other}"

[route.api]
path = "/api/"
upstream = "api"

[route.api-writes]
path = "/api/"
method = ["POST", "PUT"]
header = {{ x-canary = "1" }}
upstream = "canary"

[route.blog]
host = ["blog.example", "*.blog.example"]
upstream = "blog"

[route.old]
path = "=/old"
respond = {{ status = 308, location = "https://example.com/new" }}

[route.closed]
path = "/closed"
respond = {{ status = 410, body = "gone for good" }}

[route.numbers]
path = "~^/item/\\\\d+$"
upstream = "api"

[route.read-only]
path = "/read-only"
method = "GET"
upstream = "app"

[route.only-other]
listener = "other"
path = "/here"
upstream = "blog"

[route.split]
path = "/split"
upstream = {{ api = "70%", canary = "30%" }}
split_by = "cookie:user"
"""


def upstream(name: str, *addresses: object, more: str = "") -> str:
    return f"[upstream.{name}]\nbackends = {json.dumps(addresses)}\n{more}\n"


class Shop:
    """A daemon with many routes, and a backend behind each upstream that says which it is."""

    def __init__(self, folder: Path, backends: Mapping[str, Backend]) -> None:
        self.backends = backends
        (self.other,) = free_ports(1)
        self.access_log = folder / "access.log"
        config = f'[access_log]\noutput = "{self.access_log}"\n' + ROUTES.format(other=self.other)
        config += "".join(upstream(name, each.address) for name, each in backends.items())
        self.daemon = Daemon(folder / "daemon", config)

    def get(self, path: str, method: str = "GET", **fields: str) -> Answer:
        """Ask with these header fields, `_` written for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            named = {name.replace("_", "-"): value for name, value in fields.items()}
            connection.request(method, path, headers={"Connection": "close", **named})
            return Answer(connection.getresponse())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One daemon for all tests that only look."""
    with contextlib.ExitStack() as stack:
        backends = {}
        for name in NAMES:
            backends[name] = Backend(name)
            stack.callback(backends[name].close)
        shop = Shop(tmp_path_factory.mktemp("shop"), backends)
        stack.callback(shop.daemon.end)
        shop.daemon.start()
        yield shop
        assert "Traceback" not in shop.daemon.log()


# --- Routing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "fields", "by"),
    [
        ("/", "GET", {}, "app"),
        ("/api", "GET", {}, "api"),
        ("/api/users?x=1", "GET", {}, "api"),
        ("/apis", "GET", {}, "app"),
        ("/%61pi/users", "GET", {}, "api"),
        ("/x/../api//users", "GET", {}, "api"),
        ("/api/users", "POST", {}, "api"),
        ("/api/users", "POST", {"X_Canary": "1"}, "canary"),
        ("/api/users", "PUT", {"x_canary": "0"}, "api"),
        ("/api/users", "GET", {"Host": "Blog.example:80"}, "blog"),
        ("/", "GET", {"Host": "a.b.blog.example"}, "blog"),
        ("/", "GET", {"Host": "ablog.example"}, "app"),
        ("/item/12", "GET", {}, "api"),
        ("/item/12/", "GET", {}, "app"),
        ("/here", "GET", {}, "app"),
    ],
)
def test_routes(shop: Shop, path: str, method: str, fields: dict[str, str], by: str) -> None:
    answer = shop.get(path, method, **fields)
    assert (answer.status, answer.text) == (200, by)


def test_the_backend_gets_the_path_as_it_came_and_our_fields(shop: Shop) -> None:
    shop.get("/%61pi//x?y=%20", X_Forwarded_For="6.6.6.6", Connection="close, x-hop", X_Hop="1")
    asked = shop.backends["api"].asked
    assert asked["x-forwarded-for"] == "127.0.0.1"
    assert asked["x-forwarded-proto"] == "http"
    assert asked["x-forwarded-host"] == f"127.0.0.1:{shop.daemon.port}" == asked["host"]
    assert re.fullmatch(r"1\.1 lb-[0-9a-f]{8}", asked["via"])
    assert "x-hop" not in asked


def test_what_routes_answer_themselves(shop: Shop) -> None:
    moved = shop.get("/old")
    assert (moved.status, moved.headers["Location"]) == (308, "https://example.com/new")
    assert shop.get("/old/er").status == 200
    gone = shop.get("/closed/for/good")
    assert (gone.status, gone.text) == (410, "gone for good")
    refused = shop.get("/read-only", "DELETE")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET")


def test_a_listener_of_its_own(shop: Shop) -> None:
    assert ask(shop.other, "/here").text == "blog"
    nothing = ask(shop.other, "/")
    assert nothing.status == 404
    assert "no_route" in nothing.headers["Proxy-Status"] or "no route" in nothing.text


@pytest.mark.parametrize("path", ["/../etc", "/api/%00", "/api/..%2fx", "/api/..;x/y"])
def test_paths_that_two_could_read_differently_are_refused(shop: Shop, path: str) -> None:
    assert shop.get(path).status == 400


def test_a_split_keeps_each_to_one_side(shop: Shop) -> None:
    def side(user: int) -> str:
        return shop.get("/split", Cookie=f"a=b; user=u{user}").text

    sides = {user: side(user) for user in range(200)}
    assert {user: side(user) for user in range(40)} == {user: sides[user] for user in range(40)}
    counts = Counter(sides.values())
    assert set(counts) == {"api", "canary"}
    assert 110 < counts["api"] < 170  # 140, give or take four standard deviations.


def test_the_ready_path_is_the_workers_own(shop: Shop) -> None:
    answer = shop.get("/-/ready")
    assert (answer.status, answer.text) == (200, "ready\n")


# --- What is shown --------------------------------------------------------------------------------


def counted(daemon: Daemon, metric: str, **labels: str) -> float:
    """Add up all samples of a metric that have these labels."""
    total = 0.0
    for line in daemon.admin("/metrics").text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)(?: .*)?", line)
        if match and match[1] == metric:
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= found.items():
                total += float(match[3])
    return total


def test_the_counters_say_what_was_sent(shop: Shop) -> None:
    daemon = shop.daemon

    def figures() -> dict[str, float]:
        requests = "lb_requests_total"
        return {
            "get": counted(daemon, requests, upstream="api", route="api", method="GET", code="200"),
            "418": counted(daemon, requests, upstream="blog", route="blog", code="418"),
            "410": counted(daemon, requests, route="closed", code="410", upstream=""),
            "in": counted(daemon, "lb_request_bytes_total", route="api-writes"),
            "2xx": counted(daemon, "lb_backend_requests_total", upstream="api", code="2xx"),
            "4xx": counted(daemon, "lb_backend_requests_total", upstream="blog", code="4xx"),
            "seen": counted(daemon, "lb_request_seconds_count", route="api"),
            "connections": counted(daemon, "lb_connections_total", listener="web"),
        }

    before = figures()
    for _ in range(17):
        assert shop.get("/api/x").status == 200
    for _ in range(5):
        assert shop.get("/418", Host="blog.example").status == 418
    for _ in range(3):
        assert shop.get("/closed").status == 410
    body = "x" * 1000
    sent = ask(daemon.port, "/api/write", "POST", body=body)
    assert sent.text == "api"
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("POST", "/api/write", body, {"X-Canary": "1", "Connection": "close"})
        assert Answer(connection.getresponse()).text == "canary"
    sent_out = {"get": 17, "418": 5, "410": 3, "in": 1000, "2xx": 18, "4xx": 5, "seen": 18}
    expected = {**sent_out, "connections": 27}

    def grown() -> dict[str, float]:
        return {name: value - before[name] for name, value in figures().items()}

    # A client may have its answer a moment before it is counted.
    until(lambda: grown() == expected, f"{expected} more, not {grown()}")
    assert counted(daemon, "lb_metrics_dropped_total") == 0
    assert counted(daemon, "lb_worker_up") == 2


def test_the_upstreams_figures(shop: Shop) -> None:
    def blog() -> dict[str, Any]:
        [backend] = shop.daemon.admin("/v1/upstreams/blog").json()["backends"]
        return dict(backend)

    before = blog()
    for _ in range(6):
        shop.get("/", Host="blog.example")
    until(lambda: blog()["requests"] - before["requests"] == 6, "six more are counted")
    after = blog()
    assert after["errors"] == 0
    assert after["in_flight"] == 0
    assert (after["state"], after["health"], after["source"]) == ("active", "unchecked", "file")
    answer = shop.daemon.admin("/v1/upstreams/blog")
    assert answer.headers["ETag"] == f'"{answer.json()["revision"]}"'
    names = [each["name"] for each in shop.daemon.admin("/v1/upstreams").json()["upstreams"]]
    assert names == list(NAMES)


def test_the_status(shop: Shop) -> None:
    plain = shop.daemon.admin("/v1/status").json()
    assert (plain["name"], plain["ready"], plain["stopping"]) == ("a", True, False)
    assert [worker["pid"] for worker in plain["workers"]] == shop.daemon.workers()
    assert {worker["up"] for worker in plain["workers"]} == {True}
    assert plain["config"]["source"] == str(shop.daemon.path)
    assert plain["group"]["quorum"] is True
    assert plain["traffic"]["requests"] > 0
    said = lb(shop.daemon, "status")
    assert said.status == 0
    assert "2 of 2 up" in said.out
    assert lb(shop.daemon, "status", "-o", "json").json()["pid"] == plain["pid"]


def test_json_lines(shop: Shop) -> None:
    query = "line=json&x=%22"
    shop.get(f"/api/j?{query}", User_Agent="t")

    def mine() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in shop.access_log.read_text().splitlines()]
        return [line for line in lines if line["query"] == query]

    [line] = until(mine, "its line is written")
    expected = {
        "node": "a",
        "listener": "web",
        "client": "127.0.0.1",
        "method": "GET",
        "scheme": "http",
        "host": f"127.0.0.1:{shop.daemon.port}",
        "path": "/api/j",
        "proto": "HTTP/1.1",
        "status": 200,
        "bytes_in": 0,
        "route": "api",
        "upstream": "api",
        "backend": shop.backends["api"].address,
        "end": "ok",
    }
    assert {name: line[name] for name in expected} == expected
    assert 0 < line["first_byte_ms"] <= line["ms"]
    assert line["bytes_out"] > len("api")
    [tried] = line["tries"]
    assert (tried["backend"], tried["end"]) == (line["backend"], "ok")
    assert line["id"]


def test_explain(shop: Shop) -> None:
    url = f"http://127.0.0.1:{shop.daemon.port}/api/users"
    said = lb(shop.daemon, "explain", "POST", url, "-H", "x-canary: 1")
    assert said.status == 0
    assert "so        route api-writes is the most specific that matches" in said.out
    assert shop.backends["canary"].address in said.out
    plain = lb(shop.daemon, "explain", "GET", url, "-o", "json").json()
    assert (plain["route"], plain["upstream"], plain["answer"]) == ("api", "api", "forward")
    refused = lb(shop.daemon, "explain", "DELETE", url.replace("/api/users", "/read-only"))
    assert refused.status == 1
    assert "allowed: GET" in refused.out


# --- Balancing ------------------------------------------------------------------------------------


def shares(daemon: Daemon, count: int, path: str = "/", **fields: str) -> Counter[str]:
    """Count who answers over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    answers: Counter[str] = Counter()
    with contextlib.closing(connection):
        for number in range(count):
            connection.request("GET", path.format(number), headers=fields)
            answers[Answer(connection.getresponse()).text] += 1
    return answers


def test_policies(daemon: Make) -> None:
    """One daemon, one upstream for each policy, weights 3 and 1 and a backup."""
    policies = ("round_robin", "weighted", "random", "least_requests", "two_choices", "peak_ewma")
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("heavy", "light", "backup"):
            made.append(Backend(name))
            stack.callback(made[-1].close)
        heavy, light, backup = (each.address for each in made)
        backends = (
            f'backends = [{{ address = "{heavy}", weight = 3 }}, "{light}", '
            f'{{ address = "{backup}", backup = true }}]\n'
        )
        config = '[listener.web]\naddress = "127.0.0.1:{port}"\n'
        for policy in (*policies, "hash"):
            config += f'[route.{policy}]\npath = "/{policy}"\nupstream = "{policy}"\n'
            config += f'[upstream.{policy}]\nbalance = "{policy}"\n{backends}'
        config += 'hash_key = "header:x-user"\n'
        one = daemon(config, workers=1).start()
        for policy in ("round_robin", "weighted"):
            assert shares(one, 40, f"/{policy}") == {"heavy": 30, "light": 10}
        for policy in policies[2:]:
            counts = shares(one, 200, f"/{policy}")
            assert counts["backup"] == 0
            if policy == "peak_ewma":  # It goes by latency, which here is the machine's noise.
                assert set(counts) <= {"heavy", "light"}
            else:
                assert counts["heavy"] > counts["light"], policy
        by_user = [shares(one, 2, "/hash", **{"X-User": f"u{n}"}) for n in range(120)]
        assert all(len(counts) == 1 for counts in by_user)
        total = sum(by_user, Counter())
        assert set(total) == {"heavy", "light"}
        assert 140 < total["heavy"] < 220  # Of 240: 180 is due.


def test_a_drained_backend_gets_nothing_and_a_backup_steps_in(
    daemon: Make, backends: list[Backend]
) -> None:
    with contextlib.closing(Backend("spare")) as spare:
        config = config_of(backends).replace(
            "]\n\n", f', {{ address = "{spare.address}", backup = true }}]\n\n'
        )
        one = daemon(config).start()
        assert set(shares(one, 12)) == {"a", "b"}
        a, b = (each.address for each in backends)
        said = lb(one, "backend", "drain", "app", a, "--note", "a test")
        assert said.status == 0
        assert set(shares(one, 12)) == {"b"}
        assert lb(one, "backend", "disable", "app", b).status == 0
        assert set(shares(one, 12)) == {"spare"}
        last = lb(one, "backend", "drain", "app", spare.address)
        assert last.status == 5  # Nobody would be left.
        assert lb(one, "backend", "enable", "app", a).status == 0
        assert set(shares(one, 12)) == {"a"}
        shown = lb(one, "upstream", "show", "app")
        assert re.search(rf"{re.escape(b)} .*disabled", shown.out)


# --- Other logs, other addresses, other ends ------------------------------------------------------


def test_combined_lines_on_stdout(daemon: Make, backends: list[Backend]) -> None:
    one = daemon('[access_log]\nformat = "combined"\n' + config_of(backends)).start()
    connection = http.client.HTTPConnection("127.0.0.1", one.port, timeout=PATIENCE)
    with contextlib.closing(connection):
        fields = {"User-Agent": 'a "b"', "Referer": "http://r.example/"}
        connection.request("GET", "/x?y=1", headers=fields)
        assert Answer(connection.getresponse()).status == 200
    line = until(one.out.read_text, "its line is written").rstrip("\n")
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /x\?y=1 HTTP/1\.1"'
        r' 200 \d+ "http://r\.example/" "a \\x22b\\x22"',
        line,
    ), line


def over_unix(path: Path, octets: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(octets)
        data = b""
        while more := client.recv(65536):
            data += more
        return data


def test_unix_sockets_on_both_sides(daemon: Make, tmp_path: Path) -> None:
    with contextlib.closing(Backend("u", f"unix:{tmp_path}/b.sock")) as backend:
        config = (
            f'[listener.web]\naddress = ["unix:{tmp_path}/l.sock", "127.0.0.1:{{port}}"]\n'
            + upstream("app", backend.address, more='health = { path = "/healthz" }')
        )
        one = daemon(config).start()
        got = over_unix(
            tmp_path / "l.sock", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert got.startswith(b"HTTP/1.1 200")
        assert got.endswith(b"\r\n\r\nu")
        assert backend.asked["host"] == "x"
        assert one.ask().text == "u"
        [shown] = one.admin("/v1/upstreams/app").json()["backends"]
        assert (shown["address"], shown["health"]) == (backend.address, "healthy")
        assert shown["requests"] == 2


def test_ipv6_on_both_sides(daemon: Make) -> None:
    with contextlib.closing(Backend("six", "[::1]")) as backend:
        config = '[listener.web]\naddress = "[::1]:{port}"\n' + upstream(
            "app", backend.address, more='health = { path = "/healthz" }'
        )
        one = daemon(config).start()
        answer = one.ask(host="::1")
        assert (answer.status, answer.text) == (200, "six")
        assert backend.asked["x-forwarded-for"] == "::1"
        assert backend.asked["host"] == f"[::1]:{one.port}"
        assert refuses(one.port)  # On 127.0.0.1 nobody listens.
        [shown] = one.admin("/v1/upstreams/app").json()["backends"]
        assert (shown["address"], shown["health"]) == (backend.address, "healthy")
        url = f"http://[::1]:{one.port}/"
        assert backend.address in lb(one, "explain", "GET", url).out


def test_all_addresses_of_both_families(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends).replace("127.0.0.1:{port}", ":{port}")).start()
    assert [one.ask(host=host).status for host in ("127.0.0.1", "::1")] == [200, 200]


def test_waiting_until_it_is_ready_and_exit_statuses(daemon: Make, plain: str) -> None:
    one = daemon(plain, node='grace = "0s"')
    assert lb(one, "status").status == 4
    unready = lb(one, "status", "--wait", "ready", "300ms")
    assert unready.status == 4
    one.launch()
    ready = lb(one, "status", "--wait", "ready", "20s")
    assert ready.status == 0
    assert "ready" in ready.out
    assert one.ask().status == 200
    assert lb(one, "upstream", "show", "nothing").status == 1
    assert lb(one, "upstream", "sing", "app").status == 2
    assert lb(one, "status", "--wait", "lunch").status == 2
    assert lb(one, "status", config=False).status == 0
    first = one.admin("/v1/upstreams/app").json()["backends"][0]["address"]
    conditional = ("backend", "set", "app", first, "--weight", "2", "--if-match", "999")
    assert lb(one, *conditional).status == 5
    assert lb(one, "config", "diff").status == 0
    one.write(plain + "# A remark changes nothing.\n[log]\nlevel = 'warning'\n")
    assert lb(one, "config", "diff").status == 1
    one.write(plain.replace("backends", "backend"))
    assert lb(one, "check").status == 3
    stopped = lb(one, "stop")
    assert (stopped.status, stopped.err) == (0, "stopped\n")
    assert one.wait() == 0


def test_an_unhealthy_backend_gets_nothing_and_the_status_says_why(
    daemon: Make, backends: list[Backend]
) -> None:
    health = 'health = { path = "/healthz", interval = "100ms", rise = 1, fall = 2 }'
    one = daemon(config_of(backends, health)).start()
    assert set(shares(one, 10)) == {"a", "b"}
    backends[0].healthy = False
    until(lambda: set(shares(one, 10)) == {"b"}, "only the healthy one answers")
    said = lb(one, "status")
    assert "1 of 2 backends usable" in said.out
    assert f"{backends[0].address}  active, unhealthy: " in said.out
    assert "503" in said.out
    backends[0].healthy = True
    until(lambda: set(shares(one, 10)) == {"a", "b"}, "both answer again")
