"""What the lines of the access log look like, and that no client can forge one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb import logformat
from lb.errors import OperatorError
from lb.logformat import JSON_FIELDS, Record, check_format, make_format
from lb.model import AccessLog as Settings

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


def line_of(format_: str = "json", redact: tuple[str, ...] = (), **changes: Any) -> str:
    made = make_format(Settings(format=format_, redact=redact), "a", 1)
    (line,) = made.lines([record(**changes)])
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return line[:-1].decode("ascii")


# What a line says.


def test_who_answered_is_named_only_where_a_plugin_did() -> None:
    assert "plugin" not in json.loads(line_of())
    assert json.loads(line_of(plugin="ip_filter"))["plugin"] == "ip_filter"
    assert line_of("{status} {plugin}", plugin="jwt") == "200 jwt"
    assert line_of("{status} {plugin}") == "200 -"


def test_json_has_every_field_in_order() -> None:
    line = json.loads(line_of())
    assert tuple(line) == JSON_FIELDS
    assert line == {
        "ts": "2025-11-24T16:00:00.123Z",
        "id": "5f1c9d",
        "node": "a",
        "worker": 1,
        "listener": "web",
        "client": "192.0.2.7",
        "method": "GET",
        "scheme": "http",
        "host": "example.com",
        "path": "/a",
        "query": "b=c",
        "proto": "HTTP/1.1",
        "status": 200,
        "ms": 12.346,
        "connect_ms": None,
        "first_byte_ms": 10.0,
        "bytes_in": 3,
        "bytes_out": 1024,
        "route": "api",
        "upstream": "app",
        "backend": "10.0.0.4:80",
        "tries": [{"backend": "10.0.0.4:80", "ms": 11.0, "end": "ok"}],
        "reused": True,
        "end": "ok",
    }
    documented = (
        "ts id node worker listener client method scheme host path query proto status ms "
        "connect_ms first_byte_ms bytes_in bytes_out route upstream backend tries reused end"
    )
    assert " ".join(JSON_FIELDS) == documented


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tries": (), "backend": "", "end": "no_backend", "status": 503},
        {"tries": (("a", 0.1, "backend_refused"), ("b", 0.2, "ok")), "connect": 0.05},
        {"first_byte": None, "reused": False, "end": "client_closed"},
        {"target": b"*", "method": b"OPTIONS", "minor": 0},
        {"target": b"/x??y"},
        {"route": 'odd"route\\', "backend": "unix:/tmp/\u00e9 \n"},
        {"ended": 1763999999.9999999},
    ],
)
def test_quick_and_careful_lines_agree(changes: dict[str, Any]) -> None:
    quick = make_format(Settings(), "a", 1)
    careful = make_format(Settings(), "a", 1)
    plain = record(**changes)
    odd = record(target=b'/"')  # One odd record, and the whole batch is done with care.

    assert json.loads(quick.lines([plain])[0]) == json.loads(careful.lines([plain, odd])[0])


def test_a_batch_over_several_seconds_has_the_time_of_each_record() -> None:
    made = make_format(Settings(), "a", 1)
    times = [1764000000.0005, 1764000000.9996, 1764000061.5, 1764000000.25]
    lines = made.lines([record(ended=ended) for ended in times])
    assert [json.loads(line)["ts"][11:] for line in lines] == [
        "16:00:00.000Z",
        "16:00:00.999Z",
        "16:01:01.500Z",
        "16:00:00.250Z",
    ]


def test_combined() -> None:
    assert line_of("combined") == (
        '192.0.2.7 - - [24/Nov/2025:16:00:00 +0000] "GET /a?b=c HTTP/1.1" 200 1024 '
        '"http://x/y?token=1" "curl/8"'
    )
    assert line_of("combined", head=b"", target=b"", method=b"").endswith(
        '"- - HTTP/1.1" 200 1024 "-" "-"'
    )


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("{client} {status}", "192.0.2.7 200"),
        ("{{{method}}} 100% {ms}", "{GET} 100% 12.346"),
        ("{node}/{worker} {reused} {connect_ms}", "a/1 true -"),
        ("{header:X-Note}|{header:nope}|{referer}", "one|-|http://x/y?token=1"),
        ("{tries} {path} {query} {target}", "10.0.0.4:80:11.000:ok /a b=c /a?b=c"),
        ("é {status}", "é 200"),
    ],
)
def test_templates(template: str, line: str) -> None:
    made = make_format(Settings(format=template), "a", 1)
    assert made.lines([record()])[0].decode() == line + "\n"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("jsno", "neither a format nor a template"),
        ("{statsu}", '"statsu" is not a field'),
        ("{client", "is no template"),
        ("{status!r}", "fields are"),
        ("{status:03}", "fields are"),
        ("{header}", "fields are"),
        ("{}", '"" is not a field'),
        ("a\n{client}", "one line"),
        ("{client.__class__}", "is not a field"),
    ],
)
def test_a_bad_template_is_refused_with_a_cure(template: str, words: str) -> None:
    with pytest.raises(OperatorError, match=re.escape(words)) as caught:
        check_format(template)
    assert caught.value.hint


def test_good_formats_pass() -> None:
    for good in ("json", "combined", "{client} {header:x-a}"):
        check_format(good)


def test_only_formats_that_show_headers_want_the_head() -> None:
    wants = {
        text: make_format(Settings(format=text), "a", 1).wants_head
        for text in ("json", "combined", "{client}", "{user_agent}", "{header:x}")
    }
    assert wants == {
        "json": False,
        "combined": True,
        "{client}": False,
        "{user_agent}": True,
        "{header:x}": True,
    }


def test_redaction_hides_the_query_wherever_it_shows() -> None:
    assert json.loads(line_of(redact=("query",)))["query"] == "***"
    assert json.loads(line_of(redact=("query",), target=b'/"?secret'))["query"] == "***"
    assert json.loads(line_of(redact=("query",), target=b"/a"))["query"] == ""
    combined = line_of("combined", ("query",))
    assert '"GET /a?*** HTTP/1.1"' in combined
    assert '"http://x/y?***"' in combined
    assert line_of("{query} {target}", ("query",)) == "*** /a?***"


def test_redaction_hides_headers_by_name() -> None:
    assert line_of("combined", ("Referer", "User-Agent")).endswith('"***" "***"')
    assert line_of("{header:x-note} {header:x-none}", ("X-Note",)) == "*** -"


# What a client sends.

EVIL = b'"\\\r\n\x00\x1b[2J\x7f\x85\xc2\x9b\xe2\x80\xae\xff{"a":1},%s%b {status}'


@pytest.mark.parametrize("field", ["request_id", "method", "host", "target"])
def test_client_bytes_cannot_break_a_json_line(field: str) -> None:
    changes: dict[str, Any] = {field: EVIL}
    line = json.loads(line_of(**changes))
    assert tuple(line) == JSON_FIELDS
    assert "\\xff" in "".join(str(value) for value in line.values())


@given(st.lists(st.binary(max_size=40), min_size=4, max_size=4))
def test_any_bytes_make_one_ascii_json_line(sent: list[bytes]) -> None:
    request_id, method, host, target = sent
    line = line_of(request_id=request_id, method=method, host=host, target=target)
    read = json.loads(line)
    assert read["method"] == method.decode("ascii", "backslashreplace")
    assert read["end"] == "ok"


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_make_one_combined_line(target: bytes, agent: bytes) -> None:
    line = line_of("combined", target=target, head=b"GET\r\nUser-Agent: " + agent + b"\r\n\r\n")
    assert line.isprintable()
    assert line.count('"') == 6
    assert "\\x5c" in line or "\\" not in target.decode("latin-1")


def test_headers_are_found_with_and_without_a_request_line() -> None:
    assert line_of("{referer}", head=b"Referer: x\r\nHost: y\r\n") == "x"
    assert line_of("{header:host}", head=b"Referer: host: z\r\nHOST:y") == "y"
    assert line_of("{referer}", head=b"X-Referer: x\r\nA: \r\nReferer:\r\n") == "-"


def test_evil_headers_in_a_template() -> None:
    head = b"GET / HTTP/1.1\r\nX-A: " + EVIL.replace(b"\r\n", b"") + b"\r\n\r\n"
    line = line_of('"{header:x-a}" {status}', head=head)
    assert line.count('"') == 2
    assert line.endswith('" 200')
    assert line.isprintable()


# What is kept.


def test_remembered_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logformat, "FRAGMENTS_MAX", 10)
    made = logformat.JsonFormat(logformat.Redaction(()), "a", 1)
    for i in range(100):
        made.lines([record(backend=str(i))])
    assert len(made._places) <= 11
