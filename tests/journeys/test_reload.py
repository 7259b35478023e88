"""Reloads under traffic: what changes is live with the answer, what runs is not disturbed."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from journeys.conftest import Make, config_of
from journeys.flows import HUGE, end_of
from journeys.kit import PATIENCE, Answer, Backend, Daemon, ask, free_ports, loaded, until
from journeys.programs import lb, refuses

LISTENER = '[listener.{name}]\naddress = "127.0.0.1:{port}"\nupstream = "app"\n'
ROUTE = '[route.{name}]\npath = "/{name}"\nrespond = {{ status = 204 }}\n'


def upstream(backends: list[Backend], more: str = "") -> str:
    addresses = ", ".join(f'"{backend.address}"' for backend in backends)
    return f"[upstream.app]\nbackends = [{addresses}]\n{more}\n"


def listener(port: int, name: str = "web") -> str:
    return LISTENER.format(name=name, port=port)


def generation(daemon: Daemon) -> int:
    return int(daemon.admin("/v1/status").json()["config"]["generation"])


@contextmanager
def kept(port: int) -> Iterator[http.client.HTTPConnection]:
    """Open a connection that stays."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.connect()
        yield connection


def get(connection: http.client.HTTPConnection, path: str = "/") -> Answer:
    connection.request("GET", path)
    return Answer(connection.getresponse())


@contextmanager
def held(daemon: Daemon, backend: Backend, path: str = "/hold") -> Iterator[list[Answer]]:
    """Have a request under way for the length of the block; its answer is in the list after it."""
    answers: list[Answer] = []
    backend.holding.clear()
    with kept(daemon.port) as connection:
        client = threading.Thread(target=lambda: answers.append(get(connection, path)))
        client.start()
        try:
            until(backend.holding.is_set, "it is under way")
            yield answers
        finally:
            backend.hold.set()
            client.join(PATIENCE)


# --- Three ways to ask, and what is said ----------------------------------------------------------


def test_three_ways(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends, listener='upstream = "app"')).start()
    before = one.config
    one.write(before + ROUTE.format(name="one"))
    one.send(signal.SIGHUP)
    until(lambda: one.ask("/one").status == 204, "HUP reloads")
    one.write(before + ROUTE.format(name="two"))
    said = lb(one, "reload", "--note", "for the test")
    assert said.status == 0
    assert said.out.splitlines() == ["route.one removed", "route.two added"]
    assert said.err == "done\n"
    assert [one.ask(path).status for path in ("/one", "/two")] == [200, 204]
    one.write(before + ROUTE.format(name="three"))
    answer = one.admin("/v1/config/reload", "POST", body={})
    assert answer.status == 200
    assert answer.json()["generation"] == 4
    assert answer.json()["changed"] == ["route.three added", "route.two removed"]
    assert [one.ask(path).status for path in ("/two", "/three")] == [200, 204]
    again = lb(one, "reload")
    assert (again.status, again.out, again.err) == (0, "", "done, nothing changed\n")
    metrics = one.admin("/metrics").text
    assert 'lb_config_reloads_total{result="ok"} 4.0' in metrics
    assert "lb_config_last_reload_success 1.0" in metrics


