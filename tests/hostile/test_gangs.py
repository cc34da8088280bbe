"""Hosts that train together: what can be read on a host, or on its network, lets nobody else in."""

from __future__ import annotations

import pathlib
import re

import pytest
from hostile import Played, Stage
from lab import eventually

WORD = re.compile(r"^PET_RDZV_ID=(.+)$", re.MULTILINE)


def launch(stage: Stage, first: str, second: str) -> Played:
    """Launch one run on two hosts that reach each other at some addresses."""
    for name, address in (("one", first), ("two", second)):
        stage.host(name, run_hosts=2, run_address=address, agents=["crew"])
        stage.model(name, "crew")
    return stage.play("playbooks/launch.yml", "-e", "role=crew")


@pytest.fixture(scope="module")
def started(stage: Stage) -> list[pathlib.Path]:
    """Return the run directories of a gang that meets at private addresses."""
    played = launch(stage, "10.0.0.1", "10.0.0.2")
    assert (played.ended, played.code) == (True, 0), played.text
    found = [next((stage.root(name) / "runs").iterdir()) for name in ("one", "two")]
    for run_dir in found:
        eventually(lambda run_dir=run_dir: "\n00" in read(run_dir / "training-environment.txt"))
    return found


def read(path: pathlib.Path) -> str:
    return path.read_text() if path.exists() else ""


def test_they_meet_by_a_word_that_nobody_can_guess(started: list[pathlib.Path]) -> None:
    words = [WORD.findall(read(run_dir / "training-environment.txt")) for run_dir in started]
    assert words[0] == words[1]
    [word] = words[0]
    assert len(word) >= 16
    assert word not in started[0].name


def test_no_command_line_and_no_file_of_a_host_has_the_word(stage: Stage, started: list[pathlib.Path]) -> None:
    [word, *_] = WORD.findall(read(started[0] / "training-environment.txt"))
    for run_dir in started:
        command = read(run_dir / "training-command.txt")
        assert "--rdzv-endpoint 10.0.0.1:" in command
        assert "rdzv-id" not in command
    places = [stage.folder / "calls", *started]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        assert path.name == "training-environment.txt" or word.encode() not in path.read_bytes(), path


def test_a_meeting_at_a_public_address_is_refused_before_anything_starts(tmp_path: pathlib.Path) -> None:
    stage = Stage(tmp_path)
    played = launch(stage, "8.8.8.8", "10.0.0.2")
    assert (played.ended, played.code) == (True, 2), played.text
    assert played.lines("a public address")
    assert list(stage.folder.rglob("training-command.txt")) == []
