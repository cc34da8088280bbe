"""Rules of chat templates that need no tokenizer."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planning import templates
from ansible.module_utils.lora_forge.planning.layers import Layer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))


def problems(model: str, template: str = "chatml", **more: Any) -> list[str]:
    keys = {"base_model": model, "chat_template": template, **more}
    return templates.problems(keys, dict.fromkeys(keys, Layer("w.yml", keys, dict.fromkeys(keys, 3))))


@pytest.mark.parametrize(
    ("model", "instead"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("unsloth/llama-3-8b-bnb-4bit", "llama3"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama3"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral_v3_tekken"),
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral_v3_tekken"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral_v3_tekken"),
        ("google/gemma-3-4b-it", "gemma3"),
        ("google/gemma-4-E2B-it", "gemma3"),
        ("/models/mistral-7b/", "mistral_v3_tekken"),
    ],
)
def test_a_template_whose_end_is_no_token_of_the_model(model, instead):
    [said] = problems(model)
    assert said.startswith(
        'w.yml, line 3: «chat_template: "chatml"» ends a turn with <|im_end|>, which is no token of '
    )
    assert said.endswith(f"a base model without one takes «{instead}»")
    assert problems(model, "qwen3")
    assert problems(model, "tokenizer_default") == problems(model, instead) == []


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen2.5-7B-Instruct",
        "NousResearch/Hermes-3-Llama-3.1-8B",
        "Open-Orca/Mistral-7B-OpenOrca",
        "cognitivecomputations/dolphin-2.9-llama3-8b",
        "HuggingFaceTB/SmolLM3-3B",
    ],
)
def test_models_that_may_know_it(model):
    assert problems(model) == []


@pytest.mark.parametrize(
    "key", ["eot_tokens", "special_tokens", "tokens", "added_tokens_overrides", "tokenizer_config"]
)
def test_a_vocabulary_of_ones_own_is_left_to_the_tokenizer(key):
    assert problems("meta-llama/Llama-3.1-8B", **{key: ["x"]}) == []


def data_problems(template: Any, *needs: str) -> list[str]:
    keys = {"chat_template": template} if template else {"chat_template_jinja": "{{ x }}"}
    origin = dict.fromkeys(keys, Layer("w.yml", keys, dict.fromkeys(keys, 3)))
    return templates.data_problems(keys, origin, {need: f"d.jsonl, line {len(need)}" for need in needs})


def test_what_a_template_would_drop_is_named_and_those_that_would_not():
    [said] = data_problems("chatml", "tools", "tool_role", "tool_calls")
    assert said == (
        'w.yml, line 3: «chat_template: "chatml"» leaves out calls of tools (tool_calls), lists of tools (tools), '
        "which the data has (d.jsonl, line 10; d.jsonl, line 5), so that nothing of it would be learnt. Write "
        "«chat_template: tokenizer_default» where the base model's own knows it, or one of "
        "qwen_25, qwen3, qwen3_5, llama4"
    )
    assert data_problems("qwen_25", "tools", "tool_role", "tool_calls") == []
    [said] = data_problems("qwen_25", "reasoning_content")
    assert said.endswith("or one of qwen3, qwen3_5")
    assert data_problems("chatml") == data_problems("chatml", "tool_role") == []


@pytest.mark.parametrize("template", [None, "tokenizer_default", "tokenizer_default_fallback_chatml", "jinja"])
def test_what_only_a_tokenizer_can_tell_is_left_to_it(template):
    assert data_problems(template, "tools", "reasoning_content") == []


def test_every_template_of_axolotls_is_known():
    named = set(SCHEMA["$defs"]["ChatTemplate"]["enum"]) - {"jinja", "tokenizer_default"}
    assert named <= templates.KNOWS.keys()
