"""How much memory a training is thought to need."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import struct

import pytest
import yaml
from ansible.module_utils.lora_forge.planning import base_models, memory, recipe

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = yaml.safe_load((ROOT / "configs/base.yml").read_text())
SIMULATED = json.loads((ROOT / "benchmarks/gpu/memory_simulated.json").read_text())
LIGER = {"liger_fused_linear_cross_entropy": True, "liger_rms_norm": True}
OPEN = LIGER | {"gradient_checkpointing": False}
ONE = {"micro_batch_size": 1}
OFF = dict.fromkeys(recipe.LORA_KERNELS, False)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """Hide the models that this machine happens to have."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def named(name):
    return memory.from_config(base_models.CONFIGS[name])


@pytest.mark.parametrize(
    ("name", "all_of_them", "without_embeddings"),
    [  # billions of parameters, as the model cards have them
        ("qwen2.5-0.5b", 0.49, 0.36),
        ("qwen2.5-1.5b", 1.54, 1.31),
        ("qwen2.5-3b", 3.09, 2.77),
        ("qwen2.5-7b", 7.61, 6.53),
        ("qwen2.5-14b", 14.7, 13.1),
        ("qwen2.5-32b", 32.5, 31.0),
        ("qwen2.5-72b", 72.7, 70.0),
        ("qwen3-0.6b", 0.6, 0.44),
        ("qwen3-1.7b", 1.7, 1.4),
        ("qwen3-4b", 4.0, 3.6),
        ("qwen3-8b", 8.2, 6.95),
        ("qwen3-14b", 14.8, 13.2),
        ("qwen3-32b", 32.8, 31.2),
    ],
)
def test_the_table_holds_the_models_as_they_are(name, all_of_them, without_embeddings):
    model = named(name)
    rel = 0.015 if all_of_them > 1 else 0.02
    assert model.linear_weights() / 1e9 == pytest.approx(without_embeddings, rel=rel)
    assert (model.linear_weights() + model.embedding_weights()) / 1e9 == pytest.approx(all_of_them, rel=rel)


@pytest.mark.parametrize(
    ("name", "all_of_them"),
    [  # billions of parameters, as the hub counts them in the files
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("llama-3.2-1b", 1.24),
        ("llama-3.2-3b", 3.21),
        ("llama-3.3-70b", 70.6),
        ("mistral-7b-v0.3", 7.25),
        ("mistral-nemo-2407", 12.2),
        ("mistral-small-24b-2501", 23.6),
        ("gemma-2-2b", 2.61),
        ("gemma-2-9b", 9.24),
        ("gemma-3-1b", 1.0),
        ("phi-4", 14.7),
    ],
)
def test_it_holds_other_makers_models_as_they_are(name, all_of_them):
    model = named(name)
    assert (model.linear_weights() + model.embedding_weights()) / 1e9 == pytest.approx(all_of_them, rel=0.01)


def test_every_model_of_the_table_is_of_a_kind_that_is_estimated():
    assert [name for name in base_models.CONFIGS if named(name) is None] == []


def test_the_frozen_model_has_the_size_that_was_measured_elsewhere():
    """Qwen2.5-7B in NF4 was loaded with a footprint of 5.44 GB."""
    model = named("qwen2.5-7b")
    assert model.linear_weights() * memory.NF4 + model.embedding_weights() * 2 == pytest.approx(5.44e9, rel=0.03)


# --- against the simulation, and against what others found


@pytest.mark.parametrize("row", SIMULATED["rows"], ids=lambda row: row["case"])
def test_the_estimate_is_within_a_tenth_of_the_simulation(row):
    """The simulation follows the tensors of the real modules; it knows nothing of the formula."""
    assert memory.estimate(row["recipe"]) == pytest.approx(row["simulated"], rel=0.1)
    assert memory.estimate(row["recipe"]) == row["estimated"]  # or docs/gpu.md is out of date: simulate again
    tensors = sum(size for part, size in memory.parts(row["recipe"]).items() if part not in ("allocator", "context"))
    assert tensors / memory.GIB == pytest.approx(row["live"], rel=0.02)


