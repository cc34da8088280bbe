"""Two commands that deliver one run at once, with real Ansible and a host behind a stand-in for ssh."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess

import pytest
import rundir
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.planning.run_record import read_record
from ansible.module_utils.lora_forge.planning.turns import run_files
from hook import serving
from hostile import PATIENCE, Stage
from lab import eventually
from seen import Seen

COMMANDS = ("playbooks/collect.yml", "train.yml")


def test_both_find_the_run_delivered_and_it_is_told_once(tmp_path: pathlib.Path, seen: Seen) -> None:
    stage = Stage(tmp_path)
    stage.host("gpu", "witness")
    run_id = stage.finished("gpu", "witness").name
    logs = [tmp_path / f"{number}.txt" for number, _ in enumerate(COMMANDS)]
    with serving() as hook, contextlib.ExitStack() as left:
        with run_files(stage.output, run_id):  # until both have come to it
            started = [
                stage.start(log, command, "-e", "role=witness", LORA_FORGE_NOTIFY_URL=hook.url)
                for log, command in zip(logs, COMMANDS)
            ]
            for process in started:
                left.callback(stage.end, process)
            waits = f"another command fetches or delivers {run_id}: waiting for it"
            eventually(
                lambda: all(
                    process.poll() is not None or waits in log.read_text() for log, process in zip(logs, started)
                )
            )
        codes = [process.wait(PATIENCE) for process in started]
        texts = [log.read_text() for log in logs]
        assert codes == [0, 0], "\n".join(texts)
        assert all(waits in text and "witness is ready" in text for text in texts)
        assert sum("was delivered by another command" in text for text in texts) == 1
        assert [told["event"] for told in hook.told] == ["finished"]
    home = stage.output / "adapters/witness"
    assert store.integrity_error(home / run_id, hashes=True) is None
    assert os.readlink(home / "latest") == run_id
    assert [json.loads(line)["moved"] for line in (home / "history.jsonl").read_text().splitlines()] == [True]
    record = read_record(stage.output, run_id)
    assert (record.state, record.failures, record.delivered_at > 0) == ("finished", {}, True)
    assert not list((stage.output / "incoming").iterdir())
    seen(
        "two commands deliver one run at once",
        "here",
        "one waits and says so; both succeed, `latest` moved and the webhook told once",
    )


def test_what_a_command_that_died_told_nobody_is_told_once_by_those_that_follow(
    tmp_path: pathlib.Path, seen: Seen
) -> None:
    stage = Stage(tmp_path)
    with serving() as hook, contextlib.ExitStack() as left:
        stage.host("gpu", "witness", run_notify_url=hook.url)  # the trainer's own, and not this machine's
        run_id = stage.finished("gpu", "witness").name
        record, home = stage.output / f"runs/.{run_id}.lock", stage.output / "adapters/witness"
        human = ("-e", "role=witness", "-e", "adapter_promote=human")

        def start(name: str, command: str) -> tuple[pathlib.Path, subprocess.Popen[bytes]]:
            log = tmp_path / name
            process = stage.start(log, command, *human)
            left.callback(stage.end, process)
            return log, process

        with contextlib.ExitStack() as held:
            with run_files(stage.output, run_id):  # until it has seen that the training is over
                log, dying = start("dies.txt", "train.yml")
                eventually(lambda: dying.poll() is not None or "waiting for it" in log.read_text())
                held.enter_context(rundir.locked(record))
            # It delivers, and cannot note that yet.
            eventually(lambda: dying.poll() is not None or promotion.waits(home, run_id))
            assert dying.poll() is None, log.read_text()
            stage.end(dying)
        assert store.integrity_error(home / run_id, hashes=True) is None
        assert hook.told == []
        assert stage.play("train.yml", *human, "--check").code == 0
        assert hook.told == []
        with rundir.locked(record):  # until both have seen that nobody was told
            both = [start(f"{number}.txt", command) for number, command in enumerate(COMMANDS)]
            eventually(
                lambda: all(one.poll() is not None or "is ready already" in log.read_text() for log, one in both)
            )
        assert [process.wait(PATIENCE) for _, process in both] == [0, 0], "\n".join(log.read_text() for log, _ in both)
        told = {message["event"]: message for message in hook.told}
        assert sorted(message["event"] for message in hook.told) == ["decision", "finished"]
        assert {(message["run_id"], message["trainer"]) for message in hook.told} == {(run_id, "gpu")}
        assert [told["finished"][key] for key in ("step", "planned", "loss")] == [12, 12, pytest.approx(1.8)]
        assert told["decision"]["detail"].endswith(f"promote.yml -e role=witness -e run_id={run_id}")
        assert stage.play("train.yml", *human).code == 0
        assert len(hook.told) == 2
    seen(
        "a command is killed after it delivered an adapter, and before it told the webhook",
        "controller",
        "of the next two commands at once one tells, with the settings of the trainer; no further one does",
    )


def test_what_another_command_has_placed_since_the_plan_is_not_started_a_second_time(
    tmp_path: pathlib.Path, seen: Seen
) -> None:
    stage = Stage(tmp_path)
    stage.host("gpu", "witness")
    run_id = stage.planned("witness", "gpu").run_id
    # As the other command's launch notes it, between this one's plan and its launch.
    noted = {"run_id": run_id, "trainer": "other", "lane": 0, "state": "launched", "final": False, "noted_at": 4e9}
    hooks = stage.write_inventory().parent / "hooks"
    hooks.mkdir()
    copy = {"content": json.dumps(noted), "dest": str(stage.output / f"runs/{run_id}.json"), "mode": "0600"}
    tasks = [{"name": "Place it elsewhere", "ansible.builtin.copy": copy}]
    (hooks / "before_provision.yml").write_text(json.dumps(tasks))
    (stage.output / "runs").mkdir(parents=True, exist_ok=True)
    with serving() as hook:
        played = stage.play("train.yml", "-e", "role=witness", LORA_FORGE_NOTIFY_URL=hook.url)
    assert played.code != 0
    assert f"{run_id} is not started: another command has placed it on other meanwhile" in played.text
    assert not (stage.root("gpu") / "runs" / run_id / "status.json").exists()
    assert hook.told == []
    assert read_record(stage.output, run_id).trainer == "other"
    seen(
        "two commands place one run on two hosts",
        "here",
        "the second one says where it is, starts nothing, tells nobody",
    )
