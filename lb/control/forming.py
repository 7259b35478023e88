"""The first start of a member, and of a group: who founds, who joins, who waits.

One rule for every case (three boxes started at once, one after another, one missing; a box
replaced, a box wiped): whoever has no log asks everybody that its file names. If anyone holds a
group, it joins that. Only when every listed member has answered that it holds nothing does the
one whose name sorts first found the group. So no group is founded beside one that a member that
is silent just now may hold; an operator who knows better says `lb group found`.

Pure: answers in, a decision out. The asking is in `group`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What somebody said to `who`.

    `group` is empty where it holds none. `leader` is the address at which the group can be
    joined, empty if there is no leader just now.
    """

    name: str
    group: str = ""
    leader: str = ""


@dataclass(frozen=True, slots=True)
class Join:
    """Ask the leader of this group to be taken in."""

    group: str
    leader: str


@dataclass(frozen=True, slots=True)
class Found:
    """Found the group."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again later. `for_` names whom the start waits for; `why` says more, if there is."""

    for_: tuple[str, ...] = ()
    why: str = ""


Decision = Join | Found | Wait


def decide(
    own: str,
    listed: Mapping[str, str],
    others: tuple[str, ...],
    answers: Mapping[str, Answer],
) -> Decision:
    """
    Say what to do, by what was answered.

    `listed` has the first members' addresses by name, our own too; `others` are addresses of a
    running group. `answers` is by address; who did not answer is not in it.
    """
    held = {answer.group for answer in answers.values() if answer.group}
    if len(held) > 1:
        where = ", ".join(
            f"{answer.name} ({address}) holds {answer.group}"
            for address, answer in sorted(answers.items())
            if answer.group
        )
        return Wait(
            why=f"there are two groups: {where}; decide which is right, and on each member of "
            "the other stop it, remove raft/ in its data_dir, and start it again"
        )
    if held:
        group = held.pop()
        leaders = sorted({a.leader for a in answers.values() if a.group == group and a.leader})
        return Join(group, leaders[0]) if leaders else Wait(("the group's leader",))
    return _decide_first(own, listed, others, answers)


def _decide_first(
    own: str,
    listed: Mapping[str, str],
    others: tuple[str, ...],
    answers: Mapping[str, Answer],
) -> Decision:
    """Nobody who answered holds a group."""
    if own not in listed:
        if listed:
            return Wait(tuple(listed), f'"{own}" is not among group.members, so it can only join')
        return Wait(others, "none of these holds a group yet")
    missing = []
    for name, address in sorted(listed.items()):
        answer = answers.get(address)
        if name != own and answer is None:
            missing.append(name)
        elif name != own and answer is not None and answer.name != name:
            why = f'{address} should be "{name}" and says that it is "{answer.name}"'
            return Wait((name,), why)
    if missing:
        return Wait(tuple(missing))
    first = min(listed)
    return Found() if first == own else Wait((first,), f'"{first}" is to found the group')
