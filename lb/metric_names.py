"""Every metric that Accord can show: its name, type, labels and meaning, in one table.

What is not in the table cannot be counted; what nobody has counted yet is absent from the
exposition. Units are base units (seconds, bytes) and labels are bounded by the
configuration: names of routes, upstreams and backends, never a path or a client.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """How values of a metric are kept and added up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(NamedTuple):
    """
    One metric. `scale` turns the whole number in shared memory into the unit shown:
    seconds are kept in microseconds, everything else as it is.
    """

    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    scale: float = 1.0


MICRO = 1e-6

# Methods of RFC 9110 and PATCH; a client can make up any number of others.
METHODS: dict[bytes, str] = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
}
OTHER_METHOD = "other"


def method_label(method: bytes) -> str:
    """Return the `method` label: `other` for what is not a standard method."""
    return METHODS.get(method, OTHER_METHOD)


def code_class(status: int) -> str:
    """Return the `code` label that a backend's metrics use: `2xx` for 204."""
    return f"{status // 100}xx"


def _counter(labels: str, meaning: str) -> Family:
    return Family(Kind.COUNTER, tuple(labels.split()), meaning)


def _gauge(labels: str, meaning: str, scale: float = 1.0) -> Family:
    return Family(Kind.GAUGE, tuple(labels.split()), meaning, scale)


def _histogram(labels: str, meaning: str) -> Family:
    return Family(Kind.HISTOGRAM, tuple(labels.split()), meaning, MICRO)


BACKEND = "upstream backend"

FAMILIES: dict[str, Family] = {
    # Requests, as clients see them.
    "lb_requests_total": _counter(
        "listener route upstream method code", "Requests answered, by full status."
    ),
    "lb_request_seconds": _histogram(
        "route upstream", "Time from the first byte of a request to the last of its answer."
    ),
    "lb_request_bytes_total": _counter("listener route", "Bytes of request bodies received."),
    "lb_response_bytes_total": _counter("listener route", "Bytes of answers sent to clients."),
    # Backends.
    "lb_backend_requests_total": _counter(
        f"{BACKEND} code", "Answers of a backend, by class of status; each try counts."
    ),
    "lb_backend_seconds": _histogram(
        BACKEND, "Time from sending a request to the first byte of the backend's answer."
    ),
    "lb_backend_connect_seconds": _histogram(
        "upstream", "Time that opening a connection to a backend took."
    ),
    "lb_backend_up": _gauge(BACKEND, "1 while this instance sends the backend new requests."),
    "lb_backend_state": _gauge(
        f"{BACKEND} state", "1 for the state that the registry holds: active, draining, disabled."
    ),
    "lb_backend_health": _gauge(
        f"{BACKEND} health",
        "1 for this instance's verdict: healthy, unhealthy, checking, unchecked.",
    ),
    "lb_backend_ejected": _gauge(BACKEND, "1 while taken out by what its answers showed."),
    "lb_backend_forced": _gauge(
        f"{BACKEND} to", "1 while an operator forces it up or down, on this instance alone."
    ),
    "lb_backend_weight": _gauge(BACKEND, "The backend's weight in the registry."),
    "lb_backend_active_requests": _gauge(BACKEND, "Requests that the backend is working on."),
    "lb_backend_connections": _gauge(f"{BACKEND} conn", "Open connections: idle, busy."),
    "lb_backend_errors_total": _counter(
        f"{BACKEND} kind", "Tries that failed: connect, reset, timeout, protocol, tls, limited."
    ),
    "lb_retries_total": _counter(f"{BACKEND} reason", "Requests taken elsewhere, by reason."),
    "lb_ejections_total": _counter(f"{BACKEND} reason", "Ejections by what answers showed."),
    "lb_health_checks_total": _counter(f"{BACKEND} result", "Active checks made, by result."),
    "lb_health_check_seconds": _gauge(BACKEND, "How long the last active check took.", MICRO),
    "lb_upstream_panic": _gauge(
        "upstream", "1 while so few backends are eligible that health is ignored."
    ),
    # Listeners.
    "lb_connections": _gauge("listener", "Open client connections."),
    "lb_connections_total": _counter("listener", "Client connections accepted."),
    "lb_connections_refused_total": _counter(
        "listener reason", "Client connections closed at once, by reason."
    ),
    "lb_limits_total": _counter(
        "listener limit", "Requests and connections refused by a limit, by its key."
    ),
    "lb_tls_handshakes_total": _counter(
        "listener result version", "TLS handshakes with clients, by result."
    ),
    "lb_tls_cert_expiry_timestamp_seconds": _gauge(
        "listener names", "When a certificate expires, in seconds since 1970."
    ),
    "lb_tls_cert_refused": _gauge(
        "listener names", "1 while what is on disk cannot be used, and the one before is shown."
    ),
    # Queue and plugins.
    "lb_queue_length": _gauge("upstream", "Requests that wait for a backend."),
    "lb_rate_limited_total": _counter("route", "Requests refused by a rate limit."),
    "lb_plugin_errors_total": _counter("plugin hook", "Calls of a plugin that raised."),
    "lb_plugin_seconds": _histogram(
        "plugin hook", "Time spent in calls of a plugin: of a sample, up to four a second."
    ),
    "lb_plugin_events_total": _counter("plugin event", "What plugins count by themselves."),
    "lb_plugin_off": _gauge("plugin", "Uses of a plugin that are off because it failed."),
    # The group.
    "lb_group_role": _gauge(
        "role",
        "1 for this member's role: leader, follower, candidate, learner, forming, removed, "
        "damaged.",
    ),
    "lb_group_term": _gauge("", "The term that this member is in."),
    "lb_group_commit_index": _gauge("", "The last log entry known to be committed."),
    "lb_group_applied_index": _gauge("", "The last log entry applied to the registry."),
    "lb_group_leader_changes_total": _counter("", "Changes of leader seen by this member."),
    "lb_group_append_seconds": _gauge("", "How long the last save of log entries to disk took."),
    "lb_group_peer_lag_entries": _gauge("member", "Log entries that a member is behind."),
    "lb_group_quorum": _gauge("", "1 while the group can commit."),
    "lb_registry_age_seconds": _gauge(
        "", "Since what is routed by was last known to be what the group has agreed on."
    ),
    # Configuration.
    "lb_config_reloads_total": _counter("result", "Reloads asked for, by result."),
    "lb_config_last_reload_success": _gauge("", "1 if the last reload was adopted."),
    "lb_config_last_reload_timestamp_seconds": _gauge(
        "", "When the configuration in force was adopted, in seconds since 1970."
    ),
    "lb_config_generation": _gauge("", "The generation of the configuration in force."),
    "lb_config_on_disk": _gauge(
        "state", "1 for the file against the configuration in force: same, changed, invalid."
    ),
    # The daemon itself.
    "lb_worker_up": _gauge("worker", "1 while the worker serves."),
    "lb_worker_shed_ratio": _gauge(
        "worker", "The part of new requests that the worker turns away to keep up.", MICRO
    ),
    "lb_worker_accept_paused": _gauge(
        "worker", "Listening sockets on which the worker lets clients wait."
    ),
    "lb_worker_loop_lag_seconds": _gauge("worker", "How late the worker's loop last was.", MICRO),
    "lb_worker_restarts_total": _counter("worker", "Times that a worker was started again."),
    "lb_access_log_dropped_total": _counter(
        "worker", "Access log lines lost because the log could not be written."
    ),
    "lb_metrics_dropped_total": _counter("", "Counts lost because the table of metrics is full."),
    "lb_build_info": _gauge("version python", "Always 1; the labels say what runs."),
}
