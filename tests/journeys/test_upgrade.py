"""Another program takes over while the first one serves: nobody notices, or nothing has changed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve

from journeys.conftest import Make, MakeGroup, config_of
from journeys.kit import (
    PATIENCE,
    ROOT,
    Answer,
    Backend,
    Daemon,
    alive,
    ask,
    command_line,
    copy_of_package,
    free_ports,
    loaded,
    offspring,
    until,
)
from journeys.programs import lb, pressed

HOLD = 'retries = { attempts = 1, budget = "20%" }'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that a test may change; daemons run it by `environ`."""
    return copy_of_package(tmp_path)


def of(package: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(package)}


def change(package: Path, module: str, *, old: str = "", new: str = "# Another build.\n") -> None:
    """Replace the package on disk, as far as anybody can tell."""
    path = package / "lb" / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text + new)


def status(daemon: Daemon) -> dict[str, object]:
    found: dict[str, object] = daemon.admin("/v1/status").json()
    return found


def counted(daemon: Daemon) -> int:
    """Return how many requests its counters know of."""
    lines = daemon.admin("/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("lb_requests_to")))


@contextmanager
def under_way(daemon: Daemon, backends: list[Backend]) -> Iterator[list[Answer]]:
    """Have a request under way for the length of the block."""
    got: list[Answer] = []
    client = threading.Thread(target=lambda: got.append(daemon.ask("/hold", timeout=3 * PATIENCE)))
    client.start()
    try:
        until(lambda: any(each.holding.is_set() for each in backends), "it is under way")
        yield got
    finally:
        for each in backends:
            each.hold.set()
        client.join(PATIENCE)


# --- Nobody notices -------------------------------------------------------------------------------


def test_an_upgrade_costs_no_request(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends)).start()
    before = [one.controller(), *one.workers()]
    with (
        loaded(one.port) as kept,
        loaded(one.port, fresh=True) as fresh,
        under_way(one, backends) as held,
    ):
        said = lb(one, "upgrade", "-o", "json")
        assert said.status == 0, said.err
        now = one.upgraded()
        assert said.json()["pid"] == now
        assert not set(before) & {one.controller(), *one.workers()}
        kept.more(100)
        fresh.more(100)
        for each in backends:
            each.hold.set()
        assert one.wait() == 0  # The old supervisor.
        kept.more(100)
        fresh.more(100)
    assert (kept.failures, fresh.failures) == ([], [])
    assert [answer.status for answer in held] == [200]
    assert not any(map(alive, before))
    assert counted(one) == kept.done + fresh.done + 1  # None lost, none twice.
    assert "Traceback" not in one.log()
    one.send(signal.SIGTERM)
    until(lambda: not alive(now), "the new one stops")


@pytest.mark.long
def test_wrk_notices_nothing_of_upgrades(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends), node='drain = "2s"').start()
    with pressed(one.port, seconds=30) as wrk:
        for _ in range(2):
            one.send(signal.SIGUSR2)
            one.upgraded()
            until(lambda: supervisors(one) == [one.supervisor], "the old one has ended")
        one.ready()
        assert wrk.runs, "it took longer than the load"
        count, bad = wrk.result()
    assert count > 0
    assert bad == []
    assert one.wait() == 0


