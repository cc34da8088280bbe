"""What becomes of a pod when an attempt on it fails, and what is told: the roles as they are, with prepared answers."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import rundir
import yaml
from hook import Hook, serving
from lab import ROOT

ANSIBLE = pathlib.Path(sys.executable).with_name("ansible-playbook")
# An action that answers what was prepared for it, turn by turn; the last answer holds on.
PREPARED = """
import json, pathlib
from ansible.plugins.action import ActionBase

class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        home, name = pathlib.Path({home!r}), self._task.action
        answers = json.loads((home / "answers.json").read_text()).get(name, [{{}}])
        given = self._task.args
        with (home / "asked.jsonl").open("a") as file:
            asked = {{key: given[key] for key in ("state", "reason", "bad", "refusals") if key in given}}
            file.write(json.dumps([name, asked]) + "\\n")
        turn = sum(json.loads(line)[0] == name for line in (home / "asked.jsonl").read_text().splitlines())
        answer = answers[min(turn, len(answers)) - 1]
        for run_id in answer.pop("delivered", []):
            path = pathlib.Path(task_vars["output_dir"]) / "runs" / (run_id + ".json")
            path.write_text(json.dumps(json.loads(path.read_text()) | {{"delivered_at": 1e12}}))
        return {{"changed": False, **answer}}
