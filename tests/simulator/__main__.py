"""`python -m simulator`: run seeds, print what happened, and a small plan of what failed.

`make simulate SEED=7` runs one seed and prints its trace if it fails; `make simulate SECONDS=600`
runs as many seeds as fit into the time. Exit status 1: something did not hold.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from simulator.plan import Plan, draw
from simulator.shrink import shrink
from simulator.tally import FAULTS, Tally, report
from simulator.world import Outcome, run

TRACE_LINES_MAX = 200
FAILURES_MAX = 3
RUNS_FOR_ALL_FAULTS = 2_000  # Some are rare.


def main(arguments: list[str]) -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one, twice, and show its trace")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--start", type=int, default=0, help="the first seed of many")
    parser.add_argument("--count", type=int, default=1 << 60, help="how many seeds at most")
    parser.add_argument("--long", action="store_true", help="long runs: more of everything")
    parser.add_argument("--no-shrink", action="store_true", help="show failures as they are")
    given = parser.parse_args(arguments)
    gc.disable()  # A run leaves little behind; see `explore`.
    if given.seed is not None:
        return show_seed(given.seed, given.long)
    seeds = range(given.start, given.start + given.count)
    started = time.monotonic()
    total, failures = explore(seeds, given.long, started + given.seconds)
    print(report(total, time.monotonic() - started))
    for failure in failures:
        print(explain(failure, given.long, not given.no_shrink))
    missing = [fault for fault in FAULTS if not total.fired[fault]]
    if missing and total.runs >= RUNS_FOR_ALL_FAULTS:
        print(f"these faults never fired, so nothing is known of them: {', '.join(missing)}")
    return 1 if failures or (missing and total.runs >= RUNS_FOR_ALL_FAULTS) else 0


def show_seed(seed: int, long: bool) -> int:
    """Run one seed and print what it did."""
    plan = draw(seed, long)
    outcome = run(plan, trace=True)
    print(describe_plan(plan))
    if outcome.rule:
        print("\n".join((outcome.trace or [])[-TRACE_LINES_MAX:]))
        print(explain(outcome, long, shrinks=True))
    print(report(outcome.tally, 0.0))
    return 1 if outcome.rule else 0


def explore(
    seeds: Iterable[int], long: bool, deadline: float, failures_max: int = FAILURES_MAX
) -> tuple[Tally, list[Outcome]]:
    """Run seeds until the deadline or until enough have failed; return all counts together."""
    total = Tally()
    failures = []
    for outcome in outcomes(seeds, long):
        total.add(outcome.tally)
        if outcome.rule:
            failures.append(outcome)
        if len(failures) >= failures_max or time.monotonic() > deadline:
            break
    return total, failures


def outcomes(seeds: Iterable[int], long: bool) -> Iterator[Outcome]:
    """Run one seed after the other."""
    for number, seed in enumerate(seeds):
        yield run(draw(seed, long))
        if number % 50 == 49:
            gc.collect()


def explain(outcome: Outcome, long: bool, shrinks: bool) -> str:
    """Return what a person needs to look into a failure."""
    plan, rule = outcome.plan, outcome.rule
    lines = [f"\nseed {plan.seed}: {rule}", f"  {outcome.detail}", f"again: {again(plan, long)}"]
    if shrinks:
        small = shrink(plan, lambda candidate: run(candidate).rule == rule)
        last = run(small, trace=True)
        lines += ["the smallest plan that fails alike:", describe_plan(small), "its last events:"]
        lines += [f"  {line}" for line in (last.trace or [])[-TRACE_LINES_MAX:]]
        lines.append(f"{last.rule}: {last.detail}")
    return "\n".join(lines)


def again(plan: Plan, long: bool) -> str:
    """Return the command that runs a plan's seed again."""
    return f"make simulate SEED={plan.seed}{' LONG=1' if long else ''}"


def describe_plan(plan: Plan) -> str:
    """Return a plan as a person reads it: its faults, then everything else."""
    rest = repr(replace(plan, faults=()))
    return "\n".join([f"  {rest}", *(f"  {fault}" for fault in plan.faults)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
