"""
The parser of configurations, a process of its own: `python -m lb.config.parse`.

It is told of a file by a line on stdin, JSON, and answers on stdout with a line that says how
many bytes come, and so many of JSON. A megabyte of TOML takes its time, and plugins' code may do
anything, so each file is read by a fork that ends with it; what all of them need has been
imported before, which is most of the work.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, NoReturn

from lb.build import build_on_disk
from lb.config.load import ConfigErrors, Loaded, load
from lb.config.schema import Config
from lb.config.secrets import REVEALED

PARSE_SECONDS_MAX = 30.0
PATIENCE = 10.0  # Seconds for a certificate and a key to match that are being replaced.
OUTPUT_BYTES_MAX = 64 * 1024 * 1024  # 1 MiB of plain addresses becomes some 20 MiB.
SAID_BYTES_MAX = 64 * 1024
STDOUT, STDERR = 1, 2


def main() -> int:
    """Answer until stdin ends."""
    gc.freeze()  # Forks share these pages for as long as no collection writes to them.
    while line := sys.stdin.buffer.readline():
        answer = answer_of(json.loads(line))
        sys.stdout.buffer.write(b"%d\n%s" % (len(answer), answer))
        sys.stdout.buffer.flush()
    return 0


def answer_of(path: str) -> bytes:
    """Have a fork read the file; return its answer, or which last words it died with."""
    with (
        open(os.memfd_create("answer"), "w+b") as answer,
        open(os.memfd_create("said"), "w+b") as said,
    ):
        child = os.fork()
        if child == 0:
            _answer_and_end(path, answer.fileno(), said.fileno())
        _, status = os.waitpid(child, 0)
        if status == 0:
            answer.seek(0)
            return answer.read(OUTPUT_BYTES_MAX)
        said.seek(0)
        words = said.read(SAID_BYTES_MAX).decode(errors="replace").strip()
    return json.dumps({"build": build_on_disk(), "died": words or ended_by(status)}).encode()


def ended_by(status: int) -> str:
    """Say in words with which wait status a process ended."""
    code = os.waitstatus_to_exitcode(status)
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def parsed(path: str) -> dict[str, Any]:
    """Return a `Loaded`, or the errors, as JSON has it, and what program would read it anew."""
    build = {"build": build_on_disk()}
    try:
        return build | loaded_to_plain(load(path, os.environ, PATIENCE))
    except ConfigErrors as errors:
        return build | errors.as_plain()


def loaded_to_plain(loaded: Loaded) -> dict[str, Any]:
    """For JSON, secrets included; see `loaded_from_plain`."""
    return {
        "config": loaded.config.model_dump(mode="json", context=REVEALED),
        "files": list(loaded.files),
        "digest": loaded.digest,
        "warnings": list(loaded.warnings),
    }


def loaded_from_plain(plain: dict[str, Any]) -> Loaded:
    """Undo `loaded_to_plain`."""
    return Loaded(
        config=Config.model_validate(plain["config"]),
        files=tuple(plain["files"]),
        digest=plain["digest"],
        warnings=tuple(plain["warnings"]),
    )


def _answer_and_end(path: str, answer: int, said: int) -> NoReturn:
    """Be the fork: nobody waits for it for longer, and what plugins print is not the answer."""
    status = 1
    try:
        signal.alarm(int(PARSE_SECONDS_MAX) + 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX))
        os.dup2(said, STDOUT)
        os.dup2(said, STDERR)
        plain = json.dumps(parsed(path)).encode()
        with open(answer, "wb", closefd=False) as file:
            file.write(plain)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
