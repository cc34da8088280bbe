"""What a run is launched with: lane, command line, environment, paths and files."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import launch
from ansible.module_utils.lora_forge.trainer.launching import Launch
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
GPUS = [f"GPU-{number}" for number in range(4)]
SETS = [
    {
        "path": "examples/crew_train.jsonl",
        "sha256": "a" * 64,
        "use": "train",
        "examples": 9,
        "entry": {"type": "chat_template"},
    },
    {
        "path": "/data/crew_val.jsonl",
        "sha256": "b" * 64,
        "use": "val",
        "examples": 3,
        "entry": {"type": "chat_template"},
    },
]


RECIPE = {"base_model": "Qwen/Qwen2.5-7B-Instruct", "learning_rate": 2.0e-4}
PLAN = {"run_id": "crew-0", "agent": "crew", "name": "crew", "fingerprint": "f" * 64, "trainer": "gpu-1",
        "state": "to train", "rehearsal": False, "recipe": RECIPE, "recipe_sha256": "c" * 64, "axolotl": "0.21",
        "datasets": SETS, "hosts": ["gpu-1"]}  # fmt: skip
ADDRESSES = {"gpu-1": "203.0.113.1", "gpu-2": "203.0.113.2"}
DATA = {letter * 64: pathlib.Path(f"/staged/{letter}.jsonl") for letter in "ab"}


def plan(**changes: Any) -> PlannedRun:
    return PlannedRun.from_dict({**PLAN, **changes})


def options(host: str = "gpu-1", **changes: Any) -> launch.TrainerOptions:
    return launch.TrainerOptions(
        root="/r", python="/env/bin/python", address=ADDRESSES[host], leader=ADDRESSES["gpu-1"], **changes
    )


def command(run: PlannedRun, host: str) -> list[str]:
    return launch.training_command(run, host, options(host))


def test_one_gpu_needs_no_launcher():
    assert command(plan(lane=2), "gpu-1") == ["/env/bin/python", "-m", "axolotl.cli.train", "axolotl.yml"]


def test_several_gpus_of_a_host():
    assert command(plan(gpus=2), "gpu-1")[1:] == [
        "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "programs/gang.py", "axolotl.cli.train", "axolotl.yml",
    ]  # fmt: skip


def answers(host: str = "gpu-1", **changes: Any) -> list[str]:
    run = plan(**{"cases": {"path": "eval/crew.jsonl", "count": 4}, **changes})
    return launch.plan_launch(run, host, options(host)).answer_command


def test_where_several_processes_train_one_of_the_first_host_answers():
    gang = {"hosts": ["gpu-1", "gpu-2"]}
    for several in ({"gpus": 2}, gang, gang | {"gpus": 4}):
        assert answers(**several) == ["/env/bin/python", "programs/answer_cases.py"]
    assert (answers(), answers("gpu-2", **gang), answers(gpus=2, cases={})) == ([], [], [])


def test_slurm_gives_a_job_its_gpu_and_the_job_looks_at_it_first():
    asked = {"partition": "gpu", "gres": "gpu:1"}
    given = options(backend="slurm", slurm=asked, gpus=tuple(GPUS), gpu_check=("--seconds", "5"))
    found = launch.plan_launch(plan(lane=2), "gpu-1", given)
    assert "CUDA_VISIBLE_DEVICES" not in found.environment
    assert (found.lane, found.slurm) == ("slurm 3", asked)
    assert found.gate == ["/env/bin/python", "/r/gpu_check.py", "--seconds", "5"]
    assert launch.plan_launch(plan(rehearsal=True), "gpu-1", given).gate == []


def test_a_run_over_nodes_of_a_cluster_is_one_job_whose_nodes_meet_where_it_says():
    given = options(backend="slurm", slurm={"gres": "gpu:4"}, port=30000)
    found = launch.plan_launch(plan(nodes=2, gpus=4, lane=3, cases={"path": "x", "count": 1}), "gpu-1", given)
    assert found.command == [
        "/env/bin/python", "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2",
        "--rdzv-backend", "c10d", "--rdzv-conf", "join_timeout=900,read_timeout=900",
        "programs/gang.py", "axolotl.cli.train", "axolotl.yml",
    ]  # fmt: skip
    assert (found.nodes, found.port, found.processes) == (2, 30000, 8)
    assert found.answer_command == ["/env/bin/python", "programs/answer_cases.py"]
    kept = found.run_json("crew-0")
    assert (kept["nodes"], kept["port"], kept["processes"]) == (2, 30000, 8)
    assert not {"nodes", "port"} & set(launch.plan_launch(plan(), "gpu-1", given).run_json("crew-0"))
    public = launch.TrainerOptions(root="/r", python="/p", address="8.8.8.8", leader="8.8.8.8", backend="slurm")
    launch.check_rendezvous(plan(nodes=2), public, nobody)


def test_an_environment_has_what_the_inventory_adds_and_nothing_of_ours_is_another():
    given = {"NCCL_SOCKET_IFNAME": "ib0", "OMP_NUM_THREADS": 4, "HF_HOME": "/mine"}
    for backend in ("slurm", "systemd"):
        found = launch.plan_launch(plan(), "gpu-1", options(backend=backend, environment=given)).environment
        assert (found["NCCL_SOCKET_IFNAME"], found["OMP_NUM_THREADS"]) == ("ib0", "4")
        assert found["HF_HOME"] == "/r/models/hub"


def test_without_slurm_nothing_is_asked_of_it():
    found = launch.plan_launch(plan(), "gpu-1", options(slurm={"gres": "gpu:1"}, gpus=tuple(GPUS)))
    assert (found.slurm, found.gate, found.environment["CUDA_VISIBLE_DEVICES"]) == ({}, [], "GPU-0")


def nobody(name: str) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("address", "found", "public"),
    [
        ("8.8.8.8", [], True), ("2001:4860:4860::8888", [], True), ("[2001:4860:4860::8888]", [], True),
        ("10.0.0.1", [], False), ("192.168.1.2", [], False), ("100.64.0.1", [], False), ("fd00::1", [], False),
        ("fe80::1%eth0", [], False), ("127.0.0.1", [], False), ("gpu-1", [], False), ("gpu-1", ["10.0.0.1"], False),
        ("gpu-1.example.org", ["10.0.0.1", "8.8.8.8"], True),
    ],
)  # fmt: skip
def test_a_gang_does_not_meet_in_public_unless_that_is_said(address, found, public):
    gang = plan(hosts=["gpu-1", "gpu-2"])
    for place in ("address", "leader"):
        given = {"address": "10.0.0.9", "leader": "10.0.0.9", place: address}
        met = launch.TrainerOptions(root="/r", python="/p", **given)
        if public:
            with pytest.raises(UserError, match=r"crew-0 would meet at .*, a public address.*run_rendezvous_public"):
                launch.check_rendezvous(gang, met, lambda name: found if name == address else [])
        else:
            launch.check_rendezvous(gang, met, lambda name: found if name == address else [])
        launch.check_rendezvous(plan(), met, nobody)
        launch.check_rendezvous(gang, launch.TrainerOptions(root="/r", python="/p", public=True, **given), nobody)


def test_a_name_that_nobody_knows_has_no_address():
    assert launch.resolved("nobody.invalid") == []
    assert launch.resolved("127.0.0.1") == ["127.0.0.1"]


@pytest.mark.parametrize(("said", "public"), [(True, True), ("true", True), ("no", False), (False, False)])
def test_the_option_of_a_public_address_may_be_text(said, public):
    assert launch.TrainerOptions.from_dict({"root": "/r", "python": "/p", "public": said}).public is public


@pytest.mark.parametrize("lane", [0, 1])
def test_several_hosts(lane):
    for rank, host in enumerate(["gpu-1", "gpu-2"]):
        assert command(plan(hosts=["gpu-1", "gpu-2"], gpus=4, lane=lane), host)[1:] == [
            "-m", "torch.distributed.run", "--nproc-per-node", "4", "--nnodes", "2", "--node-rank", str(rank),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"203.0.113.1:{29400 + lane}",
            "--rdzv-conf", f"is_host={rank == 0},join_timeout=900,read_timeout=900",
            "--local-addr", f"203.0.113.{rank + 1}", "programs/gang.py", "axolotl.cli.train", "axolotl.yml",
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


def test_what_a_training_reads_of_a_checkpoint_is_data():
    def environment(**keys: Any) -> dict[str, str]:
        return launch.plan_launch(plan(recipe={**RECIPE, **keys}), "gpu-1", options()).environment

    assert environment()["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in environment(deepspeed="zero3.json")


def test_programs_have_a_folder_of_their_own_and_nothing_else_is_laid_into_it():
    kept = pathlib.Path("/out/runs/crew-0")
    carried = ["output/checkpoint-3/optimizer.pt", "output/checkpoint-3/complete.json", "metrics.jsonl"]
    found = [one["path"] for one in launch.input_files(plan(), ROOT, "text", kept, carried, DATA)]
    programs = [
        "supervisor.py",
        "slurm_job.py",
        "lora_forge_axolotl.py",
        "answer_cases.py",
        "expected_adapter.py",
        "gang.py",
        "rundir.py",
    ]
    assert [path for path in found if path.endswith(".py")] == [f"runs/crew-0/programs/{name}" for name in programs]
    assert [path for path in found if "programs/" in path] == [f"runs/crew-0/programs/{name}" for name in programs]


def test_the_recipe_reaches_axolotl_with_paths_on_the_trainer():
    run = plan(recipe={**RECIPE, "plugins": ["liger"], "fsdp_config": {"offload_params": False}})
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
    found = launch.input_files(plan(), ROOT, "text", kept, ["output/checkpoint-3/complete.json"], DATA)
    places = {one["path"]: one for one in found}
    assert places[f"datasets/{'a' * 64}/crew_train.jsonl"]["src"] == "/staged/a.jsonl"
    assert places[f"datasets/{'b' * 64}/crew_val.jsonl"]["src"] == "/staged/b.jsonl"
    assert places["runs/crew-0/output/checkpoint-3/complete.json"]["src"] == f"{kept}/output/checkpoint-3/complete.json"
    assert places["runs/crew-0/axolotl.yml"] == {"path": "runs/crew-0/axolotl.yml", "content": "text"}
    assert all(pathlib.Path(one["src"]).is_file() for one in found if "roles/run" in one.get("src", ""))
    assert "tiny_model.py" not in places
    assert "tiny_model.py" in [
        one["path"] for one in launch.input_files(plan(rehearsal=True), ROOT, "", kept, [], DATA)
    ]


def test_what_goes_into_a_run_directory_arrives_beside_what_is_there():
    found = launch.arriving(
        [{"path": "runs/crew-0/axolotl.yml", "content": "text"}, {"path": "runs/crew-01/a", "src": "/a"}], "runs/crew-0"
    )
    brought = {"path": "runs/crew-0/incoming/axolotl.yml", "like": "runs/crew-0/axolotl.yml", "content": "text"}
    assert found == [brought, {"path": "runs/crew-01/a", "src": "/a"}]


def test_the_options_of_a_task_may_be_text():
    given = {"root": "/r", "python": "/p", "lanes": "GPU-1,, GPU-2", "gpus": ["GPU-0"], "port": "29500",
             "timeout": "60",
             "stop_timeout": "30", "lane_dir": "", "plan": PLAN}  # fmt: skip
    read = launch.TrainerOptions.from_dict(given)
    assert (read.lanes, read.gpus, read.lane_dir) == (("GPU-1", "GPU-2"), ("GPU-0",), None)
    assert (read.port, read.timeout, read.stop_timeout) == (29500, 60, 30)
    listed = launch.TrainerOptions.from_dict({**given, "lanes": ["GPU-3"], "lane_dir": "/locks"})
    assert (listed.lanes, listed.lane_dir) == (("GPU-3",), "/locks")


def test_what_a_gang_of_two_hosts_is_launched_with():
    run = plan(hosts=["gpu-1", "gpu-2"], gpus=2, lane=1)
    found = launch.plan_launch(run, "gpu-2", options("gpu-2", gpus=tuple(GPUS), wandb="online", stop_timeout=30))
    assert (found.lane, found.processes, found.prepared, found.stop_timeout) == (
        "GPU-2,GPU-3",
        4,
        "/r/prepared/crew-0",
        30,
    )
    assert found.command == command(run, "gpu-2")
    assert found.environment["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"
    assert found.environment["WANDB_MODE"] == "online"
    assert found.facts == {
        "agent": "crew", "fingerprint": "f" * 64, "rehearsal": False, "recipe_sha256": "c" * 64,
        "datasets": ["a" * 64, "b" * 64], "host": "gpu-2", "hosts": ["gpu-1", "gpu-2"],
    }  # fmt: skip
    assert Launch.from_dict(found.as_dict()) == found


REHEARSED = {"of": "Qwen/Qwen2.5-7B", "config": {"model_type": "qwen2"}, "tokens": {}, "names": {}, "files": {}}


def test_a_rehearsal_of_a_known_base_is_given_its_shrunk_config_and_its_tokenizer():
    own = {"tokenizer": {"tokenizer.json": "d" * 64}, "folder": "/hub/qwen"}
    run = plan(rehearsal=True, recipe={"base_model": "tiny-random-qwen2"}, rehearsed=REHEARSED | own)
    model = launch.base_model_path(run, "/r")
    assert launch.tiny_model_command(run, options())[-2:] == ["--given", f"{model}.given"]
    staged = {one["path"]: one for one in launch.input_files(run, ROOT, "", pathlib.Path("/out"), [], DATA)}
    given = f"models/{pathlib.PurePath(model).name}.given"
    parts = json.loads(staged[f"{given}/model.json"]["content"])
    assert parts == {key: REHEARSED[key] for key in ("config", "tokens", "names", "files")}
    assert staged[f"{given}/tokenizer.json"]["src"] == "/hub/qwen/tokenizer.json"
    assert staged[f"{given}/tokenizer.json"]["sha256"] == "d" * 64


def test_another_base_or_tokenizer_is_another_model_and_another_folder_of_the_same_is_not():
    def path(**rehearsed):
        run = plan(rehearsal=True, recipe={"base_model": "tiny"}, rehearsed=rehearsed)
        return launch.base_model_path(run, "/r")

    assert path(**REHEARSED) != path()
    assert path(**REHEARSED) != path(**REHEARSED | {"config": {"model_type": "qwen2", "num_hidden_layers": 3}})
    assert path(**REHEARSED) != path(**REHEARSED, tokenizer={"tokenizer.json": "d" * 64})
    assert path(**REHEARSED, folder="/a") == path(**REHEARSED, folder="/b")


def test_how_a_rehearsals_model_is_made():
    run = plan(rehearsal=True, recipe={"base_model": "tiny"})
    words = launch.tiny_model_command(run, options())
    assert words[:3] == ["/env/bin/python", "/r/tiny_model.py", launch.base_model_path(run, "/r")]
    assert words[3:] == [f"/r/datasets/{'a' * 64}/crew_train.jsonl", f"/r/datasets/{'b' * 64}/crew_val.jsonl"]
