"""What one line of the access log looks like: JSON, combined, or a template.

Pure: records in, lines out. A record is a plain tuple that the data path fills in passing;
all work is left for later, a batch at a time. What a client sent is shown in ASCII, and
nothing in it can end a line or a field, whatever the format: see `Format`.

A template is text with fields in braces, such as

    {client} "{method} {path}" {status} {ms} {header:user-agent}

The fields are those of the JSON form, `time` (as in combined), `target` (path and query as
sent), `user_agent`, `referer` and `header:NAME`. `{{` and `}}` stand for braces. What is
empty or missing shows as `-`. A field can hold spaces: quote those that may.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from string import Formatter
from typing import Any, Protocol

import orjson

from lb.errors import OperatorError
from lb.model import AccessLog

Record = tuple[
    float,  # ended, seconds since 1970
    bytes,  # request id
    str,  # listener
    str,  # client
    bytes,  # method
    bytes,  # host
    bytes,  # target
    int,  # HTTP/1.this
    int,  # status
    float,  # seconds
    float | None,  # seconds to connect
    float | None,  # seconds to the backend's first byte
    int,  # bytes in
    int,  # bytes out
    str,  # route
    str,  # upstream
    str,  # backend
    tuple[tuple[str, float, str], ...],  # tries: backend, seconds, end
    bool,  # reused
    str,  # end
    bytes,  # the client's header fields, or nothing
    bytes,  # http or https
    str,  # the plugin that answered
]

HIDDEN = b"***"
CUTS = (512, 128, 32)  # What is left of a client's long fields, where a line must be short.
CUT_TRIES_MAX = 4
FRAGMENTS_MAX = 16_384  # Remembered pieces of lines: combinations of names in the configuration.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
UNSAFE = re.compile(rb"[^ !#-\[\]-~]")  # All but printable ASCII, and of that `"` and `\`.


class Format(Protocol):
    """
    Records to lines. Each line ends with the only newline in it.

    Bytes that are not ASCII show as `\\xNN`: they may be of no or a misleading encoding, and
    some steer terminals. JSON escapes the rest by its own rules; in the other forms control
    characters, quotes and backslashes show as `\\xNN` too.
    """

    @property
    def wants_head(self) -> bool:
        """Tell whether records should carry the client's head."""

    def lines(self, records: Sequence[Record]) -> list[bytes]:
        """Return one line for each record."""

    def short_line(self, record: Record, longest: int) -> bytes:
        """Return a line with the client's long fields cut, so that it is not over `longest`."""


def make_format(settings: AccessLog, node: str, worker: int) -> Format:
    """Return the format that `access_log.format` asks for."""
    redaction = Redaction(settings.redact)
    match settings.format:
        case "json":
            return JsonFormat(redaction, node, worker)
        case "combined":
            return TextFormat(COMBINED, redaction, node, worker)
        case template:
            return TextFormat(template, redaction, node, worker)


class Redaction:
    """What must not show: the `query`, and headers by name."""

    def __init__(self, redact: Sequence[str]) -> None:
        names = {name.lower() for name in redact}
        self.query = "query" in names
        self.headers = frozenset(names - {"query"})

    def target(self, target: bytes) -> tuple[bytes, bytes]:
        """Return path and query."""
        path, _, query = target.partition(b"?")
        return path, HIDDEN if query and self.query else query

    def header(self, name: str, value: bytes) -> bytes:
        """Return a header's value. A Referer carries the query of the page before."""
        if value and name in self.headers:
            return HIDDEN
        if name == "referer" and self.query:
            path, mark, _ = value.partition(b"?")
            return path + mark + HIDDEN if mark else path
        return value


