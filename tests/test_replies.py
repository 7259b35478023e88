"""Our own answers, parsed back by h11."""

from __future__ import annotations

from http import HTTPStatus

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.http1.replies import PROXY_ERRORS, Reply, render

DATE = b"Tue, 24 Nov 2026 15:00:00 GMT"


def parse(octets: bytes, method: str) -> tuple[h11.Response, bytes]:
    """Read a whole response as a client would; nothing may be left over."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(octets)
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return response, body


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "status", [200, 204, 304, 308, 400, 404, 405, 408, 413, 414, 431, 502, 503, 504]
)
@given(end=st.sampled_from(["ok", *PROXY_ERRORS]), detail=st.text(max_size=80))
def test_replies_are_valid(method: str, status: int, end: str, detail: str) -> None:
    reply = Reply(status, end, detail)

    octets = render(reply, name=b"lb-0", date=DATE, close=False, method=method.encode())

    response, body = parse(octets, method)
    fields = dict(response.headers)
    assert response.status_code == status
    assert response.reason == HTTPStatus(status).phrase.encode()
    assert fields[b"date"] == DATE
    assert (b"proxy-status" in fields) == (end != "ok")
    assert (b"retry-after" in fields) == (status in (502, 503, 504))
    if method == "GET" and status not in (204, 304):
        assert body.startswith(b"%d " % status)
    else:
        assert body == b""


def test_the_setting_is_named() -> None:
    reply = Reply(413, "too_large", 'over route."up".body_max')

    octets = render(reply, name=b"lb-0", date=DATE, close=True, method=b"POST")

    response, _ = parse(octets, "POST")
    status = dict(response.headers)[b"proxy-status"]
    assert status == rb'lb-0; error=http_request_error; details="over route.\"up\".body_max"'
