"""What a run is launched with: lane, command line, environment, paths and files."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.planning import launch
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPUS = [f"GPU-{number}" for number in range(4)]
SETS = [
    {"path": "examples/crew_train.jsonl", "sha256": "a" * 64, "use": "train", "entry": {"type": "chat_template"}},
    {"path": "/data/crew_val.jsonl", "sha256": "b" * 64, "use": "val", "entry": {"type": "chat_template"}},
]


def plan(**changes: Any) -> dict[str, Any]:
    return {"run_id": "crew-0", "rehearsal": False, "lane": 0, "gpus": 1, "hosts": ["gpu-1"], "datasets": SETS,
            "recipe": {"base_model": "Qwen/Qwen2.5-7B-Instruct", "learning_rate": 2.0e-4}, **changes}  # fmt: skip


def command(run: dict[str, Any], host: str) -> list[str]:
    addresses = {"gpu-1": "203.0.113.1", "gpu-2": "203.0.113.2"}
    return launch.training_command(
        run, host, "/env/bin/python", "axolotl.cli.train",
        address=addresses[host], leader=addresses["gpu-1"], port=29400, timeout=900,
    )  # fmt: skip


def test_one_gpu_needs_no_launcher():
    assert command(plan(lane=2), "gpu-1") == ["/env/bin/python", "-m", "axolotl.cli.train", "axolotl.yml"]


def test_several_gpus_of_a_host():
    assert command(plan(gpus=2), "gpu-1")[1:] == [
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "gang.py", "axolotl.cli.train", "axolotl.yml",
    ]  # fmt: skip


@pytest.mark.parametrize("lane", [0, 1])
def test_several_hosts(lane):
    for rank, host in enumerate(["gpu-1", "gpu-2"]):
        assert command(plan(hosts=["gpu-1", "gpu-2"], gpus=4, lane=lane), host)[1:] == [
            "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2", "--node-rank", str(rank),
            "--rdzv-backend", "c10d", "--rdzv-id", "crew-0", "--rdzv-endpoint", f"203.0.113.1:{29400 + lane}",
            "--rdzv-conf", f"is_host={rank == 0},join_timeout=900,read_timeout=900",
            "--local-addr", f"203.0.113.{rank + 1}", "gang.py", "axolotl.cli.train", "axolotl.yml",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("run", "named", "gpus", "lane"),
    [
        ({"lane": 2}, [], GPUS, "GPU-2"),
        ({"lane": 1, "gpus": 2}, [], GPUS, "GPU-2,GPU-3"),
        ({"lane": 1, "gpus": 2}, ["GPU-3", "GPU-2", "GPU-1", "GPU-0"], GPUS, "GPU-1,GPU-0"),
        ({"lane": 5}, ["GPU-1", "GPU-2"], GPUS, "GPU-2"),  # fewer lanes than there were when it was planned
        ({}, [], [], "cpu"),
        ({"rehearsal": True}, [], GPUS, "cpu"),
        ({"rehearsal": True, "lane": 1}, ["cpu-0", "cpu-1"], GPUS, "cpu-1"),
    ],
)
def test_lanes(run, named, gpus, lane):
    assert launch.lane_name(plan(**run), named, gpus) == lane


def test_a_lane_on_the_cpu_hides_the_gpus():
    assert launch.training_environment("cpu-1", "/r", "offline", "")["CUDA_VISIBLE_DEVICES"] == ""
    seen = launch.training_environment("GPU-2,GPU-3", "/r", "online", "https://wandb.example.org")
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["WANDB_BASE_URL"]) == ("GPU-2,GPU-3", "https://wandb.example.org")


def test_the_recipe_reaches_axolotl_with_paths_on_the_trainer():
    run = plan(recipe={**plan()["recipe"], "plugins": ["liger"], "fsdp_config": {"offload_params": False}})
    templar = Templar(loader=DataLoader(), variables=launch.template_variables(run, "/r", "offline"))
    text = templar.template(trust_as_template((ROOT / "templates/axolotl.yml.j2").read_text()))
    found = yaml.safe_load(text)
    assert text.startswith("# crew-0: ")
    assert "learning_rate: 0.0002" in text, "YAML reads 2e-4 as text"
    assert found["datasets"] == [
        {"path": f"/r/datasets/{'a' * 64}/crew_train.jsonl", "split": "train", "type": "chat_template"}
    ]
    assert found["test_datasets"][0]["path"] == f"/r/datasets/{'b' * 64}/crew_val.jsonl"
    assert found["base_model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert (found["output_dir"], found["dataset_prepared_path"]) == ("/r/runs/crew-0/output", "/r/prepared/crew-0")
    assert found["plugins"] == ["liger", "lora_forge_axolotl.LoraForgePlugin"]
    assert found["fsdp_config"] == {"offload_params": False}
    only = templar.copy_with_new_env(
        available_variables=launch.template_variables(plan(datasets=SETS[:1]), "/r", "offline")
    ).template(trust_as_template((ROOT / "templates/axolotl.yml.j2").read_text()))
    assert "test_datasets" not in yaml.safe_load(only)


def test_a_rehearsals_model_goes_by_its_data():
    run = plan(rehearsal=True, recipe={"base_model": "tiny"})
    other = plan(rehearsal=True, recipe={"base_model": "tiny"}, datasets=SETS[:1])
    assert launch.base_model_path(run, "/r").startswith("/r/models/tiny-")
    assert launch.base_model_path(run, "/r") != launch.base_model_path(other, "/r")


def test_what_is_staged():
    kept = pathlib.Path("/out/runs/crew-0")
    found = launch.input_files(plan(), ROOT, "text", kept, ["output/checkpoint-3/complete.json"])
    places = {one["path"]: one for one in found}
    assert places[f"datasets/{'a' * 64}/crew_train.jsonl"]["src"] == str(ROOT / "examples/crew_train.jsonl")
    assert places[f"datasets/{'b' * 64}/crew_val.jsonl"]["src"] == "/data/crew_val.jsonl"
    assert places["runs/crew-0/output/checkpoint-3/complete.json"]["src"] == f"{kept}/output/checkpoint-3/complete.json"
    assert places["runs/crew-0/axolotl.yml"] == {"path": "runs/crew-0/axolotl.yml", "content": "text"}
    assert all(pathlib.Path(one["src"]).is_file() for one in found if "roles/run" in one.get("src", ""))
    assert "tiny_model.py" not in places
    assert "tiny_model.py" in [one["path"] for one in launch.input_files(plan(rehearsal=True), ROOT, "", kept, [])]
