"""Bodies of any size go through in bounded memory, however slow either side is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from journeys.conftest import Make
from journeys.flows import HUGE, End, end_of
from journeys.kit import Daemon, ask, until

MEMORY_MAX = 8 * 1024 * 1024
ON_THE_WAY_MAX = 64 * 1024 * 1024  # In four socket buffers of the kernel, and in ours.
STILL_LOOKS = 15


def memory(pid: int, what: str) -> int:
    """Return a process's resident memory: now (VmRSS), or at its height (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_height(pid: int) -> None:
    """Let VmHWM begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def until_still(end: End) -> int:
    """Wait until an end cannot move anything more, for nobody takes it; return what it moved."""
    before, looks = -1, 0

    def still() -> bool:
        nonlocal before, looks
        moved = end.moved
        looks = looks + 1 if moved == before and moved else 0
        before = moved
        return looks > STILL_LOOKS

    until(still, "the sender is stopped by back-pressure")
    return before


def in_front_of(daemon: Make, port: int) -> Daemon:
    config = (
        '[listener.web]\naddress = "127.0.0.1:{port}"\nupstream = "app"\n'
        f'[upstream.app]\nbackends = ["127.0.0.1:{port}"]\n'
        '[route.warm]\npath = "/warm"\nrespond = { status = 204 }\n'
    )
    one = daemon(config, workers=1).start()
    for _ in range(50):
        assert ask(one.port, "/warm").status == 204
    return one


@pytest.mark.parametrize("how", ["length", "chunked"])
@pytest.mark.parametrize("kind", ["upload", "download"])
def test_a_huge_body_costs_little(daemon: Make, tmp_path: Path, kind: str, how: str) -> None:
    there, here = ("taker", "sender") if kind == "upload" else ("giver", "asker")
    with end_of(tmp_path, there, how) as backend:
        one = in_front_of(daemon, int(backend.hear()))
        [worker] = one.workers()
        before = memory(worker, "VmRSS")
        forget_height(worker)
        with end_of(tmp_path, here, how, one.port) as client:
            sending, taking = (client, backend) if kind == "upload" else (backend, client)
            assert until_still(sending) < ON_THE_WAY_MAX
            at_rest = memory(worker, "VmRSS")
            taking.go()
            assert client.hear() == "done"
            assert taking.moved >= HUGE
        height = memory(worker, "VmHWM")
    assert at_rest - before < MEMORY_MAX
    assert height - before < MEMORY_MAX
