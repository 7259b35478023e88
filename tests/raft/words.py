"""How transcripts say things: groups, messages, entries and states, as text and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from google_crc32c import value as crc32c

from lb.raft.members import decode_change
from lb.raft.messages import (
    TRANSFER,
    ConfState,
    Entry,
    Kind,
    Message,
    MessageType,
    PeerStatus,
    SnapChunk,
    SnapMeta,
    Status,
)

NAMES = {kind: kind.name.title().replace("_", "") for kind in MessageType}  # VOTE_REPLY: VoteReply
TYPES = {name: kind for kind, name in NAMES.items()}


def say_place(term: int, index: int) -> str:
    """Return a place in a log: its term and its index."""
    return f"{term}/{index}"


def parse_place(text: str) -> tuple[int, int]:
    """Return a place's term and index."""
    term, index = text.split("/")
    return int(term), int(index)


def parse_log(text: str) -> list[Entry]:
    """`1.1.2` is a log by its terms, `2/5` one of five entries of term 2; each holds its index."""
    if "/" in text:
        term, last = parse_place(text)
        terms = [term] * last
    else:
        terms = [int(term) for term in text.split(".")] if text else []
    return [normal(index, term, str(index)) for index, term in enumerate(terms, 1)]


def normal(index: int, term: int, text: str) -> Entry:
    """Return an entry that a user proposed."""
    return Entry(index, term, Kind.NORMAL, text.encode())


def say_what(entry: Entry) -> str:
    """Return what an entry holds."""
    match entry.kind:
        case Kind.NOOP:
            return "noop"
        case Kind.CONF:
            change = decode_change(entry.data)
            return f"{change.what.name.lower().replace('_', '-')}-{change.member}"
        case Kind.NORMAL:
            return entry.data.decode()


def say_entry(entry: Entry) -> str:
    """Return an entry's place and what it holds."""
    return f"{say_place(entry.term, entry.index)}:{say_what(entry)}"


def say_entries(entries: Sequence[Entry]) -> str:
    """Return entries in one line."""
    return " ".join(map(say_entry, entries)) or "nothing"


def parse_entries(text: str) -> tuple[Entry, ...]:
    """Return entries of `3/4:x,3/5:noop`."""
    entries = []
    for word in text.split(",") if text else ():
        place, what = word.split(":")
        term, index = parse_place(place)
        noop = Entry(index, term, Kind.NOOP)
        entries.append(noop if what == "noop" else normal(index, term, what))
    return tuple(entries)


def say_set(numbers: frozenset[int]) -> str:
    """Return members in order."""
    return ",".join(map(str, sorted(numbers)))


def parse_set(text: str) -> frozenset[int]:
    """Return `1,2,3` as a set."""
    return frozenset(int(number) for number in text.split(",") if number)


def say_members(conf: ConfState) -> str:
    """Return who the members are."""
    learners = f"+{say_set(conf.learners)}" if conf.learners else ""
    return f"voters={say_set(conf.voters)}{learners}"


# --- Messages ---------------------------------------------------------------------------------


def say_message(message: Message) -> str:
    """Return a message as one line: only those fields that mean something in it."""
    link = f"{message.frm}->{message.to} {NAMES[message.type]} term={message.term}"
    if message.reject:
        return f"{link} no{say_refusal(message)}"
    return f"{link} {SAY[message.type](message)}".rstrip()


def say_refusal(message: Message) -> str:
    """Return what a no says besides."""
    if message.type is not MessageType.APPEND_REPLY:
        return ""
    hint = say_place(message.hint_term, message.hint_index)
    return f" after={message.log_index} hint={hint}"


def say_place_of(message: Message) -> str:
    """Return the place that a message names."""
    return say_place(message.log_term, message.log_index)


def say_append(message: Message) -> str:
    """Return where entries go, and which."""
    entries = say_entries(message.entries)
    return f"prev={say_place_of(message)} [{entries}] commit={message.commit}"