def test_the_simulation_covers_families_and_ways():
    recipes = [row["recipe"] for row in SIMULATED["rows"]]
    assert len(recipes) >= 30
    assert {base_models.CONFIGS[recipe["base_model"]]["model_type"] for recipe in recipes} == set(memory.KINDS)
    assert {recipe["gradient_checkpointing"] for recipe in recipes} == {True, False}


@pytest.mark.parametrize(
    ("changed", "gib"),
    [  # an earlier simulation, by other means: one micro batch, rank 64, rows of 4096 tokens
        ({}, 23.9),
        (ONE, 16.1),
        ({"liger_fused_linear_cross_entropy": True}, 11.9),
        (LIGER | {"micro_batch_size": 4}, 15.0),
        (LIGER | ONE, 10.1),
        (OPEN | ONE, 27.7),
        (OPEN | ONE | {"lora_dropout": 0}, 23.2),
        (OPEN, 46.8),
        ({"base_model": "Qwen/Qwen2.5-14B-Instruct"}, 31.9),
        ({"base_model": "Qwen/Qwen2.5-14B-Instruct"} | ONE, 23.0),
        ({"base_model": "Qwen/Qwen2.5-3B-Instruct"}, 19.5),
        ({"base_model": "Qwen/Qwen2.5-0.5B-Instruct"} | ONE, 8.8),
        ({"base_model": "Qwen/Qwen2.5-32B-Instruct"} | ONE, 36.1),
    ],
    ids=str,
)
def test_another_simulation_agrees(changed, gib):
    assert memory.estimate(BASE | changed) == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(("tokens", "gb", "within"), [(4096, 16.9, 0.1), (8192, 23.5, 0.15)])
def test_a_peak_that_was_measured_elsewhere(tokens, gb, within):
    """Qwen-7B, the first one, QLoRA with a micro batch of 1, from its authors' README. No LoRA kernels, no Liger."""
    model = memory.Model(32, 4096, 11008, 32, 32, 128, 151936, False)
    parts = memory.parts_of(model, BASE | ONE | OFF | {"sequence_len": tokens})
    assert sum(parts.values()) / 1e9 == pytest.approx(gb, rel=within)


def test_the_base_recipe():
    assert memory.estimate(BASE) == 24.4


@pytest.mark.parametrize("path", sorted((ROOT / "configs/machines").glob("*.yml")), ids=lambda path: path.stem)
def test_a_machine_class_fits_its_cards(path):
    machine = yaml.safe_load(path.read_text())
    assert memory.estimate(BASE | machine) <= memory.usable_gib(path.stem)
    assert machine["micro_batch_size"] * machine["gradient_accumulation_steps"] == 8


# --- the formula


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
    assert parts["kept"] == 28 * 8192 * 3584 * 2
    assert parts["logits"] == 8192 * 152064 * 12
    assert parts["layer"] == 0  # smaller than the logits, which are gone before it is made again
    assert parts["context"] == pytest.approx(0.7 * 2**30)
    held = sum(parts[name] for name in parts if name not in ("allocator", "context"))
    assert parts["allocator"] == pytest.approx(held * 0.03)


def test_what_a_layer_keeps_by_hand():
    """In bf16 tensors of 8192 tokens: norms 4 h, QKV and MLP 2.5 h each, attention 4 h, o 1.5 h, gate and up 2 i."""
    model, copies = named("qwen2.5-7b"), 64 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    h, i, tokens = 3584, 18944, 8192
    assert memory.kept_activations(model, BASE) == 2 * (tokens * (14.5 * h + 2 * i) + copies)
    assert memory.kept_activations(model, BASE | LIGER) == 2 * (tokens * (12.5 * h + 2 * i) + copies)
    assert memory.kept_activations(model, BASE | LIGER | {"lora_dropout": 0}) == 2 * (tokens * (8 * h + 2 * i) + copies)
    flash = BASE | {"attn_implementation": "flash_attention_2"}  # 4 heads of keys and values are 1/7 of h
    assert memory.kept_activations(model, flash) == pytest.approx(2 * (tokens * ((12.5 + 2 / 7) * h + 2 * i) + copies))
    # Without kernels each of five inputs has a dropout of its own, and seven products of rank 64 are kept.
    plain = memory.kept_activations(model, BASE | OFF)
    assert plain == 2 * (tokens * ((4 + 5 * 1.5 + 4 + 1.5) * h + 4.5 * i + 7 * 64) + copies)


