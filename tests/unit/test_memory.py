"""How much memory a training is thought to need."""

from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible.module_utils.lora_forge import memory

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = yaml.safe_load((ROOT / "configs/base.yml").read_text())


@pytest.mark.parametrize(
    ("name", "all_of_them", "without_embeddings"),
    [  # billions of parameters, as the model cards have them
        ("Qwen2.5-0.5B", 0.49, 0.36),
        ("Qwen2.5-1.5B", 1.54, 1.31),
        ("Qwen2.5-3B", 3.09, 2.77),
        ("Qwen2.5-7B", 7.61, 6.53),
        ("Qwen2.5-14B", 14.7, 13.1),
        ("Qwen2.5-32B", 32.5, 31.0),
        ("Qwen2.5-72B", 72.7, 70.0),
    ],
)
def test_the_table_holds_the_models_as_they_are(name, all_of_them, without_embeddings):
    model = memory.MODELS[name]
    assert model.linear_weights() / 1e9 == pytest.approx(without_embeddings, rel=0.01)
    assert (model.linear_weights() + model.embedding_weights()) / 1e9 == pytest.approx(all_of_them, rel=0.01)


def test_the_frozen_model_has_the_size_that_was_measured_elsewhere():
    """Qwen2.5-7B in NF4 was loaded with a footprint of 5.44 GB."""
    model = memory.MODELS["Qwen2.5-7B"]
    assert model.linear_weights() * memory.NF4 + model.embedding_weights() * 2 == pytest.approx(5.44e9, rel=0.03)


def test_the_base_recipe():
    assert memory.estimate(BASE) == 23.8
    assert 15 < memory.estimate(BASE) < 40


def test_the_24_gb_class_fits_a_24_gb_card():
    """An RTX 4090 has 24564 MiB, of which the driver keeps some 500."""
    machine = yaml.safe_load((ROOT / "configs/machines/gpu-24gb.yml").read_text())
    assert memory.estimate(BASE | machine) == 16.6
    assert memory.estimate(BASE) > (24564 - 500) / 1024


def test_the_parts_of_the_base_recipe_by_hand():
    """Qwen2.5-7B, rank 64, 2 × 4096 tokens; every figure computed on paper from the model's config.json."""
    parts = memory.parts(BASE)
    # A layer: q, o 3584 × 3584; k, v 3584 × 512; gate, up, down 3584 × 18944.
    linear = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert linear == 6_525_288_448
    # NF4 with double quantisation: 4 bits, 8 bits for every 64 weights, 32 bits for every 256 of those: 4.127 bits.
    assert parts["frozen"] == linear / 2 + linear / 64 + 4 * linear / 16384
    assert parts["embeddings"] == 2 * 152064 * 3584 * 2
    # in + out: q, o 7168; k, v 4096; gate, up, down 22528.
    assert parts["LoRA"] == parts["gradients"] == 161_480_704 * 4 == 28 * 64 * (2 * 7168 + 2 * 4096 + 3 * 22528) * 4
    assert parts["optimizer"] == 161_480_704 * 8
    assert parts["checkpoints"] == 28 * 8192 * 3584 * 2
    assert parts["logits"] == 8192 * 152064 * (2 + 4 + 4)
    assert parts["layer"] == 0  # smaller than the logits, which are gone before it is made again
    assert parts["context"] == 2**30
    held = sum(parts[name] for name in parts if name not in ("allocator", "context"))
    assert parts["allocator"] == pytest.approx(held / 10)


def test_what_the_parts_depend_on():
    eight = memory.parts(BASE | {"optimizer": "adamw_bnb_8bit"})
    assert eight["optimizer"] == 161_480_704 * 2 * (1 + 4 / 256)
    assert memory.parts(BASE | {"activation_offloading": "hidden_states"})["checkpoints"] == 2 * 8192 * 3584 * 2
    assert memory.parts(BASE | {"activation_offloading": True})["checkpoints"] == 5 * 8192 * 18944 * 2
    fused = memory.parts(BASE | {"liger_fused_linear_cross_entropy": True})
    assert (fused["logits"], fused["layer"]) == (0, 8192 * (16 * 3584 + 8 * 18944) * 2)
    open_ = memory.parts(BASE | {"gradient_checkpointing": False})
    assert open_["checkpoints"] == 28 * fused["layer"]
    assert (open_["layer"], open_["logits"]) == (0, memory.parts(BASE)["logits"])  # both are there at once
    assert memory.parts(BASE | {"base_model": "other"}) is None


