"""Recipes: reading, merging, checking, fingerprints, and the users' table over the real configs/."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.text import canonical, nearest

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENTS = Agents(ROOT).names
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def read(tmp_path):
    """Read a text as configs/agents/witness.yml."""

    def reader(text: str | bytes) -> recipe.Layer:
        path = tmp_path / "witness.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return recipe.read_layer(path, "configs/agents/witness.yml")

    return reader


@pytest.fixture
def recipes():
    return AgentRecipes(ROOT, Agents(ROOT), {})


def check(*layers: recipe.Layer) -> list[str]:
    return recipe.problems(*recipe.merge(layers), SCHEMA)


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
# What stands in the second line of a file, and what is said of it.
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


def test_a_key_that_yaml_takes_for_something_else_is_told_with_its_line(read):
    assert check(read("\n1: 2\n")) == ["configs/agents/witness.yml, line 2: Axolotl knows no key «1»"]


def test_anchors_and_merge_keys_work(read):
    layer = read("one: &one {a: 1}\ntwo:\n  <<: *one\n  b: 2\n")
    assert layer.keys["two"] == {"a": 1, "b": 2}


def test_not_utf8(read):
    with pytest.raises(UserError, match=r"witness\.yml: not UTF-8 text \(.* at byte 6\)"):
        read(b"seed: \xff\n")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"configs/base\.yml is missing; every recipe needs it"):
        recipe.read_layer(tmp_path / "base.yml", "configs/base.yml")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}\n"])
def test_empty_layer(read, text):
    assert read(text).keys == {}


# --- merging


def test_last_layer_wins_and_null_removes():
    low = recipe.Layer("low", {"seed": 1, "lora_r": 64, "tf32": True})
    keys, origin = recipe.merge([low, recipe.Layer("high", {"seed": 2, "tf32": None, "bf16": None})])
    assert keys == {"seed": 2, "lora_r": 64}
    assert {key: layer.source for key, layer in origin.items()} == {"seed": "high", "lora_r": "low"}


def test_a_removed_key_can_come_back():
    layers = [recipe.Layer(str(value), {"seed": value}) for value in (1, None, 3)]
    assert recipe.merge(layers)[0] == {"seed": 3}


# --- checking


def test_unknown_key_names_file_line_and_nearest(read):
    found = check(read("seed: 1\n\nlora_alhpa: 16\n"))
    assert found == [
        "configs/agents/witness.yml, line 3: Axolotl knows no key «lora_alhpa»; did you mean «lora_alpha»?"
    ]


def test_unknown_key_without_a_neighbour():
    assert check(recipe.Layer("-e", {"zzzzqqqq": 1})) == ["-e: Axolotl knows no key «zzzzqqqq»"]


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
    [found] = check(recipe.Layer("-e", {"datasets": [{"path": "a.jsonl"}, {"roles_to_train": ["user"]}]}))
    assert found.startswith("-e: datasets, item 2 names no «path»")


@pytest.mark.parametrize(
    ("path", "hub"),
    [
        ("mlabonne/FineTome-100k", True),
        ("a/b.c", True),
        ("a/b.jsonl", False),
        ("a/b.json", False),
        ("/a/b", False),
        ("./a/b", False),
        ("a/b/c", False),
        ("b", False),
    ],
)
def test_what_looks_like_a_dataset_of_the_hub(path, hub):
    assert recipe.hub_dataset(path) is hub


def test_what_entries_say_of_their_files_and_of_all_others():
    items = [{"path": "a", "roles_to_train": ["user"], "split_thinking": True}, {"path": "b", "split_thinking": True}]
    own = [{"roles_to_train": ["user"], "split_thinking": True}, {"split_thinking": True}]
    assert recipe.dataset_options({"datasets": items}) == (own, {"split_thinking": True})
    assert recipe.dataset_options({"datasets": [{"split_thinking": True}]}) == ([], {"split_thinking": True})
    assert recipe.dataset_options({}) == ([], {})


@pytest.mark.parametrize(("word", "meant"), [("lr", "learning_rate"), ("r", "lora_r"), ("max_length", "sequence_len")])
def test_what_other_programs_call_it(word, meant):
    assert check(recipe.Layer("-e", {word: 1})) == [f"-e: Axolotl knows no key «{word}»; it is called «{meant}»"]


def test_every_synonym_means_a_key_of_axolotls_and_is_none_itself():
    assert set(recipe.SYNONYMS.values()) <= SCHEMA["properties"].keys()
    assert not recipe.SYNONYMS.keys() & SCHEMA["properties"].keys()


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
def test_a_name_that_a_training_would_end_with(key):
    [found] = check(recipe.Layer("-e", {key: "nonesuch"}))
    assert found.startswith(f"-e: «{key}: nonesuch» is none that Axolotl knows")
    assert check(recipe.Layer("-e", {key: "nonesuch", "plugins": ["mine.Plugin"]})) == []
    assert check(recipe.Layer("-e", {"optimizer": "muon", "lr_scheduler": "rex"})) == []


def test_a_key_of_a_plugin_needs_the_plugin():
    [found] = check(recipe.Layer("-e", {"kd_alpha": 0.5}))
    assert found.endswith("«kd_alpha» is a key of axolotl.integrations.kd.KDPlugin, which «plugins» does not name: it "
                          "would do nothing")  # fmt: skip
    assert check(recipe.Layer("-e", {"kd_alpha": 0.5, "plugins": ["axolotl.integrations.kd.KDPlugin"]})) == []
    assert check(recipe.Layer("-e", {"liger_rope": True})) == []  # its plugin is added


def test_nested_dataset_keys_are_checked(read):
    [found] = check(read("datasets:\n  - path: a\n    field_mesages: b\n"))
    assert "datasets, item 1: Axolotl knows no key «field_mesages» there; did you mean «field_messages»?" in found


@pytest.mark.parametrize("value", ["text", {"path": "x"}, ["x.jsonl"]])
def test_datasets_of_a_wrong_form(value):
    assert check(recipe.Layer("-e", {"datasets": value})) == ["-e: «datasets» must be a list of mappings"]


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
    assert check(recipe.Layer("-e", {key: value})) == [f"-e: {expected}"]


@pytest.mark.parametrize("key", sorted(recipe.COMPUTED_KEYS))
def test_computed_keys_are_refused(key):
    assert check(recipe.Layer("-e", {key: "x"})) == [f"-e: «{key}» is computed for every run; take it out"]


def test_every_problem_is_told():
    assert len(check(recipe.Layer("-e", {"lora_r": "x", "output_dir": "y", "sead": 1, "flash_attention": True}))) == 4


# --- machine files

BATCH = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


def test_machine_file_with_a_training_key():
    [found] = recipe.machine_problems(recipe.Layer("m.yml", {"tf32": False, "lora_r": 8}, {"lora_r": 7}), BATCH)
    assert found.startswith("m.yml, line 7: «lora_r» decides what is learnt; a machine file may only hold machine keys")


@pytest.mark.parametrize(
    ("keys", "product"), [({"micro_batch_size": 1}, 4), ({"micro_batch_size": 4}, 16), ({"micro_batch_size": None}, 4)]
)
def test_machine_file_with_a_changed_product(keys, product):
    [found] = recipe.machine_problems(recipe.Layer("m.yml", keys), BATCH)
    assert found.startswith(f"m.yml: micro_batch_size × gradient_accumulation_steps becomes {product} instead of 8;")


def test_machine_file_with_the_same_product():
    layer = recipe.Layer("m.yml", {"micro_batch_size": 8, "gradient_accumulation_steps": 1, "tf32": False})
    assert recipe.machine_problems(layer, BATCH) == []


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


@pytest.mark.parametrize("path", sorted((ROOT / "configs/machines").glob("*.yml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("agent", AGENTS)
def test_shipped_machine_files_keep_the_fingerprint(recipes, path, agent):
    plain, tuned = recipes.merged_recipe(agent, "", ""), recipes.merged_recipe(agent, "", path.stem)
    assert recipe.fingerprint(plain, False, [], "0.19.0") == recipe.fingerprint(tuned, False, [], "0.19.0")
    assert plain != tuned


# --- fingerprints

SETS = [{"use": "train", "sha256": "a" * 64}]
TRAINING: dict[str, Any] = {"base_model": "m", "lora_r": 64, "num_epochs": 3, **BATCH}


def mark(changes: dict[str, Any] | None = None, rehearsal=False, sets=SETS, axolotl="0.19.0") -> str:
    keys = {key: value for key, value in {**TRAINING, **(changes or {})}.items() if value is not None}
    return recipe.fingerprint(keys, rehearsal, sets, axolotl)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_epochs": 3.0},
        {"tf32": True, "attn_implementation": "flash_attention_2", "bf16": "auto"},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 8},
        {"micro_batch_size": 8, "gradient_accumulation_steps": None},
        {"logging_steps": 1, "wandb_project": "other"},
        {"datasets": [{"path": "/elsewhere.jsonl"}]},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_fingerprint_ignores(changes):
    base = mark({"datasets": [{"path": "/here.jsonl"}]} if "datasets" in changes else {})
    assert mark(changes) == base


def test_fingerprint_does_not_depend_on_key_order():
    assert recipe.fingerprint(dict(reversed(TRAINING.items())), False, SETS, "0.19.0") == mark()


def test_fingerprint_ignores_the_patch_version():
    assert mark(axolotl="0.19.7") == mark(axolotl="0.19.0+cu128") == mark()


def test_every_training_key_changes_the_fingerprint(recipes):
    keys = recipes.merged_recipe("witness", "", "")
    base = recipe.fingerprint(keys, False, SETS, "0.19.0")
    training = [key for key in keys if key not in recipe.MACHINE_KEYS | recipe.RECORD_KEYS]
    assert len(training) > 20
    for key in training:
        assert recipe.fingerprint({**keys, key: "other"}, False, SETS, "0.19.0") != base, key


@pytest.mark.parametrize(
    "other",
    [
        lambda: mark({"micro_batch_size": 4}),
        lambda: mark(rehearsal=True),
        lambda: mark(sets=[{"use": "train", "sha256": "b" * 64}]),
        lambda: mark(sets=[{"use": "val", "sha256": "a" * 64}]),
        lambda: mark(axolotl="0.20.0"),
        lambda: mark({"datasets": [{"roles_to_train": ["user"]}]}),
    ],
    ids=["effective batch", "rehearsal", "data", "use", "minor version", "dataset option"],
)
def test_fingerprint_sees(other):
    assert other() != mark()


# --- locks


def test_pinned(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("my-axolotl==9\naxolotl-contrib==8\naxolotl==0.19.0 \\\n    --hash=sha256:00\ntorch==2.1+cpu; x\n")
    assert recipe.pinned_version(lock, "axolotl") == "0.19.0"
    assert recipe.pinned_version(lock, "torch") == "2.1+cpu"
    with pytest.raises(UserError, match=r"lock\.txt does not pin peft; make it anew with: make lock"):
        recipe.pinned_version(lock, "peft")
    with pytest.raises(UserError, match=r"none\.txt is missing; make it with: make lock"):
        recipe.pinned_version(tmp_path / "none.txt", "axolotl")


# --- the users' table (design.md section 4)

TABLE = {
    "base_model": "Qwen/Qwen2.5-7B-Instruct", "adapter": "qlora", "load_in_4bit": True, "lora_r": 64,
    "lora_alpha": 128, "lora_dropout": 0.05, "sequence_len": 4096, "sample_packing": True, "micro_batch_size": 2,
    "gradient_accumulation_steps": 4, "learning_rate": 2e-4, "lr_scheduler": "cosine", "weight_decay": 0.01,
    "max_grad_norm": 1.0, "bf16": "auto", "tf32": True, "saves_per_epoch": 2, "logging_steps": 10,
    "wandb_project": "lora-forge", "val_set_size": 0.05,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}  # fmt: skip
SCHEDULE = {"gastown": (3, 100, 100), "polecat": (4, 30, 25)}


@pytest.mark.parametrize("agent", AGENTS)
def test_the_users_table(recipes, agent):
    keys = recipes.merged_recipe(agent, "", "")
    assert {key: keys.get(key) for key in TABLE} == TABLE
    assert (keys["num_epochs"], keys["warmup_steps"], keys["eval_steps"]) == SCHEDULE.get(agent, (3, 50, 50))
    assert "lora_target_linear" not in keys
    assert "max_steps" not in keys


def test_the_base_schedule():
    keys = yaml.safe_load((ROOT / "configs/base.yml").read_text(encoding="utf-8"))
    assert (keys["num_epochs"], keys["warmup_steps"], keys["eval_steps"]) == (3, 100, 100)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_rehearsal_changes_only_what_its_profile_lists(recipes, agent):
    listed = yaml.safe_load((ROOT / "configs/profiles/rehearsal.yml").read_text(encoding="utf-8"))
    real, rehearsed = recipes.merged_recipe(agent, "", ""), recipes.merged_recipe(agent, "rehearsal", "")
    for key in real.keys() | rehearsed.keys():
        assert rehearsed.get(key) == (listed[key] if key in listed else real.get(key)), key


@pytest.mark.parametrize(
    ("keys", "processes", "expected"),
    [
        ((2, 4), 1, (2, 4)), ((2, 4), 2, (2, 2)), ((2, 4), 4, (2, 1)), ((2, 4), 8, (1, 1)), ((4, 3), 4, (3, 1)),
        ((6, 1), 3, (2, 1)),
    ],
)  # fmt: skip
def test_several_gpus_share_the_effective_batch(keys, processes, expected):
    given = {"micro_batch_size": keys[0], "gradient_accumulation_steps": keys[1]}
    made = recipe.split_batch(given, processes)
    assert (made["micro_batch_size"], made["gradient_accumulation_steps"]) == expected
    assert recipe.effective_batch(made) * processes == recipe.effective_batch(given)


def test_gpus_of_one_tensor_parallel_group_see_the_same_data():
    given = {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "tensor_parallel_size": 2}
    assert recipe.effective_batch(recipe.split_batch(given, 4)) == 4
    assert recipe.split_batch(given, 2) == given
    with pytest.raises(UserError, match="run_gpus is 3, and tensor_parallel_size × context_parallel_size is 2"):
        recipe.split_batch(given, 3)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(UserError, match=r"cannot be divided among 3 GPUs. It can among 1, 2, 4, 8: change run_gpus"):
        recipe.split_batch({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, 3)


def test_kernels_bring_their_plugins():
    liger, cce = recipe.KERNEL_PLUGINS
    assert recipe.with_plugins({"liger_rms_norm": True})["plugins"] == [liger]
    assert recipe.with_plugins({"liger_rope": True, "plugins": ["mine"]})["plugins"] == ["mine", liger]
    assert recipe.with_plugins({"cut_cross_entropy": True, "plugins": [cce]})["plugins"] == [cce]
    for without in ({}, {"liger_rms_norm": False}, {"plugins": ["mine"]}):
        assert recipe.with_plugins(without) == without


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
    layer = recipe.Layer("-e", {key: value})
    said = json.dumps(value)
    assert recipe.problems(*recipe.merge([layer]), SMALL) == [f"-e: «{key}: {said}» does not fit: {expected}"]


def test_text_that_looks_like_a_number_is_text_where_text_is_meant():
    assert check(recipe.Layer("-e", {"wandb_name": "2e4"})) == []


def test_the_nearest_word_is_named_and_no_other_one():
    assert nearest("lora_alpah", ["lora_alpha", "lora_alphas", "seed"]) == "; did you mean «lora_alpha»?"
    assert nearest("lora_alpah", {"seed": 1}) == ""
    assert nearest(64, ["64"]) == "; did you mean «64»?"


def test_a_wrong_value_of_a_dataset_is_shown_with_its_item(read):
    [found] = check(read("datasets:\n  - path: x.jsonl\n    type: chat_template\n  - path: 7\n"))
    assert found == "configs/agents/witness.yml, line 1: datasets, item 2: «path: 7» does not fit: expected text"


def test_every_item_of_a_list_of_datasets_must_be_a_mapping():
    items = [{"path": "x.jsonl"}, "y.jsonl"]
    assert check(recipe.Layer("-e", {"datasets": items})) == ["-e: «datasets» must be a list of mappings"]


def test_every_problem_of_every_dataset_is_told():
    items = [{"path": "a", "fiel": 1, "type": "alpaca"}, {"path": "b", "pth": "b"}]
    found = check(recipe.Layer("-e", {"lora_rr": 1, "datasets": items, "sead": 2}))
    assert [said.partition("«")[0] for said in found] == [
        "-e: Axolotl knows no key ",
        "-e: datasets, item 1: ",
        "-e: datasets, item 1: Axolotl knows no key ",
        "-e: datasets, item 2: Axolotl knows no key ",
        "-e: Axolotl knows no key ",
    ]


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
    layers = [recipe.Layer("base.yml", WHOLE), recipe.Layer("w.yml", changes, dict.fromkeys(changes, 7))]
    return recipe.range_problems(*recipe.merge(layers))


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


@pytest.mark.parametrize("key", recipe.NEEDED)
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


@pytest.mark.parametrize("key", recipe.TARGETS)
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


# --- the base model


def unpinned(*changes: dict[str, Any]) -> list[str]:
    names = ("base.yml", "agent.yml", "-e")
    layers = [recipe.Layer(name, keys, dict.fromkeys(keys, 3)) for name, keys in zip(names, (WHOLE, *changes))]
    return recipe.model_problems(*recipe.merge(layers), layers)


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


# --- batches, plugins, fingerprints: the values themselves


def test_a_batch_of_one_is_what_is_not_said():
    assert recipe.effective_batch({}) == 1
    assert recipe.effective_batch({"micro_batch_size": 3}) == 3
    assert recipe.effective_batch({"gradient_accumulation_steps": "5"}) == 5


@pytest.mark.parametrize(
    ("keys", "processes", "expected"),
    [
        ({"gradient_accumulation_steps": 4}, 2, (1, 2)),
        ({"micro_batch_size": 6}, 3, (2, 1)),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 6}, 3, (2, 2)),
        ({"micro_batch_size": 3, "gradient_accumulation_steps": 8}, 2, (3, 4)),
        ({"micro_batch_size": 1, "gradient_accumulation_steps": 8}, 2, (1, 4)),
        ({"micro_batch_size": 2, "gradient_accumulation_steps": 4, "context_parallel_size": 4}, 8, (2, 2)),
    ],
)
def test_what_each_of_several_gpus_takes(keys, processes, expected):
    made = recipe.split_batch(keys, processes)
    assert (made["micro_batch_size"], made["gradient_accumulation_steps"]) == expected
    assert all(isinstance(made[key], int) for key in recipe.BATCH)  # 2.0 would be refused by Axolotl
    assert {key: made[key] for key in keys if key not in recipe.BATCH} == {
        key: keys[key] for key in keys if key not in recipe.BATCH
    }


def test_groups_that_see_the_same_data_are_multiplied():
    sizes = {"tensor_parallel_size": 2, "context_parallel_size": 2, **BATCH}
    assert recipe.split_batch(sizes, 4) == sizes
    with pytest.raises(UserError, match="run_gpus is 6, and tensor_parallel_size × context_parallel_size is 4"):
        recipe.split_batch(sizes, 6)


def test_the_counts_that_a_batch_can_be_divided_among():
    with pytest.raises(UserError) as error:
        recipe.split_batch({"micro_batch_size": 6}, 4)
    assert str(error.value) == (
        "an effective batch of 6 (micro_batch_size × gradient_accumulation_steps) cannot be divided among 4 GPUs. It "
        "can among 1, 2, 3, 6: change run_gpus, or the batch in the recipe"
    )


def test_plugins_of_both_kernels_and_none_twice():
    liger, cce = recipe.KERNEL_PLUGINS
    both = {"liger_rope": True, "cut_cross_entropy": True, "seed": 1}
    assert recipe.with_plugins(both) == {**both, "plugins": [liger, cce]}
    assert recipe.with_plugins({**both, "plugins": [liger]})["plugins"] == [liger, cce]
    given = {"liger_rope": True, "plugins": ["mine"]}
    recipe.with_plugins(given)
    assert given["plugins"] == ["mine"]


def test_a_recipe_has_one_canonical_form():
    data = {"b": 1.0, "a": [2.5, (3.0, None)], "c": {"é": True, 1: "x"}}
    assert canonical(data) == '{"a":[2.5,[3,null]],"b":1,"c":{"1":"x","é":true}}'


def test_a_fingerprint_is_one_for_good():
    """Adapters are known by it: were it another one for the same recipe, all of them would train again."""
    keys = {**WHOLE, "datasets": [{"path": "/x.jsonl", "roles_to_train": ["assistant"]}], "wandb_project": "p"}
    sets = [{"use": "train", "sha256": "a" * 64, "path": "/x.jsonl"}]
    basis = {
        "training": {
            "base_model": "Acme/Tiny",
            "model_revision": "abc0" * 10,
            "sequence_len": 4096,
            "lora_r": 64,
            "lora_target_modules": ["q_proj"],
            "num_epochs": 3,
            "datasets": [{"roles_to_train": ["assistant"]}],
        },
        "effective_batch": 8,
        "rehearsal": True,
        "datasets": [{"use": "train", "sha256": "a" * 64}],
        "axolotl": "0.19",
    }
    text = json.dumps(basis, sort_keys=True, separators=(",", ":"))
    assert recipe.fingerprint(keys, True, sets, "0.19.0") == hashlib.sha256(text.encode()).hexdigest()


def test_a_machine_file_is_told_of_every_training_key_and_of_the_product():
    layer = recipe.Layer("m.yml", {"lora_r": 8, "seed": 1, "logging_steps": 5, "micro_batch_size": 4})
    found = recipe.machine_problems(layer, BATCH)
    assert [said.partition(";")[0] for said in found] == [
        "m.yml: «lora_r» decides what is learnt",
        "m.yml: «seed» decides what is learnt",
        "m.yml: micro_batch_size × gradient_accumulation_steps becomes 16 instead of 8",
    ]
    odd = recipe.Layer("m.yml", {"lora_r": 8, "micro_batch_size": "two"})
    assert len(recipe.machine_problems(odd, BATCH)) == 1


def test_a_key_that_stands_twice_behind_a_merge_key(read):
    with pytest.raises(UserError, match=r"lines 4 and 5: «z» stands twice"):
        read("a: &a {x: 1}\nc:\n  <<: *a\n  z: 1\n  z: 2\n")


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
    found = recipe.range_problems({**RANGES, key: value}, {name: recipe.Layer("x.yml", {}) for name in [*RANGES, key]})
    assert len(found) == 1
    assert words in found[0]
    assert len(found[0]) < 200


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
    found = recipe.machine_problems(recipe.Layer("m.yml", keys), base)
    assert bool(found) == ("micro_batch_size" not in keys)  # which problems() names


@pytest.mark.parametrize(
    "revision", ["main", "v1.0", "refs/pr/3", "a09a354", "A" * 40, "0" * 39, "0" * 41, 7, "../" * 14]
)
def test_a_branch_is_no_commit(revision):
    [said] = unpinned({"model_revision": revision})
    assert said.startswith(f"agent.yml, line 3: «model_revision: {json.dumps(revision)[:20]}")
    assert "is no commit, and a branch or a tag may be another model tomorrow" in said
    assert "on the page of Acme/Tiny, Files and versions, History" in said
    assert unpinned({"base_model": "/models/mine", "model_revision": revision}) == []
