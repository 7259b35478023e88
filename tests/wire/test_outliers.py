"""A worker that decides by itself: ejection, the half-open trial, slow start, draining."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from lb.model import Drain, Endpoint, Outlier, State, Upstream
from wire.kit import Connection, Origin, Proxy, answering, response, until

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
RULE = Outlier(errors=3, within=10.0, eject=0.5, max_ejected=0.5)
BUSY = response(b"busy", status=b"503 Service Unavailable")


class Moody:
    """What an origin answers, changed at will."""

    def __init__(self) -> None:
        self.answer = response(b"well")

    @property
    def script(self) -> Callable[[Connection, int], None]:
        def script(connection: Connection, number: int) -> None:
            while connection.request() is not None:
                connection.send(self.answer)

        return script


def times_out(proxy: Proxy) -> int:
    """How often in a row the first backend was ejected, up to now; 0 while it is in."""

    def count() -> int:
        ejection = proxy.backends[0].ejection
        return 0 if ejection is None else ejection.times

    return int(proxy.call(count))


def is_out(proxy: Proxy) -> bool:
    return times_out(proxy) > 0


def weights(proxy: Proxy) -> set[int]:
    return set(proxy.call(lambda: [each.weight for each in proxy.backends]))


def eject_first(proxy: Proxy, moody: Moody) -> None:
    moody.answer = BUSY
    until(lambda: proxy.talk(GET) and is_out(proxy), "the ejection")


def test_one_trial_decides() -> None:
    moody = Moody()
    with (
        Origin(moody.script) as bad,
        Origin(answering(response(b"good"))) as good,
        Proxy([bad, good], upstream=Upstream("app", outlier=RULE)) as proxy,
    ):
        eject_first(proxy, moody)
        first = times_out(proxy)
        asked = len(bad.requests)
        until(lambda: proxy.talk(GET) and len(bad.requests) > asked, "the trial")
        until(lambda: times_out(proxy) > 1, "out again")
        assert first == 1
        assert len(bad.requests) == asked + 1, "one request was enough to know"
        moody.answer = response(b"well")
        until(lambda: proxy.talk(GET) and not is_out(proxy), "its return")


def test_no_trial_by_what_may_not_be_repeated() -> None:
    moody = Moody()
    with (
        Origin(moody.script) as bad,
        Origin(answering(response(b"good"))) as good,
        Proxy([bad, good], upstream=Upstream("app", outlier=RULE)) as proxy,
    ):
        eject_first(proxy, moody)
        asked = len(bad.requests)
        until(lambda: proxy.call(lambda: proxy.switchboard._upstreams["app"].trials), "a trial")
        for _ in range(10):
            assert b"good" in proxy.talk(POST)
        assert len(bad.requests) == asked
        moody.answer = response(b"well")
        until(lambda: b"well" in proxy.talk(GET), "the trial, by a GET")
        assert not is_out(proxy)


def test_clients_that_leave_say_nothing_of_a_backend() -> None:
    def silent(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            pass

    with (
        Origin(silent) as slow,
        Origin(silent) as other,
        Proxy([slow, other], upstream=Upstream("app", outlier=RULE)) as proxy,
    ):
        for count in range(1, 9):
            client = proxy.connect()
            client.sendall(GET)
            until(lambda n=count: len(slow.requests) + len(other.requests) >= n)  # type: ignore[misc]
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            until(lambda: proxy.running == 0, "the end of its exchange")
        assert not is_out(proxy)
        assert not proxy.call(lambda: [one for one in proxy.backends if one.failures])


def test_slow_start_for_who_joins_later() -> None:
    policy = Upstream("app", slow_start=2.0)
    body = answering(response(b"old"))
    with (
        Origin(body) as one,
        Origin(body) as two,
        Origin(answering(response(b"new"))) as new,
        Proxy([one, two], upstream=policy) as proxy,
    ):
        assert weights(proxy) == {20}
        addresses = (one.address, two.address, new.address)
        proxy.install(endpoints=[Endpoint(each, each) for each in addresses])
        began = time.monotonic()
        answers = [proxy.talk(GET) for _ in range(42)]
        share = sum(b"new" in each for each in answers) / len(answers)
        assert share < 0.2 or time.monotonic() - began > 0.5
        until(lambda: weights(proxy) == {20}, "its whole share")


def test_an_idle_connection_to_a_backend_that_drains_is_closed() -> None:
    with (
        Origin(answering(response(b"ok"))) as origin,
        Origin(answering(response())) as other,
        Proxy([origin, other]) as proxy,
    ):
        until(lambda: proxy.talk(GET) and proxy.idle == 2, "both kept")
        proxy.install(
            endpoints=[
                Endpoint(origin.address, origin.address, state=State.DRAINING),
                Endpoint(other.address, other.address),
            ]
        )
        assert proxy.idle == 1


def test_what_runs_is_asked_to_end_when_soft_has_passed() -> None:
    def slow(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            until(lambda: gone, "the drain")
            connection.send(response(b"late"))

    gone: list[bool] = []
    policy = Upstream("app", drain=Drain(soft=0.0, force=60.0))
    with (
        Origin(slow) as origin,
        Proxy([origin], upstream=policy) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: origin.requests, "the request")
        proxy.install(endpoints=[])
        proxy.await_ticks(2)
        gone.append(True)
        answer = client.recv(65536)
        assert b"late" in answer
        assert b"connection: close" in answer.lower()


def test_a_removed_backend_can_be_cut() -> None:
    def silent(connection: Connection, number: int) -> None:
        while connection.request() is not None:
            pass

    with (
        Origin(silent) as origin,
        Proxy([origin]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(GET)
        until(lambda: origin.requests, "the request")
        proxy.install(endpoints=[])
        proxy.call(lambda: proxy.switchboard.cut("app", origin.address))
        assert b" 503 " in client.recv(65536)
