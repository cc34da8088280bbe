"""What a webhook is told, by whom and when: real Ansible, a real HTTP server, pretended trainers."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import expecting
import numpy as np
import pytest
import yaml
from ansible.module_utils.lora_forge.pods.claims import Claims
from ansible.module_utils.lora_forge.trainer import environment, runs, stopping
from ansible.module_utils.lora_forge.version import git_facts
from hook import SECRET, Hook, serving
from lab import Lab, eventually, status, until
from safetensors.numpy import save_file

from .conftest import CONVERGE, PLAYBOOK, ROOT

BUDGET = {"usd_per_hour": 2.0, "spent": 0.0, "since": time.time(), "max_usd": 1.0, "max_hours": 24.0}
PLAN = {
    "run_id": "witness-0", "agent": "witness", "name": "witness", "fingerprint": "f" * 64, "trainer": "pod-1",
    "state": "to train", "rehearsal": False, "recipe": {}, "recipe_sha256": "r" * 64, "axolotl": "0.21.0",
    "datasets": [], "hosts": ["pod-1"], "planned_at": 0.0,
}  # fmt: skip


@pytest.fixture
def hook() -> Iterator[Hook]:
    with serving() as server:
        yield server


class Desk:
    """A folder with an inventory of this machine, of a host that does not answer, and playbooks of a few lines."""

    def __init__(self, home: pathlib.Path):
        self.home, self.root = home, home / "trainer"
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        facts = {"trainer_root": str(self.root), "output_dir": str(home / "output"), "gather_facts": False}
        facts |= {"pod_state_dir": str(home / "pods")}
        gone = {"ansible_host": "127.0.0.1", "ansible_port": 9}  # nobody listens there
        hosts = {"pod-1": host | facts, "gone": gone | facts}
        (home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": hosts}}))

    def rent(self, run_ids: list[str], hours: float, usd_per_hour: float) -> None:
        """Let runs have a pod since some hours."""
        asked = time.time() - 3600 * hours
        Claims(self.home / "pods").open_claim(
            "pod-1", run_ids, asked, pod_id="p1", asked_at=asked, usd_per_hour=usd_per_hour
        )

    def play(self, url: str, tasks: list[dict[str, Any]], *arguments: str, **variables: Any) -> tuple[int, str]:
        """Run some tasks, as loudly as it goes; returns the exit code and what was printed: never the URL."""
        playbook = self.home / "play.yml"
        playbook.write_text(yaml.safe_dump([{"hosts": variables.pop("on", "pod-1"), "tasks": tasks}]))
        return self.run(url, str(playbook), *arguments, **{"run_plan": PLAN} | variables)

    def run(self, url: str, playbook: str, *arguments: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook, as loudly as it goes; returns the exit code and what was printed: never the URL."""
        given = ["-e", json.dumps({k: v for k, v in variables.items() if k != "environment"})]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "PATH": f"{PLAYBOOK.parent}:{os.environ['PATH']}",
            "ANSIBLE_NOCOLOR": "1",
            "LORA_FORGE_NOTIFY_URL": url,
            **variables.get("environment", {}),
        }
        done = subprocess.run(
            [str(PLAYBOOK), "-vvv", "-i", str(self.home / "hosts.yml"), playbook, *arguments, *given],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=CONVERGE,
        )  # fmt: skip
        assert SECRET not in done.stdout
        return done.returncode, done.stdout

    def role(self, url: str, role: str, entry: str, **variables: Any) -> tuple[int, str]:
        task = {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}}
        return self.play(url, [task], **variables)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


# --- who tells what


@pytest.fixture
def trained(lab: Lab, desk: Desk) -> Any:
    """Provide a starter of pretended trainings on the desk's trainer."""

    def start(*states: str, **settings: Any) -> pathlib.Path:
        run_dir = lab.make("witness-0", desk.root / "runs", **settings)
        lab.supervise(run_dir)
        if states:
            until(run_dir, *states)
        return run_dir

    return start


