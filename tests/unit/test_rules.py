"""Rules between the keys of a recipe: rivals, what is put right, what is refused, what kernels mean for a dropout."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import yaml
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import plan, recipe, recipe_problems, rivals, rules
from ansible.module_utils.lora_forge.planning.agent_recipes import AgentRecipes
from ansible.module_utils.lora_forge.planning.agents import Agents
from ansible.module_utils.lora_forge.planning.fleet import Trainer
from ansible.module_utils.lora_forge.planning.layers import Layer, merge, read_layer, replacement_notes
from brought import Brought, brought

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))
SETS = [{"use": "train", "sha256": "a" * 64}]
QLORA = {"adapter": "qlora", "load_in_4bit": True, "lora_dropout": 0.05}


def mark(keys: dict[str, Any], rehearsal: bool = False) -> str:
    return recipe.fingerprint(keys, rehearsal, SETS, "0.21.0")


# --- recipes that people bring


@pytest.mark.parametrize("one", brought(), ids=lambda one: one.name)
def test_what_the_plan_makes_of_it(one: Brought, tmp_path):
    if one.refused:
        with pytest.raises(UserError) as error:
            one.planned(tmp_path)
        assert one.refused in str(error.value)
        return
    made = one.planned(tmp_path)
    warnings, [run] = made.warnings, made.runs
    assert {key: run.recipe.get(key) for key in one.becomes} == one.becomes
    assert run.recipe.keys() <= SCHEMA["properties"].keys()
    for piece in one.says:
        assert any(said.startswith("crew: ") and piece in said for said in warnings), (piece, warnings)


@pytest.mark.parametrize(
    ("attention", "model", "becomes"),
    [
        ("sdpa", "openai/gpt-oss-20b", "eager"),
        ("flash_attention_2", "openai/gpt-oss-20b", "eager"),  # no lock pins flash-attn
        ("flex_attention", "openai/gpt-oss-20b", "flex_attention"),
        ("sdpa", "Qwen/Qwen2.5-7B", "sdpa"),
        ("sdpa", "me/mystery", "sdpa"),
    ],
)
def test_a_base_without_sdpa_is_trained_with_what_it_has(attention, model, becomes):
    layer = Layer(
        "configs/agents/crew.yml", {"attn_implementation": attention, "base_model": model, "sample_packing": True}
    )
    keys, origin = merge([layer])
    said = rules.apply_rules(keys, origin, set())
    assert keys["attn_implementation"] == becomes
    told = f"eager in place of sdpa of configs/agents/crew.yml: transformers has no sdpa for {model}"
    assert any(told in one for one in said) == (becomes == "eager")
    # Eager attention would mix what is packed.
    assert keys["sample_packing"] == (becomes != "eager")
    assert any("mixes packed conversations" in one for one in said) == (becomes == "eager")


def test_one_that_says_nothing_is_told_nothing_but_the_schedule(tmp_path):
    [said] = Brought("", "logging_steps: 5\n").planned(tmp_path).warnings
    assert said.startswith("crew: warmup takes")


# What users write today, over the base recipe.
USERS = """\
base_model: Qwen/Qwen3.5-9B
lora_target_linear: true
datasets:
  - type: chat_template
    chat_template: qwen3_5
