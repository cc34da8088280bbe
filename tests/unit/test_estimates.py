"""What a run is thought to take of a GPU, and what is told where that is too much, or not known."""

from __future__ import annotations

import json
import pathlib

from ansible.module_utils.lora_forge.planning import memory
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from planned import one

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_class_that_is_too_small_is_told_with_the_one_that_fits(make, data):
    data(count=40)

    def said(machine, **keys):
        box = Trainer("here", machine=machine, datasets_dir=str(data.folder))
        return [text for text in make(trainers=[box], recipe=keys).warnings if "GPU memory" in text]

    assert said("") == said("gpu-12gb") == said("gpu-24gb") == said("gpu-80gb") == []
    assert said("gpu-24gb", liger_fused_linear_cross_entropy=False) == [
        "witness on here: thought to need 24.4 GiB of GPU memory (simulated, not measured), and a card of gpu-24gb has "
        "21.8 GiB or little more. With trainer_machine: gpu-16gb it is 16.5 GiB"
    ]
    assert said("gpu-24gb", sequence_len=65536) == [
        "witness on here: thought to need 61.2 GiB of GPU memory (simulated, not measured), and a card of gpu-24gb has "
        "21.8 GiB or little more. No file of configs/machines/ makes it fit: take a larger GPU, or a shorter "
        "sequence_len"
    ]


def test_for_a_pod_each_class_is_estimated_because_its_gpu_is_not_chosen_yet(make, data):
    data(count=40)
    pod = Trainer("pod", datasets_dir=str(data.folder), rented=True)
    merged = AgentRecipes(ROOT, Agents(ROOT), {}).merged_recipe
    assert one(make(trainers=[pod])).estimate.memory_classes == {
        path.stem: memory.estimate(merged("witness", "", path.stem))
        for path in (ROOT / "configs/machines").glob("*.yml")
    }


def test_of_machine_classes_that_nobody_takes_nothing_is_said(make, data):
    data()
    box = Trainer("pod", datasets_dir=str(data.folder), rented=True)
    made = make(trainers=[box], recipe={"chunked_cross_entropy": True})
    assert one(made).estimate.memory_classes
    assert not [line for line in made.warnings if "takes the place" in line]


def test_a_model_of_which_nothing_is_known_is_told_with_what_would_change_that(make, data, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    data(count=40)
    new = {"base_model": "owner/new", "model_revision": "abc0" * 10}
    result = make(recipe=new)
    folder = tmp_path / "models--owner--new/snapshots" / ("abc0" * 10)
    assert (
        "owner/new: how much GPU memory a training needs is not known: its dimensions are not known here. They are as "
        f"soon as this controller has {folder}/config.json"
    ) in result.warnings
    assert (one(result).estimate.memory_gib, one(result).estimate.memory_classes) == (None, {})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(memory.base_models.CONFIGS["qwen3-8b"]))
    result = make(recipe=new)
    assert not any("GPU memory" in text for text in result.warnings)
    assert one(result).estimate.memory_gib == memory.estimate(one(result).recipe) > 20


def test_memory_is_that_of_one_process_of_several(make, data):
    data()
    alone = one(make(trainers=[Trainer("box", datasets_dir=str(data.folder))]))
    gang = one(make(trainers=[Trainer("box", datasets_dir=str(data.folder), gpus=8)]))
    assert gang.recipe["micro_batch_size"] == 1
    single = one(make(recipe={"micro_batch_size": 1, "gradient_accumulation_steps": 8}))
    assert gang.estimate.memory_gib == single.estimate.memory_gib < alone.estimate.memory_gib
