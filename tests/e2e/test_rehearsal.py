"""The main job, for real: one command trains, verifies and delivers; and nothing that happens on the way breaks it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest
import rundir
from seen import Seen

from .conftest import Checkout, eventually, hold, release

WITNESS = ("-e", "role=witness")
ASKED = ("-e", "eval_dir=examples/eval")
LONGEST = 60.0  # seconds that a rehearsal may answer for, on a busy machine; alone it takes two or three
# A third of the time, where steps are not the point.
SHORT = {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "warmup_steps": 1, "gradient_accumulation_steps": 1}
QUICK = ("-e", json.dumps({"recipe": SHORT}), "-e", "run_wandb=disabled")


def train(checkout: Checkout, *arguments: str) -> str:
    code, text = checkout.play(*WITNESS, *arguments)
    assert code == 0, text
    return text


def changed(text: str) -> int:
    return sum(map(int, re.findall(r"changed=(\d+)", text)))


def tree(folder: pathlib.Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.soak
def test_one_command_and_once_more(checkout: Checkout) -> None:
    # As RunPod's clusters set it in every account: a program that believed it would wait for seven others.
    checkout.environment |= {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "10.65.0.2",
        "NODE_RANK": "3",
    }
    code, text = checkout.play(*WITNESS, "--check")
    assert code == 0, text
    assert "witness would be trained" in text
    assert [path.name for path in checkout.trainer.iterdir()] == ["env"], "check mode changed the trainer"
    assert not (checkout.home / "output").exists(), "check mode changed the controller"

    text = train(checkout, *ASKED)
    run_id = checkout.plan()["run_id"]
    manifest = checkout.manifest()
    assert os.readlink(checkout.latest()) == run_id
    assert manifest["verdict"] == "verified"
    assert manifest["rehearsal"] is True
    events, _ = rundir.read_events(checkout.run_dir(run_id) / "metrics.jsonl")
    evaluated = {one["eval_loss"]: one["step"] for one in events if one["event"] == "eval" and one["step"]}
    assert manifest["steps"] == {"reached": 12, "planned": 12, "adapter": evaluated[min(evaluated)]}
    assert manifest["loss"]["eval_adapter"] == min(evaluated)
    assert manifest["loss"]["last"] < manifest["loss"]["first"]
    assert manifest["data"]["examples"] == sum(one["examples"] for one in manifest["datasets"])
    assert manifest["data"]["longer"] > 0
    assert re.search(rf"witness is ready +output/adapters/witness/latest → {run_id}", text), text
    assert "12 of 12 steps" in text
    assert "cut at sequence_len" in text
    # Its cases are a part of the rehearsal: answered by the process that has trained, and scored here.
    merit = manifest["merit"]
    assert (merit["cases"], merit["unanswered"], merit["score"]["cases"], merit["base"]["cases"]) == (2, 0, 2, 2)
    assert re.search(r"^  cases  \d of 2 \(\d+ to \d+ %\)   base \d of 2$", text, re.M), text
    (ended,) = [one for one in events if one["event"] == "end"]
    answered = [one for one in events if one["event"] == "answers"][-1]
    assert (answered["answered"], answered["asked"]) == (4, 4)
    assert answered["time"] - ended["time"] < LONGEST

    before = tree(checkout.trainer / "runs") | tree(checkout.home / "output/adapters")
    text = train(checkout, *ASKED, "-v")
    assert "witness is ready already" in text
    assert changed(text) == 0
    assert tree(checkout.trainer / "runs") | tree(checkout.home / "output/adapters") == before

    # A newer lock and another machine key do not retrain; a training key does.
    code, text = checkout.play(*WITNESS, "-e", '{"recipe": {"dataset_num_proc": 2}}', playbook="playbooks/plan.yml")
    assert f"{run_id} " in text
    assert "ready" in text
    code, text = checkout.play(*WITNESS, "-e", '{"recipe": {"lora_alpha": 32}}', playbook="playbooks/plan.yml")
    assert run_id not in text
    assert "to train" in text

    # What is damaged is delivered again, without training again.
    (checkout.latest() / "tokenizer.json").write_text("{}")
    started = rundir.read_json(checkout.run_dir(run_id) / "status.json")["starts"]
    train(checkout)
    assert rundir.read_json(checkout.run_dir(run_id) / "status.json")["starts"] == started
    assert (checkout.latest() / "tokenizer.json").stat().st_size > 100

    code, text = checkout.play(*WITNESS, "--check", "-e", "run_keep_checkpoints=1", playbook="playbooks/prune.yml")
    assert code == 0, text
    assert "would be freed" in text
    folders = checkout.run_dir(run_id) / "output"
    assert len(list(rundir.checkpoints(folders))) == 3
    code, text = checkout.play(*WITNESS, "-e", "run_keep_checkpoints=1", playbook="playbooks/prune.yml")
    assert code == 0, text
    left = [step for step, _ in rundir.checkpoints(folders)]
    assert 12 in left
    assert len(left) < 3
    assert "no lock of this checkout names these" not in text

    # Of the environments only the one that no lock names is told, and removed when asked.
    environments = checkout.trainer / "env"
    used = pathlib.Path(rundir.read_json(checkout.run_dir(run_id) / "run.json")["command"][0]).parents[1]
    environments.unlink()
    (environments / "0123456789abcdef").mkdir(parents=True)
    (environments / used.name).symlink_to(used.resolve())
    code, text = checkout.play(*WITNESS, playbook="playbooks/prune.yml")
    assert code == 0, text
    assert re.search(r"0123456789abcdef +0", text), text
    assert "-e trainer_prune=true removes them" in text
    code, text = checkout.play(*WITNESS, "-e", "trainer_prune=true", playbook="playbooks/prune.yml")
    assert code == 0, text
    assert [path.name for path in environments.iterdir()] == [used.name]


@pytest.mark.soak
def test_killed_and_stopped_again_and_again(checkout: Checkout, seen: Seen) -> None:
    """Kill Axolotl and its supervisor with -9, stop it by playbooks/stop.yml, and lose its status, all in one run."""
    recipe = SHORT | {"max_steps": 10, "eval_steps": 10, "plugins": ["hold.Hold"]}
    slow = ("-e", json.dumps({"recipe": recipe}), "-e", "run_backend=process", "-e", "run_wandb=disabled")
    run_dir = checkout.run_dir(checkout.planned("witness", *slow))
    hold(run_dir, 3)
    code, text = checkout.play(*WITNESS, *slow, "-e", "detach=true")
    assert code == 0, text
    status = run_dir / "status.json"

    def whole() -> int:
        return rundir.last_complete(run_dir / "output")

    def at(start: int, step: int) -> bool:
        """Tell whether this very start has trained to a step."""
        events = rundir.read_events(run_dir / "metrics.jsonl")[0]
        begun = sum(event["event"] == "begin" for event in events)
        return begun == start and any(event.get("step", 0) == step for event in rundir.surviving_events(events))

    eventually(lambda: at(1, 3), "the first checkpoint, and a step more")
    hold(run_dir, 5)
    os.kill(rundir.read_json(status)["trainer"]["pid"], signal.SIGKILL)
    eventually(lambda: rundir.read_json(status).get("starts") == 2, "a second start by itself")
    resumed = [rundir.read_json(status)["resumed_from"]]
    assert resumed == [2]
    seen("kill -9 of Axolotl", "localhost, process", f"the supervisor resumed it by itself at step {resumed[0]}")

    eventually(lambda: at(2, 5), "steps of the second start")
    os.kill(rundir.read_json(status)["supervisor"]["pid"], signal.SIGKILL)
    eventually(lambda: not rundir.run_processes(run_dir), "the orphan to save and end")
    resumed.append(whole())
    assert resumed[1] > 5, "SIGTERM by the parent's death did not save a checkpoint"
    seen("kill -9 of the supervisor", "localhost, process",
         f"its trainer saved a checkpoint at step {resumed[1]} and ended; the same command resumed there")  # fmt: skip

    status.write_text('{"schema_version": 99, "state": "of another version"}')
    hold(run_dir, resumed[1] + 1)
    code, text = checkout.play(*WITNESS, *slow, "-e", "detach=true")
    assert code == 0, text
    eventually(lambda: at(3, resumed[1] + 1), "a step of the third start")
    code, text = checkout.play(*WITNESS, *slow, playbook="playbooks/stop.yml")
    assert code == 0, text
    assert "stopped; train.yml resumes it" in text
    assert not rundir.run_processes(run_dir)
    resumed.append(whole())
    assert resumed[2] > resumed[1] + 1
    seen("playbooks/stop.yml", "localhost, process",
         f"checkpoint at step {resumed[2]}; the same command resumed there; 10 of 10 steps, verified")  # fmt: skip

    release(run_dir)
    train(checkout, *slow)
    assert checkout.manifest()["steps"] == {"reached": 10, "planned": 10, "adapter": 10}
    begins = [event for event in rundir.read_events(run_dir / "metrics.jsonl")[0] if event["event"] == "begin"]
    assert [begin["step"] for begin in begins] == [0, *resumed]
    assert not (run_dir / "env").exists()


@pytest.mark.soak
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="a small file system takes root to mount"
)
def test_disk_full_in_mid_run(checkout: Checkout, seen: Seen) -> None:
    root = checkout.trainer
    (root / "env").unlink()
    environments = pathlib.Path(__file__).resolve().parents[2] / ".trainer/env"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        (root / "env").symlink_to(environments)
        code, text = checkout.play(*WITNESS, *QUICK)
        assert code != 0
        assert "disk full" in text or "No space left" in text, text
        assert not checkout.latest().exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(root)], check=True)
        train(checkout, *QUICK)
        assert checkout.manifest()["steps"] == {"reached": 4, "planned": 4, "adapter": 4}
        seen("disk full in mid-run", "localhost", "an error that names it, nothing promoted; with room, verified")
    finally:
        checkout.kill_everything()
        eventually(lambda: subprocess.run(["umount", str(root)], capture_output=True).returncode == 0, "umount")


@pytest.mark.soak
@pytest.mark.skipif(
    not os.environ.get("LORA_FORGE_DATASETS"), reason="LORA_FORGE_DATASETS names no folder of real data"
)
def test_real_conversations(checkout: Checkout) -> None:
    train(checkout, *QUICK, "-e", f"datasets_dir={pathlib.Path(os.environ['LORA_FORGE_DATASETS']).resolve()}")
    assert checkout.manifest()["verdict"] == "verified"


def test_environment_cut_off_half_way(tmp_path: pathlib.Path) -> None:
    """An environment without its mark is made whole, not believed."""
    from ansible.module_utils.lora_forge.trainer import environment as made

    lock = pathlib.Path(__file__).resolve().parents[2] / "requirements/uv.txt"
    uv = str(pathlib.Path(__file__).resolve().parents[2] / ".venv/bin/uv")
    python = made.interpreter("", True, tmp_path)
    home = tmp_path / made.environment_name(lock)
    (home / "bin").mkdir(parents=True)
    (home / "bin/python").write_text("cut off")
    assert made.ensure(tmp_path, lock, uv, python, "") is True
    found = subprocess.check_output([str(home / "bin/uv"), "--version"], text=True)
    assert found.startswith("uv ")
    assert made.ensure(tmp_path, lock, uv, python, "") is False
