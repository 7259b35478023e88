"""Seeds: many short runs in which nothing may go wrong, and the mutants that some of them catch.

Hazards 16, 24, 25, 26, 27, 28 and 32, T62 and T65: brought about, and looked for, in every
run. (Leases, and so 27 and T65, in one of four.)
`make soak-deep` runs more seeds, long ones, and all mutants: see SIMULATOR_SECONDS.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.__main__ import explain, explore
from simulator.mutants import MUTANTS, Mutant, catch
from simulator.plan import Plan, draw
from simulator.shrink import shrink
from simulator.tally import FAULTS
from simulator.world import run

SECONDS = float(os.environ.get("SIMULATOR_SECONDS", "60"))
SEEDS = 2_000
LONG_SEEDS = range(1_000_000, 1_000_010)
SOAK = "SIMULATOR_SECONDS" in os.environ
TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick_garbage() -> Iterator[None]:
    """Runs make much garbage and few circles; `explore` collects those in between."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def test_nothing_goes_wrong_and_every_fault_fires() -> None:
    deadline = time.monotonic() + SECONDS

    total, failures = explore(range(SEEDS if not SOAK else 1 << 40), False, deadline, 1)

    assert not failures, explain(failures[0], False, shrinks=True)
    print(f"{total.runs} runs, {total.events} events")
    if total.runs >= SEEDS:  # Fewer on a machine that is busy: some faults are rare.
        assert not [fault for fault in FAULTS if not total.fired[fault]]


def test_nothing_goes_wrong_in_long_runs() -> None:
    _, failures = explore(LONG_SEEDS, True, time.monotonic() + SECONDS, 1)

    assert not failures, explain(failures[0], True, shrinks=True)


@pytest.mark.parametrize("seed", [1, 7, 30])
def test_a_seed_replays_everything_in_any_process(seed: int) -> None:
    """Under another hash seed too: nothing may hang on the order of sets or on addresses."""
    code = (
        "from simulator.plan import draw; from simulator.world import run;"
        f"print('\\n'.join(run(draw({seed}), trace=True).trace))"
    )
    here = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}

    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=here | {"PYTHONHASHSEED": str(salt)},
            check=True,
            capture_output=True,
        ).stdout
        for salt in (0, 1)
    }

    assert len(traces) == 1
    assert traces.pop().count(b"\n") > 50


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_caught(mutant: Mutant) -> None:
    """By the rule that its hazard names, or a stronger one."""
    caught = catch(mutant)

    assert caught is not None, "nothing noticed"
    assert caught[1] in mutant.rules, caught


@pytest.mark.parametrize(
    "seed",
    [
        456,  # A change that was about to be cut off made the leader's own change look absurd.
    ],
)
def test_what_went_wrong_once(seed: int) -> None:
    outcome = run(draw(seed))

    assert not outcome.rule, explain(outcome, False, shrinks=False)


def test_a_failing_plan_is_made_small() -> None:
    plan = replace(draw(2), clients=3)
    assert len(plan.faults) > 2
    wanted = plan.faults[1]

    def fails(candidate: Plan) -> bool:
        return wanted in candidate.faults

    small = shrink(plan, fails)

    assert small.faults == (wanted,)
    assert (small.clients, small.links.loss) == (1, 0.0)


def test_a_run_that_fails_says_how_to_run_it_again() -> None:
    mutant = MUTANTS[0]
    caught = catch(mutant)
    assert caught is not None
    outcome = run(draw(caught[0]))
    outcome.rule, outcome.detail = caught[1], caught[2]

    text = explain(outcome, False, shrinks=False)

    assert f"make simulate SEED={caught[0]}" in text
    assert caught[1] in text
