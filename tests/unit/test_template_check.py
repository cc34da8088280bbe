"""What template_check decides without Axolotl; the rest is asked of real Axolotl in tests/e2e/test_templates.py."""

from __future__ import annotations

import types
from typing import Any

import pytest
import template_check
from ansible.module_utils.lora_forge.data import conversation

TEXT = "{{ messages }}"


class Tokenizer:
    """As much of a tokenizer as is asked before Axolotl is."""

    def __init__(self, *vocabulary: str, template: Any = None):
        self.vocabulary = {word: number for number, word in enumerate(vocabulary)}
        self.chat_template = template

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


class Cfg(dict):
    base_model = "acme/base"


@pytest.mark.parametrize(
    ("words", "template"),
    [
        (["<|im_start|>", "<|im_end|>"], "chatml"),
        (["<|eot_id|>"], "llama3"),
        (["<end_of_turn>"], "gemma3"),
        (["[INST]", "[/INST]"], "mistral_v3_tekken"),
        (["<|endoftext|>"], ""),
    ],
)
def test_which_template_suits_a_vocabulary(words, template):
    assert template_check.suitable(Tokenizer(*words).get_vocab()) == template


@pytest.mark.parametrize("named", [None, "tokenizer_default", types.SimpleNamespace(value="tokenizer_default")])
def test_a_base_model_without_a_template_and_a_recipe_that_takes_it(named):
    [said] = template_check.check(Cfg(chat_template=named), Tokenizer("<|eot_id|>"), {})
    assert said == (
        "the tokenizer of acme/base has no chat template, and the recipe takes the tokenizer's own: write "
        "«chat_template: llama3», which its vocabulary suits"
    )
    [said] = template_check.check(Cfg(chat_template=named), Tokenizer("</s>"), {})
    assert said.endswith("name one of Axolotl's with chat_template, or give one of your own with chat_template_jinja")


def test_what_is_asked_of_a_template_shows_what_it_is_asked_for():
    assert (*template_check.NEEDS, *template_check.ORDER) == (*conversation.NEEDS, *conversation.ORDER)
    for words, asked, marks in [*template_check.NEEDS.values(), *template_check.ORDER.values()]:
        assert words
        assert all(mark in repr(asked) for mark in marks)
