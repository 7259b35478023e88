"""Make a failing plan small: take out faults, clients and bad luck while it still fails alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulator.plan import Links, Plan

RUNS_MAX = 300


def shrink(plan: Plan, fails: Callable[[Plan], bool], runs_max: int = RUNS_MAX) -> Plan:
    """
    Return a smaller plan that `fails` too.

    Faults go first, in halves, then quarters and so on down to single ones; then each knob is
    tried at its dullest. Whatever helped is kept, and all is tried again until nothing helps.
    """
    left = runs_max

    def still(candidate: Plan) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and fails(candidate)

    before = None
    while before != plan and left > 0:
        before = plan
        plan = _fewer_faults(plan, still)
        for candidate in _duller(plan):
            merged = candidate(plan)
            if merged != plan and still(merged):
                plan = merged
    return plan


def _fewer_faults(plan: Plan, still: Callable[[Plan], bool]) -> Plan:
    size = len(plan.faults)
    while size >= 1:
        start = 0
        while start < len(plan.faults):
            fewer = plan.faults[:start] + plan.faults[start + size :]
            candidate = replace(plan, faults=fewer)
            if still(candidate):
                plan = candidate
            else:
                start += size
        size //= 2
    return plan


def _duller(plan: Plan) -> Iterator[Callable[[Plan], Plan]]:
    """Yield changes that make a plan simpler, the greatest first."""
    links = plan.links
    quiet = Links(links.delay_min, links.delay_spread)
    yield lambda now: replace(now, links=quiet)
    yield lambda now: replace(now, links=replace(now.links, loss=0.0))
    yield lambda now: replace(now, links=replace(now.links, duplicate=0.0))
    yield lambda now: replace(now, links=replace(now.links, late=0.0))
    yield lambda now: replace(now, links=replace(now.links, in_order=True))
    yield lambda now: replace(now, clients=1)
    yield lambda now: replace(now, calls=max(now.calls // 2, 1))
    yield lambda now: replace(now, tenants=0)
    yield lambda now: replace(now, payload=0)
    yield lambda now: replace(now, compact_every=1_000)
    yield lambda now: replace(now, inflight=256, append_bytes=65_536, apply_bytes=65_536)
    yield lambda now: replace(now, learners=0)
    if plan.members > 3:
        yield lambda now: replace(now, members=3)
    last = max((fault.at for fault in plan.faults), default=plan.election)
    yield lambda now: replace(now, chaos=min(now.chaos, last + 2 * now.election))
