"""The daemon's own log: what happens to it, in text for people or in JSON, one line at a time.

Each process writes for itself, through `outlet`, so that a reader of the log who has stopped
or gone never holds up a request. Nothing is logged per request; that is the access log's.
What came from outside cannot forge a line: control characters are escaped, and the lines of
a traceback are indented behind a bar.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence

import orjson

from lb.errors import OperatorError
from lb.outlet import Outlet

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
FORMATS = ("text", "json")
CUTS = (2_000, 500, 100)  # What is left of message and traceback where a line must be short.
CONTROL = re.compile(
    r"[^ -~\u00a1-\U0010ffff]|[\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


class DaemonLog(logging.Handler):
    """
    Writes the records of one process, named in each line, to one outlet.

    Until the configuration is known it writes text to the standard error, from `info` up.
    """

    def __init__(self, process: str, output: str = "stderr", style: str = "text") -> None:
        super().__init__()
        self._process = process
        self._style = style
        self._outlet = Outlet(output)
        self._lost_told = 0

    def use(self, output: str, style: str) -> str:
        """Go on elsewhere, or in another form. Returns why it stays where it is, or nothing."""
        if style not in FORMATS:
            raise OperatorError(f'log.format: "{style}" is not one of {", ".join(FORMATS)}')
        assert self.lock is not None
        with self.lock:
            self._style = style
            if output == self._outlet.target:
                return ""
            fresh = Outlet(output)
            if fresh.problem:
                return f"log {output}: {fresh.problem}; still logging to {self._outlet.target}"
            self._outlet.close(wait=0.0)
            self._outlet, self._lost_told = fresh, 0
            return ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what was lost before is told first."""
        lines = self._lines(record)
        lost = self._outlet.lost - self._lost_told
        if lost and not self._outlet.problem:
            self._lost_told += lost
            notice = logging.makeLogRecord(
                {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            )
            notice.msg = f"{lost} lines of this log could not be written"
            lines = [*self._lines(notice), *lines]
        self._outlet.write(lines)

    def reopen(self) -> None:
        """Go on in a new file of the same name, after somebody moved the old one."""
        assert self.lock is not None
        with self.lock:
            self._lost_told -= self._outlet.lost
            self._outlet.reopen()
            self._lost_told += self._outlet.lost

    def close(self) -> None:
        """Write what waits, and let go."""
        self._outlet.close()
        super().close()

    def _lines(self, record: logging.LogRecord) -> list[bytes]:
        message, traceback = _message(record), _traceback(record)
        longest = self._outlet.line_max
        if self._style == "text":
            return [_shortened(line, longest) for line in self._text(record, message, traceback)]
        line = self._json(record, message, traceback)
        for cut in CUTS:
            if longest is None or len(line) <= longest:
                break
            # The end of a traceback says what went wrong, the start of a message does.
            line = self._json(record, message[:cut] + "...", traceback[-cut:])
        return [line]

    def _text(self, record: logging.LogRecord, message: str, traceback: str) -> Sequence[str]:
        level = record.levelname.lower()
        head = (
            f"{_iso(record.created)} {level} {self._process}[{os.getpid()}]: {printable(message)}"
        )
        return [head, *(f"    | {printable(line)}" for line in traceback.splitlines())]

    def _json(self, record: logging.LogRecord, message: str, traceback: str) -> bytes:
        plain = {
            "ts": _iso(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": printable(message),
        }
        if traceback:
            plain["traceback"] = "\n".join(map(printable, traceback.splitlines()))
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)


def start(process: str) -> DaemonLog:
    """Make `process` log to the standard error, from `info` up, until `adopt` says otherwise."""
    root = logging.getLogger()
    for handler in _installed():
        root.removeHandler(handler)
        handler.close()
    handler = DaemonLog(process)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


def adopt(settings: Mapping[str, str]) -> None:
    """
    Log as `[log]` of the configuration says: `level`, `output`, `format`.

    An output that cannot be opened is said where the log went before, and it stays there.
    """
    level = LEVELS.get(settings["level"])
    if level is None:
        raise OperatorError(f'log.level: "{settings["level"]}" is not one of {", ".join(LEVELS)}')
    logging.getLogger().setLevel(level)
    for handler in _installed():
        trouble = handler.use(settings["output"], settings["format"])
        if trouble:
            logging.getLogger(__name__).error("%s", trouble)


def reopen() -> None:
    """Open the log file anew, after somebody moved it."""
    for handler in _installed():
        handler.reopen()


def printable(text: str) -> str:
    """Return `text` with all that could end a line or steer a terminal as an escape."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _installed() -> list[DaemonLog]:
    return [each for each in logging.getLogger().handlers if isinstance(each, DaemonLog)]


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # Words and values that do not fit together: our mistake.
        return f"{record.msg} {record.args!r}"


def _traceback(record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(_FORMATTER.formatException(record.exc_info))
    if record.stack_info:
        parts.append(_FORMATTER.formatStack(record.stack_info))
    return "\n".join(parts)


def _shortened(line: str, longest: int | None) -> bytes:
    data = line.encode("utf-8", "backslashreplace")
    if longest is not None and len(data) >= longest:
        data = data[: longest - 4].decode("utf-8", "ignore").encode() + b"..."
    return data + b"\n"


def _iso(created: float) -> str:
    second = int(created)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{whole}.{int((created - second) * 1e3):03}Z"


_FORMATTER = logging.Formatter()