def test_offloading_takes_the_place_of_recomputing():
    """All but hidden_states: Axolotl's model loader, where an adapter is trained."""
    assert memory.recomputes(BASE)
    assert memory.recomputes(BASE | {"activation_offloading": "hidden_states"})
    assert not memory.recomputes(BASE | {"activation_offloading": True})
    assert not memory.recomputes(BASE | {"activation_offloading": "legacy"})
    assert not memory.recomputes(BASE | {"gradient_checkpointing": False})


def test_what_is_offloaded_must_fit_on_the_host():
    assert memory.on_host(BASE) == memory.on_host({"base_model": "other", "activation_offloading": True}) == 0
    assert memory.on_host(BASE | {"activation_offloading": "hidden_states"}) == 2 * 28 * 8192 * 3584 * 2
    everything = memory.parts(BASE | {"gradient_checkpointing": False})["checkpoints"]
    assert memory.on_host(BASE | {"activation_offloading": True}) == 2 * everything


@pytest.mark.parametrize(
    ("changed", "gib"),
    [
        ({}, 5.4),
        ({"adapter": "lora", "load_in_4bit": False}, 14.4),
        ({"micro_batch_size": 64}, 5.4),  # what is certain does not depend on the batch
        ({"base_model": "other"}, None),
    ],
    ids=str,
)
def test_what_is_needed_for_certain(changed, gib):
    """4-bit weights 3.14, embeddings 2.03, half of LoRA 0.30 GiB; bf16 weights 12.15 GiB."""
    assert memory.floor(BASE | changed) == gib


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b-instruct", "/models/Qwen2.5-7B-Instruct/", "Qwen2.5-7B"],
)
def test_the_model_is_known_by_its_name(name):
    assert memory.estimate(BASE | {"base_model": name}) == memory.estimate(BASE)


@pytest.mark.parametrize(
    "changed",
    [
        {"base_model": "tiny-random-qwen3"},
        {"base_model": "Qwen/Qwen2.5-VL-7B-Instruct"},
        {"base_model": "Qwen/Qwen2.5-7B-Instruct-AWQ"},
        {"base_model": None},
        {"adapter": None},
        {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
        {"deepspeed": "zero3.json"},
        {"fsdp_config": {"offload_params": True}},
    ],
    ids=str,
)
def test_nothing_is_said_where_nothing_is_known(changed):
    assert memory.estimate(BASE | changed) is None


@pytest.mark.parametrize(
    ("changed", "gib"),
    [
        ({"micro_batch_size": 4}, 38.2),
        ({"sequence_len": 8192}, 38.2),
        ({"sequence_len": 8192, "micro_batch_size": 1}, 23.8),
        ({"base_model": "Qwen/Qwen2.5-72B-Instruct", "micro_batch_size": 1}, 68.9),
        ({"base_model": "Qwen/Qwen2.5-0.5B-Instruct", "micro_batch_size": 1}, 8.6),
        ({"adapter": "lora", "load_in_4bit": False}, 33.7),
        ({"adapter": "lora", "load_in_4bit": False, "load_in_8bit": True}, 27.0),
        ({"cut_cross_entropy": True}, 14.5),
        ({"gradient_checkpointing": False}, 120.3),
        ({"optimizer": "adamw_bnb_8bit"}, 22.8),
        ({"activation_offloading": "hidden_states"}, 22.2),
        ({"activation_offloading": True}, 23.7),
        ({"lora_r": 16}, 21.8),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, 21.5),
        ({"lora_target_modules": None, "lora_target_linear": True}, 23.8),
    ],
    ids=str,
)
def test_what_changes_it(changed, gib):
    assert memory.estimate(BASE | changed) == gib
