"""Ejections of an instance: what workers report, what checks end, what the next one knows."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from lb.config.schema import Config
from lb.control.outliers import Outliers
from lb.edition import Sources
from lb.model import Health
from lb.registry import Registry


def config_of(*backends: str) -> Config:
    plain = {
        "node": {"name": "a", "data_dir": "/nowhere"},
        "listener": {"web": {"address": "127.0.0.1:80"}},
        "upstream": {"app": {"backends": list(backends)}},
    }
    return Config.model_validate(plain)


ONE, TWO, THREE = (f"10.0.0.{number}:80" for number in (1, 2, 3))
CONFIG = config_of(ONE, TWO, THREE)


class Instance:
    """What an `Outliers` sees of the controller around it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes = 0
        self.sources = Sources(CONFIG, 1, Registry(id="0" * 32))
        self.outliers = Outliers(
            lambda: self.sources, self.changed, lambda: self.now, random.Random(7)
        )

    def changed(self) -> None:
        self.changes += 1

    def check(self, address: str, verdict: Health) -> None:
        before = self.sources.verdicts.get("app", {})
        self.sources = replace(self.sources, verdicts={"app": {**before, address: verdict}})
        self.outliers.verdicts_changed()

    @property
    def out(self) -> list[str]:
        return list(self.outliers.ejections.get("app", {}))


@pytest.fixture
def instance() -> Instance:
    return Instance()


def test_one_goes_and_the_cap_holds(instance: Instance, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    instance.outliers.found(1, "app", ONE, "connect")
    for _ in range(5):
        instance.outliers.found(0, "app", TWO, "timeout")
    assert instance.out == [ONE]
    assert instance.changes == 1
    first, second = caplog.messages
    assert first.startswith(f"app/{ONE} is ejected for 1")
    assert first.endswith("(the first time): it cannot be connected to")
    assert second == (
        f"app/{TWO} stays although it does not answer in time: "
        "outlier.max_ejected: 1 of 3 are out already"
    )


def test_a_late_report_and_a_trial(instance: Instance) -> None:
    instance.outliers.found(1, "app", ONE, "connect")
    instance.outliers.found(0, "app", ONE, "connect")
    assert instance.changes == 1
    instance.now = instance.outliers.ejections["app"][ONE].until
    instance.outliers.found(0, "app", ONE, "status")
    again = instance.outliers.ejections["app"][ONE]
    assert (again.times, again.cause, again.slot) == (2, "status", 0)
    instance.outliers.returned("app", ONE)
    instance.outliers.returned("app", ONE)
    assert instance.out == []
    assert instance.changes == 3


def test_a_turn_to_healthy_ends_it_and_being_healthy_does_not(instance: Instance) -> None:
    instance.check(ONE, Health.HEALTHY)
    instance.outliers.found(1, "app", ONE, "status")
    instance.check(TWO, Health.HEALTHY)
    assert instance.out == [ONE]
    instance.check(ONE, Health.UNHEALTHY)
    assert instance.out == [ONE]
    instance.check(ONE, Health.HEALTHY)
    assert instance.out == []


def test_who_is_ill_by_its_check_is_nobodys_stand_in(instance: Instance) -> None:
    instance.check(TWO, Health.UNHEALTHY)
    instance.check(THREE, Health.UNHEALTHY)
    instance.outliers.found(1, "app", ONE, "status")
    assert instance.out == []


def test_the_next_controller_goes_on(instance: Instance) -> None:
    instance.outliers.found(1, "app", ONE, "status")
    after = Instance()
    after.outliers.restore(json.loads(json.dumps(instance.outliers.to_plain())))
    assert after.outliers.ejections == instance.outliers.ejections
    after.check(ONE, Health.HEALTHY)
    assert after.out == [ONE], "it has not turned, as far as we saw"
    after.outliers.returned("app", ONE)
    assert after.out == []


def test_what_is_gone_is_forgotten(instance: Instance) -> None:
    instance.outliers.found(1, "app", ONE, "status")
    instance.sources = replace(instance.sources, config=config_of(TWO, THREE))
    instance.outliers.backends_changed()
    assert instance.out == []
    instance.outliers.found(1, "nobody", ONE, "status")
    assert instance.out == []
