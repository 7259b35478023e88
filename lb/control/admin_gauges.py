"""The controller's own metrics: what workers do not know, composed for each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.metrics_core import Metric

from lb import __version__
from lb.control.admin_reads import checks_of, entry_of, health_of, is_ejected, upstream_names
from lb.control.desk import Desk, GroupStanding, Role, Standing
from lb.exposition import family, standard_metrics
from lb.model import Health, State
from lb.registry import Entry

GOOD = {Health.HEALTHY.value, Health.UNCHECKED.value}


def gauges(desk: Desk) -> Iterator[Metric]:
    """Yield every family that the controller knows best."""
    standing = desk.standing()
    yield from standard_metrics(__version__)
    yield from _of_config(standing)
    yield from _of_workers(standing)
    yield from _of_certificates(standing)
    yield from _of_group(desk.group.standing())
    yield from _of_backends(desk)
    yield from _of_checks(desk)


def _of_config(standing: Standing) -> Iterator[Metric]:
    on_disk = standing.on_disk.partition(":")[0]
    yield family("lb_config_generation", [({}, standing.generation)])
    yield family("lb_config_last_reload_success", [({}, standing.error is None)])
    yield family("lb_config_last_reload_timestamp_seconds", [({}, standing.reloaded)])
    yield family(
        "lb_config_reloads_total",
        [({"result": result}, count) for result, count in standing.reloads.items()],
    )
    yield family(
        "lb_config_on_disk",
        [({"state": state}, state == on_disk) for state in ("same", "changed", "invalid")],
    )


def _of_workers(standing: Standing) -> Iterator[Metric]:
    workers = standing.workers
    yield family("lb_worker_up", [({"worker": str(each.slot)}, each.up) for each in workers])
    yield family(
        "lb_worker_restarts_total",
        [({"worker": str(each.slot)}, each.restarts) for each in workers],
    )


def _of_certificates(standing: Standing) -> Iterator[Metric]:
    ends: dict[tuple[str, str], float] = {}
    refused: dict[tuple[str, str], bool] = {}
    for each in standing.certificates:
        names = ",".join(each["names"] or [each["cert"].rpartition("/")[2]])
        for user in each["used_by"]:
            kind, _, name = user.partition(".")
            key = (name if kind == "listener" else "", names)
            if each["expires"] is not None:
                ends[key] = min(each["expires"], ends.get(key, each["expires"]))
            refused[key] = refused.get(key, False) or each["error"] is not None
    yield family(
        "lb_tls_cert_expiry_timestamp_seconds",
        [({"listener": key[0], "names": key[1]}, end) for key, end in ends.items()],
    )
    yield family(
        "lb_tls_cert_refused",
        [({"listener": key[0], "names": key[1]}, value) for key, value in refused.items()],
    )


def _of_group(standing: GroupStanding) -> Iterator[Metric]:
    yield family(
        "lb_group_role", [({"role": role}, role == standing.role) for role in get_args(Role)]
    )
    yield family("lb_group_quorum", [({}, standing.quorum)])
    yield family("lb_group_term", [({}, standing.term)])
    yield family("lb_group_commit_index", [({}, standing.commit)])
    yield family("lb_group_applied_index", [({}, standing.applied)])
    yield family("lb_group_leader_changes_total", [({}, standing.leader_changes)])
    yield family("lb_group_append_seconds", [({}, standing.sync_seconds)])
    yield family(
        "lb_group_peer_lag_entries",
        [({"member": each.name}, each.lag) for each in standing.members if each.lag is not None],
    )
    yield family("lb_registry_age_seconds", [({}, standing.age_s)])


def _of_backends(desk: Desk) -> Iterator[Metric]:
    up, states, healths, weights, ejected = [], [], [], [], []
    for upstream in upstream_names(desk):
        for key, backend in entry_of(desk, upstream).backends.items():
            labels = {"upstream": upstream, "backend": key}
            health = health_of(desk, upstream, backend)
            out = is_ejected(desk, upstream, backend)
            up.append((labels, _is_up(backend, health) and not out))
            ejected.append((labels, out))
            weights.append((labels, backend.weight))
            states += [({**labels, "state": each}, backend.state == each) for each in State]
            healths += [({**labels, "health": each}, health == each) for each in Health]
    yield family("lb_backend_up", up)
    yield family("lb_backend_state", states)
    yield family("lb_backend_health", healths)
    yield family("lb_backend_ejected", ejected)
    yield family(
        "lb_backend_forced",
        [
            ({"upstream": upstream, "backend": key, "to": to}, 1)
            for upstream, keys in desk.forced().items()
            for key, to in keys.items()
        ],
    )
    yield family("lb_backend_weight", weights)


def _of_checks(desk: Desk) -> Iterator[Metric]:
    counts, durations = [], []
    for upstream in upstream_names(desk):
        for key, backend in entry_of(desk, upstream).backends.items():
            labels = {"upstream": upstream, "backend": key}
            checks = checks_of(desk, upstream, backend)
            lasts = [each.last_check for each in checks if each.last_check is not None]
            if not lasts:
                continue
            counts.append(({**labels, "result": "ok"}, sum(each.passed for each in checks)))
            counts.append(({**labels, "result": "failed"}, sum(each.failed for each in checks)))
            durations.append((labels, max(float(each["ms"]) for each in lasts) / 1000))
    yield family("lb_health_checks_total", counts)
    yield family("lb_health_check_seconds", durations)


def _is_up(backend: Entry, health: str) -> bool:
    return backend.takes_traffic and health in GOOD
