"""What the checks of heads cost a request, apart from what reading a head costs anyway.

Two readers of the same heads, a browser's request and a small reply: ours, and one that believes
its peers. That one does what any proxy must (the start line, which fields go on, where the body
ends) and judges nothing. The difference is the price of the checks. Where a head is the same as
the one before on its connection it is compared, not read again, and the checks cost nothing.

    python bench/micro/checks.py [--seconds 0.5] [--before FOLDER]

`--before`: another checkout, whose readers are measured in turn with ours. What is wanted is
that no more than `TARGET_US` is added to it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lb.http1.head import HOP_BY_HOP, RequestHead, read_request_head, read_response_head

TARGET_US = 2.0  # that a request may cost more than before, both heads together
TURNS = 3  # for each of two checkouts
SUM = "both, as we judge:"
ROUNDS = 5
HEADS = 64  # different ones, gone through in turn: none is the one before

REQUEST = (
    b"GET /catalogue/chairs?n=%d HTTP/1.1\r\n"
    b"Host: shop.example.com\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8\r\n"
    b"Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Referer: https://shop.example.com/catalogue/chairs?page=%d\r\n"
    b"Cookie: session=6f1ed002ab5595859014ebf0951522d9; theme=dark; seen=1718000000\r\n"
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"Sec-Fetch-Dest: document\r\n"
    b"Sec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-Site: same-origin\r\n"
    b'If-None-Match: "33a64df551425fcc55e4d42a148795d9"\r\n\r\n'
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx\r\n"
    b"Date: Mon, 01 Jan 2024 00:00:%02d GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 1024\r\n"
    b"Connection: keep-alive\r\n\r\n"
)
Reader = Callable[[bytes], object]


def believe_request(octets: bytes) -> object:
    """Read a request's head as if every client meant well."""
    line, _, rest = octets.partition(b"\r\n")
    method, target, version = line.split(b" ")
    kept, host, length, chunked = [b""], b"", -1, False
    for field in rest[:-4].split(b"\r\n"):
        name, _, value = field.partition(b":")
        lower = name.lower()
        if lower == b"host":
            host = value.strip()
        elif lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            chunked = True
        elif lower not in HOP_BY_HOP:
            kept.append(field)
    return method, target, version, host, length, chunked, b"\r\n".join(kept)


def believe_response(octets: bytes) -> object:
    """Read a response's head as if every backend meant well."""
    line, _, rest = octets.partition(b"\r\n")
    version, status, _ = line.split(b" ", 2)
    kept, length, chunked = [b""], -1, False
    for field in rest[:-4].split(b"\r\n"):
        name, _, value = field.partition(b":")
        lower = name.lower()
        if lower == b"content-length":
            length = int(value)
        elif lower == b"transfer-encoding":
            chunked = True
        elif lower not in HOP_BY_HOP:
            kept.append(field)
    return version, int(status), length, chunked, b"\r\n".join(kept)


def judge_request(octets: bytes) -> object:
    """Read it as we do."""
    return read_request_head(octets, None, 8192, 100)


def judge_response(octets: bytes) -> object:
    """Read it as we do."""
    return read_response_head(octets, None)


def compare(before: RequestHead) -> Reader:
    """Return what happens to a head that is the same as the one before."""
    return lambda octets: before if before.octets == octets else None


def cost_us(read: Reader, heads: list[bytes], seconds: float) -> float:
    """Return microseconds a head, the median of some rounds."""
    runs = []
    for _ in range(ROUNDS):
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds / ROUNDS:
            for octets in heads:
                read(octets)
            done += len(heads)
        runs.append((time.perf_counter() - start) * 1e6 / done)
    return statistics.median(runs)


def report(seconds: float) -> Iterable[str]:
    """Return a table, row by row, and whether the target is met."""
    requests = [REQUEST % (n, n) for n in range(HEADS)]
    responses = [RESPONSE % (n % 60) for n in range(HEADS)]
    first = read_request_head(requests[0], None, 8192, 100)
    yield f"µs a head; {HEADS} heads that differ, median of {ROUNDS} rounds"
    yield f"{'':24} {'believed':>9} {'judged':>9} {'checks':>9}"
    total = 0.0
    ours = 0.0
    for name, heads, believe, judge in (
        ("request, 12 fields", requests, believe_request, judge_request),
        ("response, 5 fields", responses, believe_response, judge_response),
    ):
        trusting, strict = cost_us(believe, heads, seconds), cost_us(judge, heads, seconds)
        total += strict - trusting
        ours += strict
        yield f"{name:24} {trusting:9.2f} {strict:9.2f} {strict - trusting:9.2f}"
    again = cost_us(compare(first), [requests[0]] * HEADS, seconds)
    yield f"{'the same head again':24} {'':>9} {again:9.2f} {'':>9}"
    yield f"checks of one request and its response: {total:.2f} µs"
    yield f"{SUM} {ours:.2f} µs"


def against(folder: Path, seconds: float) -> str:
    """Measure our readers and another checkout's in turn; return what ours cost more."""
    here = Path(__file__).resolve().parent.parent.parent
    differences = []
    for _ in range(TURNS):
        both = []
        for root in (folder, here):
            done = subprocess.run(
                [sys.executable, __file__, "--seconds", str(seconds)],
                env={**os.environ, "PYTHONPATH": str(root)},
                capture_output=True,
                text=True,
                check=True,
            )
            both.append(float(done.stdout.rpartition(SUM)[2].split()[0]))
        differences.append(both[1] - both[0])
    more = statistics.median(differences)
    verdict = "met" if more <= TARGET_US else "missed"
    return f"against before: {more:+.2f} µs a request; target {TARGET_US:g}: {verdict}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each reader")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout")
    given = parser.parse_args()
    for line in report(given.seconds):
        print(line, flush=True)
    if given.before is not None:
        print(against(given.before, given.seconds))


if __name__ == "__main__":
    main()
