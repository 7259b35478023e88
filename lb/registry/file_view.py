"""What a changed file may still change: three lists are compared, backend by backend.

Every instance carries the same file, at its own time: some late, some again after a crash,
some with an old disk image. A change in it must act once. So an instance proposes what its
file said before and says now, and both are held against the file's view, what any file last
said:

1. No file has spoken yet, or the instance remembers just the view: its file is the newest.
   All of its change is applied, and the view becomes what it says.
2. Else the instance was behind. If its file says what the view is, or once was, it is only
   catching up, and nothing is applied. (Not so if what it remembers was merged by rule 3: then
   the view holds what no other file says, and only this instance can take it out again. And if
   what it remembers was the view more lately than what it says, that is reported as stale.)
3. Else each backend is judged. The view says so already: nothing to do. The view is what the
   instance remembers: applied. Otherwise others have moved on: skipped, and reported as stale.

An instance without memory takes the view as what it remembers if its file has a higher version
than the files that made the view; if not, nothing is applied and the differences are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lb.registry.values import PAST_VIEWS_MAX, Changed, Entry, Said, Source, View, digest_of

FIELDS = ("address", "weight", "backup")  # What a file may change of a backend it named before.

SaidByKey = Mapping[str, Said]
SaidChange = tuple[str, Said | None, Said | None]  # Key, what the file said before, says now.


@dataclass(frozen=True, slots=True)
class Judgement:
    """What of a file is to be applied, and the view after it."""

    apply: tuple[SaidChange, ...]
    view: View
    stale: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Speech:
    """What a file says of one upstream now; `stamp` is put on what it changes."""

    says: SaidByKey
    version: int
    stamp: Changed


def judge(view: View | None, remembered: SaidByKey | None, speech: Speech) -> Judgement:
    """Decide by the rules above."""
    says = speech.says
    if view is None:
        return take_whole(view, speech)
    if remembered is None:
        if speech.version <= view.version:
            differs = tuple(key for key, _, _ in differences(view.said, says))
            return Judgement((), view, differs=differs)
        remembered = view.said
    if remembered == view.said:
        return take_whole(view, speech)
    if says == view.said:
        return Judgement((), view)
    # What was merged may have left in the view what only this file, no view, has ever said.
    if digest_of(says) in view.past and digest_of(remembered) not in view.merged:
        return _catch_up(view, remembered, says)
    return _judge_each(view, remembered, speech)


def _catch_up(view: View, remembered: SaidByKey, says: SaidByKey) -> Judgement:
    """
    Apply nothing: others have brought the view through this change already.

    Unless the view was what this file remembers after it was what it says. Then it may be an
    old file come back, which must undo nothing, or a change that nobody else has made, since
    they skipped a file of the row. Nobody can tell, so a person is told.
    """
    latest = {digest: at for at, digest in enumerate(view.past)}
    if latest[digest_of(says)] > latest.get(digest_of(remembered), -1):
        return Judgement((), view)
    changes = differences(remembered, says)
    return Judgement((), view, stale=tuple(k for k, _, now in changes if view.said.get(k) != now))


def take_whole(view: View | None, speech: Speech) -> Judgement:
    """Make the view what the file says, and apply all that differs."""
    says = speech.says
    if view is None:
        return Judgement(tuple(differences({}, says)), View(says, speech.stamp, speech.version))
    if says == view.said:
        return Judgement((), view)
    moved = view.moved(says, speech.stamp, speech.version)
    return Judgement(tuple(differences(view.said, says)), moved)


def differences(before: SaidByKey, after: SaidByKey) -> Iterator[SaidChange]:
    """What changed from one list to the other: what is gone, then the rest as the file has it."""
    for key, said in before.items():
        if key not in after:
            yield key, said, None
    for key, said in after.items():
        if before.get(key) != said:
            yield key, before.get(key), said


def entry_after(entry: Entry | None, change: SaidChange, stamp: Changed) -> Entry | None:
    """
    Return a backend as one change of a file leaves it; None if there is none then.

    What the file changed is written and nothing else, so a weight set through the API is not
    undone by an edit of `backup`. A backend put through the API is not the file's to remove.
    """
    _, before, now = change
    if now is None:
        return None if entry is None or entry.source is Source.FILE else entry
    if entry is None:
        return Entry(
            address=now.address,
            changed=stamp,
            name=now.name,
            weight=now.weight,
            backup=now.backup,
            source=Source.FILE,
        )
    news = {
        name: getattr(now, name)
        for name in FIELDS
        if before is None or getattr(before, name) != getattr(now, name)
    }
    return replace(entry, **news)


def _judge_each(view: View, remembered: SaidByKey, speech: Speech) -> Judgement:
    applied: list[SaidChange] = []
    stale: list[str] = []
    said = dict(view.said)
    for key, before, now in differences(remembered, speech.says):
        if said.get(key) == now:
            continue
        if said.get(key) != before:
            stale.append(key)
            continue
        applied.append((key, before, now))
        if now is None:
            del said[key]
        else:
            said[key] = now
    after = view.moved(said, speech.stamp, speech.version) if applied else view
    if said != speech.says and (applied or digest_of(remembered) in view.merged):
        merged = (*view.merged, digest_of(speech.says))[-PAST_VIEWS_MAX:]
        after = replace(after, merged=merged)
    return Judgement(tuple(applied), after, stale=tuple(stale))
