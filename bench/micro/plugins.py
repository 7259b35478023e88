"""What plugins cost a request apart from what they do: two plain hooks that do nothing.

An exchange from its start to its end, with everything of ours and no socket: the client and the
backend are dolls. Once by a route without plugins, once by one with two plugins that have
`on_request` and `on_response`, in turn, many times; the
best batch of each is what they cost where nobody disturbs them.

    python bench/micro/plugins.py [--seconds 2]

What is wanted: at most `TARGET_US` for each of the two kinds of hooks, plus what they do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from time import monotonic, process_time
from typing import Any, Final

from lb.http1.head import read_request_head, read_response_head
from lb.http1.peers import direct
from lb.metrics import Meters, create_memory
from lb.model import Endpoint, Upstream
from lb.plugin import Plugin, Request, Response
from lb.proxy.chain import Chain, LivePlugin
from lb.proxy.exchange import Exchange
from lb.proxy.hooked import open_hooked
from lb.proxy.plan import Plan, WorkerState
from lb.proxy.upstream import LiveUpstream
from lb.testing import Bench

TARGET_US: Final = 0.5
BATCH: Final = 100
HEAD: Final = (
    b"GET /catalogue/chairs?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: bench\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip\r\nCookie: theme=dark\r\n\r\n"
)
ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"
)


class Asks(Plugin[None]):
    """Looks at requests."""

    name = "asks"

    def on_request(self, req: Request) -> None:
        """Nothing."""


class Shows(Plugin[None]):
    """Looks at responses."""

    name = "shows"

    def on_response(self, req: Request, res: Response) -> None:
        """Nothing."""


class Doll:
    """Client, backend connection and pool at once: takes everything, and does nothing."""

    clogged = False
    listener = "web"
    keeps = True
    send_proxy = ""
    idle_count = busy_count = 0

    def take(self, now: float) -> Doll:
        """Be a connection."""
        return self

    def _nothing(self, *_: object, **__: object) -> None:
        """Take it."""

    begin = put = write = write_all = finished = configure = close = _nothing


def exchanges(*plugins: type[Plugin[Any]]) -> Any:
    """Return what carries one exchange from start to end, past these plugins."""
    loop = asyncio.new_event_loop()
    memory = create_memory()
    meters = Meters(memory)
    os.close(memory)
    worker = WorkerState(loop, meters, random.Random(1), 0)
    upstream = LiveUpstream("app", loop, worker.deadlines, meters, random.Random(1))
    upstream.install(Upstream("app"), (Endpoint("a", "127.0.0.1:1"),), {}, {})
    doll: Any = Doll()
    for live in upstream._endpoints.values():
        live.pool = doll
    lives = [
        LivePlugin(each(None, Bench()), "bench", "", meters, lambda *_: None, passes_over=False)
        for each in plugins
    ]
    plan = Plan(meters, "web", None, "app", Chain(lives) if lives else None)
    head = read_request_head(HEAD, None, 8192, 100)
    answer = read_response_head(ANSWER, None)
    peer = direct("192.0.2.1")

    def carry() -> None:
        now = monotonic()
        exchange = Exchange(worker, plan, upstream, doll, peer, head, now)
        if plan.chain is None:
            exchange.start(b"")
        else:
            open_hooked(exchange, plan.chain, b"")
        exchange.response_started(answer, None, b"", now)
        exchange.response_ended(now, reusable=True)

    return carry


def batch_us(carry: Any) -> float:
    """Return microseconds an exchange."""
    start = process_time()
    for _ in range(BATCH):
        carry()
    return (process_time() - start) * 1e6 / BATCH


def main() -> int:
    """Measure, and say whether it is what was wanted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0)
    seconds = parser.parse_args().seconds
    plain = exchanges()
    ways = {
        "one on_request": exchanges(Asks),
        "two on_request": exchanges(Asks, Asks),
        "on_request and on_response": exchanges(Asks, Shows),
        "two of each": exchanges(Asks, Asks, Shows, Shows),
    }
    bare = []
    more: dict[str, list[float]] = {name: [] for name in ways}
    end = monotonic() + seconds
    while monotonic() < end:
        for name, carry in ways.items():
            bare.append(batch_us(plain))
            more[name].append(batch_us(carry))
    print(f"without plugins: {min(bare):.2f} us an exchange")
    for name, found in more.items():
        print(f"{name}: {min(found) - min(bare):+.2f} us")
    wanted = min(more["two on_request"]) - min(bare)
    print(f"wanted for two plain hooks: at most {TARGET_US} us")
    return 0 if wanted <= TARGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
