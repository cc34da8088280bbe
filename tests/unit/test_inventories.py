"""What inventories declare, as the plan takes it."""

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
    """Plans a whole inventory; returns what was printed, and the runs by agent."""

    def play(inventory: dict[str, Any], *options: str) -> tuple[str, dict[str, Any]]:
        (tmp_path / "fleet.yml").write_text(yaml.safe_dump(inventory))
        command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", str(tmp_path / "fleet.yml"), "playbooks/plan.yml"]
        more = ["-e", f"datasets_dir={ROOT}/examples/datasets", "-e", f"output_dir={tmp_path}", *options]
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, timeout=60)
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
    text, _ = planned({"trainers": trainers, "rack": {"hosts": {"b": {}, "c": {}}}})
    assert "b: run_hosts is 2, and the groups rack, gang each hold it and so many hosts" in text
