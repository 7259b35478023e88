"""
The parser of configurations, a process of its own.

It is told of a file by a line, JSON, and answers with a line that says how many bytes come, and
so many of JSON. A megabyte of TOML takes its time, and plugins' code may do anything, so each
file is read by a fork that ends with it; what all of them need has been imported before, which
is most of the work. For the same reason the first parser of a controller is a fork of it, made
before it is more than this: see `forked`. Each later one is `python -m lb.config.parse`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import traceback
from contextlib import suppress
from typing import IO, Any, NoReturn

from lb.build import build_on_disk
from lb.config.load import ConfigErrors, Loaded, load
from lb.config.schema import Config
from lb.config.secrets import REVEALED

PARSE_SECONDS_MAX = 30.0
PATIENCE = 10.0  # Seconds for a certificate and a key to match that are being replaced.
OUTPUT_BYTES_MAX = 64 * 1024 * 1024  # 1 MiB of plain addresses becomes some 20 MiB.
SAID_BYTES_MAX = 64 * 1024
STDOUT, STDERR = 1, 2


class Forked:
    """A parser that is a fork of this process, with what `subprocess.Popen` has."""

    stderr: IO[bytes] | None = None  # Ours: it has nothing to say there.

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._ended = False

    def poll(self) -> object:
        """Return None while it runs."""
        if not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._ended or None

    def kill(self) -> None:
        """End it now."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for its end."""
        if not self._ended:
            os.waitpid(self.pid, 0)
            self._ended = True


def forked() -> Forked:
    """Make a parser of this process, which may have no threads and no loop yet."""
    (asked, ask), (answers, answer) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal's, for the supervisor.
            with open("/proc/self/comm", "w") as name:
                name.write("lb-parser")
            _keep_only(STDERR, asked, answer)
            with open(asked, "rb") as questions, open(answer, "wb") as to:
                serve(questions, to)
            status = 0
        except BrokenPipeError:
            pass  # Whoever asked is gone.
        finally:
            os._exit(status)
    os.close(asked)
    os.close(answer)
    return Forked(pid, open(ask, "wb", buffering=0), open(answers, "rb", buffering=0))


def ask(stdin: IO[bytes], path: str) -> None:
    """Have a parser read a file. A pipe takes the longest name, so this does not wait."""
    stdin.write(json.dumps(path).encode() + b"\n")
    stdin.flush()


def _keep_only(*kept: int) -> None:
    """Close all descriptors but these: who waits for an end of one would wait for ours."""
    for fd in (int(name) for name in os.listdir("/proc/self/fd")):
        if fd not in kept:
            with suppress(OSError):  # The listing's own.
                os.close(fd)


def main() -> int:
    """Answer what stdin asks."""
    serve(sys.stdin.buffer, sys.stdout.buffer)
    return 0


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until there are no more questions."""
    gc.freeze()  # Forks share these pages for as long as no collection writes to them.
    while line := questions.readline():
        answer = answer_of(json.loads(line))
        answers.write(b"%d\n%s" % (len(answer), answer))
        answers.flush()


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
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        most = OUTPUT_BYTES_MAX if hard == resource.RLIM_INFINITY else min(hard, OUTPUT_BYTES_MAX)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
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
