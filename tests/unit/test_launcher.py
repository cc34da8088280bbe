"""The command line that a run is started with, as the role renders it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPUS = [{"uuid": f"GPU-{number}"} for number in range(4)]


@pytest.fixture
def rendered(tmp_path):
    """Renders variables of the role on two hosts; returns {host: {name: value}}."""

    def render(*names: str, options: dict[str, Any] | None = None, **run: Any) -> dict[str, dict[str, Any]]:
        plan = {"run_id": "crew-0", "rehearsal": False, "lane": 0, "gpus": 1, "recipe": {}, **run}
        hosts = {"gpu-1": {"ansible_host": "203.0.113.1"}, "gpu-2": {"ansible_host": "203.0.113.2"}}
        variables = {"ansible_connection": "local", "run_plan": plan, "trainer_gpu": {"gpus": GPUS},
                     "role_path": str(ROOT / "roles/run")}  # fmt: skip
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": variables}}))
        wanted = "{{ {" + ", ".join(f"'{name}': {name}" for name in names) + "} | to_json }}"
        play = {
            "hosts": "all",
            "vars_files": [str(ROOT / "roles/run/defaults/main.yml"), str(ROOT / "roles/run/vars/main.yml")],
            "tasks": [{"copy": {"content": wanted, "dest": str(tmp_path / "{{ inventory_hostname }}.json")}}],
        }
        (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible-playbook", "-i", tmp_path / "inventory.yml", tmp_path / "play.yml",
             "-e", json.dumps(options or {})],
            cwd=ROOT, env={**os.environ, "ANSIBLE_PYTHON_INTERPRETER": str(ROOT / ".venv/bin/python")},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return {host: json.loads((tmp_path / f"{host}.json").read_text()) for host in hosts}

    return render


def test_one_gpu_needs_no_launcher(rendered):
    found = rendered("__run_command", "__run_lane", "__run_processes", hosts=["gpu-1"], lane=2)["gpu-1"]
    assert found["__run_command"][0].endswith("/bin/python")
    assert found["__run_command"][1:] == ["-m", "axolotl.cli.train", "axolotl.yml"]
    assert (found["__run_lane"], int(found["__run_processes"])) == ("GPU-2", 1)


def test_several_gpus_of_a_host(rendered):
    found = rendered("__run_command", "__run_lane", "__run_environment", hosts=["gpu-1"], gpus=2, lane=1)["gpu-1"]
    assert list(map(str, found["__run_command"][1:])) == [
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "gang.py", "axolotl.cli.train", "axolotl.yml",
    ]  # fmt: skip
    assert found["__run_lane"] == found["__run_environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"


def test_several_hosts(rendered):
    found = rendered("__run_command", "__run_processes", hosts=["gpu-1", "gpu-2"], gpus=2, lane=1)
    for rank, (host, one) in enumerate(sorted(found.items())):
        assert list(map(str, one["__run_command"][1:])) == [
            "-m", "torch.distributed.run", "--nproc-per-node", "2", "--nnodes", "2", "--node-rank", str(rank),
            "--rdzv-backend", "c10d", "--rdzv-id", "crew-0", "--rdzv-endpoint", "203.0.113.1:29401",
            "--rdzv-conf", f"is_host={rank == 0},join_timeout=900,read_timeout=900",
            "--local-addr", f"203.0.113.{rank + 1}",
            "gang.py", "axolotl.cli.train", "axolotl.yml",
        ], host  # fmt: skip
        assert int(one["__run_processes"]) == 4


def test_named_gpus_are_grouped_into_lanes(rendered):
    named = {"run_lanes": ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]}
    assert rendered("__run_lanes", gpus=2, options=named)["gpu-1"]["__run_lanes"] == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    assert rendered("__run_lanes", options={"run_lanes": "GPU-a,GPU-b"})["gpu-1"]["__run_lanes"] == ["GPU-a", "GPU-b"]
    assert rendered("__run_lanes", rehearsal=True)["gpu-1"]["__run_lanes"] == ["cpu"]


def test_sharding_reaches_axolotl_as_the_recipe_has_it(rendered):
    keys = {"base_model": "m", "fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
    data = {"path": "a.jsonl", "sha256": "0", "use": "train", "entry": {"type": "chat_template"}}
    run = {"recipe": keys | {"deepspeed": {"zero_optimization": {"stage": 3}}}, "datasets": [data]}
    found = yaml.safe_load(rendered("__run_recipe", **run)["gpu-1"]["__run_recipe"])
    assert {key: found[key] for key in run["recipe"]} == run["recipe"]
