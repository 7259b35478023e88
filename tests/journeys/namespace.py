"""
A network of a test's own: interfaces, settings and ports that nobody else has.

Linux gives one to a thread: sockets that it makes and processes that it starts are in there,
and the other threads of the same process stay where they are.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
SET_FLAGS = 0x8914  # SIOCSIFFLAGS of sockios.h
UP = 0x1
SETTINGS = Path("/proc/sys/net")


def in_namespace(test: Callable[[], T]) -> T:
    """Run a test in a network that has nothing but a loopback interface."""
    if os.geteuid():
        pytest.skip("a network namespace is root's to make")

    def run() -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        with socket.socket() as sock:
            fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
        return test()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def set_port_range(first: int, last: int) -> None:
    """Leave these ports for connections that do not say theirs."""
    (SETTINGS / "ipv4/ip_local_port_range").write_text(f"{first} {last}")