"""
READY = {
    "changed": True, "phase": "ready", "message": "pod-1 answers", "retention_notice": "It costs 1 USD/h.",
    "budget": {},
    "connection": {
        "ansible_host": "127.0.0.1", "ansible_port": 22, "ansible_user": "root", "ansible_ssh_private_key_file": "",
        "ansible_ssh_common_args": "",
    },
}  # fmt: skip
LEFT = {"pods": [{"retention_notice": "It costs 1 USD/h."}]}
ATTEMPTS = 2  # of which each takes some forty tasks: one that fails, and one after it


def plan(agent: str) -> dict[str, Any]:
    return {
        "run_id": f"{agent}-0", "agent": agent, "name": agent, "fingerprint": "f", "trainer": "pod-1", "gpus": 1,
        "state": "to train", "rehearsal": True, "recipe": {}, "recipe_sha256": "r", "axolotl": "0.21.0",
        "datasets": [], "hosts": ["pod-1"], "planned_at": 1000.0, "estimate": {},
    }  # fmt: skip


class Pod:
    """A pretended pod, and what is done with it."""

    def __init__(self, home: pathlib.Path, hook: Hook):
        self.home, self.hook, self.output = home, hook, home / "output"
        (self.output / "runs").mkdir(parents=True)
        (home / "actions").mkdir()
        for name in ("runpod_pod", "runpod_pod_info", "await_leash", "provision", "base_model", "preflight",
                     "start_runs", "deliver_run"):  # fmt: skip
            (home / f"actions/{name}.py").write_text(PREPARED.format(home=str(home)))
        host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "pod_gpus": ["L40S"],
                "output_dir": str(self.output), "pod_state_dir": str(home / "pods"), "trainer_lock": "trainer-cpu",
                "watch_unreachable_timeout": 30, "pod_attempts": ATTEMPTS}  # fmt: skip
        (home / "hosts.yml").write_text(yaml.safe_dump({"trainers": {"hosts": {"pod-1": host}}}))

    def play(self, *agents: str, entry: str = "main", **answers: list[dict[str, Any]]) -> tuple[int, str]:
        """Converge with prepared answers of actions; returns the exit code, and what was printed."""
        known = {"provision": [{"models": [], "python": "/python"}], "start_runs": [{"runs": [], "failures": []}],
                 "runpod_pod": [READY], "runpod_pod_info": [LEFT]}  # fmt: skip
        (self.home / "answers.json").write_text(json.dumps(known | answers))
        role = {"ansible.builtin.include_role": {"name": "converge", "tasks_from": entry}}
        play = {"hosts": "pod-1", "tasks": [role], "vars": {"run_plans": [plan(agent) for agent in agents]}}
        (self.home / "play.yml").write_text(yaml.safe_dump([play]))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"ANSIBLE_NOCOLOR": "1", "LORA_FORGE_NOTIFY_URL": self.hook.url,
                        "ANSIBLE_ACTION_PLUGINS": f"{self.home}/actions:{ROOT}/action_plugins"}  # fmt: skip
        done = subprocess.run(
            [str(ANSIBLE), "-i", str(self.home / "hosts.yml"), str(self.home / "play.yml")], cwd=ROOT,
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip
        return done.returncode, done.stdout

    def asked(self, name: str) -> list[dict[str, Any]]:
        lines = (self.home / "asked.jsonl").read_text().splitlines()
        return [asked for called, asked in map(json.loads, lines) if called == name]

    @property
    def released(self) -> list[str]:
        return [asked["reason"] for asked in self.asked("runpod_pod") if asked.get("state") == "absent"]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        return [(one["event"], one["agent"], one["detail"].splitlines()[0]) for one in self.hook.told]

    def failures(self, agent: str) -> dict[str, Any]:
        return rundir.read_json(self.output / f"runs/{agent}-0.json").get("failures", {})


@pytest.fixture
def pod(tmp_path: pathlib.Path) -> Iterator[Pod]:
    with serving() as hook:
        yield Pod(tmp_path, hook)


LOST = {"failed": True, "msg": "no connection for 3:00", "state": "unreachable", "run_id": "crew-0"}


def test_an_attempt_that_failed_is_not_told_of_where_the_next_one_ends_otherwise(pod: Pod) -> None:
    gone = {"failed": True, "msg": "no capacity for L40S"}
    code, text = pod.play("crew", runpod_pod=[READY, gone], deliver_run=[LOST])
    assert code == 0, text
    assert pod.told == [("failed", "crew", "no capacity for L40S")]
    assert pod.released == []


def test_an_attempt_that_failed_leaves_no_trace_where_the_next_one_does_well(pod: Pod) -> None:
    done = {"changed": True, "delivered": ["crew-0"], "run_id": "crew-0"}
    code, text = pod.play("crew", deliver_run=[LOST, done])
    assert code == 0, text
    assert (pod.told, pod.failures("crew")) == ([], {})
    assert pod.released == ["its adapters are collected"]


def test_what_an_attempt_has_delivered_is_left_alone_by_the_next_one(pod: Pod) -> None:
    first = {"changed": True, "delivered": ["crew-0"], "run_id": "crew-0"}
    lost = LOST | {"run_id": "witness-0"}
    (pod.output / "runs/crew-0.json").write_text("{}")
    code, text = pod.play("crew", "witness", deliver_run=[first, lost])
    assert code == 0, text
    assert pod.told == [("failed", "witness", "no connection for 3:00")]
    assert (pod.failures("crew"), list(pod.failures("witness"))) == ({}, ["pod-1"])
    assert len(pod.asked("deliver_run")) == 3, text
    assert pod.released == []


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_what_would_cost_too_much_is_released_where_it_is_kept(pod: Pod, kept: bool) -> None:
    breach = {"failed": True, "msg": "stopped at step 4", "state": "stopped", "breach": "it has come to 2 USD",
              "kept": kept, "run_id": "crew-0"}  # fmt: skip
    code, text = pod.play("crew", "witness", deliver_run=[breach])
    assert code == 0, text
    assert pod.released == (["it has come to 2 USD"] if kept else [])
    assert len(pod.asked("start_runs")) == 1, "both runs at once"
    assert pod.told == [("failed", "crew", "stopped at step 4"), ("failed", "witness", "stopped at step 4")]


def test_no_pod_at_all(pod: Pod) -> None:
    gone = {"failed": True, "msg": "no capacity for L40S"}
    code, text = pod.play("crew", "witness", runpod_pod=[gone])
    assert code == 0, text
    assert pod.told == [("failed", "crew", "no capacity for L40S"), ("failed", "witness", "no capacity for L40S")]


@pytest.mark.parametrize(("changed", "released"), [pytest.param(True, ATTEMPTS, marks=pytest.mark.soak), (False, 0)])
def test_a_machine_that_is_no_good_is_replaced_unless_it_was_there_before(
    pod: Pod, changed: bool, released: int
) -> None:
    bad = {"failed": True, "msg": "computed wrong", "bad_gpu": True}
    code, text = pod.play("crew", runpod_pod=[READY | {"changed": changed}], provision=[bad])
    assert code == 0, text
    assert pod.released == ["its machine did not pass the gate"] * released
    assert pod.told == [("failed", "crew", "computed wrong")]


MODEL = {"models": [{"model": "Acme/Tiny", "revision": ""}], "python": "/python"}


@pytest.mark.parametrize("changed", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_recipes_that_are_refused_release_a_new_pod_and_no_other_one_is_ordered(pod: Pod, changed: bool) -> None:
    refused = {"failed": True, "configuration": True, "msg": "PEFT refuses the LoRA keys", "refusals": {"crew-0": "x"}}
    code, text = pod.play(
        "crew", runpod_pod=[READY | {"changed": changed}], runpod_pod_info=[{"pods": []} if changed else LEFT],
        provision=[MODEL], base_model=[{"state": "present"}], preflight=[refused],
    )  # fmt: skip
    assert code == 0, text
    assert pod.released == (["its recipes are refused"] if changed else []), "one that was there may hold something"
    assert len([asked for asked in pod.asked("runpod_pod") if asked.get("state") != "absent"]) == 1
    assert pod.asked("start_runs") == []
    assert pod.told == [("failed", "crew", "PEFT refuses the LoRA keys")]


def test_a_refused_run_beside_others_is_told_to_its_launch(pod: Pod) -> None:
    why = {"crew-0": "PEFT refuses the LoRA keys"}
    (pod.output / "runs/witness-0.json").write_text("{}")
    pod.play(
        "crew", "witness", provision=[MODEL], base_model=[{"state": "present"}], preflight=[{"refusals": why}],
        start_runs=[{"runs": [], "failures": [{"run_id": "crew-0", "msg": why["crew-0"]}]}],
        deliver_run=[{"changed": True, "delivered": ["witness-0"], "run_id": "witness-0"}],
    )  # fmt: skip
    assert [asked["refusals"] for asked in pod.asked("start_runs")] == [why]
    assert pod.released == ["its recipes are refused"], "nothing is left to do on it"
    assert len([asked for asked in pod.asked("runpod_pod") if asked.get("state") != "absent"]) == 1
    assert list(pod.failures("crew")) == ["pod-1"]
    assert pod.failures("witness") == {}


@pytest.mark.parametrize(("kind", "pods"), [("image", 1), pytest.param("machine", ATTEMPTS, marks=pytest.mark.soak)])
def test_without_a_leash_nothing_is_launched_and_the_pod_is_released(pod: Pod, kind: str, pods: int) -> None:
    why = {"failed": True, "msg": "pod-1: its leash did not start", "unleashed": kind}
    code, text = pod.play("crew", await_leash=[why], runpod_pod_info=[{"pods": []}])
    assert code == 0, text
    assert pod.released == ["nothing but a controller would end it"] * pods
    assert pod.asked("start_runs") == pod.asked("provision") == []
    assert pod.told == [("failed", "crew", "pod-1: its leash did not start")]


def test_a_pod_that_cannot_be_stopped_though_a_cap_is_reached_is_released(pod: Pod) -> None:
    breach = {"failed": True, "msg": "it could not be stopped", "breach": "it has come to 2 USD", "kept": False,
              "spent": True, "run_id": "crew-0"}  # fmt: skip
    code, text = pod.play("crew", deliver_run=[breach])
    assert code == 0, text
    assert pod.released == ["it has come to 2 USD"]


def test_a_pod_that_cannot_be_released_after_collecting_is_a_failure(pod: Pod) -> None:
    (pod.output / "runs/crew-0.json").write_text("{}")
    done = {"changed": True, "delivered": ["crew-0"], "run_id": "crew-0"}
    refusal = {"failed": True, "msg": "RunPod answers with status 500"}
    code, text = pod.play("crew", entry="collect", deliver_run=[done], runpod_pod=[refusal])
    assert code == 2, text
    assert pod.released == ["its adapters are collected"]


def test_a_pod_on_which_a_run_failed_is_kept_after_collecting(pod: Pod) -> None:
    failed = {"failed": True, "msg": "out of memory", "state": "failed", "run_id": "crew-0"}
    code, text = pod.play("crew", entry="collect", deliver_run=[failed])
    assert code == 0, text
    assert (pod.told, pod.asked("runpod_pod")) == ([("failed", "crew", "out of memory")], [])
