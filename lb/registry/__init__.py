"""The replicated registry of backends: pure, deterministic, the same on every member.

In reading order: `values` what it holds; `commands` what may be asked and answered; `check`
whether a command makes sense by itself; `file_view` what a changed file may still change;
`machine` applies one command.
"""

from lb.registry.commands import (
    ApplyFile,
    Change,
    Code,
    Command,
    Fields,
    IfMatch,
    Outcome,
    PatchBackend,
    PatchUpstream,
    PutBackend,
    Refusal,
    RemoveBackend,
    RemoveUpstream,
    Reply,
    SyncFile,
    command_from_plain,
    command_to_plain,
)
from lb.registry.machine import apply
from lb.registry.values import (
    By,
    Changed,
    Entry,
    Registry,
    Said,
    Source,
    UpstreamEntry,
    View,
    registry_from_plain,
    registry_to_plain,
    said_by_key,
    said_from_plain,
    state_hash,
)

__all__ = [
    "ApplyFile",
    "By",
    "Change",
    "Changed",
    "Code",
    "Command",
    "Entry",
    "Fields",
    "IfMatch",
    "Outcome",
    "PatchBackend",
    "PatchUpstream",
    "PutBackend",
    "Refusal",
    "Registry",
    "RemoveBackend",
    "RemoveUpstream",
    "Reply",
    "Said",
    "Source",
    "SyncFile",
    "UpstreamEntry",
    "View",
    "apply",
    "command_from_plain",
    "command_to_plain",
    "registry_from_plain",
    "registry_to_plain",
    "said_by_key",
    "said_from_plain",
    "state_hash",
]
