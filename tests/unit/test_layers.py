"""The layers of a recipe: read from a file, and laid over each other."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.layers import Layer, merge, read_layer

ROOT = pathlib.Path(__file__).resolve().parents[2]


# --- reading


def test_duplicate_key_names_both_lines(read):
    with pytest.raises(UserError) as error:
        read("lora_r: 64\nseed: 1\nlora_r: 32\n")
    assert str(error.value) == "configs/agents/witness.yml, lines 1 and 3: «lora_r» stands twice; keep one"


def test_duplicate_key_in_a_nested_mapping(read):
    with pytest.raises(UserError, match=r"lines 3 and 5: «type» stands twice"):
        read("datasets:\n  - path: x\n    type: a\n    split: b\n    type: c\n")


def test_tab_is_named_by_its_line(read):
    with pytest.raises(UserError, match=r"witness\.yml, line 2: a tab in the indentation; YAML takes spaces only"):
        read("datasets:\n\t- path: x\n")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("hello\n", "str"), ("7\n", "int")])
def test_not_a_mapping(read, text, kind):
    with pytest.raises(UserError, match=rf"witness\.yml: holds a {kind}; it must hold «key: value» lines"):
        read(text)


def test_broken_yaml_names_the_line(read):
    with pytest.raises(UserError, match=r"witness\.yml, line 2: not YAML"):
        read("seed: 1\nlora_r: 4: 5\n")


@pytest.mark.parametrize(
    "text",
    ["base_model: {{ model }}\n", "{a: b}: c\n", "wandb_name: 2025-13-45\n", "seed: \x07\n", "a: !thing 1\n"],
)
def test_odd_yaml_is_a_user_error(read, text):
    with pytest.raises(UserError, match=r"witness\.yml.*: not YAML"):
        read(text)


READ = "numbers, text, lists and mappings are read: put a text in quotes"

STRANGE = {
    f"seed: {'9' * 5000}": "not YAML (a number of 5000 digits)",
    f"seed: 0x{'f' * 5000}": "«seed» holds a number of more than 64 bits; write a smaller one",
    f"wandb_name: {'[' * 2000}": "more than 50 lists and mappings lie in each other",
    f"fsdp_config: {'{a: ' * 60}1{'}' * 60}": "more than 50 lists and mappings lie in each other",
    "bf16: !!bool x": "not YAML («x» is no true or false)",
    "lora_r: !!int x": "not YAML («x» is no whole number)",
    "wandb_name: !!timestamp x": "not YAML («x» is no date)",
    "wandb_name: 2025-01-15": f"«wandb_name» holds a date (2025-01-15); {READ}",
    "lr_scheduler_kwargs: {a: [1, {b: 2020-01-01}]}": f"«lr_scheduler_kwargs» holds a date (2020-01-01); {READ}",
    "wandb_name: !!binary aGFsbG8=": f"«wandb_name» holds binary data (b'hallo'); {READ}",
    "data_of: !!set {crew: }": f"«data_of» holds a set ({{'crew'}}); {READ}",
    "num_epochs: .inf": "«num_epochs» holds inf, which is no number",
    "lr_scheduler_kwargs: {a: -.inf}": "«lr_scheduler_kwargs» holds -inf, which is no number",
    "learning_rate: .nan": "«learning_rate» holds nan, which is no number",
    "sequence_len: 1.0e+308": "«sequence_len» holds a number of more than 64 bits; write a smaller one",
    'wandb_name: "a\\0b"': "«wandb_name» holds the character U+0000, which cannot stand in a text; leave it out",
    'wandb_name: "\\ud800"': "«wandb_name» holds the character U+D800, which cannot stand in a text; leave it out",
    "max_memory: {true: 1GiB}": "«max_memory» holds the key «True», which YAML takes for no text; put it in quotes",
    "plugins: [" + "a, " * 30_000 + "]": "«plugins» holds more than 20,000 values",
}


@pytest.mark.parametrize("text", STRANGE, ids=lambda text: text[:30])
def test_what_yaml_has_and_json_has_not_is_told_with_its_line(read, text):
    with pytest.raises(UserError) as error:
        read(f"# a comment\n{text}\n")
    assert str(error.value) == f"configs/agents/witness.yml, line 2: {STRANGE[text]}"


def test_every_strange_value_of_a_file_is_told(read, seen):
    with pytest.raises(UserError) as error:
        read("seed: .nan\nlora_r: 8\nwandb_name: 2025-01-15\n")
    assert [line.partition(": ")[0][-6:] for line in str(error.value).splitlines()] == ["line 1", "line 3"]
    seen("several values in a recipe that YAML has and JSON has not", "plan", "refused, each with its file and line")


def test_anchors_that_multiply_end_in_a_sentence(read):
    more = [f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)]
    with pytest.raises(UserError, match=r"witness\.yml, line 1: «fsdp_config» holds more than 20,000 values$"):
        read("fsdp_config:\n  a0: &a0 [x, x]\n" + "".join(more))


def test_a_file_of_a_megabyte_is_no_recipe(read):
    with pytest.raises(UserError, match=r"witness\.yml: more than 1 MiB, which is no file of «key: value» lines$"):
        read(f"wandb_name: {'x' * (1 << 20)}\n")


def test_a_strange_value_of_the_command_line_is_told_as_one_of_a_file():
    for value in (float("nan"), float("inf"), 1e308, 10**400, [[[float("nan")]]]):
        with pytest.raises(UserError, match=r"^-e '{\"recipe\": …}': «micro_batch_size» holds "):
            AgentRecipes(ROOT, Agents(ROOT), {"micro_batch_size": value}).merged_recipe("witness", "", "")


def test_numbers_that_are_keys_are_written_as_json_writes_them(read):
    layer = read("max_memory: {0: 20GiB, cpu: 30GiB}\n")
    assert json.loads(json.dumps(layer.keys, sort_keys=True, allow_nan=False)) == layer.keys
    assert layer.keys == {"max_memory": {"0": "20GiB", "cpu": "30GiB"}}


def test_anchors_and_merge_keys_work(read):
    layer = read("one: &one {a: 1}\ntwo:\n  <<: *one\n  b: 2\n")
    assert layer.keys["two"] == {"a": 1, "b": 2}


def test_not_utf8(read):
    with pytest.raises(UserError, match=r"witness\.yml: not UTF-8 text \(.* at byte 6\)"):
        read(b"seed: \xff\n")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"configs/base\.yml is missing; every recipe needs it"):
        read_layer(tmp_path / "base.yml", "configs/base.yml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_empty_layer(read, text):
    assert read(text).keys == {}


def test_lines_are_counted_from_one_and_for_every_key(read):
    layer = read("\nseed: 1\n\nlora_r: 8\n")
    assert [layer.where(key) for key in ("seed", "lora_r", "sequence_len")] == [
        "configs/agents/witness.yml, line 2",
        "configs/agents/witness.yml, line 4",
        "configs/agents/witness.yml",
    ]


def test_a_key_that_stands_twice_in_a_list_of_mappings_and_is_no_word(read):
    with pytest.raises(UserError, match=r"lines 2 and 3: «1» stands twice"):
        read("a:\n  1: x\n  1: y\n")


def test_merge_keys_may_stand_beside_each_other(read):
    layer = read("a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n  z: {deep: [1, {er: 2}]}\n")
    assert layer.keys["c"] == {"x": 1, "y": 2, "z": {"deep": [1, {"er": 2}]}}


def test_a_tab_is_looked_for_in_the_indentation_alone(read):
    assert read("seed: 1\nwandb_name: 'a\tb'\n").keys == {"seed": 1, "wandb_name": "a\tb"}
    with pytest.raises(UserError, match="line 3: a tab in the indentation"):
        read("a: 1\nb:\n \tc: 1\n")


def test_broken_yaml_is_told_with_the_parsers_words(read):
    with pytest.raises(UserError) as error:
        read("seed: 1\nlora_r: 4: 5\n")
    assert str(error.value) == ("configs/agents/witness.yml, line 2: not YAML (mapping values are not allowed here)")
    with pytest.raises(
        UserError, match=r"^configs/agents/witness\.yml, line 1: not YAML \(.*month must be in 1\.\.12\)$"
    ):
        read("wandb_name: 2025-13-01\n")


def test_a_key_that_stands_twice_behind_a_merge_key(read):
    with pytest.raises(UserError, match=r"lines 4 and 5: «z» stands twice"):
        read("a: &a {x: 1}\nc:\n  <<: *a\n  z: 1\n  z: 2\n")


# --- merging


def test_last_layer_wins_and_null_removes():
    low = Layer("low", {"seed": 1, "lora_r": 64, "tf32": True})
    keys, origin = merge([low, Layer("high", {"seed": 2, "tf32": None, "bf16": None})])
    assert keys == {"seed": 2, "lora_r": 64}
    assert {key: layer.source for key, layer in origin.items()} == {"seed": "high", "lora_r": "low"}


def test_a_removed_key_can_come_back():
    layers = [Layer(str(value), {"seed": value}) for value in (1, None, 3)]
    assert merge(layers)[0] == {"seed": 3}