def test_a_mask_grows_with_the_square_of_a_row_and_is_kept_for_each_layer():
    model, masked = named("qwen2.5-7b"), dataclasses.replace(named("qwen2.5-7b"), masked=True)
    mask = 2 * 2 * 4096 * 4096  # in bf16, for each of two rows
    assert memory.kept_activations(masked, BASE) - memory.kept_activations(model, BASE) == mask
    assert memory.kept_activations(model, BASE | {"sdpa_varlen": False}) == memory.kept_activations(masked, BASE)
    assert memory.kept_activations(masked, BASE | {"sample_packing": False}) == memory.kept_activations(model, BASE)
    flash = BASE | {"attn_implementation": "flash_attention_2"}
    assert memory.kept_activations(masked, flash) == memory.kept_activations(model, flash)
    one = dataclasses.replace(masked, kv_heads=1)
    smaller = 64 * 2 * (512 - 128)  # LoRA of keys and values
    assert memory.kept_activations(masked, BASE) - memory.kept_activations(one, BASE) == 2 * (
        8192 * (2 * 3584 - 2 * 128) + smaller
    )


def test_kernels_fit_only_where_all_their_modules_have_an_adapter():
    model = named("qwen2.5-7b")
    some = BASE | {"lora_target_modules": ["q_proj", "v_proj"]}
    copies = 64 * (7168 + 4096)
    # Two dropouts; nothing of the MLP is trained, and its activations are kept.
    assert memory.kept_activations(model, some) == 2 * (8192 * ((4 + 2 * 1.5 + 4) * 3584 + 3 * 18944 + 2 * 64) + copies)


@pytest.mark.parametrize(
    ("changed", "on"),
    [
        ({}, True),
        ({"adapter": "lora", "load_in_4bit": False}, True),
        ({"adapter": "lora", "load_in_4bit": False, "load_in_8bit": True}, False),
        ({"trust_remote_code": True}, False),
        ({"rl": "dpo"}, False),
        ({"lora_o_kernel": False}, False),  # one that is named: the others are not switched on
    ],
    ids=str,
)
def test_axolotl_switches_its_kernels_on_by_itself(changed, on):
    assert ("lora_mlp_kernel" in recipe.lora_kernels(BASE | changed)) is on


def test_what_the_parts_depend_on():
    eight = memory.parts(BASE | {"optimizer": "adamw_bnb_8bit"})
    assert eight["optimizer"] == 161_480_704 * 2 * (1 + 4 / 256)
    assert memory.parts(BASE | {"activation_offloading": "hidden_states"})["kept"] == 2 * 8192 * 3584 * 2
    assert memory.parts(BASE | {"activation_offloading": True})["kept"] == 5 * 8192 * 18944 * 2
    fused = memory.parts(BASE | {"liger_fused_linear_cross_entropy": True})
    work = 2 * (8192 * (18944 + 2 * 3584) + 3584 * 18944)
    assert (fused["logits"], fused["layer"]) == (0, memory.kept_activations(named("qwen2.5-7b"), BASE) + work)
    open_ = memory.parts(BASE | {"gradient_checkpointing": False})
    assert open_["kept"] == 28 * memory.kept_activations(named("qwen2.5-7b"), BASE)
    assert (open_["layer"], open_["logits"]) == (0, memory.parts(BASE)["logits"])
    assert memory.parts(BASE | {"base_model": "other"}) is None


def test_offloading_takes_the_place_of_recomputing():
    """All but hidden_states: Axolotl's model loader, where an adapter is trained."""
    assert memory.recomputes(BASE)
    assert memory.recomputes(BASE | {"activation_offloading": "hidden_states"})
    assert not memory.recomputes(BASE | {"activation_offloading": True})
    assert not memory.recomputes(BASE | {"activation_offloading": "legacy"})
    assert not memory.recomputes(BASE | {"gradient_checkpointing": False})


