"""Consensus: the pure core. No socket, clock, disk or chance of its own; see docs/raft.md."""
