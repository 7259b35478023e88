"""What holds for all tests: the areas that the closing table counts by."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The first folder or file name that fits gives a test its area; the rest are units.
AREAS = {
    "chaos": "group chaos",
    "journeys": "journeys",
    "test_dashboard.py": "journeys",
    "test_dashboard_group.py": "journeys",
    "wire": "wire and fuzz",
    "test_tidy.py": "house and docs",
    "test_docs.py": "house and docs",
    "test_package.py": "house and docs",
}
UNITS = "unit and properties"
LEFT_SECONDS = 10.0


def area_of(path: Path) -> str:
    """Return the area of the test file at `path`."""
    for part in path.relative_to(HERE).parts:
        if part in AREAS:
            return AREAS[part]
    return UNITS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each area's tests and its share of the time."""
    tests: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in terminalreporter.stats.get(outcome, ()):
            area = area_of(HERE.parent / report.nodeid.partition("::")[0])
            failed[area] += outcome in ("failed", "error")
            tests[area] += 1
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):  # Set-up and tear-down have one each.
                area = area_of(HERE.parent / report.nodeid.partition("::")[0])
                seconds[area] += report.duration  # type: ignore[assignment]  # Counter of floats.
    if not tests:
        return
    total = sum(seconds.values()) or 1
    terminalreporter.section("areas")
    for area, count in sorted(tests.items()):
        share = seconds[area] / total
        bad = f", {failed[area]} failed" if failed[area] else ""
        terminalreporter.line(f"{area:20} {count:5} tests {seconds[area]:7.1f} s {share:5.0%}{bad}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the run although a failed test left a thread behind, for which Python would wait."""
    watchdog = threading.Timer(LEFT_SECONDS, give_up)
    watchdog.daemon = True
    watchdog.start()


def give_up() -> None:
    """End at once, as a failure, and say whom Python waits for."""
    main = threading.main_thread()
    left = [each.name for each in threading.enumerate() if each is not main and not each.daemon]
    print(f"threads that tests left behind: {', '.join(left)}", file=sys.stderr, flush=True)
    os._exit(1)
