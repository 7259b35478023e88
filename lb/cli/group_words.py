"""What is going on in a group, in words: what an operator reads at three in the morning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lb.cli.output import span

LAG_TOLD_MIN = 100  # Entries that a member is behind before we speak of it.
SILENCE_TOLD_MS = 2000  # So long a member is not heard before we speak of it.


def in_words(plain: dict[str, Any]) -> Iterator[str]:
    """Yield lines about a group as `/v1/group` shows it: what is so, and what to do."""
    match plain["state"]:
        case "ok" | "alone":
            yield from _well(plain)
        case "forming":
            yield from _forming(plain)
        case "no-quorum":
            yield from _no_quorum(plain)
        case "removed":
            yield "this instance was removed from its group: it is not ready, and takes no writes"
            yield (
                plain.get("detail")
                or "to bring it back: stop it, remove raft/ in its data_dir, and start it again"
            )
        case "damaged":
            yield f"its log is damaged: {plain.get('detail') or 'the daemon log says where'}"
            yield from _served(plain)
            yield "stop it, remove raft/ in its data_dir, start it: it joins the group anew"
        case "stopped-apply":
            yield f"it has stopped following the group: {plain.get('detail') or 'see its log'}"
            yield from _served(plain)
        case other:
            yield f"{other}: {plain.get('detail') or 'this lb does not know that state'}"


def in_short(group: dict[str, Any]) -> str:
    """Say how the group is in one line, as `lb status` does."""
    revision = f"revision {group['revision']}"
    if group["state"] == "alone":
        return f"alone, {revision}"
    leader = f"leader {group['leader'] or 'none'}, term {group['term']}"
    role, state = group["role"], group["state"]
    return f"{role if role == state else f'{role} ({state})'}, {leader}, {revision}"


def alarms(group: dict[str, Any]) -> Iterator[str]:
    """Yield what nobody may overlook: the registry that is served may be an old one."""
    state = group["state"]
    if state in ("ok", "alone") and group.get("quorum", True):
        return
    if state == "forming":
        yield "no group yet: this instance serves its file; lb group status says whom it waits for"
        return
    what = _ALARMS.get(state, f"THE GROUP IS NOT WELL ({state})")
    yield f"{what}: it serves the LAST GOOD registry, {_age(group)}, and takes no writes"
    yield "lb group status says what to do"


_ALARMS = {
    "ok": "NO QUORUM",
    "no-quorum": "NO QUORUM",
    "removed": "REMOVED FROM ITS GROUP",
    "damaged": "ITS LOG IS DAMAGED",
    "stopped-apply": "IT HAS STOPPED FOLLOWING THE GROUP",
}


def _age(group: dict[str, Any]) -> str:
    age = group.get("age_s") or 0.0
    return f"known to be current {span(age)} ago" if age >= 1 else "a moment old"


def _well(plain: dict[str, Any]) -> Iterator[str]:
    members = plain.get("members") or []
    voters = [each for each in members if each["role"] == "voter"]
    spare = (len(voters) - 1) // 2
    match len(voters):
        case 0 | 1:
            yield "one voter: it agrees with itself, and nothing is lost if it stays"
        case 2:
            yield "two voters: neither may be lost; a third makes the group safe"
        case count:
            yield f"{count} voters: any {spare} of them may be lost"
    for each in members:
        yield from _about(each)
    yield from filter(None, [plain.get("detail")])
    hashes = {each.get("config_hash") for each in members if each.get("config_hash")}
    if len(hashes) > 1:
        yield "their configs differ: an address, or a reload that did not get everywhere (CONFIG)"


def _about(member: dict[str, Any]) -> Iterator[str]:
    contact, lag = member.get("last_contact_ms"), member.get("lag")
    if contact is not None and contact > SILENCE_TOLD_MS:
        yield f"{member['name']} has not been heard for {span(contact / 1000)}"
    elif member["role"] == "learner":
        behind = f", {lag} entries behind" if lag else ""
        yield f"{member['name']} is a learner{behind}: it follows, and does not vote"
    elif lag is not None and lag > LAG_TOLD_MIN:
        yield f"{member['name']} is {lag} entries behind"


def _forming(plain: dict[str, Any]) -> Iterator[str]:
    waiting = ", ".join(plain.get("waiting_for") or []) or "the others"
    yield f"no group yet: waiting for {waiting}; until then this instance serves its file"
    if plain.get("detail"):
        yield plain["detail"]
        return
    yield "start them; if one will never come, lb group found goes on without (first start only)"


def _no_quorum(plain: dict[str, Any]) -> Iterator[str]:
    yield "no quorum: too few voters reach each other, so nothing can be changed"
    yield from filter(None, [plain.get("detail")])
    yield from _served(plain)
    silent = [
        each["name"]
        for each in plain.get("members") or []
        if each["role"] == "voter" and each.get("live") is False
    ]
    if silent:
        yield f"not heard: {', '.join(silent)}"
    yield "start the others, or look what keeps them apart"
    yield "if most voters are gone for good: lb group recover --lost NAME,NAME on the best survivor"


def _served(plain: dict[str, Any]) -> Iterator[str]:
    age = plain.get("age_s") or 0.0
    known = f", as it was {span(age)} ago" if age >= 1 else ""
    yield f"traffic goes on by the last good registry{known} (revision {plain['revision']})"
