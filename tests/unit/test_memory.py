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
        ({"lora_r": 16}, 21.8),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, 21.5),
        ({"lora_target_modules": None, "lora_target_linear": True}, 23.8),
    ],
    ids=str,
)
def test_what_changes_it(changed, gib):
    assert memory.estimate(BASE | changed) == gib
