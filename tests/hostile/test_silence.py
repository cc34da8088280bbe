"""Hosts that stop answering: at once, in the middle of an answer, or talking without an end. No command waits for ever.

Each host is silent at another stage, and gives its answers a limit of its own (trainer_answer_timeout), as an inventory
may; the honest one has the usual one.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ansible.module_utils.lora_forge.trainer import runs
from hostile import CONTROL, Guard, Played, Stage
from seen import Seen

# Seconds. A question has that long, and what takes longer by its nature as many times more as it is used to.
QUICK: dict[str, Any] = {"trainer_answer_timeout": 6.0, "trainer_rsync_timeout": 3, "watch_unreachable_timeout": 1}


def patience(seconds: float, **variables: Any) -> dict[str, Any]:
    return {**QUICK, "trainer_answer_timeout": seconds, **variables}


def fall_silent(stage: Stage, silent: dict[str, tuple[str, str, dict[str, Any]]], left: tuple[str, ...] = ()) -> None:
    """Make trainers of which each falls silent at a call of its own, and an honest one.

    Args:
        stage: Where they are.
        silent: On which call each falls silent, how, and its variables.
        left: Those on which a run has finished already.
    """
    agents = ["mayor", "deacon", "polecat", "refinery", "crew", "gastown"]
    for (name, (on, do, variables)), agent in zip(silent.items(), agents):
        stage.host(name, agent, **variables)
        if name in left:
            stage.finished(name, agent)
        else:
            stage.model(name, agent)
        stage.face(name, on, do, **({"text": '{"changed": false, "runs": [{"run_id": "'} if do == "half" else {}))
    stage.host("good", "witness")
    stage.finished("good", "witness")


def check(played: Played, stage: Stage, guard: Guard, names: list[str]) -> None:
    """Hold a command to what is true of each: it ends, names who is silent, and did nothing else."""
    assert played.ended, played.text
    for name in names:
        assert stage.did(name), f"{name} was never asked"
        assert [line for line in played.lines(name) if "does not answer" in line or "did not answer" in line
                or "no connection" in line or "failed" in line], f"{name}:\n{played.text}"  # fmt: skip
    assert CONTROL.findall(played.text) == []
    assert "Traceback" not in played.text
    assert len(played.text) < 50_000
    assert guard.changes() == []


class TestStatus:
    """Silent when everybody is asked."""

    def test_status(self, tmp_path: pathlib.Path, seen: Seen) -> None:
        stage = Stage(tmp_path)
        asked = "module:trainer_info"
        fall_silent(stage, {
            "mute": (asked, "hang", QUICK), "broken": (asked, "half", QUICK), "chatty": (asked, "endless", QUICK),
            "nobody": ("*", "hang", QUICK),
        })  # fmt: skip
        guard = stage.watch_over()
        played = stage.play("playbooks/status.yml")
        check(played, stage, guard, ["mute", "broken", "chatty", "nobody"])
        assert played.code == 0
        assert any("finished" in line for line in played.lines("witness-"))
        seen(
            "hosts fall silent as status asks: at once, in mid-answer, talking on, at the login",
            "4 hosts",
            "a row each that says so; the others whole, and status 0",
        )


class TestTrain:
    """Silent when the files come, when the environment is made, at the first question of a launch, at its start."""

    def test_train(self, tmp_path: pathlib.Path, seen: Seen) -> None:
        stage = Stage(tmp_path)
        fall_silent(stage, {
            "files": ("command", "hang", patience(0.4)),
            "sync": ("rsync", "hang", QUICK),
            "installs": ("module:trainer_environment", "hang", patience(0.3)),  # three hours, by default
            "asked": ("module:trainer_info", "hang", QUICK),
            "starts": ("module:training_runs", "half", patience(8.0, run_stop_timeout=5)),
            "frozen": ("module:trainer_environment", "hang", patience(20.0)),  # an hour, where ssh still answers
        })  # fmt: skip
        stage.face("frozen", "command exit", "hang")  # whether it is there at all
        guard = stage.watch_over()
        played = stage.play("train.yml", "-e", "role=mayor,deacon,polecat,refinery,crew,gastown,witness")
        check(played, stage, guard, ["files", "sync", "installs", "asked", "starts", "frozen"])
        assert played.lines("frozen: no answer for 0:1"), played.text  # 0:10, or later where the machine is busy
        assert played.lines("frozen did not answer at all for 20 s, in the midst of trainer_environment")
        assert played.code != 0
        [manifest] = (stage.output / "adapters/witness").glob("witness-*/manifest.json")
        assert json.loads(manifest.read_text())["verdict"] == "verified"
        seen(
            "hosts fall silent as a training begins: files, rsync, installation, question, start, frozen",
            "6 hosts",
            "an error that names each; the honest host beside them trained, verified",
        )


class TestCollect:
    """Silent while it is watched, while an adapter is verified, while that is fetched."""

    def test_collect(self, tmp_path: pathlib.Path, seen: Seen) -> None:
        stage = Stage(tmp_path)
        verifies = patience(2.0, watch_unreachable_timeout=120)  # an adapter is read for half an hour, by default
        fall_silent(stage, {
            "watched": ("module:training_run_info", "hang", patience(3.0, run_stop_timeout=2)),
            "verifies": ("module:lora_adapter_info", "hang", verifies),
            "fetched": ("rsync", "hang", patience(20.0, watch_unreachable_timeout=60)),
        }, left=("watched", "verifies", "fetched"))  # fmt: skip
        [run_dir] = (stage.root("verifies") / "runs").iterdir()
        answer = json.dumps({"changed": False, "others": {}, "over": [], **runs.observe(run_dir).as_dict()})
        stage.face("verifies", "module:training_run_info", "say", text=answer)  # at once, however busy the machine is
        guard = stage.watch_over()
        roles = "role=mayor,deacon,polecat,witness"
        played = stage.play("playbooks/collect.yml", "-e", roles)
        check(played, stage, guard, ["watched", "verifies", "fetched"])
        assert played.code != 0
        [manifest] = (stage.output / "adapters/witness").glob("witness-*/manifest.json")
        assert json.loads(manifest.read_text())["verdict"] == "verified"
        seen(
            "hosts fall silent as a run is watched, as its adapter is verified, and as that is fetched",
            "3 hosts",
            "an error that names each; the honest host's adapter was verified",
        )


class TestStop:
    """Silent whatever is asked, to whoever watches and to whoever stops."""

    def test_watch_and_stop(self, tmp_path: pathlib.Path, seen: Seen) -> None:
        stage = Stage(tmp_path)
        silent = {"watched": ("module", "hang", patience(3.0, run_stop_timeout=2))}
        fall_silent(stage, silent, left=("watched",))
        guard = stage.watch_over()
        for playbook in ("watch", "stop"):
            played = stage.play(f"playbooks/{playbook}.yml", "-e", "role=mayor")
            check(played, stage, guard, ["watched"])
            assert played.code != 0
        seen(
            "a host falls silent to whoever watches a run, and to whoever stops it",
            "1 host",
            "an error that names it, each time",
        )
