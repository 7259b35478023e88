"""Latencies of the last minute: what the workers' histograms have grown by since then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lb.metrics import NO_OBSERVATIONS, Histogram, Labels, Reading

RECENT_SECONDS = 30.0  # Two such spans are kept: what is shown covers one to two of them.
BACKEND, REQUEST = "lb_backend_seconds", "lb_request_seconds"

Picture = dict[Labels, Histogram]


class Recent:
    """
    Two pictures of the histograms, taken `RECENT_SECONDS` apart.

    A histogram counts from the start of the instance; a p99 over weeks says nothing about now.
    """

    def __init__(self, reading: Callable[[], Reading]) -> None:
        self._reading = reading
        self._older: Picture | None = None
        self._newer: Picture | None = None

    def turn(self) -> None:
        """Take the next picture; call it every `RECENT_SECONDS`."""
        reading = self._reading()
        picture: Picture = {(): reading.histogram(REQUEST)}
        for labels in reading.series(BACKEND):
            picture[labels] = reading.histogram(BACKEND, **dict(labels))
        # The first time there is no older one, and what was counted before us is no news.
        self._older = self._newer or picture
        self._newer = picture

    def of_requests(self, reading: Reading) -> dict[str, Any]:
        """Return p50 and p99 of whole requests, in milliseconds."""
        return self._latency(reading.histogram(REQUEST), ())

    def of_backend(self, reading: Reading, upstream: str, key: str) -> dict[str, Any]:
        """Return p50 and p99 of a backend to its first byte, in milliseconds."""
        labels = (("upstream", upstream), ("backend", key))
        return self._latency(reading.histogram(BACKEND, **dict(labels)), labels)

    def _latency(self, now: Histogram, labels: Labels) -> dict[str, Any]:
        before = NO_OBSERVATIONS if self._older is None else self._older.get(labels)
        grown = now.minus(before or NO_OBSERVATIONS)
        shares = {"p50": 0.5, "p99": 0.99}
        quantiles = {word: grown.quantile(share) for word, share in shares.items()}
        return {
            word: None if seconds is None else round(seconds * 1000, 2)
            for word, seconds in quantiles.items()
        }