def test_what_is_offloaded_must_fit_on_the_host():
    assert memory.host_bytes(BASE) == memory.host_bytes({"base_model": "other", "activation_offloading": True}) == 0
    assert memory.host_bytes(BASE | {"activation_offloading": "hidden_states"}) == 2 * 28 * 8192 * 3584 * 2
    everything = memory.parts(BASE | {"gradient_checkpointing": False})["kept"]
    assert memory.host_bytes(BASE | {"activation_offloading": True}) == 2 * everything


@pytest.mark.parametrize(
    ("changed", "gib"),
    [
        ({}, 5.4),
        ({"adapter": "lora", "load_in_4bit": False}, 14.4),
        ({"adapter": "lora"}, 14.4),  # the base's load_in_4bit is for QLoRA
        ({"micro_batch_size": 64}, 5.4),  # what is certain does not depend on the batch
        ({"base_model": "other"}, None),
    ],
    ids=str,
)
def test_what_is_needed_for_certain(changed, gib):
    """4-bit weights 3.14, embeddings 2.03, half of LoRA 0.30 GiB; bf16 weights 12.15 GiB."""
    assert memory.floor(BASE | changed) == gib


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        ({}, memory.NF4),
        ({"adapter": "lora"}, 2),
        ({"adapter": "lora", "load_in_4bit": False}, 2),
        ({"adapter": "lora", "load_in_8bit": True}, 1),
        ({"adapter": "lora", "load_in_4bit": False, "load_in_8bit": True}, 1),
        ({"load_in_4bit": False}, 2),
        ({"load_in_4bit": False, "load_in_8bit": True}, 2),
    ],
    ids=str,
)
def test_a_model_is_quantised_by_the_name_of_its_adapter(changed, size):
    """Axolotl's model loader: 4 bits for QLoRA alone, 8 bits for LoRA alone."""
    changed = BASE | LIGER | changed
    parts, bits = memory.parts(changed), {"load_in_4bit": size < 1, "load_in_8bit": size == 1}
    assert parts["frozen"] == 6_525_288_448 * size
    backward = parts["layer"] - memory.kept_activations(named("qwen2.5-7b"), changed)
    module = 2 * 3584 * 18944 if any(bits.values()) else 0  # one that is quantised is made bf16 for its turn
    assert backward == 2 * 8192 * (18944 + 2 * 3584) + module


@pytest.mark.parametrize("key", ["lora_r", "sequence_len", "micro_batch_size"])
@pytest.mark.parametrize("value", [10**399, 10**7 + 1, 0, -1, None], ids=["400 digits", "many", "0", "-1", "null"])
def test_a_recipe_with_an_absurd_figure_has_no_estimate(key, value):
    absurd = BASE | {key: value}
    assert (memory.estimate(absurd), memory.floor(absurd)) == (None, None)
    assert memory.unknown_reason(absurd) == f"«{key}» is no whole number from 1 to 10000000"
    assert memory.host_bytes(absurd | {"activation_offloading": True}) == 0


def test_the_greatest_figures_that_are_taken_have_an_estimate():
    greatest = BASE | dict.fromkeys(["lora_r", "sequence_len", "micro_batch_size"], 10**7)
    assert memory.estimate(greatest | {"gradient_checkpointing": False, "sdpa_varlen": False}) > 10**9


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["q_proj", "v_proj", "nothing"], ["q_proj", "v_proj"]),
        (r".*self_attn\.(q|k)_proj", ["k_proj", "q_proj"]),
        ("all-linear", sorted([*memory.QKV, *memory.MLP, "o_proj"])),
        ("(", []),
        ("a{99999999999}", []),  # more than Python's expressions can count
    ],
    ids=str,
)
def test_which_modules_get_an_adapter(targets, found):
    assert sorted(memory.adapted_modules({"lora_target_modules": targets}, named("qwen2.5-7b"))) == found