def test_a_bad_file_changes_nothing_and_is_explained(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()
    good = one.config
    one.write(good.replace("backends =", "backend =") + "[route.x]\nwieght = 'app'\n")
    said = lb(one, "reload")
    assert (said.status, said.out) == (3, "")
    assert f"{one.path}:" in said.err
    assert '"backend" is not a key of an upstream' in said.err
    assert 'did you mean "backends"?' in said.err
    assert '"wieght" is not a key of a route' in said.err
    assert said.err.rstrip().endswith("nothing was changed")
    answer = one.admin("/v1/config/reload", "POST", body={})
    assert answer.status == 422
    assert answer.headers.get_content_type() == "application/problem+json"
    assert answer.json()["code"] == "config-invalid"
    assert '"wieght" is not a key of a route' in answer.json()["text"]
    one.send(signal.SIGHUP)
    until(lambda: one.log().count("a reload changed nothing") == 3, "HUP says so in the log")
    said_so = [line for line in one.log().splitlines() if "a reload changed nothing" in line]
    assert all('"backend" is not a key of an upstream' in line for line in said_so)
    config = one.admin("/v1/status").json()["config"]
    assert config["generation"] == 1
    assert '"wieght" is not a key' in config["error"]
    shown = lb(one, "status")
    assert shown.status == 0  # It serves as before.
    assert "the last reload failed" in shown.out
    assert {one.ask().text for _ in range(20)} == {"a", "b"}
    assert "lb_config_last_reload_success 0.0" in one.admin("/metrics").text
    one.write(good)
    assert lb(one, "reload").status == 0
    assert one.admin("/v1/status").json()["config"]["error"] is None


def test_a_missing_file_changes_nothing(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    one.path.rename(one.path.with_suffix(".away"))
    said = lb(one, "reload", config=False)
    assert said.status in (1, 3)
    assert str(one.path) in said.err
    assert one.ask().status == 200


def test_a_dry_run_only_tells(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends[:1])).start()
    one.write(config_of(backends))
    said = lb(one, "reload", "--dry-run")
    assert said.status == 0
    assert said.out == f"upstream.app.backends + {backends[1].address}\n"
    assert "dry run" in said.err
    plain = lb(one, "reload", "--dry-run", "-o", "json").json()
    assert plain["dry_run"] is True
    assert plain["changed"] == [f"upstream.app.backends + {backends[1].address}"]
    assert generation(one) == 1
    assert {one.ask().text for _ in range(20)} == {"a"}
    one.write("no TOML")
    assert lb(one, "reload", "--dry-run").status == 3
    assert one.admin("/v1/status").json()["config"]["error"] is None  # Nobody wanted it live.


def test_what_would_empty_an_upstream_is_refused_and_the_rest_stands(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon(config_of(backends, listener='upstream = "app"')).start()
    one.write(config_of([], listener='upstream = "app"') + ROUTE.format(name="new"))
    said = lb(one, "reload")
    assert said.status == 5
    assert "refused: app keeps its backends" in said.err
    assert one.ask("/new").status == 204
    assert {one.ask().text for _ in range(20)} == {"a", "b"}
    assert lb(one, "reload", "--force").status == 0
    assert one.ask().status == 503


def test_keys_that_need_a_restart_are_named(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()
    one.workers_count = 3
    one.write(config_of(backends))
    said = lb(one, "reload")
    assert said.status == 0
    assert said.out == "node.workers 2 -> 3 (needs a restart)\n"
    one.workers_count = 2
    assert len(one.workers()) == 2


# --- The file looked after ------------------------------------------------------------------------


def test_a_watched_file_is_taken_up_by_itself(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends[:1]), node="watch = true").start()
    one.write(config_of(backends))
    until(lambda: {one.ask().text for _ in range(10)} == {"a", "b"}, "the change is live")
    one.write("this is no TOML")

    def on_disk() -> str:
        return str(one.admin("/v1/status").json()["config"]["on_disk"])

    until(lambda: on_disk().startswith("invalid"), "the status tells of the bad file")
    assert {one.ask().text for _ in range(20)} == {"a", "b"}
    fresh = one.path.with_suffix(".new")
    one.write(config_of(backends[1:]))
    one.path.rename(fresh)
    fresh.rename(one.path)  # As an editor does it.
    until(lambda: {one.ask().text for _ in range(10)} == {"b"}, "the good one is live")
    assert on_disk() == "same"


def test_a_file_that_is_not_watched_shows_as_changed(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends[:1])).start()
    one.write(config_of(backends))
    until(lambda: one.admin("/v1/status").json()["config"]["on_disk"] == "changed", "it shows")
    assert 'lb_config_on_disk{state="changed"} 1.0' in one.admin("/metrics").text
    assert {one.ask().text for _ in range(10)} == {"a"}
    assert lb(one, "reload").status == 0
    assert one.admin("/v1/status").json()["config"]["on_disk"] == "same"


# --- Listeners ------------------------------------------------------------------------------------


@pytest.mark.long
def test_listeners_come_and_go_and_a_kept_one_never_refuses(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon("")
    (other,) = free_ports(1)
    one.write(upstream(backends) + listener(one.port))
    one.start()
    with loaded(one.port, 3) as old, loaded(one.port, 3, fresh=True) as new:
        for name in ("renamed", "again", "web"):
            one.write(upstream(backends) + listener(one.port, name) + listener(other, "more"))
            assert lb(one, "reload").status == 0
            assert ask(other).status == 200
            new.more(30)
            one.write(upstream(backends) + listener(one.port, name))
            assert lb(one, "reload").status == 0
            until(lambda: refuses(other), "the removed listener is closed")
            new.more(30)
            old.more(30)
    assert old.failures == []
    assert new.failures == []


def test_a_renamed_listener_keeps_its_connections(daemon: Make, backends: list[Backend]) -> None:
    one = daemon("")
    one.write(upstream(backends) + listener(one.port))
    one.start()
    with kept(one.port) as connection:
        assert get(connection).status == 200
        sock = connection.sock
        one.write(upstream(backends) + listener(one.port, "renamed"))
        assert lb(one, "reload").status == 0
        for _ in range(3):
            assert get(connection).status == 200
        assert connection.sock is sock


def test_the_queue_of_a_removed_listener_is_accepted_to_its_end(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon("")
    (other,) = free_ports(1)
    kept_on = upstream(backends) + listener(one.port)
    one.write(kept_on + listener(other, "leaving"))
    one.start()
    workers = one.workers()
    with ExitStack() as stack:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
        waiting = [
            stack.enter_context(socket.create_connection(("127.0.0.1", other), PATIENCE))
            for _ in range(60)
        ]
        for sock in waiting:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        one.write(kept_on)
        one.send(signal.SIGHUP)
        until(lambda: generation(one) == 2, "the config is in force, the workers stand still")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        answers = [read_to_end(sock) for sock in waiting]
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), set(answers)
    until(lambda: refuses(other), "then it is closed")
    assert one.workers() == workers


def read_to_end(sock: socket.socket) -> bytes:
    """Read one answer, and whatever comes until the connection ends or falls silent."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


@pytest.mark.long
def test_clients_of_a_listener_while_it_goes_get_an_answer_or_are_refused(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon("")
    (other,) = free_ports(1)
    kept_on = upstream(backends) + listener(one.port)
    one.write(kept_on)
    one.start()
    for _ in range(3):
        one.write(kept_on + listener(other, "leaving"))
        assert lb(one, "reload").status == 0
        with loaded(other, fresh=True) as load:
            one.write(kept_on)
            assert lb(one, "reload").status == 0
            until(lambda: load.failures, "nobody gets in any more")
        assert set(load.failures) == {"ConnectionRefusedError(111, 'Connection refused')"}


def test_what_runs_on_a_removed_listener_ends_with_a_close(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon("", workers=1)
    (other,) = free_ports(1)
    one.write(upstream(backends[:1]) + listener(one.port))
    one.start()
    with kept(one.port) as idle:
        assert get(idle).status == 200
        with held(one, backends[0]) as answers:
            one.write(upstream(backends[:1]) + listener(other))
            assert lb(one, "reload").status == 0
            until(lambda: refuses(one.port), "the old address is closed")
        [answer] = answers
        assert (answer.status, answer.text) == (200, "a")
        assert answer.headers["Connection"] == "close"
        last = get(idle)
        assert (last.status, last.headers["Connection"]) == (200, "close")
    assert ask(other).status == 200


# --- What runs meanwhile --------------------------------------------------------------------------


def test_a_long_download_outlives_its_route_its_upstream_and_its_listener(
    daemon: Make, backends: list[Backend], tmp_path: Path
) -> None:
    one = daemon("")
    (other,) = free_ports(1)
    with ExitStack() as stack:
        giver = stack.enter_context(end_of(tmp_path, "giver", "length"))
        port = giver.hear()
        huge = f'[upstream.huge]\nbackends = ["127.0.0.1:{port}"]\n[route.huge]\npath = "/huge"\n'
        rest = upstream(backends) + listener(one.port)
        one.write(rest + huge + 'upstream = "huge"\n')
        one.start()
        asker = stack.enter_context(end_of(tmp_path, "asker", "length", one.port))
        until(lambda: giver.moved > 0, "the download has begun")
        one.write(rest)
        assert lb(one, "reload").status == 0
        assert one.ask("/huge").text in "ab"  # For others there is no such route any more.
        one.write(upstream(backends) + listener(other))
        assert lb(one, "reload").status == 0
        assert ask(other).text in "ab"
        asker.go()
        assert asker.hear() == "done"
        assert asker.moved >= HUGE


def test_a_removed_backend_finishes_what_runs_and_is_shown_as_leaving(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon(config_of(backends[:1])).start()
    with held(one, backends[0]) as answers:
        one.write(config_of(backends[1:]))
        assert lb(one, "reload").status == 0
        assert {one.ask().text for _ in range(10)} == {"b"}
        leaving = [{"address": backends[0].address, "in_flight": 1}]
        until(lambda: one.admin("/v1/upstreams/app").json()["leaving"] == leaving, "it is leaving")
        assert (
            f"leaving: {backends[0].address}, 1 requests" in lb(one, "upstream", "show", "app").err
        )
    assert [(answer.status, answer.text) for answer in answers] == [(200, "a")]
    until(lambda: one.admin("/v1/upstreams/app").json()["leaving"] == [], "it is gone")


def test_turns_and_kept_connections_outlive_a_reload(daemon: Make, backends: list[Backend]) -> None:
    with closing(Backend("c")) as third:
        three = [*backends, third]
        patient = 'keepalive = { idle = "60s" }'  # The machine may be slow.
        config = config_of(three, patient, listener='upstream = "app"')
        one = daemon(config, workers=1).start()
        before = one.config
        with kept(one.port) as client:
            seen = [get(client).text for _ in range(6)]
            opened = [backend.connections for backend in three]
            for name in ("x", "y", "z", "x"):
                one.write(before + ROUTE.format(name=name))
                assert one.admin("/v1/config/reload", "POST", body={}).status == 200
                seen.append(get(client).text)
            assert "".join(seen) in "abcabcabcabcabcabc"
            assert [backend.connections for backend in three] == opened


def test_an_upstreams_new_policy_and_weights_are_live_with_the_answer(
    daemon: Make, backends: list[Backend]
) -> None:
    a, b = (backend.address for backend in backends)
    one = daemon(config_of(backends), workers=1).start()
    weighted = f'{{ address = "{a}", weight = 3 }}, {{ address = "{b}" }}'
    one.write(config_of(backends).replace(f'"{a}", "{b}"', weighted))
    said = lb(one, "reload")
    assert said.out == f"upstream.app.backends {a}: weight 1 -> 3\n"
    with kept(one.port) as client:
        texts = [get(client).text for _ in range(12)]
    assert (texts.count("a"), texts.count("b")) == (9, 3)
    one.write(config_of(backends, 'balance = "hash"\nhash_key = "path"'))
    assert lb(one, "reload").status == 0
    with kept(one.port) as client:
        assert len({get(client, "/same").text for _ in range(6)}) == 1