class JsonFormat:
    """One JSON object a line, its fields in a fixed order."""

    wants_head = False

    def __init__(self, redaction: Redaction, node: str, worker: int) -> None:
        self._redaction = redaction
        self._node = node
        self._worker = worker
        self._origins: dict[str, bytes] = {}
        self._places: dict[tuple[str, str, str, str], bytes] = {}
        self._ends: dict[tuple[str, bool, str], bytes] = {}

    def lines(self, records: Sequence[Record]) -> list[bytes]:
        """Return one line for each record."""
        if _needs_escapes(records):
            return [self._careful_line(record) for record in records]
        return self._quick_lines(records)

    def short_line(self, record: Record, longest: int) -> bytes:
        """Return a line with the client's long fields cut, so that it is not over `longest`."""
        return _shorten(self._careful_line, record, longest)

    def _quick_lines(self, records: Sequence[Record]) -> list[bytes]:
        """
        Return the lines of records in which nothing that a client sent needs an escape.

        Names from the configuration are escaped once and remembered. Written out at length,
        for this runs for every request: a call costs as much as four fields.
        """
        if len(self._places) > FRAGMENTS_MAX:
            self._places.clear()
        lines = []
        second, second_text = -1, b""
        hides_query = self._redaction.query
        for record in records:
            (
                ended, request_id, listener, client, method, host, target, minor, status, seconds,
                connect, first_byte, bytes_in, bytes_out, route, upstream, backend, tries, reused,
                end, _, scheme, plugin,
            ) = record  # fmt: skip
            if len(tries) != 1 or plugin:
                lines.append(self._careful_line(record))
                continue
            if not 0 <= ended - second < 1:
                second = int(ended)
                second_text = _iso_second(second).encode()
            path, _, query = target.partition(b"?")
            ((tried, tried_seconds, tried_end),) = tries
            place = route, upstream, backend, tried
            ending = tried_end, reused, end
            lines.append(
                QUICK_LINE
                % (
                    second_text,
                    (ended - second) * 1e3,
                    request_id,
                    self._origins.get(listener) or self._lay_out_origin(listener),
                    client.encode(),
                    method,
                    scheme,
                    host,
                    path,
                    HIDDEN if hides_query and query else query,
                    minor,
                    status,
                    seconds * 1e3,
                    b"null" if connect is None else b"%.3f" % (connect * 1e3),
                    b"null" if first_byte is None else b"%.3f" % (first_byte * 1e3),
                    bytes_in,
                    bytes_out,
                    self._places.get(place) or self._lay_out_place(place),
                    tried_seconds * 1e3,
                    self._ends.get(ending) or self._lay_out_end(ending),
                )
            )
        return lines

    def _lay_out_origin(self, listener: str) -> bytes:
        plain = {"node": self._node, "worker": self._worker, "listener": listener}
        origin = self._origins[listener] = orjson.dumps(plain)[1:-1]
        return origin

    def _lay_out_place(self, names: tuple[str, str, str, str]) -> bytes:
        route, upstream, backend, tried = names
        plain = {"route": route, "upstream": upstream, "backend": backend}
        tries = b',"tries":[{"backend":%b,"ms":' % orjson.dumps(tried)
        place = self._places[names] = orjson.dumps(plain)[1:-1] + tries
        return place

    def _lay_out_end(self, words: tuple[str, bool, str]) -> bytes:
        tried_end, reused, end = words
        rest = orjson.dumps({"reused": reused, "end": end})[1:]
        ending = self._ends[words] = b',"end":%b}],%b\n' % (orjson.dumps(tried_end), rest)
        return ending

    def _careful_line(self, record: Record) -> bytes:
        plain = {name: FIELDS[name](record) for name in JSON_FIELDS}
        plain["node"], plain["worker"] = self._node, self._worker
        if record[22]:
            plain["plugin"] = record[22]
        if plain["query"] and self._redaction.query:
            plain["query"] = HIDDEN.decode()
        return orjson.dumps(plain, option=orjson.OPT_APPEND_NEWLINE)


QUICK_LINE = (
    b'{"ts":"%b%03dZ","id":"%b",%b,"client":"%b","method":"%b","scheme":"%b","host":"%b",'
    b'"path":"%b","query":"%b","proto":"HTTP/1.%d","status":%d,"ms":%.3f,"connect_ms":%b,'
    b'"first_byte_ms":%b,"bytes_in":%d,"bytes_out":%d,%b%.3f%b'
)


