"""Whatever well-formed messages say, in whatever order: a member answers or passes over."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from lb.raft.log import MemoryLog
from lb.raft.messages import (
    ConfState,
    Entry,
    HardState,
    Kind,
    Message,
    MessageType,
    SnapChunk,
    SnapMeta,
)
from lb.raft.node import Config, Node

CONF = ConfState(frozenset({1, 2, 3}))
few = st.integers(0, 6)
entries = st.builds(Entry, few, few, st.sampled_from(Kind), st.binary(max_size=12))
metas = st.builds(SnapMeta, few, few, st.just(CONF))
crcs = st.sampled_from((0, 0xFFFFFFFF))
chunks = st.builds(SnapChunk, metas, few, few, st.sampled_from((b"", b"x")), crcs, crcs)
messages = st.builds(
    Message,
    type=st.sampled_from(MessageType),
    frm=st.integers(0, 4),
    to=st.integers(1, 2),
    term=few,
    log_index=few,
    log_term=few,
    commit=few,
    entries=st.lists(entries, max_size=3).map(tuple),
    reject=st.booleans(),
    hint_index=few,
    hint_term=few,
    ctx=st.sampled_from((b"", b"transfer", bytes(8), bytes(7) + b"\1")),
    chunk=st.none() | chunks,
)


def carry_out(node: Node, log: MemoryLog) -> None:
    while node.has_ready():
        ready = node.ready()
        if ready.persist is not None:
            log.save(ready.persist, ready.install)
            node.persisted(ready.persist.seq)
        if ready.install is not None:
            node.applied(ready.install.meta.index)
        if ready.apply:
            node.applied(ready.apply[-1].index)


@given(st.lists(messages | st.sampled_from(("tick", "campaign")), max_size=25))
def test_no_message_brings_a_member_down(script: list[Message | str]) -> None:
    log = MemoryLog()
    config = Config(1, election_ticks=3, heartbeat_ticks=1)
    node = Node(config, log, HardState(), CONF, 0, random.Random(1))
    for act in script:
        if isinstance(act, Message):
            node.step(act)
        elif act == "tick":
            node.tick()
        else:
            node.campaign()
        carry_out(node, log)
