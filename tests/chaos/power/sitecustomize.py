"""
A disk that may lie, for processes that are started with this folder on their PYTHONPATH.

What was written and is not yet synced can be taken back, as a power cut would: each `os.pwrite`
first notes in an undo file what was there, and a sync that does its work throws the notes away.
While the file named by LB_POWER_LIES is there, syncs return at once and do nothing, so the notes
stay. `chaos.power` cuts the power: it kills, and then puts back what the notes say.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import Any

NOTES = os.environ.get("LB_POWER_NOTES", "")  # A folder, for one file of notes a process.
LIES = os.environ.get("LB_POWER_LIES", "")
RECORD = struct.Struct("!QIH")  # Offset, length of what was there, length of the file's name.

_write, _sync, _datasync = os.pwrite, os.fsync, os.fdatasync
_lock = threading.Lock()
_notes: dict[str, int] = {}


def _notes_of_this_process() -> int:
    name = f"{NOTES}/{os.getpid()}.undo"
    if name not in _notes:
        _notes[name] = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    return _notes[name]


def _pwrite(descriptor: int, data: Any, offset: int) -> int:
    path = os.readlink(f"/proc/self/fd/{descriptor}").encode()
    with open(path, "rb") as file:
        file.seek(offset)
        before = file.read(len(data))
    with _lock:
        record = RECORD.pack(offset, len(before), len(path)) + path + before
        os.write(_notes_of_this_process(), record)
    return _write(descriptor, data, offset)


def _synced(sync: Any) -> Any:
    def call(descriptor: int) -> None:
        if LIES and os.path.exists(LIES):
            return
        with _lock:  # Of several files, the last to sync clears all: each process has one log.
            sync(descriptor)
            os.ftruncate(_notes_of_this_process(), 0)

    return call


if NOTES:
    os.pwrite = _pwrite
    os.fsync = _synced(_sync)
    os.fdatasync = _synced(_datasync)