class TextFormat:
    """A template filled in; `combined` is one of them."""

    def __init__(self, template: str, redaction: Redaction, node: str, worker: int) -> None:
        self._redaction = redaction
        fixed = {"": b"", "node": node.encode(), "worker": b"%d" % worker}
        self._readers: list[Callable[[Record], bytes]] = []
        text = []
        self.wants_head = False
        for literal, name, header in parse_template(template):
            text.append(literal.encode().replace(b"%", b"%%"))
            if name in fixed:
                text.append(escape(fixed[name]))
            else:
                text.append(b"%b")
                self._readers.append(self._reader(name, header))
            self.wants_head |= name in {"header", *HEADER_FIELDS}
        self._line_text = b"".join((*text, b"\n"))

    def lines(self, records: Sequence[Record]) -> list[bytes]:
        """Return one line for each record."""
        return [self._line(record) for record in records]

    def short_line(self, record: Record, longest: int) -> bytes:
        """Return a line with the client's long fields cut, so that it is not over `longest`."""
        return _shorten(self._line, record, longest)

    def _line(self, record: Record) -> bytes:
        values = [read(record) or b"-" for read in self._readers]
        if UNSAFE.search(b"".join(values)):
            values = [escape(value) for value in values]
        return self._line_text % tuple(values)

    def _reader(self, name: str, header: str) -> Callable[[Record], bytes]:
        redaction = self._redaction
        if name in {"header", *HEADER_FIELDS}:
            header = HEADER_FIELDS.get(name, header)
            find = _header_finder(header)
            return lambda record: redaction.header(header, find(record[20]))
        if name == "query":
            return lambda record: redaction.target(record[6])[1]
        if name == "target":
            return lambda record: b"?".join(filter(None, redaction.target(record[6])))
        if name in SENT_FIELDS:
            return SENT_FIELDS[name]
        field = FIELDS[name]
        return lambda record: _text_of(field(record))


COMBINED = (
    '{client} - - [{time}] "{method} {target} {proto}" {status} {bytes_out} '
    '"{referer}" "{user_agent}"'
)
HEADER_FIELDS = {"user_agent": "user-agent", "referer": "referer"}


def parse_template(text: str) -> list[tuple[str, str, str]]:
    """
    Return the template as pieces: literal text, the field after it or "", its header's name.

    Raises OperatorError for what is no template.
    """
    hint = 'use "json", "combined", or a template such as "{client} {method} {path} {status}"'
    if not text.isprintable():
        raise OperatorError("a template is one line of printable characters", hint)
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise OperatorError(f'"{text}" is no template: {error}', hint) from None
    pieces = []
    for literal, name, header, conversion in parsed:
        if conversion or (header and name != "header") or (name == "header" and not header):
            raise OperatorError(
                f'"{text}" is no template: fields are {{name}} or {{header:NAME}}', hint
            )
        if name is not None and name not in TEMPLATE_FIELDS:
            near = get_close_matches(name, TEMPLATE_FIELDS, 1)
            cure = f'did you mean "{near[0]}"?' if near else f"fields: {', '.join(TEMPLATE_FIELDS)}"
            raise OperatorError(f'"{name}" is not a field of the access log', cure)
        pieces.append((literal, name or "", (header or "").lower()))
    if not any(name for _, name, _ in pieces):
        near = get_close_matches(text, ("json", "combined"), 1)
        hint = f'did you mean "{near[0]}"?' if near else hint
        raise OperatorError(f'"{text}" is neither a format nor a template with fields', hint)
    return pieces


def check_format(text: str) -> None:
    """Raise OperatorError with the reason if `text` is no value of `access_log.format`."""
    if text not in {"json", "combined"}:
        parse_template(text)


def escape(value: bytes) -> bytes:
    """Return `value` with all that could end a field or line, or steer a terminal, as `\\xNN`."""
    return UNSAFE.sub(lambda match: b"\\x%02x" % match[0][0], value)


def _text_of(value: object) -> bytes:
    match value:
        case None:
            return b""
        case bool():
            return b"true" if value else b"false"
        case float():
            return b"%.3f" % value
        case _:
            return str(value).encode()


def _ascii(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


@lru_cache(maxsize=4)
def _iso_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))


def _iso(ended: float) -> str:
    second = int(ended)
    return f"{_iso_second(second)}{int((ended - second) * 1e3):03}Z"


