"""What the machine runs out of: ports, memory, CPU, interfaces; and crowds that cost each a bit."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme

from journeys.conftest import Make, config_of
from journeys.kit import PATIENCE, ROOT, Backend, Daemon, free_ports, loaded, until
from journeys.namespace import SETTINGS, in_namespace, set_port_range
from journeys.programs import nginx, pressed, program, serving
from journeys.test_overload import memory

PORTS = 16
SPARE = 32 * 1024 * 1024
BODY = 128 * 1024 * 1024
DOWNLOADS = 2000
BYTES_A_DOWNLOAD_MAX = 256 * 1024  # Two buffers of 64 KiB, full, and what goes with them.
CLOSED = 10_000
TIME_WAIT = "06"
CLOSES = '[route.own]\npath = "/own"\nrespond = { status = 204 }\n'


def test_no_local_port_left_for_a_backend(tmp_path: Path) -> None:
    """Fault 42: kept connections hide it; else 503, no blame, and no crash."""
    in_namespace(lambda: without_ports(tmp_path))


def without_ports(folder: Path) -> None:
    backend = Backend("a")
    one = Daemon(folder, config_of([backend]), workers=1)
    try:
        one.start()
        set_port_range(50_000, 50_000 + PORTS - 1)
        sources = iter(range(20_000, 30_000))

        def ask(path: str) -> bytes:
            """Ask from a port outside that range, as clients of other machines do."""
            with socket.socket() as sock:
                sock.settimeout(PATIENCE)
                sock.bind(("127.0.0.2", next(sources)))
                sock.connect(("127.0.0.1", one.port))
                sock.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode())
                return sock.recv(13)

        assert {ask("/") for _ in range(10 * PORTS)} == {b"HTTP/1.1 200 "}
        assert backend.connections <= 2, "one after the other over the same"
        with ThreadPoolExecutor(2 * PORTS) as pool:
            held = [pool.submit(ask, "/hold") for _ in range(PORTS)]
            until(lambda: backend.connections >= PORTS - 1, "all ports in use")
            until(lambda: ask("/") == b"HTTP/1.1 503 ", "one more has none")
            backend.hold.set()
            assert b"HTTP/1.1 200 " in {each.result(PATIENCE) for each in held}
        assert {ask("/") for _ in range(PORTS)} == {b"HTTP/1.1 200 "}
        assert "net.ipv4.ip_local_port_range" in one.log()
        assert "is ejected" not in one.log()
    finally:
        one.end()
        backend.close()


def test_an_interface_goes(tmp_path: Path) -> None:
    """Fault 45: who came by it is gone; the other listeners, and reloads, do not notice."""
    in_namespace(lambda: without_interface(tmp_path))


def ip(*words: str) -> None:
    subprocess.run([program("ip"), *words], check=True, capture_output=True)


def without_interface(folder: Path) -> None:
    ip("link", "add", "here", "type", "veth", "peer", "name", "there")
    ip("addr", "add", "10.97.0.1/24", "dev", "here")
    ip("link", "set", "here", "up")
    backend = Backend("a")
    config = config_of([backend])
    (port,) = free_ports(1)
    second = f'[listener.second]\naddress = "10.97.0.1:{port}"\nupstream = "app"\n'
    one = Daemon(folder, config.replace("[upstream", 'upstream = "app"\n[upstream') + second)
    try:
        one.start()
        assert one.ask().status == 200
        with loaded(one.port) as load:
            ip("link", "del", "here")
            load.more(20)
            assert one.admin("/v1/config/reload", "POST").status == 200
            one.write(one.config.replace(second, ""))
            assert one.admin("/v1/config/reload", "POST").status == 200
            one.write(one.config + second)
            refused = one.admin("/v1/config/reload", "POST")
            assert refused.status != 200, "nobody has that address now"
            assert "10.97.0.1" in refused.text
            load.more(20)
        assert load.failures == []
    finally:
        one.end()
        backend.close()


def test_a_machine_without_ipv6(tmp_path: Path) -> None:
    """Fault 45: a listener that cannot be is named; one for all addresses takes what there is."""
    in_namespace(lambda: without_ipv6(tmp_path))


def without_ipv6(folder: Path) -> None:
    (SETTINGS / "ipv6/conf/all/disable_ipv6").write_text("1")
    backend = Backend("a")
    try:
        for number, (address, works) in enumerate({":{port}": True, "[::1]:{port}": False}.items()):
            config = config_of([backend]).replace("127.0.0.1:{port}", address)
            one = Daemon(folder / str(number), config)
            try:
                one.launch()
                if works:
                    one.ready()
                    assert one.ask().status == 200
                else:
                    assert one.wait() == 7
                    assert f"[::1]:{one.port}" in one.log()
                    assert "Traceback" not in one.log()
            finally:
                one.end()
    finally:
        backend.close()


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def test_workers_with_little_memory(tmp_path: Path, daemon: Make) -> None:
    """Fault 43: no body is held whole; and one worker without any memory dies alone, if at all."""
    server = nginx(tmp_path / "nginx", "a")
    (tmp_path / "nginx/files").mkdir(parents=True, exist_ok=True)
    with open(tmp_path / "nginx/files/big", "wb") as big:
        big.truncate(BODY)
    with serving(server):
        config = (
            '[listener.web]\naddress = "127.0.0.1:{port}"\n'
            f'[upstream.app]\nbackends = ["{server.address}"]\n'
        )
        one = daemon(config).start()
        assert one.ask().text == "a"
        for pid in one.workers():
            most = address_space(pid) + SPARE
            resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
        with loaded(one.port) as load:
            assert len(one.ask("/files/big").body) == BODY
            upload = one.ask("/sink", "POST", body="x" * (BODY // 4))
            assert upload.text == f"a {BODY // 4 + 2} http", "with the quotes of JSON"
            load.more(20)
        assert load.failures == []
        poor, well = one.workers()
        resource.prlimit(poor, resource.RLIMIT_AS, (SPARE, SPARE))
        with loaded(one.port, 8, fresh=True) as load:
            load.more(200)
        assert well in one.workers()
        if poor in one.workers():
            os.kill(poor, signal.SIGKILL)
        until(lambda: poor not in one.workers(), "one in its place")
        assert {one.ask().status for _ in range(20)} == {200}


@contextmanager
def starved(one: Daemon, rest: float = 0.36, work: float = 0.04) -> Iterator[None]:
    """Let a daemon have a tenth of its time, as beside others that take all there is."""
    over = threading.Event()

    def starve() -> None:
        while not over.is_set():
            one.send_all(signal.SIGSTOP)
            over.wait(rest)
            one.send_all(signal.SIGCONT)
            over.wait(work)

    thread = threading.Thread(target=starve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)
        one.send_all(signal.SIGCONT)


def test_a_daemon_that_gets_little_cpu(backends: list[Backend], daemon: Make) -> None:
    """Fault 44: it is late, and does not take that for its backends' fault."""
    check = 'health = { path = "/healthz", interval = "200ms", timeout = "250ms", fall = 2 }\n'
    one = daemon(config_of(backends, check), workers=1).start()
    before = sum(each.checks for each in backends)
    with starved(one):
        until(lambda: sum(each.checks for each in backends) > before + 12, "some checks", 60)
    assert one.ask().status == 200
    assert "is unhealthy" not in one.log()
    assert "is ejected" not in one.log()


