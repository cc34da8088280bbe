"""Chat templates before the pinned Axolotl's own strategy, with tokenizers of several families."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planning import templates

from .conftest import CONVERGE, ROOT

TOOLS = ("tool_calls", "tool_role", "tools")


@pytest.fixture(scope="module")
def job(environment: pathlib.Path) -> dict[str, Any]:
    """Return what template_job.py printed."""
    done = subprocess.run(
        [str(environment), str(ROOT / "tests/e2e/template_job.py")],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "roles/run/files"),
            "AXOLOTL_DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=CONVERGE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_each_family_is_told(job: dict[str, Any]) -> None:
    said: dict[tuple[Any, ...], list[list[str]]] = {}
    for family, template, needs, sentences in job["said"]:
        said.setdefault((family, template, *needs), []).append(sentences)
    own, endless = "tokenizer_default", "no token is learnt that ends a turn"

    def only(*asked: str) -> str:
        [[sentence]] = said[asked]
        return sentence

    for family in ("qwen", "llama", "mistral"):
        assert said[family, own] == [[]], "the template of a chat model suits it"
    assert said["qwen", "chatml"] == [[]]
    assert endless in only("qwen-base", own)
    assert 'write «eot_tokens: ["<|im_end|>"]»' in only("qwen-base", own)
    for family in ("llama", "mistral", "gemma"):
        assert endless in only(family, "chatml")
        assert "write «chat_template: tokenizer_default»" in only(family, "chatml")
    assert "the tokenizer of llama-base has no chat template" in only("llama-base", own)
    assert "write «chat_template: llama3»" in only("llama-base", own)
    [without], with_end = said["gemma", own]
    assert 'write «eot_tokens: ["<end_of_turn>"]»' in without
    assert with_end == [], "and what it says is enough"
    assert "llama3 makes no conversation with the tokenizer of qwen" in only("qwen", "llama3")
    assert "take train_on_eos out of the recipe's datasets" in only("qwen", "qwen3")


def test_what_the_data_needs_and_a_template_drops(job: dict[str, Any]) -> None:
    said = {(family, template, *needs): sentences for family, template, needs, sentences in job["said"] if needs}
    [sentence] = said["qwen", "chatml", "tool_role", "tools"]
    assert "chatml leaves out the list of tools (tools), which the data has (a.jsonl, line 3)" in sentence
    [sentence] = said[("qwen", "chatml", *TOOLS)]
    assert "leaves out the calls of tools (tool_calls) and the list of tools (tools)" in sentence
    [sentence] = said["qwen", "qwen_25", "reasoning_content"]
    assert "such as qwen3, qwen3_5 or the base model's own" in sentence
    [sentence] = said["gemma", "gemma3", "tool_role"]
    assert (
        "gemma3 does not take the answers of tools (turns by tool), which the data has (a.jsonl, line 3): Conversation"
        in sentence
    )
    assert said[("qwen", "qwen_25", *TOOLS)] == said[("qwen", "tokenizer_default", "reasoning_content", *TOOLS)] == []


def test_turns_in_an_order_that_a_template_does_not_take(job: dict[str, Any]) -> None:
    """They would end the training when its data is tokenised: on a pod that is paid for, with the weights there."""
    said = {(family, template, *needs): sentences for family, template, needs, sentences in job["said"] if needs}
    order = ("assistant_first", "later_system", "same_speaker", "system")
    assert said["gemma", "gemma3", "system"] == said[("qwen", "tokenizer_default", *order)] == []
    first, later, twice = said[("gemma", "gemma3", *order)]
    words = "gemma3 does not take a conversation that the assistant begins, which the data has (a.jsonl, line 3): "
    assert words + "Conversation" in first
    assert "does not take a system turn after the first turn, which" in later
    assert "does not take two turns by the same speaker, one after the other, which" in twice
    assert said["qwen", "chatml", "system"] == [], "a recipe that drops system turns has none"


def test_a_template_that_a_server_would_not_use_is_told(job: dict[str, Any]) -> None:
    nothing, [other, extra] = job["warnings"]
    assert nothing == []
    assert "vLLM: --chat-template" in other
    assert extra.startswith("chat_template_kwargs decide how conversations are rendered")


def test_the_plan_knows_what_each_template_of_axolotls_leaves_out(job: dict[str, Any]) -> None:
    assert {name: set(known) for name, known in job["knows"].items()} == {
        name: set(known) for name, known in templates.KNOWS.items()
    }
