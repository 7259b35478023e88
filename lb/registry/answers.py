"""What was answered under idempotency keys: the newest ten thousand, and cheap to add to.

Each write of the admin API carries a key, and the registry is never changed in place. So the
answers lie in a row of small pieces: to add one copies the last piece, to forget the oldest
copies the first, and all between are shared with the registry before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

ANSWERS_MAX: Final = 10_000  # Idempotency keys whose answer is remembered.
PIECE_ANSWERS_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered under an idempotency key, to a command with this digest."""

    digest: str
    outcome: str
    revision: int
    code: str = ""
    detail: str = ""
    hint: str = ""

    def to_plain(self) -> list[Any]:
        return [self.digest, self.outcome, self.revision, self.code, self.detail, self.hint]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Answer:
        digest, outcome, revision, code, detail, hint = plain
        return cls(digest, outcome, revision, code, detail, hint)


class Answers(Mapping[str, Answer]):
    """Answers by key, the oldest first. Immutable: `with_answer` makes the next one."""

    __slots__ = ("_count", "_pieces")

    def __init__(self, pieces: tuple[dict[str, Answer], ...] = (), count: int = 0) -> None:
        self._pieces = pieces
        self._count = count

    def with_answer(self, key: str, answer: Answer) -> Answers:
        """Return these and one more, whose key is new; without the oldest if they are full."""
        assert key not in self, "a key is answered once"
        pieces, count = self._pieces, self._count + 1
        if pieces and len(pieces[-1]) < PIECE_ANSWERS_MAX:
            pieces = (*pieces[:-1], {**pieces[-1], key: answer})
        else:
            pieces = (*pieces, {key: answer})
        if count > ANSWERS_MAX:
            first = dict(pieces[0])
            del first[next(iter(first))]
            pieces = (first, *pieces[1:]) if first else pieces[1:]
            count -= 1
        return Answers(pieces, count)

    def to_plain(self) -> dict[str, Any]:
        return {key: answer.to_plain() for piece in self._pieces for key, answer in piece.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, list[Any]]) -> Answers:
        items = [(key, Answer.from_plain(answer)) for key, answer in plain.items()]
        starts = range(0, len(items), PIECE_ANSWERS_MAX)
        pieces = tuple(dict(items[start : start + PIECE_ANSWERS_MAX]) for start in starts)
        return cls(pieces, len(items))

    def __repr__(self) -> str:
        return f"<{self._count} answers>"

    def __getitem__(self, key: str) -> Answer:
        # Newest first: a retry comes soon, if it comes.
        for piece in reversed(self._pieces):
            if key in piece:
                return piece[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            yield from piece

    def __len__(self) -> int:
        return self._count