def say_chunk(message: Message) -> str:
    """Return of which snapshot a piece is, and which piece."""
    assert message.chunk
    chunk, meta = message.chunk, message.chunk.meta
    end = chunk.offset + len(chunk.data)
    what = f"last={say_place(meta.term, meta.index)} {say_members(meta.conf)}"
    return f"{what} bytes={chunk.offset}..{end}/{chunk.total}"


def say_vote(message: Message) -> str:
    """Return how good a candidate's log is, and whether a leader has asked it to campaign."""
    return f"last={say_place_of(message)}{' transfer' * (message.ctx == TRANSFER)}"


SAY: dict[MessageType, Callable[[Message], str]] = {
    MessageType.PRE_VOTE: say_vote,
    MessageType.PRE_VOTE_REPLY: lambda _: "yes",
    MessageType.VOTE: say_vote,
    MessageType.VOTE_REPLY: lambda _: "yes",
    MessageType.APPEND: say_append,
    MessageType.APPEND_REPLY: lambda message: f"match={message.log_index}",
    MessageType.HEARTBEAT: lambda message: f"commit={message.commit}",
    MessageType.HEARTBEAT_REPLY: lambda _: "",
    MessageType.SNAPSHOT: say_chunk,
    MessageType.SNAPSHOT_REPLY: lambda it: f"last={say_place_of(it)} has={it.hint_index}",
    MessageType.PROPOSE: lambda message: " ".join(map(say_what, message.entries)),
    MessageType.PROPOSE_REPLY: lambda message: f"at={say_place_of(message)}",
    MessageType.READ_INDEX: lambda _: "",
    MessageType.READ_INDEX_REPLY: lambda message: f"index={message.log_index}",
    MessageType.TIMEOUT_NOW: lambda _: "",
    MessageType.TRANSFER: lambda message: f"whom={message.hint_index}",
}


def parse_message(words: Sequence[str]) -> Message:
    """Return the message that `2->1 Append term=3 prev=2/5 entries=3/6:x commit=4` says."""
    link, name, *rest = words
    frm, to = map(int, link.split("->"))
    fields = dict(word.split("=") for word in rest if "=" in word)
    fields["match"] = fields.pop("after", fields.get("match", ""))
    log_term, log_index = parse_place(fields.get("last") or fields.get("prev") or "0/0")
    hint_term, hint_index = parse_place(fields.get("hint", "0/0"))
    kind = TYPES[name]
    chunk = None
    if kind is MessageType.SNAPSHOT:
        conf = ConfState(
            parse_set(fields.get("voters", "1,2,3")), parse_set(fields.get("learners", ""))
        )
        chunk = whole_snapshot(SnapMeta(log_index, log_term, conf))
    return Message(
        kind,
        frm,
        to,
        int(fields["term"]),
        log_index=int(fields["match"] or log_index),
        log_term=log_term,
        commit=int(fields.get("commit", 0)),
        entries=parse_entries(fields.get("entries", "")),
        reject="no" in rest,
        hint_index=hint_index,
        hint_term=hint_term,
        chunk=chunk,
    )


def whole_snapshot(meta: SnapMeta) -> SnapChunk:
    """Return a snapshot in one piece, of a machine that somebody else filled."""
    data = f"the state at {say_place(meta.term, meta.index)}".encode()
    crc = crc32c(data)
    return SnapChunk(meta, 0, len(data), data, crc, crc)


# --- Members ----------------------------------------------------------------------------------


def say_status(status: Status) -> str:
    """Return what a member is, as seen from outside."""
    leader = f" of={status.leader}" if status.leader not in (0, status.id) else ""
    return f"{status.id} {status.role.value} term={status.term}{leader} commit={status.commit}"


def say_peer(number: int, peer: PeerStatus) -> str:
    """Return what a leader knows of one member."""
    parts = [f"{number} {peer.state.value} match={peer.match} next={peer.next}"]
    parts += [f"inflight={peer.inflight}"] if peer.inflight else []
    parts += ["" if peer.recent_active else "silent"]
    return " ".join(filter(None, parts))
