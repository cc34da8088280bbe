"""A layer of a recipe as it is meant: old names, numbers as text, a template in a dataset's entry."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.planning import spelling
from ansible.module_utils.lora_forge.planning.layers import Layer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))


def respell(keys: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    layer = Layer("w.yml", keys, {key: line for line, key in enumerate(keys, 1)})
    before = json.dumps(keys)
    made, notes, problems = spelling.respell(layer, SCHEMA)
    assert json.dumps(keys) == before, "what was read stays as it is: it is merged again for the next agent"
    assert made.keys.keys() <= made.lines.keys(), "each key has its line"
    return made.keys, notes, problems


@pytest.mark.parametrize(
    ("key", "text", "number"),
    [
        ("learning_rate", "2e-4", 0.0002),  # Axolotl takes text, too
        ("learning_rate", "0.0002", 0.0002),
        ("learning_rate", "+2E-4", 0.0002),
        ("weight_decay", ".1", 0.1),
        ("weight_decay", "-1e3", -1000.0),
        ("num_epochs", "3", 3),
        ("lora_r", "64", 64),
        ("max_steps", "1e3", 1000),
    ],
)
def test_a_text_that_is_a_number(key, text, number):
    made = respell({key: text})[0][key]
    assert (made, type(made)) == (number, type(number))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("wandb_name", "2e4"),  # text is meant
        ("model_revision", "1" * 40),
        ("weight_decay", "2e4x"),
        ("weight_decay", "1e999"),
        ("lora_r", "8.5"),  # no whole number
        ("bf16", "auto"),
        ("lora_target_modules", ["1", "2"]),
        ("nobody_knows_this", "1"),
    ],
)
def test_a_text_that_is_none_stays(key, text):
    assert respell({key: text})[0] == {key: text}


def test_numbers_within_a_value():
    keys = {"layers_to_transform": ["1", 2], "lr_groups": [{"lr": "1e-5", "name": "1", "modules": ["1"]}]}
    assert respell({"peft": {"loftq_config": {"loftq_bits": "4"}}})[0] == {"peft": {"loftq_config": {"loftq_bits": 4}}}
    assert respell({"datasets": [{"shards": "4", "path": "1"}]})[0] == {"datasets": [{"shards": 4, "path": "1"}]}
    assert respell(keys)[0]["lr_groups"][0] == {"lr": 1e-5, "name": "1", "modules": ["1"]}


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("flash_attention", "flash_attention_2"), ("sdp_attention", "sdpa"), ("eager_attention", "eager")],
)
def test_attention_by_its_old_names(flag, meant):
    assert respell({flag: True})[0] == {"attn_implementation": meant}
    assert respell({flag: False, "seed": 1})[0] == {"seed": 1}
    assert respell({flag: None})[0] == {}


def test_two_words_on_attention_are_left_to_be_refused():
    both = {"flash_attention": True, "attn_implementation": "sdpa"}
    assert respell(both)[0] == both
    two = {"flash_attention": True, "eager_attention": True}
    assert respell(two)[0] == {"attn_implementation": "flash_attention_2", "eager_attention": True}


@pytest.mark.parametrize("kind", ["sharegpt", "sharegpt.load_role", "sharegpt:chat"])
def test_sharegpt_is_what_conversations_were_called(kind):
    assert respell({"datasets": [{"type": kind}]})[0] == {"datasets": [{"type": "chat_template"}]}
    assert respell({"datasets": [{"type": "alpaca"}]})[0] == {"datasets": [{"type": "alpaca"}]}
    assert respell({"datasets": [{"type": {"field": "x"}}]})[0] == {"datasets": [{"type": {"field": "x"}}]}


@pytest.mark.parametrize("odd", ["text", {"path": "x"}, ["x.jsonl"], 3])
def test_datasets_of_a_wrong_form_are_left_to_be_refused(odd):
    assert respell({"datasets": odd}) == ({"datasets": odd}, [], [])


def test_a_template_of_an_entry_is_taken_for_the_whole_recipe():
    keys, notes, problems = respell({"seed": 1, "datasets": [{"path": "a", "chat_template": "qwen3_5"}, {"path": "b"}]})
    assert keys == {"seed": 1, "datasets": [{"path": "a"}, {"path": "b"}], "chat_template": "qwen3_5"}
    assert problems == []
    assert notes == [
        '«chat_template: "qwen3_5"» of the datasets of w.yml is taken for the whole recipe: it is the template that is '
        "trained, and so the one that is delivered"
    ]


def test_the_same_template_twice_needs_no_word():
    keys = {"chat_template": "llama3", "datasets": [{"chat_template": "llama3"}, {"chat_template": "llama3"}]}
    assert respell(keys) == ({"chat_template": "llama3", "datasets": [{}, {}]}, [], [])
    own = {"chat_template": "jinja", "chat_template_jinja": "{{ x }}"}
    assert respell({"datasets": [own]})[0] == {"datasets": [{}], **own}


def test_two_templates_are_refused_with_both_places():
    _, notes, [problem] = respell({"chat_template": "llama3", "datasets": [{}, {"chat_template": "chatml"}]})
    assert notes == []
    assert problem == (
        'w.yml, line 2: datasets, item 2: «chat_template: "chatml"», and w.yml, line 1: «chat_template: "llama3"»: the '
        "first one would be trained and the second one delivered. Keep one of them"
    )
    _, _, [problem] = respell({"datasets": [{"chat_template": "llama3"}, {"chat_template": "chatml"}]})
    assert problem.startswith('w.yml, line 1: datasets, items 1 and 2: «chat_template: "llama3"» and «chat_template: ')


def test_folders_of_a_recipe_from_elsewhere_are_left_out_with_a_notice():
    made, notes, problems = respell({"lora_r": 8, "output_dir": "./out", "dataset_prepared_path": "last_run_prepared"})
    assert (made, problems) == ({"lora_r": 8}, [])
    assert notes == [
        "output_dir of w.yml is left out: each run has a folder of its own, and its adapter is delivered to "
        "output/adapters",
        "dataset_prepared_path of w.yml is left out: each run keeps its prepared data in its own folder",
    ]
    assert respell({"lora_r": 8, "output_dir": None}) == ({"lora_r": 8}, [], [])
