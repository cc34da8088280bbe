"""Whose turn it is to be delivered: real Ansible, and a host behind a stand-in for ssh that trains several runs."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import time

import rundir
from hook import serving
from hostile import PATIENCE, Stage
from lab import eventually
from seen import Seen


class Training:
    """A run that trains on a host as far as anybody can see, and goes on when the test says so.

    Args:
        stage: The stage, whose host «gpu» has it.
        agent: Who is trained.
    """

    def __init__(self, stage: Stage, agent: str):
        self.home = stage.finished("gpu", agent)
        self.metrics = self.home / "metrics.jsonl"
        self.end = rundir.read_json(self.home / "status.json")
        begin, *self.events = self.metrics.read_text().splitlines(keepends=True)
        self.metrics.write_text(begin)
        me = rundir.identity(os.getpid())
        rundir.write_json(self.home / "status.json", {
            "state": "running", "supervisor": me, "trainer": me, "starts": 1, "started_at": time.time(), "idle": 0,
            "heartbeat": rundir.uptime() + 1e6,  # it does not fall silent, however long the test takes
        })  # fmt: skip

    def go(self, steps: int) -> None:
        """Do some more steps."""
        with self.metrics.open("a") as file:
            file.writelines(self.events[:steps])
        del self.events[:steps]

    def finish(self) -> None:
        """Come to the end."""
        self.go(len(self.events))
        rundir.write_json(self.home / "status.json", self.end)

    def fail(self) -> None:
        """Crash."""
        crash = {"state": "failed", "exit_code": 1, "reason": {"kind": "crashed", "detail": "ValueError: odd"}}
        rundir.write_json(self.home / "status.json", self.end | crash)


def test_whatever_ends_first_is_dealt_with_first_and_nothing_is_told_twice(tmp_path: pathlib.Path, seen: Seen) -> None:
    stage, log = Stage(tmp_path), tmp_path / "log.txt"
    stage.host("gpu", "crew", "mayor", "witness")
    longest, fails, ends = (Training(stage, agent) for agent in ("crew", "mayor", "witness"))
    longest.go(3)
    with serving() as hook, contextlib.ExitStack() as left:
        everybody = ("-e", "role=crew,mayor,witness")
        process = stage.start(log, "playbooks/collect.yml", *everybody, LORA_FORGE_NOTIFY_URL=hook.url)
        left.callback(stage.end, process)

        def told(words: str) -> None:
            eventually(lambda: process.poll() is not None or re.search(words, log.read_text()))
            assert process.poll() is None, log.read_text()

        told(r"crew  step +3/12")
        fails.fail()
        told(r"mayor-\w+ is failed: crashed: ValueError: odd")
        longest.go(1)
        told(r"crew  step +4/12")
        ends.finish()
        told(r"witness  verified")
        latest = stage.output / "adapters/witness/latest"
        eventually(latest.exists)
        assert [(event["event"], event["agent"]) for event in hook.told][:1] == [("failed", "mayor")]
        longest.go(1)
        told(r"crew  step +5/12")
        longest.finish()
        code, text = process.wait(PATIENCE), log.read_text()
        assert code != 0, text
        delivered = [(event["event"], event["agent"]) for event in hook.told]
        assert delivered == [("failed", "mayor"), ("finished", "witness"), ("finished", "crew")]
    steps = [int(step) for step in re.findall(r"crew  step +(\d+)/12 +\d+%  loss", text)]
    assert steps == sorted(set(steps)), text
    assert text.count("is failed: crashed") <= 2  # as an error, and in the summary
    assert "started; Axolotl takes" not in text
    seen(
        "of three runs that train at once on a host, one fails, one finishes, one goes on",
        "here",
        "each was told, and collected, as it ended; of the one that went on no line came twice",
    )