@pytest.mark.parametrize(
    ("changed", "less"),
    [
        ({"lora_r": 16}, True),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, True),
        ({"optimizer": "adamw_bnb_8bit"}, True),
        ({"cut_cross_entropy": True}, True),
        ({"activation_offloading": "hidden_states"}, True),
        ({"lora_target_modules": None, "lora_target_linear": True}, None),
        ({"micro_batch_size": 4}, False),
        ({"sequence_len": 8192}, False),
        ({"adapter": "lora", "load_in_4bit": False, "load_in_8bit": True}, False),
        ({"adapter": "lora", "load_in_4bit": False}, False),
        ({"gradient_checkpointing": False}, False),
    ],
    ids=str,
)
def test_what_changes_it(changed, less):
    one, other = memory.estimate(BASE | changed), memory.estimate(BASE)
    assert (None if one == other else one < other) is less


# --- which model it is


@pytest.mark.parametrize(
    "name",
    ["Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b-instruct", "/models/Qwen2.5-7B-Instruct/", "Qwen2.5-7B"],
)
def test_the_model_is_known_by_its_name(name):
    assert memory.estimate(BASE | {"base_model": name}) == memory.estimate(BASE)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo-2407"),
        ("google/gemma-2-9b-it", "gemma-2-9b"),
        ("Qwen/Qwen3-8B-Base", "qwen3-8b"),
        ("microsoft/phi-4", "phi-4"),
    ],
)
def test_makers_add_to_a_name_what_changes_no_shape(name, entry):
    assert memory.find_model({"base_model": name}) == named(entry)


@pytest.mark.parametrize(
    "changed",
    [
        {"base_model": "tiny-random-qwen3"},
        {"base_model": "Qwen/Qwen2.5-VL-7B-Instruct"},
        {"base_model": "Qwen/Qwen2.5-7B-Instruct-AWQ"},
        {"base_model": None},
        {"adapter": None},
        {"attn_implementation": "eager"},
        {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
        {"deepspeed": "zero3.json"},
        {"fsdp_config": {"offload_params": True}},
    ],
    ids=str,
)
def test_nothing_is_said_where_nothing_is_known(changed):
    assert memory.estimate(BASE | changed) is None
    assert memory.unknown_reason(BASE | changed)


QWEN = base_models.CONFIGS["qwen2.5-7b"]


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({key: value for key, value in QWEN.items() if key != "head_dim"}, {}),  # hidden / heads
        (QWEN | {"head_dim": None}, {}),
        (QWEN | {"head_dim": 256}, {"head_dim": 256}),
        (QWEN | {"tie_word_embeddings": True}, {"tied": True}),
        (QWEN | {"num_key_value_heads": None}, {"kv_heads": 28}),
        (QWEN | {"sliding_window": 4096}, {"masked": True}),
        (QWEN | {"sliding_window": 4096, "use_sliding_window": False}, {}),
        (QWEN | {"sliding_window": 4096, "layer_types": ["full_attention"] * 28}, {}),
        ({"model_type": "some_vl", "text_config": QWEN}, {}),
        (
            {"text_config": QWEN, "vision_config": {
                "hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 3,
            }},
            {"beside": 3 * (4 * 100 + 3 * 200)},
        ),
    ],
)  # fmt: skip
def test_what_a_config_tells(config, changed):
    assert memory.from_config(config) == dataclasses.replace(named("qwen2.5-7b"), **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_experts": 64},
        {"num_local_experts": 8},
        {"moe_intermediate_size": 1408},
        {"model_type": "mamba"},
        {"model_type": None},
        {"hidden_size": None},
        {"num_attention_heads": 0},
        {"vocab_size": "many"},
        {"quantization_config": {"quant_method": "awq"}},
        {"model_type": ["qwen2"]},
        {"text_config": "no mapping"},
        {"vision_config": "no mapping"},
    ],
    ids=str,
)
def test_what_is_not_sure_is_not_known(changed):
    assert memory.from_config(QWEN | changed) is None


