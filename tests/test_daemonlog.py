"""The daemon's own log: its lines, and that nothing from outside can forge or block one."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from select import PIPE_BUF

import pytest

from lb import daemonlog, outlet
from lb.daemonlog import DaemonLog
from lb.errors import OperatorError

log = logging.getLogger("lb.test")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Path]:
    """Start the log of a process, into a file; root logger as before afterwards."""
    root = logging.getLogger()
    level = root.level
    handler = daemonlog.start("worker 1")
    path = tmp_path / "daemon.log"
    daemonlog.adopt({"level": "info", "output": str(path), "format": "text"})
    yield path
    root.removeHandler(handler)
    handler.close()
    root.setLevel(level)


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("lb.test", logging.INFO, __file__, 1, message, values, None)


def as_json(path: Path) -> None:
    daemonlog.adopt({"level": "info", "output": str(path), "format": "json"})


def test_a_line_of_text(started: Path) -> None:
    log.warning("listener %s is gone", "web")
    log.debug("not shown")
    pattern = (
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning worker 1\[%d\]: listener web is gone\n"
    )
    assert re.fullmatch(pattern % os.getpid(), started.read_text())


def test_a_line_of_json(started: Path) -> None:
    as_json(started)
    log.error("no %s", "disk")
    line = json.loads(started.read_text())
    assert list(line) == ["ts", "level", "process", "pid", "logger", "message"]
    assert (line["level"], line["process"], line["logger"]) == ("error", "worker 1", "lb.test")
    assert line["message"] == "no disk"


def test_the_level_follows_the_configuration(started: Path) -> None:
    daemonlog.adopt({"level": "debug", "output": str(started), "format": "text"})
    log.debug("now shown")
    daemonlog.adopt({"level": "error", "output": str(started), "format": "text"})
    log.warning("not shown")
    assert [line.split(": ")[1] for line in started.read_text().splitlines()] == ["now shown"]


def fail() -> None:
    log.info("before")
    try:
        raise ValueError("bad\n2025-01-01T00:00:00.000Z error forged")
    except ValueError:
        log.exception("it failed")


def test_a_traceback_in_text_stands_behind_a_bar(started: Path) -> None:
    fail()
    _, second, *trace = started.read_text().splitlines()
    assert second.endswith(f"error worker 1[{os.getpid()}]: it failed")
    assert trace[0] == "    | Traceback (most recent call last):"
    assert "    | 2025-01-01T00:00:00.000Z error forged" in trace
    assert all(line.startswith("    | ") for line in trace)


def test_a_traceback_in_json_is_a_field(started: Path) -> None:
    as_json(started)
    fail()
    _, line = map(json.loads, started.read_text().splitlines())
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: bad\n" in line["traceback"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e9 \u4e2d", "plain \u00e9 \u4e2d"),
        ("a\r\nb\tc\0", "a\\r\\nb\\tc\\x00"),
        ("\x1b[2J\x7f\x9b", "\\x1b[2J\\x7f\\x9b"),
        ("\u202eevil\u2028\ud800", "\\u202eevil\\u2028\\ud800"),
    ],
)
@pytest.mark.parametrize("style", ["text", "json"])
def test_nobody_forges_a_line(started: Path, text: str, shown: str, style: str) -> None:
    daemonlog.adopt({"level": "info", "output": str(started), "format": style})
    log.info("%s", text)
    (line,) = started.read_text().splitlines()
    assert (json.loads(line)["message"] if style == "json" else line.partition("]: ")[2]) == shown


def test_words_and_values_that_do_not_fit_are_logged_all_the_same(tmp_path: Path) -> None:
    handler = DaemonLog("worker 1", str(tmp_path / "log"))
    handler.handle(record("%d backends", "three"))
    handler.close()
    assert "%d backends ('three',)" in (tmp_path / "log").read_text()


def test_reopen_after_a_rotation(started: Path) -> None:
    log.info("one")
    started.rename(started.with_suffix(".1"))
    daemonlog.reopen()
    log.info("two")
    assert "one" in started.with_suffix(".1").read_text()
    assert "two" in started.read_text()


def test_an_output_that_cannot_be_opened_is_said_where_the_log_went_before(started: Path) -> None:
    nowhere = str(started.parent / "no" / "such.log")
    daemonlog.adopt({"level": "info", "output": nowhere, "format": "text"})
    log.info("still here")
    first, second = started.read_text().splitlines()
    assert f"log {nowhere}: No such file or directory; still logging to {started}" in first
    assert second.endswith("still here")


def test_settings_that_make_no_sense_are_refused(started: Path) -> None:
    with pytest.raises(OperatorError, match=r'log\.level: "loud"'):
        daemonlog.adopt({"level": "loud", "output": "stderr", "format": "text"})
    with pytest.raises(OperatorError, match=r'log\.format: "xml"'):
        daemonlog.adopt({"level": "info", "output": str(started), "format": "xml"})


def test_starting_twice_leaves_one_handler(started: Path) -> None:
    handler = daemonlog.start("controller")
    assert [each for each in logging.getLogger().handlers if isinstance(each, DaemonLog)] == [
        handler
    ]
    logging.getLogger().removeHandler(handler)
    handler.close()


def test_a_stopped_reader_costs_lines_no_time_and_is_told_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlet, "QUEUE_PIECES_MAX", 4)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    handler = DaemonLog("worker 1", str(fifo))
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
    started = time.monotonic()
    for number in range(200):
        handler.handle(record(f"{number} " + "x" * 1_000))
    assert time.monotonic() - started < 5.0
    os.set_blocking(reader, True)
    received = bytearray()
    number = 200
    while b"could not be written" not in received:
        received += os.read(reader, 65_536)
        handler.handle(record(f"{number} resumed"))
        number += 1
        assert number < 1_000
    handler.close()
    os.close(reader)
    # One notice or more, for the reader may have been given a little room in between.
    told = sum(map(int, re.findall(rb"(\d+) lines of this log could not be written", received)))
    assert 0 < told <= number
    for line in received[: received.rindex(b"\n")].splitlines():
        assert re.match(rb"\d{4}-\d\d-\d\dT\S+Z (info|warning) worker 1\[\d+\]: \d+ ", line)


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_to_a_pipe_are_short(tmp_path: Path, style: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    handler = DaemonLog("worker 1", str(fifo), style)
    handler.handle(record("\x01\u4e2d" * 5_000))
    handler.close()
    line = os.read(reader, 65_536)
    os.close(reader)
    assert line.count(b"\n") == 1
    assert len(line) <= PIPE_BUF
    assert b"..." in line
    line.decode()


def test_a_full_disk_is_survived() -> None:
    handler = DaemonLog("worker 1", "/dev/full")
    handler.handle(record("one"))
    handler.handle(record("two"))
    handler.close()
