"""What is refused of a recipe, and in which words."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe, recipe_problems
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.layers import Layer, merge
from ansible.module_utils.lora_forge.text import nearest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))


# --- checking


def check(*layers: Layer) -> list[str]:
    return recipe_problems.problems(*merge(layers), SCHEMA)


def test_a_key_that_yaml_takes_for_something_else_is_told_with_its_line(read):
    assert check(read("\n1: 2\n")) == ["configs/agents/witness.yml, line 2: Axolotl knows no key «1»"]


def test_unknown_key_names_file_line_and_nearest(read):
    found = check(read("seed: 1\n\nlora_alhpa: 16\n"))
    assert found == [
        "configs/agents/witness.yml, line 3: Axolotl knows no key «lora_alhpa»; did you mean «lora_alpha»?"
    ]


def test_unknown_key_without_a_neighbour():
    assert check(Layer("-e", {"zzzzqqqq": 1})) == ["-e: Axolotl knows no key «zzzzqqqq»"]


def test_flash_attention_says_what_replaces_it(read):
    assert check(read("flash_attention: true\n")) == [
        "configs/agents/witness.yml, line 1: «flash_attention» has been replaced. "
        "Use `attn_implementation: flash_attention_2` instead."
    ]


@pytest.mark.parametrize("kind", ["alpaca", "completion", "chat_template.argilla", "{field_output: answer}"])
def test_another_type_than_conversations_says_what_to_convert_to(read, kind):
    [found] = check(read(f"datasets:\n  - path: x.jsonl\n    type: {kind}\n"))
    assert found.startswith("configs/agents/witness.yml, line 1: datasets, item 1: «type: ")
    assert 'Convert its lines to {"messages": [{"role": "user"' in found


@pytest.mark.parametrize("key", ["name: en", "revision: v1", "data_files: [x.json]", "split: test", "ds_type: parquet"])
def test_what_leads_to_a_dataset_elsewhere(read, key):
    [found] = check(read(f"datasets:\n  - {key}\n"))
    assert f"item 1: «{key.partition(':')[0]}» is for a dataset of the hub or another kind of file" in found
    assert check(read("datasets:\n  - split: train\n    ds_type: json\n    type: chat_template\n")) == []


def test_a_template_by_a_name_that_nothing_reads(read):
    [found] = check(read("datasets:\n  - conversation: chatml\n"))
    assert found.endswith("«conversation» is read by nothing any more; name the template with chat_template")


def test_several_entries_each_name_their_file():
    [found] = check(Layer("-e", {"datasets": [{"path": "a.jsonl"}, {"roles_to_train": ["user"]}]}))
    assert found.startswith("-e: datasets, item 2 names no «path»")


@pytest.mark.parametrize(("word", "meant"), [("lr", "learning_rate"), ("r", "lora_r"), ("max_length", "sequence_len")])
def test_what_other_programs_call_it(word, meant):
    assert check(Layer("-e", {word: 1})) == [f"-e: Axolotl knows no key «{word}»; it is called «{meant}»"]


def test_every_synonym_means_a_key_of_axolotls_and_is_none_itself():
    assert set(recipe_problems.SYNONYMS.values()) <= SCHEMA["properties"].keys()
    assert not recipe_problems.SYNONYMS.keys() & SCHEMA["properties"].keys()


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
def test_a_name_that_a_training_would_end_with(key):
    [found] = check(Layer("-e", {key: "nonesuch"}))
    assert found.startswith(f"-e: «{key}: nonesuch» is none that Axolotl knows")
    assert check(Layer("-e", {key: "nonesuch", "plugins": ["mine.Plugin"]})) == []
    assert check(Layer("-e", {"optimizer": "muon", "lr_scheduler": "rex"})) == []


def test_a_key_of_a_plugin_needs_the_plugin():
    [found] = check(Layer("-e", {"kd_alpha": 0.5}))
    assert found.endswith("«kd_alpha» is a key of axolotl.integrations.kd.KDPlugin, which «plugins» does not name: it "
                          "would do nothing")  # fmt: skip
    assert check(Layer("-e", {"kd_alpha": 0.5, "plugins": ["axolotl.integrations.kd.KDPlugin"]})) == []
    assert check(Layer("-e", {"liger_rope": True})) == []  # its plugin is added


def test_nested_dataset_keys_are_checked(read):
    [found] = check(read("datasets:\n  - path: a\n    field_mesages: b\n"))
    assert "datasets, item 1: Axolotl knows no key «field_mesages» there; did you mean «field_messages»?" in found


@pytest.mark.parametrize("value", ["text", {"path": "x"}, ["x.jsonl"]])
def test_datasets_of_a_wrong_form(value):
    assert check(Layer("-e", {"datasets": value})) == ["-e: «datasets» must be a list of mappings"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("lora_r", "sixty", '«lora_r: "sixty"» does not fit: expected a whole number'),
        ("lora_r", 8.5, "«lora_r: 8.5» does not fit: expected a whole number"),
        ("lora_r", True, "«lora_r: true» does not fit: expected a whole number"),
        ("sample_packing", 3, "«sample_packing: 3» does not fit: expected true or false"),
        ("num_epochs", [3], "«num_epochs: [3]» does not fit: expected a number"),
    ],
)
def test_wrong_type(key, value, expected):
    assert check(Layer("-e", {key: value})) == [f"-e: {expected}"]


@pytest.mark.parametrize("key", sorted(recipe.COMPUTED_KEYS))
def test_computed_keys_are_refused(key):
    assert check(Layer("-e", {key: "x"})) == [f"-e: «{key}» is computed for every run; take it out"]


def test_every_problem_is_told():
    assert len(check(Layer("-e", {"lora_r": "x", "output_dir": "y", "sead": 1, "flash_attention": True}))) == 4


# --- where something is wrong, and what would be right

SMALL = {
    "properties": {
        "one_of": {"anyOf": [{"$ref": "#/$defs/Kind"}, {"type": "null"}]},
        "constant": {"anyOf": [{"const": "auto"}, {"type": "boolean"}]},
        "bounded": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "above": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "integer", "maximum": 9}]},
        "twice": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "array", "maxItems": 2}]},
        "other": {"not": {"type": "string"}},
        "lost": {"anyOf": [{"$ref": "#/$defs/Nowhere"}]},
        "words": {"type": "string"},
    },
    "$defs": {"Kind": {"enum": ["fast", "slow"]}, "Nowhere": {"not": {}}},
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("one_of", "middling", "expected one of fast, slow"),
        ("constant", "never", "expected auto or true or false"),
        ("bounded", 7, "expected a number of at least 0 below 1"),
        ("above", "x", "expected a whole number above 0 or a whole number of at most 9"),
        ("twice", 1, "expected a list"),
        ("other", "x", "expected another form"),
        ("lost", 1, "expected another form"),
        ("words", {}, "expected text"),
    ],
)
def test_what_would_fit_is_said(key, value, expected):
    layer = Layer("-e", {key: value})
    said = json.dumps(value)
    assert recipe_problems.problems(*merge([layer]), SMALL) == [f"-e: «{key}: {said}» does not fit: {expected}"]


def test_text_that_looks_like_a_number_is_text_where_text_is_meant():
    assert check(Layer("-e", {"wandb_name": "2e4"})) == []


def test_the_nearest_word_is_named_and_no_other_one():
    assert nearest("lora_alpah", ["lora_alpha", "lora_alphas", "seed"]) == "; did you mean «lora_alpha»?"
    assert nearest("lora_alpah", {"seed": 1}) == ""
    assert nearest(64, ["64"]) == "; did you mean «64»?"


def test_a_wrong_value_of_a_dataset_is_shown_with_its_item(read):
    [found] = check(read("datasets:\n  - path: x.jsonl\n    type: chat_template\n  - path: 7\n"))
    assert found == "configs/agents/witness.yml, line 1: datasets, item 2: «path: 7» does not fit: expected text"


def test_every_item_of_a_list_of_datasets_must_be_a_mapping():
    items = [{"path": "x.jsonl"}, "y.jsonl"]
    assert check(Layer("-e", {"datasets": items})) == ["-e: «datasets» must be a list of mappings"]


def test_every_problem_of_every_dataset_is_told():
    items = [{"path": "a", "fiel": 1, "type": "alpaca"}, {"path": "b", "pth": "b"}]
    found = check(Layer("-e", {"lora_rr": 1, "datasets": items, "sead": 2}))
    assert [said.partition("«")[0] for said in found] == [
        "-e: Axolotl knows no key ",
        "-e: datasets, item 1: ",
        "-e: datasets, item 1: Axolotl knows no key ",
        "-e: datasets, item 2: Axolotl knows no key ",
        "-e: Axolotl knows no key ",
    ]


# --- machine files

BATCH = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


def test_machine_file_with_a_training_key():
    [found] = recipe_problems.machine_problems(Layer("m.yml", {"tf32": False, "lora_r": 8}, {"lora_r": 7}), BATCH)
    assert found.startswith("m.yml, line 7: «lora_r» decides what is learnt; a machine file may only hold machine keys")


@pytest.mark.parametrize(
    ("keys", "product"), [({"micro_batch_size": 1}, 4), ({"micro_batch_size": 4}, 16), ({"micro_batch_size": None}, 4)]
)
def test_machine_file_with_a_changed_product(keys, product):
    [found] = recipe_problems.machine_problems(Layer("m.yml", keys), BATCH)
    assert found.startswith(f"m.yml: micro_batch_size × gradient_accumulation_steps becomes {product} instead of 8;")


def test_machine_file_with_the_same_product():
    layer = Layer("m.yml", {"micro_batch_size": 8, "gradient_accumulation_steps": 1, "tf32": False})
    assert recipe_problems.machine_problems(layer, BATCH) == []


def test_machine_file_with_a_batch_that_is_no_number(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("configs", "requirements"):
        (root / name).mkdir()
    for path in [*ROOT.glob("configs/**/*.*"), *ROOT.glob("requirements/*.txt")]:
        copy = root / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (root / "configs/machines/odd.yml").write_text("micro_batch_size: two\n")
    with pytest.raises(UserError, match=r'odd\.yml, line 1: «micro_batch_size: "two"» does not fit'):
        AgentRecipes(root, Agents(root), {}).merged_recipe("witness", "", "odd")


def test_a_machine_file_is_told_of_every_training_key_and_of_the_product():
    layer = Layer("m.yml", {"lora_r": 8, "seed": 1, "logging_steps": 5, "micro_batch_size": 4})
    found = recipe_problems.machine_problems(layer, BATCH)
    assert [said.partition(";")[0] for said in found] == [
        "m.yml: «lora_r» decides what is learnt",
        "m.yml: «seed» decides what is learnt",
        "m.yml: micro_batch_size × gradient_accumulation_steps becomes 16 instead of 8",
    ]
    odd = Layer("m.yml", {"lora_r": 8, "micro_batch_size": "two"})
    assert len(recipe_problems.machine_problems(odd, BATCH)) == 1


@pytest.mark.parametrize(
    ("keys", "below"),
    [
        ({"lora_dropout": 0}, {"lora_mlp_kernel": False}),
        ({"lora_dropout": None}, {"lora_mlp_kernel": False}),
        ({"load_in_8bit": True}, {"adapter": "lora", "lora_mlp_kernel": True, "lora_qkv_kernel": True}),
        ({"micro_batch_size": float("inf")}, {}),
    ],
)
def test_a_machine_file_that_is_wrong_is_told_and_no_traceback(keys, below):
    base = {"adapter": "qlora", "load_in_4bit": True, "lora_dropout": 0.05, **BATCH, **below}
    found = recipe_problems.machine_problems(Layer("m.yml", keys), base)
    assert bool(found) == ("micro_batch_size" not in keys)  # which problems() names


# --- values that make no run

WHOLE: dict[str, Any] = {
    "base_model": "Acme/Tiny",
    "model_revision": "abc0" * 10,
    "sequence_len": 4096,
    "lora_r": 64,
    "lora_target_modules": ["q_proj"],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
}


def out_of_range(changes: dict[str, Any]) -> list[str]:
    layers = [Layer("base.yml", WHOLE), Layer("w.yml", changes, dict.fromkeys(changes, 7))]
    return recipe_problems.range_problems(*merge(layers))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_r": 1, "sequence_len": 1, "micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 0.5},
        {"micro_batch_size": None, "gradient_accumulation_steps": None, "num_epochs": None},
        {"val_set_size": 0},
        {"val_set_size": 0.999},
        {"wandb_project": "lora-forge_1.0 «α»"},
        {"wandb_project": "x" * 128},
        {"wandb_project": 7},
    ],
)
def test_values_at_the_edge_of_what_makes_a_run(changes):
    assert out_of_range(changes) == []


@pytest.mark.parametrize("key", recipe_problems.NEEDED)
def test_what_every_run_needs(key):
    assert out_of_range({key: None}) == [f"the recipe has no «{key}»; every run needs it"]


@pytest.mark.parametrize(
    "key", ["sequence_len", "micro_batch_size", "gradient_accumulation_steps", "num_epochs", "lora_r"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_above_nothing(key, value):
    assert out_of_range({key: value}) == [f"w.yml, line 7: «{key}: {value}» must be above 0"]


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 200])
def test_the_evaluation_set_is_a_share(value):
    assert out_of_range({"val_set_size": value}) == [
        f"w.yml, line 7: «val_set_size: {value}» must be a share from 0 to below 1"
    ]


@pytest.mark.parametrize("name", [*(f"team{sign}project" for sign in "/\\#?%:"), "x" * 129])
def test_a_project_that_wandb_refuses(name):
    assert out_of_range({"wandb_project": name}) == [
        f"w.yml, line 7: «wandb_project: {name}» must have no / \\ # ? % : in it, and 128 characters at most"
    ]


@pytest.mark.parametrize("key", recipe_problems.TARGETS)
def test_something_says_what_is_trained(key):
    assert out_of_range({"lora_target_modules": None, key: ["q_proj"]}) == []
    assert out_of_range({"lora_target_modules": None}) == [
        "«lora_target_modules» names no module, so that nothing would be trained"
    ]


def test_target_modules_are_names_or_an_expression():
    assert out_of_range({"lora_target_modules": "all-linear"}) == []
    assert out_of_range({"lora_target_modules": ""}) == [
        "w.yml, line 7: «lora_target_modules» names no module, so that nothing would be trained"
    ]


def test_all_that_is_out_of_range_is_told():
    assert len(out_of_range({"lora_r": 0, "sequence_len": None, "val_set_size": 2, "wandb_project": "a/b"})) == 4


RANGES = {"base_model": "a/b", "sequence_len": 64, "lora_r": 8, "lora_target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_epochs", 10**400, "must be above 0 and 100,000,000 at most"),
        ("lora_r", 0, "must be above 0"),
        ("max_steps", -1, "must be above 0; leave it out for all epochs"),
        ("lora_target_modules", [], "names no module, so that nothing would be trained"),
        ("micro_batch_size", 100_000_000, "«micro_batch_size: 100000000» makes steps of 100,000,000 sequences"),
        ("tensor_parallel_size", -2, "must be a number from 0 on"),
        ("context_parallel_size", -1, "must be a number from 0 on"),
    ],
)
def test_numbers_that_make_no_run(key, value, words):
    found = recipe_problems.range_problems(
        {**RANGES, key: value}, {name: Layer("x.yml", {}) for name in [*RANGES, key]}
    )
    assert len(found) == 1
    assert words in found[0]
    assert len(found[0]) < 200


# --- the base model


def unpinned(*changes: dict[str, Any]) -> list[str]:
    names = ("base.yml", "agent.yml", "-e")
    layers = [Layer(name, keys, dict.fromkeys(keys, 3)) for name, keys in zip(names, (WHOLE, *changes))]
    return recipe_problems.model_problems(*merge(layers), layers)


def test_a_model_needs_the_commit_that_is_meant():
    assert unpinned() == []
    assert unpinned({"model_revision": None}) == [
        "base.yml, line 3: «base_model: Acme/Tiny» needs a «model_revision», the commit to fetch: nothing is "
        "downloaded unpinned"
    ]
    assert unpinned({"model_revision": ""}) == unpinned({"model_revision": None})


def test_another_model_brings_its_own_commit():
    assert unpinned({"base_model": "Acme/Big"}) == [
        "agent.yml, line 3: «base_model: Acme/Big» is another model than the one whose «model_revision» stands in "
        "base.yml, line 3; give its own beside it"
    ]
    assert unpinned({"base_model": "Acme/Big", "model_revision": "def0" * 10}) == []
    assert unpinned({"base_model": "Acme/Big"}, {"model_revision": "def0" * 10}) == []
    assert unpinned({"model_revision": "def0" * 10}) == []  # a newer commit of the same model
    assert len(unpinned({"model_revision": "def0" * 10}, {"base_model": "Acme/Big"})) == 1


@pytest.mark.parametrize("name", ["~/model", "./model", "../model"])
def test_a_folder_that_depends_on_who_looks(name):
    assert unpinned({"base_model": name}) == [
        f"agent.yml, line 3: «base_model: {name}» looks like a folder; give its absolute path on the trainer"
    ]


def test_a_folder_of_the_trainer_needs_no_commit():
    assert unpinned({"base_model": "/models/mine", "model_revision": None}) == []
    assert unpinned({"base_model": "/models/mine"}) == []


@pytest.mark.parametrize(
    "revision", ["main", "v1.0", "refs/pr/3", "a09a354", "A" * 40, "0" * 39, "0" * 41, 7, "../" * 14]
)
def test_a_branch_is_no_commit(revision):
    [said] = unpinned({"model_revision": revision})
    assert said.startswith(f"agent.yml, line 3: «model_revision: {json.dumps(revision)[:20]}")
    assert "is no commit, and a branch or a tag may be another model tomorrow" in said
    assert "on the page of Acme/Tiny, Files and versions, History" in said
    assert unpinned({"base_model": "/models/mine", "model_revision": revision}) == []