ABSURD = ["Infinity", "-Infinity", "NaN", "1e400", "9" * 400, "-1", "10000001", "3.5", '"28"', "[28]", "{}", "true"]


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: value[:12])
@pytest.mark.parametrize(
    "key",
    [
        "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers",
        "intermediate_size", "vocab_size",
    ],
)  # fmt: skip
def test_a_dimension_is_a_whole_number_of_a_model(key, value):
    assert (
        memory.from_config(json.loads(json.dumps(QWEN | {key: 1}).replace(f'"{key}": 1', f'"{key}": {value}'))) is None
    )


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: value[:12])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_so_it_is_for_a_vision_tower(key, value):
    tower = {"hidden_size": 10, "intermediate_size": 20, "num_hidden_layers": 3}
    assert memory.from_config({"text_config": QWEN, "vision_config": tower}).beside
    assert memory.from_config({"text_config": QWEN, "vision_config": tower | {key: 0}}).beside < 3 * 1000
    assert memory.from_config({"text_config": QWEN, "vision_config": tower | {key: json.loads(value)}}) is None


def test_a_config_may_leave_out_what_is_a_default():
    """The config.json of Gemma 3 with 4 billion parameters names neither heads nor vocabulary."""
    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "sliding_window": 1024,
    }  # fmt: skip
    model = memory.from_config({"model_type": "gemma3", "text_config": text})
    assert (model.heads, model.kv_heads, model.head_dim, model.vocab, model.tied) == (8, 4, 256, 262208, True)
    assert model.masked
    assert (model.linear_weights() + model.embedding_weights()) / 1e9 == pytest.approx(3.88, rel=0.01)


def test_the_table_only_counts_where_the_hub_has_nothing(tmp_path):
    recipe = {"base_model": "Qwen/Qwen2.5-7B-Instruct", "model_revision": COMMIT}
    folder = tmp_path / "hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots" / COMMIT
    assert memory.find_config(recipe) == (QWEN, None)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    assert memory.find_config(recipe) == (QWEN, None)
    (folder / "config.json").write_text(json.dumps(QWEN | {"num_hidden_layers": 2}))
    assert memory.find_model(recipe).layers == 2
    assert memory.find_model(recipe | {"model_revision": "other"}).layers == 28


def test_where_the_hub_keeps_its_models(tmp_path):
    recipe = {"base_model": "owner/new", "model_revision": COMMIT}
    end = f"models--owner--new/snapshots/{COMMIT}"
    assert memory.model_folder(recipe, {"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}) == pathlib.Path("/c") / end
    assert memory.model_folder(recipe, {"HF_HOME": "/h"}) == pathlib.Path("/h/hub") / end
    assert memory.model_folder(recipe, {"XDG_CACHE_HOME": "/x"}) == pathlib.Path("/x/huggingface/hub") / end
    assert memory.model_folder(recipe, {}) == pathlib.Path.home() / ".cache/huggingface/hub" / end
    elsewhere = {"HF_HUB_CACHE": "~nosuch/x"}  # as for the hub
    assert memory.model_folder(recipe, elsewhere) == pathlib.Path("~nosuch/x") / end
    assert memory.find_config(recipe, elsewhere) == ({}, None)
    assert memory.model_folder({"base_model": "owner/new"}, {}) is None
    assert memory.model_folder({"base_model": "../x", "model_revision": COMMIT}, {}) is None
    assert memory.model_folder({"base_model": "a/b", "model_revision": "../../x"}, {}) is None


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123456", "refs/pr/3"])
def test_the_hub_tells_the_commit_of_a_branch(tmp_path, revision):
    """As huggingface_hub does: a file in refs, named as the revision is, and none of these is a folder of snapshots."""
    recipe = BASE | {"base_model": "owner/new", "model_revision": revision}
    model = tmp_path / "hub/models--owner--new"
    assert memory.model_folder(recipe) is None
    assert memory.unknown_reason(recipe) == (
        "its dimensions are not known here. They are as soon as this controller has the config.json of that model"
    )
    ref, folder = model / "refs" / revision, model / "snapshots" / COMMIT
    ref.parent.mkdir(parents=True)
    for wrong in ("", "main", COMMIT[:-1], "../../../" + COMMIT, COMMIT + "\n" * 100, "\N{SNOWMAN}", "\x00" * 40):
        ref.write_text(wrong, encoding="utf-8")
        assert memory.model_folder(recipe) is None
    ref.write_bytes(b"\xff" * 40)
    assert memory.model_folder(recipe) is None
    ref.write_text(COMMIT)
    assert memory.model_folder(recipe) == folder
    assert memory.unknown_reason(recipe).endswith(f"{folder}/config.json")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN))
    assert memory.find_model(recipe) == named("qwen2.5-7b")
    ref.unlink()
    ref.mkdir()
    assert memory.model_folder(recipe) is None
    ref.rmdir()
    os.mkfifo(ref)
    assert memory.model_folder(recipe) is None


