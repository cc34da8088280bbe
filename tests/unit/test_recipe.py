"""Recipes: reading, merging, checking, fingerprints, and the users' table over the real configs/."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge import plan, recipe
from ansible.module_utils.lora_forge.errors import ForgeError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def read(tmp_path):
    """Reads a text as configs/agents/witness.yml."""

    def reader(text: str | bytes) -> recipe.Layer:
        path = tmp_path / "witness.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return recipe.read_layer(path, "configs/agents/witness.yml")

    return reader


@pytest.fixture
def planner(tmp_path):
    return plan.Planner(ROOT, tmp_path, {})


def check(*layers: recipe.Layer) -> list[str]:
    return recipe.problems(*recipe.merge(layers), SCHEMA)


# --- reading


def test_duplicate_key_names_both_lines(read):
    with pytest.raises(ForgeError) as error:
        read("lora_r: 64\nseed: 1\nlora_r: 32\n")
    assert str(error.value) == "configs/agents/witness.yml, lines 1 and 3: «lora_r» stands twice; keep one"


def test_duplicate_key_in_a_nested_mapping(read):
    with pytest.raises(ForgeError, match=r"lines 3 and 5: «type» stands twice"):
        read("datasets:\n  - path: x\n    type: a\n    split: b\n    type: c\n")


def test_tab_is_named_by_its_line(read):
    with pytest.raises(ForgeError, match=r"witness\.yml, line 2: a tab in the indentation; YAML takes spaces only"):
        read("datasets:\n\t- path: x\n")


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b\n", "list"), ("hello\n", "str"), ("7\n", "int")])
def test_not_a_mapping(read, text, kind):
    with pytest.raises(ForgeError, match=rf"witness\.yml: holds a {kind}; it must hold «key: value» lines"):
        read(text)


def test_broken_yaml_names_the_line(read):
    with pytest.raises(ForgeError, match=r"witness\.yml, line 2: not YAML"):
        read("seed: 1\nlora_r: 4: 5\n")


@pytest.mark.parametrize(
    "text",
    ["base_model: {{ model }}\n", "{a: b}: c\n", "wandb_name: 2025-13-45\n", "seed: \x07\n", "a: !thing 1\n"],
)
def test_odd_yaml_is_a_user_error(read, text):
    with pytest.raises(ForgeError, match=r"witness\.yml.*: not YAML"):
        read(text)


def test_anchors_and_merge_keys_work(read):
    layer = read("one: &one {a: 1}\ntwo:\n  <<: *one\n  b: 2\n")
    assert layer.keys["two"] == {"a": 1, "b": 2}


def test_not_utf8(read):
    with pytest.raises(ForgeError, match=r"witness\.yml: not UTF-8 text \(.* at byte 6\)"):
        read(b"seed: \xff\n")


def test_missing_file(tmp_path):
    with pytest.raises(ForgeError, match=r"configs/base\.yml is missing; every recipe needs it"):
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


@pytest.mark.parametrize("kind", ["sharegpt", "sharegpt.load_role", "sharegpt:chat"])
def test_type_sharegpt_says_what_replaces_it(read, kind):
    [found] = check(read(f"datasets:\n  - path: x.jsonl\n    type: {kind}\n"))
    assert found.startswith("configs/agents/witness.yml, line 1: datasets, item 1: ")
    assert f"«type: {kind}» was removed from Axolotl; use type: chat_template" in found


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


@pytest.mark.parametrize(
    ("text", "better"), [("2e-4", "2.0e-4"), ("125e-5", "1.25e-3"), ("1e4", "1.0e+4"), ("3e-10", "3.0e-10")]
)
def test_a_number_yaml_reads_as_text_gets_a_hint(read, text, better):
    [found] = check(read(f"weight_decay: {text}\n"))
    assert found.endswith(f"expected a number; YAML reads {text} as text, write {better}")
    assert yaml.safe_load(better) == float(text)


def test_a_date_is_a_wrong_type_and_no_traceback(read):
    [found] = check(read("wandb_name: 2025-01-15\n"))
    assert found == 'configs/agents/witness.yml, line 1: «wandb_name: "2025-01-15"» does not fit: expected text'


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
    with pytest.raises(ForgeError, match=r'odd\.yml, line 1: «micro_batch_size: "two"» does not fit'):
        plan.Planner(root, tmp_path, {}).merged("witness", "", "odd")


@pytest.mark.parametrize("path", sorted((ROOT / "configs/machines").glob("*.yml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("agent", recipe.AGENTS)
def test_shipped_machine_files_keep_the_fingerprint(planner, path, agent):
    plain, tuned = planner.merged(agent, "", ""), planner.merged(agent, "", path.stem)
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
        {"eval_sample_packing": False},
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


def test_every_training_key_changes_the_fingerprint(planner):
    keys = planner.merged("witness", "", "")
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
    assert recipe.pinned(lock, "axolotl") == "0.19.0"
    assert recipe.pinned(lock, "torch") == "2.1+cpu"
    with pytest.raises(ForgeError, match=r"lock\.txt does not pin peft; make it anew with: make lock"):
        recipe.pinned(lock, "peft")
    with pytest.raises(ForgeError, match=r"none\.txt is missing; make it with: make lock"):
        recipe.pinned(tmp_path / "none.txt", "axolotl")


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


@pytest.mark.parametrize("agent", recipe.AGENTS)
def test_the_users_table(planner, agent):
    keys = planner.merged(agent, "", "")
    assert {key: keys.get(key) for key in TABLE} == TABLE
    assert (keys["num_epochs"], keys["warmup_steps"], keys["eval_steps"]) == SCHEDULE.get(agent, (3, 50, 50))
    assert "lora_target_linear" not in keys
    assert "max_steps" not in keys


def test_the_base_schedule():
    keys = yaml.safe_load((ROOT / "configs/base.yml").read_text(encoding="utf-8"))
    assert (keys["num_epochs"], keys["warmup_steps"], keys["eval_steps"]) == (3, 100, 100)


@pytest.mark.parametrize("agent", recipe.AGENTS)
def test_a_rehearsal_changes_only_what_its_profile_lists(planner, agent):
    listed = yaml.safe_load((ROOT / "configs/profiles/rehearsal.yml").read_text(encoding="utf-8"))
    real, rehearsed = planner.merged(agent, "", ""), planner.merged(agent, "rehearsal", "")
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
    made = recipe.divided(given, processes)
    assert (made["micro_batch_size"], made["gradient_accumulation_steps"]) == expected
    assert recipe.effective_batch(made) * processes == recipe.effective_batch(given)


def test_gpus_of_one_tensor_parallel_group_see_the_same_data():
    given = {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "tensor_parallel_size": 2}
    assert recipe.effective_batch(recipe.divided(given, 4)) == 4
    assert recipe.divided(given, 2) == given
    with pytest.raises(ForgeError, match="run_gpus is 3, and tensor_parallel_size × context_parallel_size is 2"):
        recipe.divided(given, 3)


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ForgeError, match=r"cannot be divided among 3 GPUs. It can among 1, 2, 4, 8: change run_gpus"):
        recipe.divided({"micro_batch_size": 2, "gradient_accumulation_steps": 4}, 3)


def test_kernels_bring_their_plugins():
    liger, cce = recipe.KERNEL_PLUGINS
    assert recipe.with_plugins({"liger_rms_norm": True})["plugins"] == [liger]
    assert recipe.with_plugins({"liger_rope": True, "plugins": ["mine"]})["plugins"] == ["mine", liger]
    assert recipe.with_plugins({"cut_cross_entropy": True, "plugins": [cce]})["plugins"] == [cce]
    for without in ({}, {"liger_rms_norm": False}, {"plugins": ["mine"]}):
        assert recipe.with_plugins(without) == without
