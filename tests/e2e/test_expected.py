"""What an adapter has to consist of, said by the base model itself: real transformers, Axolotl and PEFT, no weights."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest

from .conftest import CONVERGE, ROOT

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
COMMIT = "c0ffee" * 6 + "c0ff"
TEXT = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", **TEXT},
    "moe": {"model_type": "qwen3_moe", **TEXT, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", **TEXT},
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        },
        "mm_tokens_per_image": 4, "image_token_index": 511, "boi_token_index": 510, "eoi_token_index": 509,
    },
}  # fmt: skip
RECIPE = {
    "adapter": "qlora", "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "sequence_len": 64,
    "lora_target_modules": SEVEN, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1,
    "learning_rate": 0.001, "chat_template": "chatml", "datasets": [{"path": "/data/x.jsonl", "type": "chat_template"}],
    "output_dir": "/run/output", "bf16": False, "fp16": False, "lora_mlp_kernel": False, "lora_qkv_kernel": False,
    "lora_o_kernel": False,
}  # fmt: skip
EXPERTS = {"lora_target_modules": ["q_proj"], "lora_target_parameters": ["mlp.experts.gate_up_proj"], "lora_dropout": 0}
TOWER = r".*(vision_tower|language_model).*\.q_proj"
LANGUAGE = r"model\.language_model\..*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "by name": ("qwen3", {}),
    "of the hub": ("Acme/Tiny", {"model_revision": COMMIT}),
    "linear": ("qwen3", {"lora_target_linear": True, "lora_target_modules": None}),
    "all-linear": ("qwen3", {"lora_target_modules": "all-linear"}),
    "expression": ("qwen3", {"lora_target_modules": r".*\.0\..*\.(q|v)_proj"}),
    "dora": ("qwen3", {"peft_use_dora": True, "lora_rank_pattern": {"k_proj": 4}, "lora_modules_to_save": ["lm_head"]}),
    "experts": ("moe", EXPERTS),
    "misspelt": ("qwen3", {"lora_target_modules": ["query", "key"]}),
    "one misspelt": ("qwen3", {"lora_target_modules": ["q_proj", "key"]}),
    "fused": ("moe", {}),
    "into a tower": ("gemma3", {}),
    "linear, into a tower": ("gemma3", {"lora_target_linear": True, "lora_target_modules": None}),
    "around it": ("gemma3", {"lora_target_modules": LANGUAGE}),
    "into it, and meant": ("gemma3", {"lora_target_modules": TOWER}),
    "another adapter": ("qwen3", {"adapter": "llama-adapter", "load_in_4bit": None}),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, environment: pathlib.Path) -> dict[str, Any]:
    """Ask for all cases in one process: it imports Axolotl, which takes ten seconds."""
    folder = tmp_path_factory.mktemp("expected")
    snapshot = folder / "hub/models--Acme--Tiny/snapshots" / COMMIT
    places = {"Acme/Tiny": snapshot, **{name: folder / name for name in MODELS}}
    for name, place in places.items():
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(MODELS.get(name, MODELS["qwen3"])))
    cases = {
        name: {**RECIPE, "base_model": model if "/" in model else str(folder / model), **keys}
        for name, (model, keys) in CASES.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    path = os.pathsep.join(str(ROOT / place) for place in ("roles/run/files", "module_utils/lora_forge"))
    done = subprocess.run(
        [str(environment), str(ROOT / "tests/e2e/expectations.py"), str(folder)],
        env={
            **os.environ, "PYTHONPATH": path, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder), "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True, text=True, timeout=CONVERGE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def modules(expected: dict[str, Any]) -> set[str]:
    found = (re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", name) for name in expected["tensors"])
    return {match[1] for match in found if match}


def test_names_and_shapes_are_the_models_own(said: dict[str, Any]) -> None:
    known = said["by name"]
    layers = [f"model.layers.{layer}" for layer in (0, 1)]
    parts = [*(f"self_attn.{name}" for name in SEVEN[:4]), *(f"mlp.{name}" for name in SEVEN[4:])]
    assert modules(known) == {f"{layer}.{part}" for layer in layers for part in parts}
    assert len(known["tensors"]) == 28
    key = "base_model.model.model.layers.1.self_attn.k_proj.lora_{}.weight"
    assert [known["tensors"][key.format(side)] for side in "AB"] == [[8, 64], [32, 8]]
    assert known["parameters"]["k_proj"] == 2 * 8 * (64 + 32)
    assert (known["model_type"], known["towers"], known["unmatched"], known["revision"]) == ("qwen3", [], [], None)
    assert said["linear"]["tensors"] == said["all-linear"]["tensors"] == known["tensors"]
    assert said["of the hub"] == known | {"base_model": "Acme/Tiny", "revision": COMMIT}
    assert modules(said["expression"]) == {f"model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj")}
    assert said["undisturbed"] is True


def test_dora_patterns_whole_modules_and_experts(said: dict[str, Any]) -> None:
    known = said["dora"]["tensors"]
    key = "base_model.model.model.layers.0.self_attn.k_proj"
    assert known[f"{key}.lora_A.weight"] == [4, 64]
    assert known[f"{key}.lora_magnitude_vector"] == [32]
    assert known["base_model.model.lm_head.weight"] == [512, 64]
    experts = {name: shape for name, shape in said["experts"]["tensors"].items() if ".experts." in name}
    assert len(experts) == 4
    assert {shape[0] for name, shape in experts.items() if ".lora_A." in name} == {4 * 8}


def test_targets_that_match_nothing(said: dict[str, Any]) -> None:
    assert "not found in the base model" in said["misspelt"]
    assert "called down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said["misspelt"]
    assert said["one misspelt"]["unmatched"] == ["key"]
    assert said["fused"]["unmatched"] == []  # PEFT knows that the experts lie in one parameter
    assert "experts" in said["fused"]["parameters"]
    assert said["another adapter"] == "adapter: llama-adapter is none that can be proven; lora and qlora are"


def test_a_tower_is_refused_unless_it_is_meant(said: dict[str, Any]) -> None:
    for case in ("into a tower", "linear, into a tower"):
        assert "reach into model.vision_tower" in said[case]
    assert f"lora_target_modules: '{LANGUAGE}'. " in said["into a tower"]
    assert "and no lora_target_linear" in said["linear, into a tower"]
    assert said["around it"]["towers"] == []
    assert modules(said["around it"])
    assert all(name.startswith("model.language_model.layers.") for name in modules(said["around it"]))
    towers = said["into it, and meant"]["towers"]
    assert towers
    assert set(towers) < modules(said["into it, and meant"])
    assert all(name.startswith("model.vision_tower.") for name in towers)


def test_what_no_gradient_reached_is_noted_over_a_resume(said: dict[str, Any]) -> None:
    assert said["gradients"] == {
        "0": [["later.weight", "never.weight", "zero.weight"]] * 2,
        "2": [["never.weight", "zero.weight"]] * 2,
    }
    assert said["saved name"] == "base_model.model.layers.0.q_proj.lora_B.weight"


def test_what_is_expected_is_made_anew_where_it_may_be_of_another_model(said: dict[str, Any]) -> None:
    made = {"of a folder", "of another base", "of another form", "cut", "second host"}
    assert {case for case, anew in said["written"].items() if anew} == made
    assert not said["written"]["of its commit"]