def test_any_model_is_known_once_its_config_is_there(tmp_path):
    recipe = BASE | {"base_model": "owner/new", "model_revision": COMMIT}
    folder = tmp_path / "hub/models--owner--new/snapshots" / COMMIT
    assert memory.unknown_reason(recipe) == (
        f"its dimensions are not known here. They are as soon as this controller has {folder}/config.json"
    )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(QWEN))
    assert memory.unknown_reason(recipe) == ""
    assert memory.estimate(recipe) == memory.estimate(BASE)
    (folder / "config.json").write_text(json.dumps(QWEN | {"model_type": "mamba"}))
    assert memory.unknown_reason(recipe) == (
        f"{folder}/config.json tells of a model («mamba») that is not estimated: one with experts, with weights that "
        "were quantised beforehand, with a dimension that is missing or makes no sense, or built in another way"
    )


@pytest.mark.parametrize(
    "kind",
    ["\x1b[2Jmamba", "mam\nba", "A" * 3000, "A" * 41, "mamba\n", "", "\N{RIGHT-TO-LEFT OVERRIDE}x", ["mamba"], None, 7],
    ids=lambda kind: repr(kind)[:12],
)
def test_a_stranger_writes_nothing_on_the_terminal(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps(QWEN | {"model_type": kind}))
    assert memory.unknown_reason(BASE | {"base_model": str(tmp_path)}).startswith(
        f"{tmp_path}/config.json tells of a model of another kind that is not estimated"
    )


DEEP = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
LARGE = json.dumps(QWEN).encode() + b" " * 10**7


@pytest.mark.parametrize("content", [DEEP, LARGE, b"\xff", b"[]"], ids=["deep", "large", "no text", "a list"])
def test_a_config_that_cannot_be_read_is_none(tmp_path, content):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    assert memory.find_config({"base_model": str(folder)}) == ({}, None)
    assert memory.estimate(BASE | {"base_model": str(folder)}) is None


