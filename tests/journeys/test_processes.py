"""Processes come and go; clients do not notice, and what cannot start says why."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, Answer, Backend, Daemon, alive, ask, loaded, until

HEALTH = 'health = { path = "/healthz", interval = "60s" }'


def answers(daemon: Daemon, count: int) -> set[str]:
    """Ask over fresh connections, so that every worker has its turn."""
    return {daemon.ask().text for _ in range(count)}


def test_it_serves(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    assert answers(one, 20) == {"a", "b"}
    assert len(one.workers()) == 2
    workers = one.admin("/v1/status").json()["workers"]
    assert [worker["pid"] for worker in workers] == one.workers()
    assert "Traceback" not in one.log()


def test_a_killed_controller_costs_no_request(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends, HEALTH)).start()
    with loaded(one.port) as load:
        before = one.controller()
        os.kill(before, signal.SIGKILL)
        until(lambda: one.controller() != before, "another controller")
        one.ready()
        load.more(200)
    assert load.failures == []
    # The verdicts came through the edition: a check that had begun anew would say "checking"
    # only for a moment, so look at what was asked instead.
    shown = one.admin("/v1/upstreams/app").json()["backends"]
    assert {backend["health"] for backend in shown} == {"healthy"}


def test_a_restarted_controller_does_not_adopt_a_changed_or_broken_file(
    daemon: Make, backends: list[Backend]
) -> None:
    one = daemon(config_of(backends)).start()
    generation = one.admin("/v1/status").json()["config"]["generation"]
    one.write("this is no TOML")
    before = one.controller()
    os.kill(before, signal.SIGKILL)
    until(lambda: one.controller() != before, "another controller")
    one.ready()
    assert answers(one, 20) == {"a", "b"}
    config = one.admin("/v1/status").json()["config"]
    assert config["generation"] == generation
    until(
        lambda: one.admin("/v1/status").json()["config"]["on_disk"].startswith("invalid"),
        "the status tells that the file is broken",
    )


def test_a_killed_worker_is_back_at_once(daemon: Make, plain: str) -> None:
    one = daemon(plain, workers=1).start()
    [before] = one.workers()
    killed_at = time.monotonic()
    os.kill(before, signal.SIGKILL)
    assert one.ask().status == 200  # The queue was never closed: nobody is refused.
    assert time.monotonic() - killed_at < 5.0
    assert one.workers() != [before]
    status = until(lambda: one.admin("/v1/status").json(), "a status")
    assert status["workers"][0]["restarts"] == 1


def test_killed_workers_lose_only_what_they_were_doing(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    with loaded(one.port, clients=8) as load:
        victim = one.workers()[0]
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in one.workers(), "another worker")
        load.more(200)
    # Each client had one request under way; a new connection may still have met the old queue.
    assert len(load.failures) <= 16, load.failures


def test_a_worker_killed_while_the_controller_is_down_serves_again(
    daemon: Make, plain: str
) -> None:
    one = daemon(plain, workers=1).start()
    controller, [worker] = one.controller(), one.workers()
    os.kill(controller, signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        assert answers(one, 10) == {"a", "b"}
        assert one.workers() != [worker]
    finally:
        os.kill(controller, signal.SIGCONT)
    one.ready()


def test_controller_and_workers_killed_at_once(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    for pid in [one.controller(), *one.workers()]:
        os.kill(pid, signal.SIGKILL)
    assert answers(one, 20) == {"a", "b"}
    one.ready()


def test_a_worker_that_cannot_stay_backs_off_and_its_clients_are_served(
    daemon: Make, plain: str
) -> None:
    one = daemon(plain).start()
    kept = one.workers()[1]
    over = threading.Event()

    def keep_killing() -> None:
        while not over.wait(0.01):
            for pid in one.children("worker"):
                if pid != kept:
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=keep_killing)
    killer.start()
    try:
        until(lambda: "in a row" in one.log(), "the log tells of the crash loop")
        until(lambda: "accepts for worker" in one.log(), "its queue is lent")
        for _ in range(30):
            assert one.ask(timeout=5.0).status == 200
    finally:
        over.set()
        killer.join(PATIENCE)
    until(
        lambda: all(worker["up"] for worker in one.admin("/v1/status").json()["workers"]),
        "both workers serve",
        2 * PATIENCE,
    )
    assert answers(one, 20) == {"a", "b"}


def test_a_killed_supervisor_leaves_nothing_in_the_way(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    children = [one.controller(), *one.workers()]
    one.send(signal.SIGKILL)
    one.wait()
    until(lambda: not any(map(alive, children)), "the others end")
    one.start()
    assert answers(one, 20) == {"a", "b"}


def test_two_daemons_on_one_port(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    two = daemon(plain, name="two")
    two.port = one.port
    two.write(plain)
    two.launch()
    assert two.wait() == 7
    assert f"cannot listen on 127.0.0.1:{one.port}" in two.log()
    assert "Traceback" not in two.log()
    assert answers(one, 20) == {"a", "b"}


def test_a_data_dir_in_use(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    two = daemon(plain, name="two")
    two.data_dir = one.data_dir
    two.write(plain)
    two.launch()
    assert two.wait() == 7
    assert str(one.data_dir) in two.log()
    assert "Traceback" not in two.log()
    assert one.ask().status == 200


def test_a_config_error_at_the_start(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends, listener="wieght = 3"))
    one.launch()
    assert one.wait() == 3
    assert '"wieght" is not a key of a listener' in one.log()
    assert "1 error; nothing was changed" in one.log()
    assert "Traceback" not in one.log()


def test_python_without_asserts_is_refused(daemon: Make, plain: str) -> None:
    one = daemon(plain)
    one.launch("-O")
    assert one.wait() == 2
    assert "-O" in one.log()
    assert "Traceback" not in one.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop(daemon: Make, plain: str, number: signal.Signals) -> None:
    one = daemon(plain, node='grace = "100ms"').start()
    children = [one.controller(), *one.workers()]
    one.send_all(number)  # As a terminal does it: children are not to take it for theirs.
    assert one.wait() == 0
    assert not any(map(alive, children))
    assert "Traceback" not in one.log()


def test_a_stop_finishes_what_runs_and_is_not_ready_meanwhile(
    daemon: Make, backends: list[Backend]
) -> None:
    listener = 'ready_path = "/-/ready"'
    config = config_of(backends, listener=listener)
    one = daemon(config, workers=1, node='grace = "2s"').start()
    assert one.ask("/-/ready").status == 200  # Now somebody looks, so the grace is kept.
    got: list[Answer] = []
    client = threading.Thread(target=lambda: got.append(one.ask("/hold")))
    client.start()
    until(lambda: any(backend.holding.is_set() for backend in backends), "it is under way")
    one.send(signal.SIGTERM)
    until(lambda: one.ask("/-/ready").status == 503, "not ready, yet still accepting")
    assert one.admin("/readyz").status == 503
    assert one.ask().status == 200
    until(lambda: refused(one.port), "no more clients are accepted")
    for backend in backends:
        backend.hold.set()
    client.join(PATIENCE)
    assert [answer.status for answer in got] == [200]
    assert one.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_stops_now(
    daemon: Make, backends: list[Backend], second: signal.Signals
) -> None:
    one = daemon(config_of(backends), node='grace = "0s"').start()
    with socket.create_connection(("127.0.0.1", one.port), PATIENCE) as client:
        client.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: any(backend.holding.is_set() for backend in backends), "it is under way")
        one.send(signal.SIGTERM)
        until(lambda: refused(one.port), "no more clients are accepted")
        one.send(second)
        assert one.wait(5.0) == 0


def test_a_stop_by_the_admin(daemon: Make, plain: str) -> None:
    one = daemon(plain, node='grace = "0s"').start()
    assert one.admin("/v1/stop", "POST", body={"drain": "1s"}).status == 202
    assert one.wait() == 0


def test_a_stop_while_it_starts(daemon: Make, plain: str) -> None:
    one = daemon(plain)
    one.launch()
    until(lambda: one.children("controller"), "a controller")
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert "Traceback" not in one.log()


def test_hup_reloads_listeners_included(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends[:1])).start()
    old = one.port
    with loaded(old) as load:
        two = daemon("", name="unused")  # For a free port.
        one.port = two.port
        second = config_of(backends).replace("[listener.web]", "[listener.other]")
        both = second.replace("{port}", str(old)) + (
            f'[listener.web]\naddress = "127.0.0.1:{one.port}"\nupstream = "app"\n'
        )
        one.write(both)
        one.send(signal.SIGHUP)
        until(lambda: answers(one, 10) == {"a", "b"}, "the new listener serves both")
        load.more(50)
    assert load.failures == []
    one.write(config_of(backends))
    one.send(signal.SIGHUP)
    until(lambda: refused(old), "the removed listener is closed")
    assert answers(one, 20) == {"a", "b"}


def test_a_reload_onto_a_port_in_use_changes_nothing(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()
    more = f'[listener.more]\naddress = "{backends[0].address}"\nupstream = "app"\n'
    one.write(config_of(backends, 'balance = "random"') + more)
    answer = one.admin("/v1/config/reload", "POST", body={})
    assert answer.status >= 400
    assert f"cannot listen on {backends[0].address}" in answer.text
    config = one.admin("/v1/status").json()["config"]
    assert config["generation"] == 1
    assert f"cannot listen on {backends[0].address}" in config["error"]
    assert answers(one, 20) == {"a", "b"}


def test_the_admin_on_a_unix_socket(daemon: Make, plain: str, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    one = daemon(plain)
    one.path.write_text(one.path.read_text().replace(f"127.0.0.1:{one.admin_port}", f"unix:{path}"))
    one.launch()
    until(lambda: one.ask().status == 200, "it serves")
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    assert not path.exists()


def test_usr1_opens_log_files_anew(daemon: Make, plain: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    one = daemon(f'[access_log]\noutput = "{log}"\n{plain}', workers=1).start()
    one.ask()
    until(lambda: log.exists() and log.read_text(), "a line is written")
    log.rename(tmp_path / "access.log.1")
    one.send(signal.SIGUSR1)
    until(lambda: one.ask().status and log.exists() and log.read_text(), "a line in the new file")


def test_a_unix_listener_is_shared_by_all_workers(
    daemon: Make, backends: list[Backend], tmp_path: Path
) -> None:
    path = tmp_path / "app.sock"
    config = config_of(backends).replace("127.0.0.1:{port}", f"unix:{path}")
    one = daemon(config).start()
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
    one.send(signal.SIGTERM)
    one.wait()
    assert not path.exists()


def refused(port: int) -> bool:
    """Return whether nobody listens on a port any more."""
    try:
        ask(port, timeout=2.0)
    except ConnectionRefusedError:
        return True
    return False