@lru_cache(maxsize=4)
def _combined_time(second: int) -> str:
    at = time.gmtime(second)  # Not strftime's month, which speaks the locale's language.
    return f"{at.tm_mday:02}/{MONTHS[at.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S', at)} +0000"


def _tries(record: Record) -> list[dict[str, object]]:
    return [{"backend": key, "ms": _ms(seconds), "end": end} for key, seconds, end in record[17]]


def _tries_text(tries: Sequence[tuple[str, float, str]]) -> str:
    return ",".join([f"{key}:{seconds * 1e3:.3f}:{end}" for key, seconds, end in tries])


# What each field is, for all but the quick lines. `node` and `worker` are put in by the format.
FIELDS: dict[str, Callable[[Record], Any]] = {
    "ts": lambda r: _iso(r[0]),
    "id": lambda r: _ascii(r[1]),
    "node": lambda _: None,
    "worker": lambda _: None,
    "listener": lambda r: r[2],
    "client": lambda r: r[3],
    "method": lambda r: _ascii(r[4]),
    "scheme": lambda r: _ascii(r[21]),
    "host": lambda r: _ascii(r[5]),
    "path": lambda r: _ascii(r[6].partition(b"?")[0]),
    "query": lambda r: _ascii(r[6].partition(b"?")[2]),
    "proto": lambda r: f"HTTP/1.{r[7]}",
    "status": lambda r: r[8],
    "ms": lambda r: _ms(r[9]),
    "connect_ms": lambda r: _ms(r[10]),
    "first_byte_ms": lambda r: _ms(r[11]),
    "bytes_in": lambda r: r[12],
    "bytes_out": lambda r: r[13],
    "route": lambda r: r[14],
    "upstream": lambda r: r[15],
    "backend": lambda r: r[16],
    "tries": _tries,
    "reused": lambda r: r[18],
    "end": lambda r: r[19],
    "time": lambda r: _combined_time(int(r[0])),
    "plugin": lambda r: r[22],
}
# As they came, for forms that do their own escaping.
SENT_FIELDS: dict[str, Callable[[Record], bytes]] = {
    "id": lambda r: r[1],
    "method": lambda r: r[4],
    "host": lambda r: r[5],
    "path": lambda r: r[6].partition(b"?")[0],
    "tries": lambda r: _tries_text(r[17]).encode(),
}
JSON_FIELDS = tuple(name for name in FIELDS if name not in {"time", "plugin"})
TEMPLATE_FIELDS = (*FIELDS, "target", "user_agent", "referer", "header")


def _needs_escapes(records: Sequence[Record]) -> bool:
    """Tell whether anything that a client sent is more than plain ASCII: asked for all at once."""
    columns = list(zip(*records, strict=True))
    sent: list[bytes] = [value for at in (1, 4, 5, 6) for value in columns[at]]
    joined = b"".join(sent)
    return not joined.isascii() or len(orjson.dumps(joined.decode("ascii"))) != len(joined) + 2


def _shorten(line_of: Callable[[Record], bytes], record: Record, longest: int) -> bytes:
    line = b""
    for cut in CUTS:
        line = line_of(_cut(record, cut))
        if len(line) <= longest:
            break
    return line


def _cut(record: Record, longest: int) -> Record:
    def cut(value: bytes) -> bytes:
        return value if len(value) <= longest else value[:longest] + b"..."

    head = b"\n".join(map(cut, record[20].splitlines()))
    path, mark, query = record[6].partition(b"?")
    return (
        record[0], cut(record[1]), *record[2:4], cut(record[4]), cut(record[5]),
        cut(path) + mark + cut(query), *record[7:17], record[17][-CUT_TRIES_MAX:], *record[18:20],
        head, *record[21:],
    )  # fmt: skip


def _header_finder(name: str) -> Callable[[bytes], bytes]:
    pattern = re.compile(
        rb"(?:\A|\n)%b[ \t]*:[ \t]*([^\r\n]*)" % re.escape(name.encode()), re.IGNORECASE
    )

    def find(head: bytes) -> bytes:
        match = pattern.search(head)
        return b"" if match is None else match[1].rstrip(b" \t")

    return find
