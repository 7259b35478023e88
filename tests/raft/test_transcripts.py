"""Every transcript comes true, line for line."""

from __future__ import annotations

from pathlib import Path

import pytest

from raft.transcripts import TRANSCRIPTS, play, read_blocks, write_blocks


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_a_transcript_says_happens(path: Path) -> None:
    for said, real in zip(blocks := read_blocks(path.read_text()), play(blocks), strict=True):
        commands = "; ".join(said.commands)
        assert real.outcome == said.outcome, f"{path.name}:{said.line}: {commands}"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_is_written_as_the_driver_would(path: Path) -> None:
    text = path.read_text()

    assert write_blocks(read_blocks(text)) == text


def test_no_transcript_is_empty() -> None:
    assert len(TRANSCRIPTS) > 30
    for path in TRANSCRIPTS:
        blocks = read_blocks(path.read_text())
        assert any(block.outcome for block in blocks), path.name