sequence_len: 2048
neftune_noise_alpha: 5
early_stopping_patience: 3
saves_per_epoch: 2
flash_attention: true
"""
AGENT_FILE = "configs/agents/crew.yml"


def test_what_users_write_today_lacks_the_commit_of_its_base_and_nothing_else(tmp_path):
    with pytest.raises(UserError) as error:
        Brought("", USERS).planned(tmp_path)
    assert str(error.value).splitlines() == [
        f"{AGENT_FILE}, line 1: «base_model: Qwen/Qwen3.5-9B» is another model than the one whose «model_revision» "
        "stands in configs/base.yml, line 6; give its own beside it",
    ]


def test_what_users_write_today_with_a_commit(tmp_path):
    """The fate of each line: kept, or put right with a note."""
    made = Brought("", f"{USERS}model_revision: {'c0ffee00' * 5}\n").planned(tmp_path)
    [run] = made.runs
    kept = {"sequence_len": 2048, "neftune_noise_alpha": 5, "early_stopping_patience": 3, "lora_target_linear": True,
            "base_model": "Qwen/Qwen3.5-9B", "chat_template": "qwen3_5", "attn_implementation": "sdpa",
            "save_steps": 100, "eval_steps": 100}  # fmt: skip
    assert {key: run.recipe.get(key) for key in kept} == kept
    assert not {"lora_target_modules", "flash_attention", "saves_per_epoch"} & run.recipe.keys()
    assert [item.entry.get("chat_template") for item in run.datasets] == [None]
    notes = [said.removeprefix("crew: ") for said in made.warnings if said.startswith("crew: ")]
    assert [said.partition(":")[0].partition(", in place")[0] for said in notes[:-1]] == [
        "«chat_template",
        f"lora_target_linear of {AGENT_FILE} takes the place of lora_target_modules of configs/base.yml",
        f"attn_implementation is sdpa in place of flash_attention_2 of {AGENT_FILE}",
        "early stopping needs a checkpoint at its evaluations",
    ], notes


# --- rivals


def test_every_rival_is_a_key_of_axolotls():
    named = {key for group in rivals.RIVALS for side in group.sides for key in side}
    assert named <= SCHEMA["properties"].keys()


def layers(*keys: dict[str, Any]) -> list[Layer]:
    return [
        Layer(name, one, {key: line for line, key in enumerate(one, 1)})
        for name, one in zip(("base.yml", "agent.yml", "-e"), keys)
    ]


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ({"warmup_steps": 100}, {"warmup_ratio": 0.1}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 5}),
        ({"save_steps": 10}, {"saves_per_epoch": 2}),
        ({"saves_per_epoch": 2}, {"save_strategy": "epoch"}),
        ({"save_strategy": "no"}, {"save_steps": 10}),
        ({"eval_steps": 10}, {"evals_per_epoch": 2}),
        ({"evals_per_epoch": 2}, {"evaluation_strategy": "epoch"}),
        ({"eval_strategy": "epoch"}, {"eval_steps": 10}),
        ({"eval_strategy": "steps"}, {"evaluation_strategy": "steps"}),
        ({"load_in_4bit": True}, {"load_in_8bit": True}),
        ({"load_in_8bit": True}, {"model_quantization_config": "Mxfp4Config"}),
        ({"bf16": True}, {"fp16": True}),
        ({"float16": True}, {"bf16": True}),
        ({"deepspeed": "zero2.json"}, {"fsdp_config": {"version": 2}}),
        ({"liger_fused_linear_cross_entropy": True}, {"chunked_cross_entropy": True}),
        ({"chunked_cross_entropy": True}, {"cut_cross_entropy": True}),
        ({"use_dft": True}, {"use_eaft": True}),
        ({"max_memory": {"0": "20GiB"}}, {"gpu_memory_limit": 20}),
        ({"lr_groups": [{"lr": 1}]}, {"loraplus_lr_ratio": 16}),
        ({"noisy_embedding_alpha": 5}, {"neftune_noise_alpha": 5}),
        ({"liger_swiglu": True}, {"liger_glu_activation": True}),
        ({"sample_packing": True}, {"batch_flattening": True}),
        ({"chat_template": "chatml"}, {"chat_template_jinja": "{{ x }}"}),
    ],
)
def test_of_two_layers_the_later_one_is_meant(below, above):
    [old], [new] = below, above
    merged, origin = merge(layers(below, above))
    assert merged == above
    assert origin.keys() == above.keys()
    assert replacement_notes(layers(below, above)) == [f"{new} of agent.yml takes the place of {old} of base.yml"]
    [said] = recipe_problems.contradictions(*merge(layers(below | above)))
    for line, key in enumerate(below | above, 1):
        assert f"base.yml, line {line}: «{key}: " in said
    assert said.endswith(". Keep one of them")


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ({"warmup_steps": 100}, {"warmup_ratio": 0}),
        ({"warmup_steps": 0}, {"warmup_ratio": 0.1}),
        ({"saves_per_epoch": 2}, {"save_strategy": "steps"}),
        ({"eval_strategy": "steps"}, {"evals_per_epoch": 2}),
        ({"load_in_4bit": True}, {"load_in_8bit": False}),
        ({"bf16": "auto"}, {"fp16": True}),
        ({"bf16": False}, {"fp16": True}),
        ({"sample_packing": True}, {"batch_flattening": "auto"}),
        ({"chat_template": "jinja"}, {"chat_template_jinja": "{{ x }}"}),
        ({"num_epochs": 3}, {"max_steps": 10}),
    ],
)
def test_what_axolotl_takes_side_by_side_stays(below, above):
    assert merge(layers(below, above))[0] == below | above
    assert replacement_notes(layers(below, above)) == []
    assert recipe_problems.contradictions(*merge(layers(below | above))) == []


def test_only_what_is_left_in_the_end_is_told():
    three = layers({"eval_steps": 10}, {"evals_per_epoch": 4}, {"eval_steps": 20})
    assert merge(three)[0] == {"eval_steps": 20}
    assert replacement_notes(three) == ["eval_steps of -e takes the place of evals_per_epoch of agent.yml"]
    away = layers({"eval_steps": 10}, {"evals_per_epoch": 4}, {"evals_per_epoch": None})
    assert merge(away)[0] == {}
    assert replacement_notes(away) == []


def test_a_null_beside_its_rival_is_no_contradiction():
    two = layers({"saves_per_epoch": 2}, {"save_steps": 4, "saves_per_epoch": None})
    assert merge(two)[0] == {"save_steps": 4}
    assert replacement_notes(two) == []


def test_a_contradiction_that_a_later_layer_ends_is_none():
    three = layers({"warmup_steps": 5, "warmup_ratio": 0.1}, {}, {"warmup_steps": 7})
    assert recipe_problems.contradictions(*merge(three)) == []
    assert merge(three)[0] == {"warmup_steps": 7}


def test_a_rehearsal_replaces_without_a_word_and_hides_no_contradiction(tmp_path):
    def rehearsed(text: str) -> plan.Plan:
        (tmp_path / "configs/agents/crew.yml").write_text(text)
        trainer = Trainer("here", profile="rehearsal", datasets_dir=str(ROOT / "examples/datasets"))
        return plan.make(tmp_path, tmp_path / "output", "crew", [trainer], {})

    Brought("", "{}\n").planned(tmp_path)
    made = rehearsed("warmup_ratio: 0.1\nevals_per_epoch: 4\n")
    keys = made.runs[0].recipe
    assert (keys["warmup_steps"], keys["eval_steps"], keys["save_steps"]) == (2, 4, 4)
    assert not [said for said in made.warnings if "takes the place" in said]
    with pytest.raises(UserError, match=r"crew\.yml, line 2: «warmup_ratio: 0\.1», and .* Keep one of them$"):
        rehearsed("warmup_steps: 5\nwarmup_ratio: 0.1\n")


def test_a_machine_file_takes_no_training_keys_place():
    below = {"gpu_memory_limit": 20, "liger_cross_entropy": True}
    assert recipe_problems.machine_problems(Layer("m.yml", {"chunked_cross_entropy": True}), below) == []
    [said] = recipe_problems.machine_problems(Layer("m.yml", {"max_memory": {"0": "20GiB"}}), below)
    assert said.startswith("m.yml: «max_memory» would take the place of «gpu_memory_limit», which decides")


def test_a_recipe_without_rivals_is_what_it_was():
    """Adapters are known by the fingerprint: what nobody had to put right must not train again."""
    names = ["configs/base.yml", "configs/agents/polecat.yml"]
    read = [read_layer(ROOT / name, name) for name in names]
    plainly = {**yaml.safe_load((ROOT / names[0]).read_text()), **yaml.safe_load((ROOT / names[1]).read_text())}
    merged = AgentRecipes(ROOT, Agents(ROOT), {}).merged_recipe("polecat", "", "")
    assert merge(read)[0] == merged == plainly
    assert mark(merged) == mark(plainly)


def test_the_fingerprint_is_of_what_is_left():
    base = {"warmup_steps": 100, "lora_r": 8}
    assert mark(merge(layers(base, {"warmup_ratio": 0.1}))[0]) == mark({"warmup_ratio": 0.1, "lora_r": 8})


# --- data, locks


@pytest.fixture
def planned(tmp_path):
    """Plan crew, with overrides, on as many conversations."""

    def planner(overrides: dict[str, Any], train: int = 8, val: int = 0) -> plan.Plan:
        for use, count in (("train", train), ("val", val)):
            turns = [{"from": "human", "value": f"{use}"}, {"from": "gpt", "value": "a" * 100}]
            rows = [{"conversations": [{**turns[0], "value": f"{use} {n}"}, turns[1]]} for n in range(count)]
            if rows:
                (tmp_path / f"crew_{use}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        trainer = Trainer("here", datasets_dir=str(tmp_path))
        return plan.make(ROOT, tmp_path / "output", "crew", [trainer], overrides)

    return planner


def test_a_validation_set_of_its_own_keeps_the_evaluations(planned):
    made = planned({"early_stopping_patience": 2, "val_set_size": 0}, val=2)
    keys = made.runs[0].recipe
    assert (keys["eval_steps"], keys["save_steps"], keys["val_set_size"]) == (50, 50, 0)
    assert "saves_per_epoch" not in keys


def test_nothing_is_held_out_where_its_share_was_removed():
    keys = QLORA | {"early_stopping_patience": 3, "eval_steps": 5, "save_steps": 5}
    layer = Layer("mine", keys)
    _, errors = rules.evaluation_problems(dict(keys), dict.fromkeys(keys, layer), False)
    assert "needs evaluations, and nothing is evaluated" in errors[0]
    assert rules.evaluation_problems(dict(keys), dict.fromkeys(keys, layer), True) == ([], [])


def test_a_single_conversation_leaves_nothing_to_evaluate(planned):
    made = planned({}, train=1)
    assert "eval_steps" not in made.runs[0].recipe
    assert "crew: nothing is evaluated (val_set_size is 0), so eval_steps is left out" in made.warnings
    with pytest.raises(UserError, match=r"«early_stopping_patience» needs evaluations, and nothing is evaluated"):
        planned({"early_stopping_patience": 2}, train=1)


def test_early_stopping_takes_the_place_of_what_earlier_layers_save_by():
    keys = {"adapter": "lora", "eval_steps": 20}
    for below, above, saves in (
        ({"saves_per_epoch": 2}, {"early_stopping_patience": 3}, 20),
        ({"early_stopping_patience": 3}, {"saves_per_epoch": 2}, 20),
        ({"early_stopping_patience": 3}, {"save_strategy": "no"}, None),
        ({"save_strategy": "epoch"}, {"early_stopping_patience": 3}, 20),
    ):
        all_of = layers(keys, below, above)
        merged, origin = merge(all_of)
        said = rules.apply_rules(merged, origin, ())
        assert merged.get("save_steps") == saves
        assert bool(said) == bool(saves) == (not rules.problems(merged, origin, ()))
        assert origin.keys() == merged.keys()


def test_a_single_evaluation_stops_nothing_early(planned):
    with pytest.raises(UserError, match=r"needs more than one evaluation, and .*«evals_per_epoch: 1»"):
        planned({"early_stopping_patience": 2, "evals_per_epoch": 1, "num_epochs": 1})


def test_a_training_that_is_not_evaluated_stops_nothing_early(planned):
    with pytest.raises(UserError, match=r"needs «eval_steps» in place of .*«eval_strategy: \"no\"»"):
        planned({"early_stopping_patience": 2, "eval_strategy": "no"})
    with pytest.raises(UserError, match=r"more than one evaluation, and .*«eval_strategy: \"epoch\"» makes a single"):
        planned({"early_stopping_patience": 2, "eval_strategy": "epoch", "num_epochs": 1})


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"attn_implementation": "flex_attention"}, (1, 8)),
        ({"attn_implementation": "sdpa"}, (2, 4)),
        ({"attn_implementation": "flex_attention", "sample_packing": False}, (2, 4)),
        ({"attn_implementation": "flex_attention", "multipack_real_batches": True}, (2, 4)),
        ({"attn_implementation": "flex_attention", "micro_batch_size": 1}, (1, 4)),
    ],
)
def test_attention_that_packs_long_rows_takes_one_at_a_time(changes, batch):
    """So that each step holds the same rows as with sdpa: that is what makes attention a machine key."""
    keys = QLORA | {"sample_packing": True, "micro_batch_size": 2, "gradient_accumulation_steps": 4} | changes
    mine = [Layer("mine", keys)]
    said = rules.apply_rules(keys, dict.fromkeys(keys, mine[0]), set())
    assert tuple(keys[key] for key in recipe.BATCH) == batch
    told = [one for one in said if one.startswith("micro_batch_size and gradient_accumulation_steps are 1 and 8")]
    assert bool(told) == (batch == (1, 8))


def test_what_the_locks_pin_stays():
    keys = {"adapter": "lora", "attn_implementation": "flash_attention_3", "cut_cross_entropy": True}
    all_of = layers(keys)
    merged, origin = merge(all_of)
    assert rules.apply_rules(merged, origin, {"flash-attn-3"}) == []
    assert merged["attn_implementation"] == "flash_attention_3"
    assert rules.problems(merged, origin, {"cut-cross-entropy"}) == []
    [said] = rules.problems(merged, origin, {"flash-attn-3"})
    assert said.startswith("base.yml, line 3: «cut_cross_entropy: true» needs a package that requirements/")
    [said] = rules.apply_rules(merged, origin, {"flash-attn"})
    assert said.startswith(
        "attn_implementation is sdpa in place of flash_attention_3 of base.yml: that needs flash-attn-3"
    )


def test_cut_cross_entropy_that_is_switched_off_needs_nothing():
    merged, origin = merge(layers({"adapter": "lora", "plugins": [rules.CUT], "cut_cross_entropy": False}))
    assert rules.problems(merged, origin, ()) == []


def test_a_kernel_of_the_hub_is_told_of():
    merged, origin = merge(layers({"attn_implementation": "kernels-community/flash-attn3"}))
    [said] = rules.notes(merged, origin)
    assert said.startswith("attn_implementation of base.yml is a kernel of the hub, and a trainer is offline")


# --- LoRA kernels and the dropout


@pytest.mark.parametrize(
    ("keys", "on"),
    [
        ({}, True),
        ({"lora_o_kernel": True}, {"lora_o_kernel"}),
        ({"lora_mlp_kernel": False}, False),
        ({"adapter": "lora", "load_in_4bit": False}, True),
        ({"adapter": "lora", "load_in_8bit": True}, False),
        ({"trust_remote_code": True}, False),
        ({"nvfp4_merge_aware": True}, False),
        ({"rl": "dpo"}, False),
        ({"adapter": "mixlora"}, False),
    ],
)
def test_the_kernels_that_axolotl_switches_on(keys, on):
    wanted = set(recipe.LORA_KERNELS) if on is True else on or set()
    assert recipe.lora_kernels(QLORA | keys) == wanted


def test_kernels_decide_what_is_learnt_where_there_is_a_dropout():
    every = dict.fromkeys(recipe.LORA_KERNELS, True)
    none = dict.fromkeys(recipe.LORA_KERNELS, False)
    assert mark(QLORA | every) == mark(QLORA), "Axolotl's own choice, only named"
    assert mark(QLORA | {"lora_mlp_kernel": True, "lora_qkv_kernel": True}) == mark(QLORA), "o_proj draws as PEFT does"
    different = [mark(QLORA | none), mark(QLORA | {"lora_mlp_kernel": True}), mark(QLORA | {"lora_qkv_kernel": True})]
    assert len({mark(QLORA), *different}) == 4
    dry = QLORA | {"lora_dropout": 0.0}
    assert mark(dry | none) == mark(dry | every) == mark(dry)
    assert mark(QLORA | none, rehearsal=True) == mark(QLORA, rehearsal=True), "no CPU has them"
    eight = {"adapter": "lora", "load_in_8bit": True, "lora_dropout": 0.1}
    assert mark(eight | none) == mark(eight), "Axolotl has none there by itself"


def test_a_machine_file_may_not_change_how_a_dropout_is_drawn():
    off = Layer("m.yml", dict.fromkeys(recipe.LORA_KERNELS, False), {"lora_embedding_kernel": 3})
    [said] = recipe_problems.machine_problems(off, QLORA)
    assert said.startswith(
        "m.yml, line 3: «lora_embedding_kernel» changes which LoRA kernels train. With «lora_dropout: 0.05»"
    )
    assert recipe_problems.machine_problems(off, QLORA | {"lora_dropout": 0}) == []
    assert recipe_problems.machine_problems(off, QLORA | dict.fromkeys(recipe.LORA_KERNELS, False)) == []
    assert recipe_problems.machine_problems(Layer("m.yml", dict.fromkeys(recipe.LORA_KERNELS, True)), QLORA) == []
    [said] = recipe_problems.machine_problems(Layer("m.yml", {"lora_mlp_kernel": True}), QLORA)
    assert "changes which LoRA kernels train" in said, "naming one switches the others off"


def test_chunks_are_how_fast_and_a_scaled_loss_is_what_is_learnt():
    assert mark(QLORA | {"chunked_cross_entropy": True, "chunked_cross_entropy_num_chunks": 4}) == mark(QLORA)
    assert mark(QLORA | {"liger_use_token_scaling": True}) != mark(QLORA)


def test_liger_without_lora_kernels_is_worth_no_word():
    off = {"liger_rope": True, "liger_glu_activation": True, "lora_mlp_kernel": False}
    merged, origin = merge(layers(QLORA | off))
    assert rules.notes(merged, origin) == []


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config"])
def test_a_model_in_parts_is_told_to_be_tied_to_its_trainer(key):
    merged, origin = merge(layers({**QLORA, key: {"a": 1}}))
    [said] = rules.notes(merged, origin)
    assert said.startswith(f"with {key} of {origin[key].source} checkpoints are in parts")
    assert "none is fetched, and on another trainer the run would begin anew" in said
