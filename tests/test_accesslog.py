"""The access log: no fault of where it goes costs a request, nor more lines than it must."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb import outlet
from lb.logformat import Record
from lb.metrics import Meters, Reading, create_memory
from lb.model import AccessLog as Settings
from lb.outlet import Outlet, pack
from lb.proxy import accesslog
from lb.proxy.accesslog import AccessLog

HEAD = (
    b"GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nUser-Agent:  curl/8 \r\n"
    b"Referer: http://x/y?token=1\r\nX-Note: one\r\nx-note: two\r\n\r\n"
)


def record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "ended": 1764000000.1239,
        "request_id": b"5f1c9d",
        "listener": "web",
        "client": "192.0.2.7",
        "method": b"GET",
        "host": b"example.com",
        "target": b"/a?b=c",
        "minor": 1,
        "status": 200,
        "seconds": 0.0123456,
        "connect": None,
        "first_byte": 0.01,
        "bytes_in": 3,
        "bytes_out": 1024,
        "route": "api",
        "upstream": "app",
        "backend": "10.0.0.4:80",
        "tries": (("10.0.0.4:80", 0.011, "ok"),),
        "reused": True,
        "end": "ok",
        "head": HEAD,
        "scheme": b"http",
        "plugin": "",
    }
    assert fields.keys() >= changes.keys()
    values: Any = tuple((fields | changes).values())
    made: Record = values
    return made


@pytest.fixture
def meters() -> Iterator[Meters]:
    descriptor = create_memory()
    yield Meters(descriptor)
    os.close(descriptor)


def dropped(meters: Meters) -> int:
    return meters.view[meters.counter("lb_access_log_dropped_total", worker="1")]


def open_log(meters: Meters, output: str | Path, format_: str = "json") -> AccessLog:
    return AccessLog(Settings(output=str(output), format=format_), "a", 1, meters)


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    wait = threading.Event()
    while not true():
        assert time.monotonic() < deadline, what
        wait.wait(0.005)


# Where the lines go.


def test_a_file_gets_the_lines_at_a_flush(tmp_path: Path, meters: Meters) -> None:
    path = tmp_path / "access.log"
    log = open_log(meters, path)
    log.tick(10.0)
    for _ in range(3):
        log.append(record())
    log.tick(10.1)
    assert path.read_bytes() == b"", "not yet"
    log.tick(10.25)
    assert len(path.read_text().splitlines()) == 3
    assert log.records == []
    for _ in range(accesslog.FLUSH_LINES):
        assert not log.full()
        log.append(record())
    assert log.full()
    log.flush()
    log.close()
    assert len(path.read_text().splitlines()) == 3 + accesslog.FLUSH_LINES
    assert path.stat().st_mode & 0o777 == 0o640 & ~_umask()
    assert dropped(meters) == 0


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_off_writes_nothing(meters: Meters) -> None:
    log = open_log(meters, "off")
    assert not log.enabled
    log.append(record())
    log.tick(1.0)
    assert log.records == []
    log.reopen()
    log.close()


def test_reopen_after_a_rotation(tmp_path: Path, meters: Meters) -> None:
    path = tmp_path / "access.log"
    log = open_log(meters, path)
    log.append(record(request_id=b"first"))
    path.rename(tmp_path / "access.log.1")
    log.append(record(request_id=b"second"))
    log.reopen()
    log.append(record(request_id=b"third"))
    log.close()
    rotated = (tmp_path / "access.log.1").read_text()
    assert [json.loads(line)["id"] for line in rotated.splitlines()] == ["first", "second"]
    assert json.loads(path.read_text())["id"] == "third"


def test_other_settings_take_over_in_place(tmp_path: Path, meters: Meters) -> None:
    log = open_log(meters, tmp_path / "one")
    append, records = log.append, log.records
    append(record())
    log.configure(Settings(output=str(tmp_path / "two"), format="combined"), "b")
    assert log.records is records
    assert log.wants_head
    append(record())
    log.configure(Settings(output=str(tmp_path / "two"), format="{node}"), "b")
    append(record())
    log.configure(Settings(output="off"), "b")
    assert not log.enabled
    log.close()
    assert json.loads((tmp_path / "one").read_text())["node"] == "a"
    combined, template = (tmp_path / "two").read_text().splitlines()
    assert combined.startswith("192.0.2.7 - - ")
    assert template == "b"


def test_a_path_that_cannot_be_opened_is_tried_again(
    tmp_path: Path, meters: Meters, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "later" / "access.log"
    log = open_log(meters, path)
    log.append(record())
    log.tick(1.0)
    assert dropped(meters) == 1
    assert "No such file or directory; lines are lost" in caplog.text
    path.parent.mkdir()
    log.append(record())
    log.tick(2.0)
    log.tick(90.0)
    log.close()
    assert len(path.read_text().splitlines()) == 1
    assert dropped(meters) == 1
    assert "is written again" in caplog.text


def test_dev_full_costs_lines_and_nothing_else(
    meters: Meters, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(meters, "/dev/full")
    for now in range(1, 11):
        log.append(record())
        log.tick(float(now))
    log.close()
    assert dropped(meters) == 10
    assert caplog.text.count("No space left on device") == 1, "said once, not at each flush"


def test_a_disk_that_fills_up_tears_one_line_and_logging_resumes(
    tmp_path: Path, meters: Meters
) -> None:
    """A file size limit stands in for the full disk: the kernel writes what fits, then none."""
    path = tmp_path / "access.log"
    log = open_log(meters, path, "{id} {client} {status}")
    log.append(record(request_id=b"a" * 40))
    log.flush()
    full_line = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full_line * 2 + 10, before[1]))
    try:
        for letter in (b"b", b"c", b"d"):  # One flush: b fits, c is torn, d is gone.
            log.append(record(request_id=letter * 40))
        log.tick(1.0)
        log.append(record(request_id=b"e" * 40))
        log.tick(2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert dropped(meters) == 3
    log.append(record(request_id=b"f" * 40))
    log.append(record(request_id=b"g" * 40))
    log.tick(3.0)
    log.close()

    lines = path.read_text().splitlines()
    assert [line[0] for line in lines] == ["a", "b", "c", "f", "g"]
    assert lines[2] == "c" * 10
    assert all(line.endswith(" 200") for line in lines if line[0] != "c")
    assert dropped(meters) == 3


def test_many_writers_to_one_file_never_mix_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    def run(letter: bytes) -> None:
        target = Outlet(str(path))
        for _ in range(50):
            target.write([letter * 900 + b"\n"] * 20)
        target.close()

    threads = [threading.Thread(target=run, args=(letter,)) for letter in (b"x", b"y", b"z")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3_000
    assert all(len(line) == 900 and len(set(line)) == 1 for line in lines)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def read_available(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_pipe_gets_whole_lines_in_small_writes(fifo: Path, meters: Meters) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(meters, fifo)
    for number in range(100):
        log.append(record(request_id=b"%d" % number))
    log.close()
    lines = read_available(reader).splitlines()
    os.close(reader)
    assert [json.loads(line)["id"] for line in lines] == [str(n) for n in range(100)]
    assert dropped(meters) == 0


def test_long_fields_are_cut_for_a_pipe_and_not_for_a_file(
    tmp_path: Path, fifo: Path, meters: Meters
) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    long = [
        record(target=b"/" + b"p" * 9_000 + b"?" + b"q" * 9_000, host=b"h" * 5_000),
        record(target=b"\x01" * 30_000, method=b"\xff" * 900, tries=(("k" * 250, 0.1, "x"),) * 30),
    ]
    for output in (fifo, tmp_path / "file"):
        log = open_log(meters, output)
        log.records.extend(long)
        log.close()
    lines = read_available(reader).splitlines(keepends=True)
    os.close(reader)
    assert len(lines) == 2
    assert all(len(line) <= PIPE_BUF for line in lines)
    first, second = map(json.loads, lines)
    assert first["path"] == "/" + "p" * 511 + "..."
    assert first["query"] == "q" * 512 + "..."
    assert second["path"].endswith("...")
    assert second["end"] == "ok"
    whole = [json.loads(line) for line in (tmp_path / "file").read_text().splitlines()]
    assert len(whole[0]["path"]) == 9_001
    assert len(whole[1]["tries"]) == 30
    assert dropped(meters) == 0


def test_a_long_line_of_a_template_is_cut_too(fifo: Path, meters: Meters) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(meters, fifo, "{method} {header:cookie} {status}")
    log.append(record(head=b"GET /\r\nCookie: " + b"\x01c" * 8_000 + b"\r\n\r\n"))
    log.close()
    line = read_available(reader)
    os.close(reader)
    assert len(line) <= PIPE_BUF
    assert line.startswith(b"GET \\x01c")
    assert line.endswith(b"... 200\n")


def test_a_fifo_without_a_reader_is_tried_again(fifo: Path, meters: Meters) -> None:
    log = open_log(meters, fifo)
    log.append(record())
    log.tick(1.0)
    assert dropped(meters) == 1
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log.append(record())
    log.tick(2.0)
    log.close()
    assert read_available(reader).count(b"\n") == 1
    os.close(reader)
    assert dropped(meters) == 1


def test_a_reader_that_stops_costs_lines_and_no_time(
    fifo: Path, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "QUEUE_PIECES_MAX", 4)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(meters, fifo)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
    started = time.monotonic()
    for now in range(1, 101):
        log.records.extend([record()] * 100)
        log.tick(float(now))
    assert time.monotonic() - started < 5.0
    lost = dropped(meters)
    assert 9_000 < lost < 10_000

    # It reads again: what waited comes whole, and so does what is logged now.
    received = bytearray()

    def caught_up() -> bool:
        received.extend(read_available(reader))
        return received.count(b"\n") == 10_000 - lost

    wait_until(caught_up, "what was queued arrives")
    log.append(record(request_id=b"resumed"))
    log.flush()
    log.close()
    received.extend(read_available(reader))
    assert b"resumed" in received
    os.close(reader)
    for line in received.splitlines():
        assert json.loads(line)["end"] == "ok"
    assert dropped(meters) == lost


def test_a_reader_that_has_gone_costs_lines_until_another_comes(fifo: Path, meters: Meters) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = open_log(meters, fifo)
    log.append(record())
    log.tick(1.0)
    wait_until(lambda: read_available(reader), "the line arrives")
    os.close(reader)
    log.append(record())
    log.tick(2.0)
    now = iter(range(3, 10_000))

    def counted() -> bool:
        log.tick(float(next(now)))
        return dropped(meters) == 1

    wait_until(counted, "the line is counted as lost")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log.append(record())
    log.close()
    assert read_available(reader).count(b"\n") == 1
    os.close(reader)


def test_closing_does_not_wait_for_a_reader_that_stopped(
    fifo: Path, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "CLOSE_SECONDS", 0.1)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    target = Outlet(str(fifo))
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
    target.write([b"x" * 1_000 + b"\n"] * 100)
    started = time.monotonic()
    target.close(wait=0.1)
    assert time.monotonic() - started < 1.0
    os.close(reader)  # The thread's write fails, and it ends.


def inherit(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
    """Let `descriptor` stand for the standard output."""
    monkeypatch.setitem(outlet.INHERITED, "stdout", descriptor)


def test_stdout_that_is_a_socket_stays_blocking_and_open(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inherit(monkeypatch, ours.fileno())
        log = open_log(meters, "stdout")
        flags = fcntl.fcntl(ours.fileno(), fcntl.F_GETFL)
        log.append(record())
        log.reopen()
        log.append(record())
        log.close()
        assert not flags & os.O_NONBLOCK
        assert theirs.recv(1 << 16).count(b"\n") == 2
        ours.send(b"still open")


def test_stdout_that_somebody_made_non_blocking_is_waited_for(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    os.set_blocking(writer, False)
    inherit(monkeypatch, writer)
    log = open_log(meters, "stdout")
    log.records.extend([record()] * 50)
    log.flush()
    received = bytearray()
    while received.count(b"\n") < 50:
        received += os.read(reader, 4_096)
    log.close()
    os.close(reader)
    os.close(writer)
    assert dropped(meters) == 0


def test_a_terminal_gets_lines_from_the_thread(
    meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    inherit(monkeypatch, slave)
    log = open_log(meters, "stdout")
    log.append(record())
    log.close()
    assert b'"end":"ok"' in os.read(master, 1 << 16)
    os.close(master)
    os.close(slave)


def test_stdout_that_is_a_file_is_written_in_one_go(
    tmp_path: Path, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("wb") as file:
        inherit(monkeypatch, file.fileno())
        log = open_log(meters, "stdout")
        log.append(record(target=b"/" + b"x" * 10_000))
        log.close()
    assert len((tmp_path / "out").read_bytes()) > 10_000


@given(st.lists(st.integers(1, 9_000), max_size=30))
def test_pieces_hold_whole_lines_and_are_small(sizes: list[int]) -> None:
    lines = [b"x" * (size - 1) + b"\n" for size in sizes]
    pieces = list(pack(lines))
    assert b"".join(piece for piece, _ in pieces) == b"".join(lines)
    assert sum(count for _, count in pieces) == len(lines)
    for piece, count in pieces:
        assert piece.count(b"\n") == count
        assert len(piece) <= PIPE_BUF or count == 1


def test_lost_lines_show_in_the_metrics() -> None:
    descriptor = create_memory()
    log = open_log(Meters(descriptor), "/dev/full")
    log.append(record())
    log.close()
    total = Reading([descriptor]).total("lb_access_log_dropped_total", worker="1")
    os.close(descriptor)
    assert total == 1


def test_our_own_mistake_does_not_come_back_at_every_flush(tmp_path: Path, meters: Meters) -> None:
    log = open_log(meters, tmp_path / "log")
    broken: Any = ("no record",)
    log.append(broken)
    with pytest.raises(IndexError):
        log.flush()
    log.append(record())
    log.close()
    assert (tmp_path / "log").read_text().count("\n") == 1
