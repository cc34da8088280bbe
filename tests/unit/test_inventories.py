"""What inventories declare, as the plan takes it; and hosts of which none answers."""

from __future__ import annotations

import json
import pathlib
import subprocess
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def planned(tmp_path):
    """Plans a whole inventory, or plays something else; returns what was printed, and the runs by agent."""

    def play(
        inventory: dict[str, Any], *options: str, playbook: str = "playbooks/plan.yml", code: int = 0
    ) -> tuple[str, dict[str, Any]]:
        (tmp_path / "fleet.yml").write_text(yaml.safe_dump(inventory))
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tmp_path / "fleet.yml"), playbook]
        more = ["-e", f"datasets_dir={ROOT}/examples/datasets", "-e", f"output_dir={tmp_path}", *options]
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout
        plan = tmp_path / "plan.json"
        runs = json.loads(plan.read_text())["runs"] if plan.exists() else []
        return " ".join(done.stdout.split()), {run["agent"]: run for run in runs}

    return play


def test_agents_lanes_and_forks(planned):
    hosts = {
        "a": {"agents": "mayor, crew", "run_gpus": 2, "run_lanes": ["GPU-1", "GPU-2", "GPU-3", "GPU-4"]},
        "b": {"agents": ["deacon"]},
    }
    text, runs = planned({"trainers": {"hosts": hosts}}, "-f", "1")
    placed = {agent: (run["trainer"], run["lane"], run["gpus"]) for agent, run in runs.items()}
    assert {placed.pop("crew"), placed.pop("mayor")} == {("a", 0, 2), ("a", 1, 2)}
    assert placed == {"deacon": ("b", 0, 1)}
    assert "2 hosts have work, and Ansible looks after 1 at a time: nothing is launched on b before" in text


def test_a_gang_is_one_group(planned):
    gang = {"hosts": {"a": {}, "b": {}}, "vars": {"run_hosts": 2}}
    trainers = {"children": {"gang": gang, "rest": {"hosts": {"c": {"agents": ["mayor"]}}}}}
    _, runs = planned({"trainers": trainers})
    assert (runs["crew"]["hosts"], runs["mayor"]["hosts"]) == (["a", "b"], ["c"])
    text, _ = planned({"trainers": trainers, "rack": {"hosts": {"b": {}, "c": {}}}}, code=2)
    assert "b: run_hosts is 2, and the groups rack, gang each hold it and so many hosts" in text


@pytest.mark.parametrize("detach", ["true", "false"])
def test_where_no_host_answers_the_summary_says_so(planned, detach):
    dead = {"ansible_host": "127.0.0.1", "ansible_port": 9}  # nobody listens there
    gang = {"hosts": {"a": {}, "b": {}}, "vars": {"run_hosts": 2, "agents": ["crew"]}}
    trainers = {"children": {"gang": gang, "rest": {"hosts": {"c": {"agents": ["mayor"]}}}}, "vars": dead}
    text, runs = planned({"trainers": trainers}, "-e", f"detach={detach}", playbook="train.yml", code=2)
    refused = "does not answer: ssh: connect to host 127.0.0.1 port 9: Connection refused"
    assert f"crew is not ready: {runs['crew']['run_id']} on a: b {refused}" in text
    assert f"mayor is not ready: {runs['mayor']['run_id']} on c: c {refused}" in text
    assert "-e move=c gives it up, and starts what it had on another trainer" in text
    assert "0 of 2 are verified" in text