@pytest.mark.parametrize("make", [pathlib.Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_what_is_no_regular_file_is_never_opened(tmp_path, name, make):
    """Neither a pipe, at which a reader waits, nor a device, which has no end."""
    if name != "config.json":
        (tmp_path / "config.json").write_text(json.dumps(QWEN))
    make(tmp_path / name)
    model = memory.find_model({"base_model": str(tmp_path)})
    assert model == (None if name == "config.json" else named("qwen2.5-7b"))


def safetensors(path, tensors):
    header = json.dumps({"__metadata__": {}} | {name: {"shape": shape} for name, shape in tensors.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_folder_is_read_where_it_exists_and_its_weights_are_counted(tmp_path):
    recipe = BASE | {"base_model": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    assert memory.find_model(recipe) == named("qwen2.5-7b")
    one = {"model.embed_tokens.weight": [1000, 8], "model.norm.weight": [8]}
    two = {"model.layers.0.mlp.up_proj.weight": [16, 8], "model.layers.0.mlp.up_proj.bias": [16]}
    index = {"weight_map": dict.fromkeys(one, "1.safetensors") | dict.fromkeys(two, "2.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(tmp_path / "1.safetensors", one)
    assert memory.count_parameters(tmp_path) is None  # half of it
    safetensors(tmp_path / "2.safetensors", two)
    assert memory.count_parameters(tmp_path) == (128, 8024)
    parts = memory.parts(recipe)
    assert (parts["frozen"], parts["embeddings"]) == (128 * memory.NF4, 8024 * 2)
    (tmp_path / "2.safetensors").write_bytes(b"no")
    assert memory.count_parameters(tmp_path) is None


LINEAR, NORM = '"a": {"shape": [16, 8]}', '"b": {"shape": [8]}'


def headed(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text.encode()


def test_a_header_by_hand(tmp_path):
    """What the broken ones of the next test are made of counts."""
    (tmp_path / "model.safetensors").write_bytes(headed("{" + LINEAR + "," + NORM + "}"))
    assert memory.count_parameters(tmp_path) == (128, 8)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3087467144\n",
        b"",
        headed("{" + LINEAR + "," + NORM + "}", 10_000),  # longer than the file
        headed("{" + LINEAR + "," + NORM + "}", 2**64 - 1),
        headed(""),
        headed("[]"),
        headed("{}"),  # of no weights at all
        headed("{" + LINEAR + "}"),
        headed("{" + NORM + "}"),
        headed(DEEP.decode()),
        *(
            headed("{" + LINEAR + "," + NORM + ', "c": {"shape": ' + shape + "}}")
            for shape in ("[1e400, 8]", "[-8, 8]", "[NaN, 8]", '["8", 8]', "[true, 8]", "[[8], 8]", "8", "null", '"88"',
                          "[" + "9" * 400 + ", 8]", "[10000000, 10000000]", "[" + "8," * 8 + "8]")
        ),
        headed("{" + LINEAR + "," + NORM + ', "c": 7}'),
        headed("{" + LINEAR + "," + NORM + ', "c": {}}'),
    ],
    ids=lambda content: repr(content[-40:]),
)  # fmt: skip
def test_weights_that_can_be_none_are_not_counted(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "model.safetensors").write_bytes(content)
    assert memory.count_parameters(tmp_path) is None
    assert memory.estimate(BASE | {"base_model": str(tmp_path)}) == memory.estimate(BASE)


def test_a_header_has_the_bound_that_safetensors_has(tmp_path, monkeypatch):
    header = headed("{" + LINEAR + "," + NORM + "}")
    assert memory.HEADER_BYTES == 100_000_000
    monkeypatch.setattr(memory, "HEADER_BYTES", len(header) - 8)
    (tmp_path / "model.safetensors").write_bytes(header)
    assert memory.count_parameters(tmp_path) == (128, 8)
    (tmp_path / "model.safetensors").write_bytes(headed("{" + LINEAR + "," + NORM + "} "))
    assert memory.count_parameters(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b'{"weight_map": {}}', b'{"weight_map": []}', b'{"weight_map": {"a": 7}}', b'{"weight_map": {"a": []}}',
        b'{"weight_map": {"a": "../model.safetensors"}}', b'{"weight_map": {"a": "/dev/zero"}}', b"{}", b"[]",
        b'{"weight_map": {"a": "\\u0000"}}', b'{"weight_map": {"a": "\\ud800"}}',
        b'{"weight_map": {"a": "model.safetensors"}}' + b" " * 10**7, DEEP,
    ],
    ids=lambda content: repr(content[-40:]),
)  # fmt: skip
def test_an_index_that_names_no_weights_of_its_folder(tmp_path, content):
    for folder in (tmp_path, tmp_path / "model"):
        folder.mkdir(exist_ok=True)
        safetensors(folder / "model.safetensors", {"a": [16, 8], "b": [8]})
    (tmp_path / "model/model.safetensors.index.json").write_bytes(b'{"weight_map": {"a": "model.safetensors"}}')
    assert memory.count_parameters(tmp_path / "model") == (128, 8)
    (tmp_path / "model/model.safetensors.index.json").write_bytes(content)
    assert memory.count_parameters(tmp_path / "model") is None


# --- which machine class fits


def test_the_room_of_a_class_and_the_class_for_a_gpu():
    assert memory.usable_gib("gpu-24gb") == pytest.approx(21.84)
    assert (memory.usable_gib("fast"), memory.usable_gib(""), memory.usable_gib(f"gpu-{'9' * 5000}gb")) == (
        None,
        None,
        None,
    )
    sizes = {"gpu-12gb": 10.3, "gpu-16gb": 10.3, "gpu-24gb": 12.3, "gpu-48gb": 27.3, "odd": None}
    assert memory.fitting_machine(21.8, sizes) == "gpu-24gb"
    assert memory.fitting_machine(11, sizes) == "gpu-16gb"
    assert memory.fitting_machine(80, sizes) == "gpu-48gb"
    assert memory.fitting_machine(10, sizes) == ""