def test_a_key_that_may_not_be_read(tmp_path: Path, daemon: Make, plain: str) -> None:
    """Fault 47: the check says so before a reload does."""
    folder = tmp_path / "one"
    folder.mkdir()
    cert = trustme.CA().issue_cert("a.example")
    cert.cert_chain_pems[0].write_to_path(folder / "a.pem")
    cert.private_key_pem.write_to_path(folder / "a.key")
    (folder / "a.key").chmod(0)
    tls = 'tls = { cert = "a.pem", key = "a.key" }\n'
    one = daemon(plain.replace("[upstream", f"{tls}[upstream"))
    words = [sys.executable, "-m", "lb.cli", "check", "-c", str(one.path)]
    if not os.geteuid():  # Root reads all, unless it may no longer.
        rights = "-dac_override,-dac_read_search"
        words = [program("setpriv"), f"--bounding-set={rights}", f"--inh-caps={rights}", *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(words, capture_output=True, text=True, env=environ, check=False)
    assert said.returncode == 3, said.stderr
    assert "a.key" in said.stderr
    assert "may not read it" in said.stderr


def test_many_slow_downloads(tmp_path: Path, daemon: Make) -> None:
    """Fault 19, for 2,000: what clients do not take is not read, and so not held."""
    server = nginx(tmp_path / "nginx", "a")
    config = tmp_path / "nginx/nginx.conf"
    config.write_text(
        config.read_text().replace("worker_connections 2048", "worker_connections 8192")
    )
    with open(tmp_path / "nginx/files/big", "wb") as big:
        big.truncate(BODY)
    with serving(server), ExitStack() as stack:
        config_text = (
            '[listener.web]\naddress = "127.0.0.1:{port}"\n'
            f'[upstream.app]\nbackends = ["{server.address}"]\nretries = {{ attempts = 1 }}\n'
        )
        one = daemon(config_text, workers=1).start()
        (worker,) = one.workers()
        assert one.ask().text == "a"
        before = memory(worker)
        slow = []
        for number in range(DOWNLOADS):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(PATIENCE)
            sock.bind((f"127.0.0.{2 + number % 4}", 0))
            sock.connect(("127.0.0.1", one.port))
            sock.sendall(b"GET /files/big HTTP/1.1\r\nHost: a\r\n\r\n")
            slow.append(sock)
        assert {sock.recv(13) for sock in slow} == {b"HTTP/1.1 200 "}
        assert one.ask().text == "a"
        grown = memory(worker) - before
        assert grown / DOWNLOADS <= BYTES_A_DOWNLOAD_MAX, grown
        for sock in slow:
            sock.close()
        until(lambda: descriptors(worker) < DOWNLOADS / 2, "they are gone")
        assert one.ask().text == "a"


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def waiting_ends() -> int:
    """Connections that are over and whose ports are kept back."""
    lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()
    return sum(line.split()[3] == TIME_WAIT for line in lines[1:])


@pytest.mark.long
def test_thousands_of_connections_in_time_wait(tmp_path: Path) -> None:
    """They are the kernel's: ours is neither memory nor a descriptor, nor a port in the way."""
    in_namespace(lambda: with_ends_waiting(tmp_path))


def with_ends_waiting(folder: Path) -> None:
    backend = Backend("a")
    one = Daemon(folder, config_of([backend]).replace("[upstream", CLOSES + "[upstream"), workers=1)
    try:
        one.start()
        assert one.ask("/own").status == 204
        (worker,) = one.workers()
        open_before = descriptors(worker)
        before = memory(worker)
        script = folder / "close.lua"
        script.write_text('wrk.headers["Connection"] = "close"\nwrk.path = "/own"\n')
        while waiting_ends() < CLOSED:
            with pressed(one.port, seconds=1, script=script) as wrk:
                wrk.result()
        until(lambda: descriptors(worker) <= open_before + 2, "descriptors")
        assert memory(worker) - before < SPARE
        one.send(signal.SIGTERM)
        assert one.wait() == 0
        assert waiting_ends() > CLOSED / 2
        one.start()
        assert one.ask("/own").status == 204
    finally:
        one.end()
        backend.close()