def supervisors(daemon: Daemon) -> list[int]:
    """Return all processes that run this daemon's file."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and alive(int(name)):
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"lb.cli\0run" in words and str(daemon.path).encode() in words:
                found.append(int(name))
    return found


@pytest.mark.long
def test_a_websocket_lives_until_its_worker_has_drained(daemon: Make) -> None:
    def echo(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(echo, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        config = (
            '[listener.web]\naddress = "127.0.0.1:{port}"\n'
            f'[upstream.app]\nbackends = ["127.0.0.1:{port}"]\n'
        )
        one = daemon(config, node='drain = "4s"').start()
        with connect(f"ws://127.0.0.1:{one.port}/", proxy=None) as client:
            client.send("before")
            assert client.recv(PATIENCE) == "before"
            assert lb(one, "upgrade").status == 0
            client.send("after")
            assert client.recv(PATIENCE) == "after"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(PATIENCE)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        one.upgraded()
        server.shutdown()
        thread.join(PATIENCE)


def test_sockets_that_are_files_stay(daemon: Make, backends: list[Backend], tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    one = daemon(config_of(backends).replace('"127.0.0.1:{port}"', f'"unix:{path}"')).start()
    one.send(signal.SIGUSR2)
    one.upgraded()
    assert one.wait() == 0
    assert path.exists()
    one.send(signal.SIGTERM)
    until(lambda: not path.exists(), "the last one takes it away")


@pytest.mark.long
def test_workers_change_with_an_upgrade(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends), node='drain = "1s"').start()
    with loaded(one.port, fresh=True) as load:
        for count in (3, 1):
            one.workers_count = count
            one.write(one.config)
            assert lb(one, "reload").out.strip().endswith("(needs a restart)")
            assert lb(one, "upgrade").status == 0
            one.upgraded()
            assert len(one.workers()) == count
            until(lambda: supervisors(one) == [one.supervisor], "the old one has ended")
            load.more(50)
    assert load.failures == []


def test_what_changes_meanwhile_reaches_the_new_workers(
    daemon: Make, backends: list[Backend], package: Path, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    wait = (
        f"    import os, time\n    while os.path.exists({str(hold)!r}):\n        time.sleep(0.01)\n"
    )
    start = '    daemonlog.start("controller")\n'
    change(package, "controller_process.py", old=start, new=wait + start)
    one = daemon(config_of(backends), environ=of(package)).start()
    hold.touch()  # The new controller takes its time.
    one.send(signal.SIGUSR2)
    until(lambda: "taking over" in one.log(), "it is under way")

    def serving() -> bool:
        [new] = [pid for pid in supervisors(one) if pid != one.supervisor]
        return len(listening_for(new, one.port)) > 0

    with loaded(one.port, fresh=True) as load:
        until(serving, "new workers accept, and only the old controller works")
        drained = f"/v1/upstreams/app/backends/{backends[1].address}"
        assert one.admin(drained, "PATCH", body={"state": "draining"}).status == 200
        until(lambda: {one.ask().text for _ in range(20)} == {"a"}, "both programs know")
        [port] = free_ports(1)
        one.write(f'{config_of(backends)}[listener.other]\naddress = "127.0.0.1:{port}"\n')
        assert lb(one, "reload").status == 0
        assert {ask(port).text for _ in range(20)} == {"a"}
        hold.unlink()
        one.upgraded()
        assert one.wait() == 0
        assert {ask(port).text for _ in range(20)} == {"a"}
        load.more(50)
    assert load.failures == []


def listening_for(supervisor: int, port: int) -> list[int]:
    """Return workers of a supervisor that listen on a port."""
    found = []
    there = f":{port:04X} 00000000:0000 0A"
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    inodes = {each[9] for each in table if there in " ".join(each[1:4])}
    for pid in offspring(supervisor):
        if "lb.worker" in command_line(pid):
            links = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
            if any(f"socket:[{inode}]" in links for inode in inodes):
                found.append(pid)
    return found


@pytest.mark.long
def test_the_leader_of_a_group_is_upgraded(group: MakeGroup, plain: str) -> None:
    three = group(plain).start()
    leader = three.leader()
    with loaded(leader.port, fresh=True) as load:
        said = lb(leader, "upgrade")
        assert said.status == 0, said.err
        leader.upgraded()
        assert three.leader() is not leader  # It passed that on before it went.
        assert leader.put("127.0.0.1:9", state="disabled").status in (200, 201)
        load.more(20)
    assert load.failures == []
    three.agree()


def test_reloads_and_drains_go_on_through_an_upgrade(daemon: Make, backends: list[Backend]) -> None:
    one = daemon(config_of(backends[:1])).start()
    one.send(signal.SIGUSR2)
    until(lambda: "taking over" in one.log(), "it is under way")
    one.write(config_of(backends))
    one.send(signal.SIGHUP)  # To whoever works at the file then.
    one.upgraded()
    until(lambda: {one.ask().text for _ in range(10)} == {"a", "b"}, "the file is in force")
    assert "Traceback" not in one.log()


# --- Nothing has changed --------------------------------------------------------------------------


def untouched(one: Daemon, before: list[int]) -> None:
    assert [one.controller(), *one.workers()] == before
    assert status(one)["pid"] == one.supervisor
    assert one.ask().status == 200


def test_a_program_that_cannot_be_imported(daemon: Make, plain: str, package: Path) -> None:
    one = daemon(plain, environ=of(package)).start()
    before = [one.controller(), *one.workers()]
    change(package, "controller.py", new="this is no Python\n")
    said = lb(one, "upgrade")
    assert said.status == 5
    assert "what is installed cannot be started: SyntaxError: invalid syntax" in said.err
    untouched(one, before)
    assert "SyntaxError" in lb(one, "status").out
    answer = one.admin("/v1/upgrade", "POST", body={})
    assert (answer.status, answer.json()["code"]) == (503, "not-applied")
    assert "SyntaxError" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("worker.py", "        metrics, edition, tables = fds\n", "        sys.exit(3)\n"),
        ("controller_process.py", '    daemonlog.start("controller")\n', "    sys.exit(3)\n"),
        ("cli/running.py", "    refuse_mixtures(", "    ctx.exit(3)\n    refuse_mixtures("),
    ],
)
def test_a_program_that_cannot_serve(
    daemon: Make, plain: str, package: Path, module: str, old: str, new: str
) -> None:
    one = daemon(plain, environ=of(package)).start()
    before = [one.controller(), *one.workers()]
    change(package, module, old=old, new=new)
    with loaded(one.port, fresh=True) as load:
        said = lb(one, "upgrade")
        assert said.status == 5
        assert "ended with status 3" in said.err
        until(lambda: supervisors(one) == [one.supervisor], "nothing is left of it")
        load.more(50)
    assert load.failures == []
    untouched(one, before)


@pytest.mark.long
def test_a_controller_that_is_never_ready(daemon: Make, plain: str, package: Path) -> None:
    one = daemon(plain, environ=of(package)).start()
    workers = one.workers()
    change(package, "control/supervising.py", old='self._post.send("up")', new="return")
    with loaded(one.port, fresh=True) as load:
        said = lb(one, "upgrade")
        assert said.status == 1
        assert "its controller was not ready within 10 s" in said.err
        load.more(50)
    assert load.failures == []
    assert one.workers() == workers
    assert "its controller was not ready" in json.dumps(status(one)["upgrade"])


# --- A package replaced on disk -------------------------------------------------------------------


@pytest.mark.long
def test_children_of_a_replaced_package_are_refused_until_an_upgrade(
    daemon: Make, plain: str, package: Path
) -> None:
    one = daemon(plain, environ=of(package)).start()
    build = status(one)["build"]
    change(package, "model.py")
    first = one.workers()[0]
    os.kill(first, signal.SIGKILL)
    until(lambda: "refused: run the new one with `lb upgrade`" in one.log(), "it is said")
    until(lambda: "accepts for worker" in one.log(), "its queue is lent")
    os.kill(one.controller(), signal.SIGKILL)
    until(lambda: "the controller is of build" in one.log(), "so is the controller")
    with loaded(one.port, fresh=True) as load:
        said = lb(one, "upgrade")  # Though no controller is there to ask.
        assert said.status == 0, said.err
        load.more(50)
    assert load.failures == []
    one.upgraded()
    one.ready()
    assert status(one)["build"] != build
    assert len(one.workers()) == 2


def test_where_nobody_would_serve_it_upgrades_by_itself(
    daemon: Make, plain: str, package: Path
) -> None:
    one = daemon(plain, environ=of(package)).start()
    build = status(one)["build"]
    change(package, "model.py")
    for pid in one.workers():
        os.kill(pid, signal.SIGKILL)
    assert one.ask(timeout=2 * PATIENCE).status == 200  # It waited in the queue.
    one.upgraded()
    assert "no worker serves, and those of this build are gone from disk" in one.log()
    assert status(one)["build"] != build
    assert {one.ask().text for _ in range(20)} == {"a", "b"}


# --- Signals at the wrong time --------------------------------------------------------------------

MOMENTS = ("trying what is installed", "taking over from", "the new workers serve", "upgrade: done")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_in_the_middle_of_it(daemon: Make, plain: str, moment: str) -> None:
    one = daemon(plain, node='grace = "0s"\ndrain = "1s"').start()
    one.send(signal.SIGUSR2)
    until(lambda: moment in one.log(), moment)
    one.send(signal.SIGTERM)
    assert one.wait() == 0
    if moment == MOMENTS[-1]:  # It may have been gone before it could pass that on.
        for pid in supervisors(one):
            os.kill(pid, signal.SIGTERM)
    until(lambda: not supervisors(one), "both have ended")
    assert "Traceback" not in one.log()


def test_signals_in_any_order(daemon: Make, plain: str) -> None:
    one = daemon(plain, node='drain = "1s"').start()
    many = (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
    with loaded(one.port, fresh=True) as load:
        for number in many:
            one.send_all(number)  # Children and the new program are not to take it for theirs.
        one.upgraded()
        for number in many[1:3]:
            one.send(number)
        load.more(50)
    assert load.failures == []
    until(lambda: one.log().count("reloaded") >= 1, "a reload came through")
    assert "Traceback" not in one.log()


def test_a_killed_supervisor_in_the_middle_of_it(daemon: Make, plain: str) -> None:
    one = daemon(plain).start()
    one.send(signal.SIGUSR2)
    until(lambda: "serving on" in one.log().partition("taking over")[2], "the new one serves")
    one.send(signal.SIGKILL)
    one.wait()
    one.upgraded()
    one.ready()
    assert one.ask().status == 200


def test_without_a_file_the_first_process_stays(backends: list[Backend], tmp_path: Path) -> None:
    port, admin = free_ports(2)
    words = ("--listen", f"127.0.0.1:{port}", "--to", backends[0].address)
    with (tmp_path / "log").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "lb.cli", "run", *words, "--admin", f"127.0.0.1:{admin}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    try:
        look: Callable[[], dict[str, object]] = lambda: ask(admin, "/v1/status").json()  # noqa: E731
        until(lambda: look()["ready"], "it serves")
        process.send_signal(signal.SIGUSR2)
        now = until(lambda: (pid := look()["pid"]) != process.pid and pid, "another one serves")
        assert ask(port).status == 200
        assert process.poll() is None
        folder = re.findall(rb"([^\0]*/lb-run-[^/\0]*)/", Path(f"/proc/{now}/cmdline").read_bytes())
        assert Path(folder[0].decode()).exists()
        process.send_signal(signal.SIGTERM)  # Whoever started it knows no other.
        assert process.wait(2 * PATIENCE) == 0
        assert not Path(folder[0].decode()).exists()
    finally:
        process.kill()
        process.wait(PATIENCE)