def test_a_failure_is_told_once(desk: Desk, hook: Hook, trained: Any) -> None:
    trained("failed", crash_at=3, crash_say="CUDA out of memory, {{ says }} the trainer")
    for _ in range(2):  # the second one only looks again
        code, text = desk.role(hook.url, "run", "watch")
        assert code == 2
        assert "witness-0 is failed" in text
    assert [(one["event"], one["step"], one["loss"]) for one in hook.told] == [("failed", 2, 1.0)]
    assert "CUDA out of memory, {{ says }} the trainer" in hook.told[0]["detail"]


def test_a_standstill_is_told_and_what_a_person_stopped_is_not(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(hang_at=3, stop_timeout=1)
    eventually(lambda: len(runs.observe(run_dir).events) > 2)
    code, _ = desk.role(hook.url, "run", "watch", run_stall_timeout=2)
    assert code == 2
    assert [(one["event"], one["detail"][:11]) for one in hook.told] == [("stalled", "no step for")]

    assert stopping.stop(run_dir, 1)
    code, text = desk.role(hook.url, "run", "watch")
    assert code == 2
    assert "witness-0 is stopped" in text
    assert len(hook.told) == 1


def test_a_broken_cap_is_told_with_what_became_of_the_checkpoint(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(steps=2000)
    eventually(lambda: runs.observe(run_dir).checkpoint["step"])
    desk.rent(["witness-0"], hours=1.0, usd_per_hour=2.0)
    code, _ = desk.role(hook.url, "run", "watch", run_budget=BUDGET | {"since": time.time() - 3600})
    assert code == 2
    assert status(run_dir)["state"] == "stopped"
    [told] = hook.told
    assert (told["event"], told["planned"]) == ("over_budget", 2000)
    assert "pod_max_usd is 1.00. What there is was kept; with a higher cap the same command goes on" in told["detail"]
    assert 2 <= told["cost_usd"] < 3


def test_what_cannot_be_stopped_is_told_all_the_same(desk: Desk, hook: Hook, trained: Any) -> None:
    run_dir = trained(hang_at=3, stop_timeout=1)
    eventually(lambda: len(runs.observe(run_dir).events) > 2)
    budget = BUDGET | {"since": time.time() - 3600}
    broken = "from ansible.module_utils.basic import AnsibleModule\n"
    broken += "AnsibleModule({}, bypass_checks=True).fail_json(msg='no rights there')\n"
    (desk.home / "library").mkdir()
    (desk.home / "library/training_run.py").write_text(broken)
    library = {"ANSIBLE_LIBRARY": f"{desk.home}/library:{ROOT}/library"}
    code, text = desk.role(hook.url, "run", "watch", run_budget=budget, environment=library)
    assert code == 2, text
    [told] = hook.told
    assert told["event"] == "over_budget"
    assert told["detail"].startswith("witness-0 could not be stopped (")
    assert "Its pod is released, as its leash would do" in told["detail"]
    assert status(run_dir)["state"] == "running"


def test_watching_that_gives_up_is_told(desk: Desk, hook: Hook) -> None:
    plan = PLAN | {"trainer": "gone", "hosts": ["gone"]}
    code, text = desk.role(hook.url, "run", "watch", on="gone", run_plan=plan, run_unreachable_timeout=1)
    assert code == 2, text
    [told] = hook.told
    assert (told["event"], told["trainer"]) == ("failed", "gone")
    assert told["detail"].startswith("no connection for 0:01: ")


@pytest.mark.parametrize("attempt", [{}, {"pod_gpus": ["L40S"], "pod_attempt": 1}])
def test_a_launch_that_fails_is_told_once_and_on_a_pod_by_whoever_gives_up(
    desk: Desk, hook: Hook, attempt: dict[str, Any]
) -> None:
    plan = PLAN | {"recipe": {}, "datasets": [{"path": "/nowhere", "use": "train", "sha256": "d" * 64, "examples": 1}]}
    code, text = desk.role(hook.url, "converge", "launch", converge_lot=[plan], **attempt)  # its data are not there
    assert code == 0, text
    assert [one["event"] for one in hook.told] == ([] if attempt else ["failed"])


def test_a_trainer_that_is_not_fit_and_one_that_does_not_answer_are_told_for_each_run(desk: Desk, hook: Hook) -> None:
    agents = {"pod-1": ["crew", "witness"], "gone": ["mayor"]}
    given = {"run_profile": "rehearsal", "trainer_lock": "trainer-cpu", "datasets_dir": "examples/datasets"}
    inventory = yaml.safe_load((desk.home / "hosts.yml").read_text())
    for name, facts in inventory["trainers"]["hosts"].items():
        facts |= {"agents": agents[name], "trainer_root": "/proc/forge", **given}
    (desk.home / "hosts.yml").write_text(yaml.safe_dump(inventory))
    own = ("-e", f"output_dir={desk.home}/output")
    code, text = desk.run(hook.url, "train.yml", "-e", "role=crew,mayor,witness", *own)
    assert code != 0, text
    told = {one["agent"]: one for one in hook.told}
    assert len(hook.told) == 3, text
    assert {agent: (one["event"], one["trainer"]) for agent, one in told.items()} == {
        "crew": ("failed", "pod-1"), "witness": ("failed", "pod-1"), "mayor": ("failed", "gone"),
    }  # fmt: skip
    assert "/proc/forge" in told["crew"]["detail"]
    assert told["mayor"]["detail"].startswith("gone does not answer: ")


def whole(run_dir: pathlib.Path) -> None:
    """Put an adapter into a pretended run that holds up."""
    tensors = {
        f"base_model.model.model.layers.0.self_attn.{module}.lora_{side}.weight": np.full(shape, 0.5, np.float32)
        for module in ("q_proj", "v_proj")
        for side, shape in (("A", (4, 8)), ("B", (6, 4)))
    }
    save_file(tensors, run_dir / "output/adapter_model.safetensors")
    expecting.leave(run_dir, tensors, "Qwen/Tiny")
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "Qwen/Tiny"}
    (run_dir / "output/adapter_config.json").write_text(json.dumps(config))
    for name in ("output/tokenizer.json", "output/tokenizer_config.json", "axolotl.yml"):
        (run_dir / name).write_text("{}")


def test_an_adapter_is_told_of_when_it_is_here_and_when_it_does_not_hold_up(
    desk: Desk, hook: Hook, trained: Any
) -> None:
    run_dir = trained("finished")
    python = desk.root / "env" / environment.environment_name(ROOT / "requirements/trainer-cpu.txt") / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    keys = {"lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"], "base_model": "Qwen/Tiny", "sequence_len": 64}
    plan = PLAN | {
        "recipe": keys,
        "datasets": [{"path": "t.jsonl", "use": "val", "sha256": "v" * 64, "examples": 3}],
    }
    known = {"trainer_lock": "trainer-cpu", "run_plans": [plan]}
    code, text = desk.role(hook.url, "run", "deliver", **known)
    assert code == 2
    assert "witness-0 is not verified: " in text
    assert [one["event"] for one in hook.told] == ["failed"], text
    assert "adapter_config.json is missing" in hook.told[0]["detail"]

    whole(run_dir)
    code, text = desk.role(hook.url, "run", "deliver", **known)
    assert code == 0, text
    told = hook.told[1]
    assert (told["event"], told["step"], told["planned"], told["loss"]) == ("finished", 8, 8, 0.25)
    assert told["detail"] == "latest points to it"
    home = desk.home / "output/adapters/witness"
    assert os.readlink(home / "latest") == "witness-0"
    manifest = json.loads((home / "witness-0/manifest.json").read_text())
    assert manifest["evaluation"]["source"] == "file"
    assert manifest["git"] == git_facts(ROOT)  # of the checkout, wherever the output is

    # The same training again, with a worse end: delivered, and latest stays.
    worse = desk.root / "runs/witness-0-2"
    shutil.copytree(run_dir, worse)
    log = (worse / "metrics.jsonl").read_text()
    (worse / "metrics.jsonl").write_text(log.replace('"eval_loss": 0.2625', '"eval_loss": 0.3'))
    code, text = desk.role(hook.url, "run", "deliver", **known | {"run_plans": [plan | {"run_id": "witness-0-2"}]})
    assert code == 0, text
    assert os.readlink(home / "latest") == "witness-0"
    assert hook.told[2]["detail"].startswith("latest stays at witness-0: eval 0.3 is 14.3 % worse than its 0.2625 (")
    assert len(hook.told) == 3, text
