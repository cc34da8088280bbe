"""Recipes: which keys decide what, batches, fingerprints, and the users' table over the real configs/."""

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
from ansible.module_utils.lora_forge.text import canonical

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENTS = Agents(ROOT).names
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))
BATCH = {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.fixture
def recipes():
    return AgentRecipes(ROOT, Agents(ROOT), {})


# --- what is said of datasets


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


# --- machine files


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
    training = {
        "base_model": "Acme/Tiny",
        "model_revision": "abc0" * 10,
        "sequence_len": 4096,
        "lora_r": 64,
        "lora_target_modules": ["q_proj"],
        "num_epochs": 3,
    }
    data = [{"path": "/x.jsonl", "roles_to_train": ["assistant"]}]
    keys = {**training, **BATCH, "datasets": data, "wandb_project": "p"}
    sets = [{"use": "train", "sha256": "a" * 64, "path": "/x.jsonl"}]
    basis = {
        "training": {**training, "datasets": [{"roles_to_train": ["assistant"]}]},
        "effective_batch": 8,
        "rehearsal": True,
        "datasets": [{"use": "train", "sha256": "a" * 64}],
        "axolotl": "0.19",
    }
    text = json.dumps(basis, sort_keys=True, separators=(",", ":"))
    assert recipe.fingerprint(keys, True, sets, "0.19.0") == hashlib.sha256(text.encode()).hexdigest()
