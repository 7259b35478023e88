"""
Parsing in a child process: `python -m lb.config.parse FILE` prints one JSON object.

A megabyte of TOML takes its time. The controller has leases, probes and a group to attend to
meanwhile, so it starts this, reads the result and does not wait in between.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import Any

from lb.build import BUILD
from lb.config.load import ConfigErrors, Loaded, load
from lb.config.schema import Config
from lb.config.secrets import REVEALED
from lb.errors import OperatorError, OurError

PARSE_SECONDS_MAX = 30.0
# A reload may take a moment longer where workers need the CPU for those they serve. Measured on
# two cores, by turns, the median of what was asked during a reload: 2.1 ms as it is, 1.4 with 5,
# 1.2 with 10. Its p99 shows nothing that neighbours do not hide. On a machine that is full a
# reload takes 3.6 s, 4.4 and 6.7.
NICER = 5
PATIENCE = 10.0  # Seconds for a certificate and a key to match that are being replaced.
OUTPUT_BYTES_MAX = 64 * 1024 * 1024  # 1 MiB of plain addresses becomes some 20 MiB.
STDERR_BYTES_MAX = 64 * 1024


async def parse_in_child(path: str) -> Loaded:
    """Load a configuration without stopping this process. Raises what `load` raises."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lb.config.parse", path), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    with suppress(ProcessLookupError):  # Done already.
        os.setpriority(os.PRIO_PROCESS, child.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICER)
    try:
        async with asyncio.timeout(PARSE_SECONDS_MAX):
            out, err = await _outcome(child)
    except TimeoutError:
        raise OperatorError(
            f"{path} was not parsed within {PARSE_SECONDS_MAX:.0f} s", "make it simpler"
        ) from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _loaded(out, err.decode(errors="replace").strip())


def main(arguments: list[str]) -> int:
    """Print a `Loaded`, or the errors, as JSON; the exit status is that of `lb check`."""
    (path,) = arguments
    plain: dict[str, Any]
    try:
        loaded = load(path, os.environ, PATIENCE)
    except ConfigErrors as errors:
        plain, status = errors.as_plain(), errors.exit_status
    else:
        plain, status = loaded_to_plain(loaded), 0
    json.dump({"build": BUILD, **plain}, sys.stdout)
    return status


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


async def _outcome(child: Process) -> tuple[bytes, bytes]:
    assert child.stdout is not None
    assert child.stderr is not None
    out, err = await asyncio.gather(
        _read(child.stdout, OUTPUT_BYTES_MAX), _read(child.stderr, STDERR_BYTES_MAX)
    )
    await child.wait()
    return out, err


async def _read(stream: asyncio.StreamReader, maximum: int) -> bytes:
    """Read to the end; past the bound read on, so that the child can end, and keep nothing."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece[: maximum - len(kept)]
    return bytes(kept)


def _loaded(out: bytes, err: str) -> Loaded:
    try:
        plain = json.loads(out)
    except ValueError:
        raise OurError(
            f"the parser of the configuration died: {err[-500:] or 'silently'}"
        ) from None
    if plain["build"] != BUILD:
        raise OperatorError(
            "the lb on disk is not the one that runs", "run the new one with `lb upgrade`"
        )
    if "errors" in plain:
        raise ConfigErrors.from_plain(plain)
    return loaded_from_plain(plain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
