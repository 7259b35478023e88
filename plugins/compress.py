"""
Compresses responses as they pass: zstd, brotli or gzip, whichever the client likes best.

Only what may be compressed is, and gains by it: known types, of some size, whole, not compressed
yet, and not marked as to be left alone. A body whose length is not known beforehand may be
one that comes bit by bit: what the backend has sent is sent on at once, compressed, and nothing
is held back.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lb.plugin import End, Plugin, Request, Response, Size, Transform

KNOWN_MAX: Final = 512  # Accept-Encoding and Content-Type fields whose meaning is remembered.
KNOWN_CHARS_MAX: Final = 256
AT_ONCE_MAX: Final = 10_000
WINDOW_BITS_MAX: Final = 18  # Of brotli and zstd: how far back they look, and what that costs.
CODINGS: Final = ("zstd", "br", "gzip")
MODULES: Final = {"zstd": "zstandard", "br": "brotli", "gzip": "zlib"}
LEVELS_MAX: Final = {"zstd": 9, "br": 6, "gzip": 9}  # Beyond, a piece takes too long.
EVENTS: Final = "text/event-stream"
TYPES: Final = (
    "text/*",
    "*+json",
    "*+xml",
    "application/javascript",
    "application/json",
    "application/wasm",
    "application/xml",
    "application/x-javascript",
    "font/otf",
    "font/ttf",
    "image/bmp",
)
OVER_THE_BODY: Final = ("content-digest", "content-md5", "digest", "repr-digest")
_TYPE: Final = re.compile(r"(\*|[a-z0-9!#$&^_.-]+)/(\*|[a-z0-9!#$&^_.+-]+)|\*\+[a-z0-9]+")
_QUALITY: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


@dataclass
class Levels:
    """How hard each coding tries."""

    zstd: int = field(default=3, metadata={"about": "1 to 9."})
    br: int = field(default=4, metadata={"about": "0 to 6."})
    gzip: int = field(default=4, metadata={"about": "1 to 9."})


class Compress(Plugin["Compress.Config"]):
    """Knows what clients like, and which types are worth it."""

    name = "compress"

    @dataclass
    class Config:
        """What stands beside `use`."""

        codings: list[Literal["zstd", "br", "gzip"]] | None = field(
            default=None,
            metadata={"about": "Which codings, the best first; by default all that are there."},
        )
        types: list[str] = field(
            default_factory=lambda: list(TYPES),
            metadata={"about": 'Which types: "text/css", "text/*", "*+json".'},
        )
        size_min: Size = field(
            default=1024, metadata={"about": "Bodies known to be smaller are left alone."}
        )
        offload: bool = field(
            default=False,
            metadata={"about": "Take Accept-Encoding off, so that backends do not compress."},
        )
        at_once: int = field(
            default=200, metadata={"about": "How many bodies are compressed at once, a worker."}
        )
        levels: Levels = field(
            default_factory=Levels, metadata={"about": "How hard each coding tries."}
        )

        def __post_init__(self) -> None:
            if self.codings is not None and not self.codings:
                raise ValueError("codings names at least one of zstd, br, gzip")
            for coding in self.codings or ():
                if importlib.util.find_spec(MODULES[coding]) is None:
                    what = MODULES[coding]
                    raise ValueError(f"{what} is not there: pip install 'accord-lb[plugins]'")
            for each in self.types:
                if _TYPE.fullmatch(each) is None:
                    raise ValueError(f'{each} is no type: like "text/css", "text/*" or "*+json"')
            if not 1 <= self.at_once <= AT_ONCE_MAX:
                raise ValueError(f"at_once is from 1 to {AT_ONCE_MAX:,}")
            for name, highest in LEVELS_MAX.items():
                lowest = 0 if name == "br" else 1
                if not lowest <= getattr(self.levels, name) <= highest:
                    raise ValueError(f"levels.{name} is from {lowest} to {highest}")

    def start(self) -> None:
        """Find out which codings there are."""
        config = self.config
        codings = config.codings or [
            each for each in CODINGS if importlib.util.find_spec(MODULES[each]) is not None
        ]
        self._makers: dict[str, Callable[[int | None, bool], Transform]] = {
            each: MAKERS[each](getattr(config.levels, each)) for each in codings
        }
        self._liked: dict[str, str] = {}  # The best coding, "" for none, by Accept-Encoding.
        self._worth: dict[str, bool] = {}  # By Content-Type.
        self._exact = {each for each in config.types if "*" not in each}
        self._families = {each[:-1] for each in config.types if each.endswith("/*")}
        self._endings = tuple(each[1:] for each in config.types if each.startswith("*+"))
        self._running = 0
        self._state = f"compress/{self.ctx.place}"
        self._skipped = self.ctx.count("skipped")
        self._counts = {each: self.ctx.count(each) for each in codings}

    def on_request(self, req: Request) -> None:
        """See what the client likes, before anybody takes that off."""
        accepted = ",".join(req.headers.all("accept-encoding"))
        if accepted:
            req.state[self._state] = self._best_of(accepted)
            if self.config.offload:
                req.headers.remove("accept-encoding")

    def on_response(self, req: Request, res: Response) -> None:
        """Compress, where it may be and is worth it."""
        headers = res.headers
        if res.status == 304:
            _say_weak_again(req, res)
        if res.status in (204, 206, 304) or not self._is_worth(headers.get("content-type") or ""):
            return
        if any(
            name in headers for name in ("content-encoding", "content-range", *OVER_THE_BODY)
        ) or _names(headers.all("cache-control"), "no-transform"):
            return
        length = res.content_length
        if length is not None and length < self.config.size_min:
            return
        if not _names(headers.all("vary"), "accept-encoding", "*"):
            headers.append("Vary", "Accept-Encoding")
        coding = req.state.pop(self._state, "")
        if not coding or not res.has_body:
            return
        if self._running >= self.config.at_once:
            self._skipped()
            return
        self._running += 1
        req.state[self._state] = self  # Until the exchange is over, see on_finish.
        self._counts[coding]()
        headers.set("Content-Encoding", coding)
        headers.remove("accept-ranges")  # Ranges of what it was, not of what it is now.
        etag = headers.get("etag")
        if etag is not None and etag.startswith('"'):
            headers.set("ETag", f"W/{etag}")
        events = (headers.get("content-type") or "").lower().startswith(EVENTS)
        res.transform_body(self._makers[coding](length, length is None or events))

    def on_finish(self, req: Request, end: End) -> None:
        """Make room for another."""
        if req.state.get(self._state) is self:
            self._running -= 1

    def _best_of(self, accepted: str) -> str:
        known = self._liked.get(accepted)
        if known is None:
            known = best_of(accepted, tuple(self._makers))
            if len(accepted) <= KNOWN_CHARS_MAX:
                if len(self._liked) >= KNOWN_MAX:
                    self._liked.clear()
                self._liked[accepted] = known
        return known

    def _is_worth(self, written: str) -> bool:
        known = self._worth.get(written)
        if known is None:
            kind = written.partition(";")[0].strip().lower()
            family = "".join(kind.partition("/")[:2])
            known = kind in self._exact or (
                kind != EVENTS and (family in self._families or kind.endswith(self._endings))
            )
            if len(written) <= KNOWN_CHARS_MAX:
                if len(self._worth) >= KNOWN_MAX:
                    self._worth.clear()
                self._worth[written] = known
        return known


def best_of(accepted: str, codings: tuple[str, ...]) -> str:
    """Return which of these a client likes best (RFC 9110 12.5.3), "" for none of them."""
    qualities: dict[str, float] = {}
    for each in accepted.split(","):
        word, *parameters = (part.strip() for part in each.split(";"))
        quality = 1.0
        for parameter in parameters:
            found = _QUALITY.fullmatch(parameter)
            quality = float(found[1]) if found is not None else 0.0
        name = word.lower()
        qualities.setdefault("gzip" if name == "x-gzip" else name, quality)
    rest = qualities.get("*", 0.0)
    best = max(codings, key=lambda coding: qualities.get(coding, rest))  # The first of equals.
    quality = qualities.get(best, rest)
    return best if quality > 0 and quality >= qualities.get("identity", 0.0) else ""


def _names(values: list[str], *words: str) -> bool:
    """Whether a list of words has one of these."""
    return any(each.strip().lower() in words for value in values for each in value.split(","))


def _say_weak_again(req: Request, res: Response) -> None:
    """Answer with the tag that the client asked about: the one that we made weak."""
    etag = res.headers.get("etag")
    if etag is not None and etag.startswith('"'):
        asked = req.headers.all("if-none-match")
        if any(each.strip() == f"W/{etag}" for value in asked for each in value.split(",")):
            res.headers.set("ETag", f"W/{etag}")


# --- Codings: a level gives what makes one stream, of a length if that is known ------------------


class Stream:
    """A body on its way through a compressor."""

    __slots__ = ("_compress", "_end", "_flush")

    def __init__(
        self,
        compress: Callable[[bytes], bytes],
        flush: Callable[[], bytes] | None,
        end: Callable[[], bytes],
    ) -> None:
        self._compress = compress
        self._flush = flush
        self._end = end

    def chunk(self, data: bytes) -> bytes:
        """Take a piece; all of it goes on if it has to."""
        if self._flush is None:
            return self._compress(data)
        return self._compress(data) + self._flush()

    def end(self) -> bytes:
        """Return what is left."""
        return self._end()


def _gzip(level: int) -> Callable[[int | None, bool], Transform]:
    def make(length: int | None, flushed: bool) -> Transform:
        window = 16 + _window_bits(length, 9, 15)  # 16: with gzip's head and foot.
        made = zlib.compressobj(level, zlib.DEFLATED, window)
        flush = (lambda: made.flush(zlib.Z_SYNC_FLUSH)) if flushed else None
        return Stream(made.compress, flush, made.flush)

    return make


def _brotli(level: int) -> Callable[[int | None, bool], Transform]:
    brotli: Any = importlib.import_module("brotli")

    def make(length: int | None, flushed: bool) -> Transform:
        window = _window_bits(length, 10, WINDOW_BITS_MAX)
        made = brotli.Compressor(quality=level, lgwin=window)
        return Stream(made.process, made.flush if flushed else None, made.finish)

    return make


def _zstd(level: int) -> Callable[[int | None, bool], Transform]:
    zstandard: Any = importlib.import_module("zstandard")

    def make(length: int | None, flushed: bool) -> Transform:
        short = length is not None and length < 1 << WINDOW_BITS_MAX
        limit = {"source_size": length} if short else {"window_log": WINDOW_BITS_MAX}
        parameters = zstandard.ZstdCompressionParameters.from_level(level, **limit)
        made = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        block = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return Stream(made.compress, (lambda: made.flush(block)) if flushed else None, made.flush)

    return make


def _window_bits(length: int | None, least: int, most: int) -> int:
    """How far back to look, as a power of two: a short body needs little memory."""
    return most if length is None else max(least, min(most, length.bit_length()))


MAKERS: Final[dict[str, Callable[[int], Callable[[int | None, bool], Transform]]]] = {
    "zstd": _zstd,
    "br": _brotli,
    "gzip": _gzip,
}
