"""How long a training takes, and what of a recipe suits its data."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import steps
from planned import one


def rows(*counts: tuple[str, int, int]) -> list[Any]:
    """Return dataset files, each with its use, examples and tokens."""
    return [dataset.DatasetFile("p", use, "s", lengths(n, tokens), bytes(n), bytes(n)) for use, n, tokens in counts]


def lengths(examples: int, tokens: int) -> list[int]:
    """Return the lengths of examples that have so many tokens together."""
    return [tokens // examples + (number < tokens % examples) for number in range(examples)]


# --- how long it takes


PACKED = {"sample_packing": True, "sequence_len": 100, "micro_batch_size": 2, "num_epochs": 3}
LOOSE = {"sequence_len": 100, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("keys", "sets", "count", "work"),
    [
        (PACKED, [("train", 10, 1000)], 15, 15 * 2 * 100),
        (PACKED, [("train", 11, 1001)], 15, 15 * 2 * 100),  # a row without a second one is dropped
        (PACKED, [("train", 12, 1092)], 18, 18 * 2 * 100),
        (PACKED, [("train", 6, 600), ("train", 6, 400)], 18, 18 * 2 * 100),
        (PACKED, [("train", 20, 500)], 6, 6 * 2 * 100),  # four in each of five rows
        (PACKED | {"sample_packing_bin_size": 2}, [("train", 20, 500)], 15, 15 * 2 * 100),
        (PACKED | {"gradient_accumulation_steps": 2}, [("train", 10, 1000)], 6, 6 * 4 * 100),
        (PACKED | {"val_set_size": 0.1}, [("train", 10, 1000)], 12, 12 * 2 * 100),  # nine rows
        (PACKED | {"val_set_size": 0.11}, [("train", 10, 1000)], 12, 12 * 2 * 100),  # eight
        (PACKED | {"val_set_size": 0.2}, [("train", 10, 1000), ("val", 9, 5000)], 15, 15 * 2 * 100),
        (PACKED | {"max_steps": 7}, [("train", 10, 1000)], 7, 7 * 2 * 100),
        (PACKED | {"max_steps": 70}, [("train", 10, 1000)], 70, 70 * 2 * 100),  # more than its epochs
        (PACKED | {"num_epochs": 0.5}, [("train", 10, 1000)], 2, 2 * 2 * 100),
        (PACKED | {"num_epochs": 1}, [("train", 2000, 20_000)], 100, 100 * 2 * 100),
        (PACKED | {"num_epochs": 1, "sample_packing_bin_size": 40}, [("train", 2000, 2000)], 25, 25 * 2 * 100),
        (LOOSE, [("train", 8, 160)], 2, 2 * 4 * 20),
        (LOOSE, [("train", 9, 180)], 3, 3 * 4 * 20),
        (LOOSE, [("train", 4, 80), ("train", 4, 240)], 2, 2 * 4 * 40),
        (LOOSE, [("train", 8, 8000), ("val", 8, 1)], 2, 2 * 4 * 100),
        (LOOSE | {"val_set_size": 0.5}, [("train", 8, 160)], 1, 4 * 20),
    ],
)
def test_steps_and_tokens_of_a_run(keys, sets, count, work):
    assert steps.estimate_steps(keys, rows(*sets)) == count
    assert steps.estimate_work(keys, rows(*sets)) == work


def test_of_many_conversations_as_many_rows_are_counted_as_of_few():
    """2,500 tokens of 4,096: one in a row, whatever their sum is."""
    for count in (1000, 1001, 5000):
        keys = {"sequence_len": 4096, "sample_packing": True, "micro_batch_size": 1}
        assert steps.estimate_rows(keys, rows(("train", count, 2500 * count))) == count


@pytest.mark.parametrize(("strategy", "steps"), [("drop", 1), ("truncate", 24), (None, 1)])
def test_conversations_that_axolotl_drops_take_no_steps(make, data, strategy, steps):
    path = data(count=200, size=20_000)
    short = json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}) + "\n"
    path.write_text("".join([*path.read_text().splitlines(True)[:192], short]))
    made = make(recipe={"excess_length_strategy": strategy, "val_set_size": 0, "num_epochs": 1, "max_steps": None})
    run = one(made)
    assert run.estimate.steps == steps
    assert run.recipe["sample_packing"] == (strategy == "truncate")
    assert (run.estimate.work < 100) == (strategy != "truncate")


def test_work_is_what_goes_through_the_model(make, data):
    data(count=40, size=14000)  # ten packed steps an epoch, three epochs
    run = one(make())
    assert run.estimate.work == run.estimate.steps * 8 * 4096


# --- what suits the data


def test_a_single_conversation_has_no_evaluation(make, data):
    data(count=1)
    result = make()
    assert one(result).recipe["val_set_size"] == 0
    assert "witness: a single conversation cannot be split, so there is no evaluation" in result.warnings


def test_warnings_for_a_small_set_suggest_values_that_suit(make, data):
    data(count=160, size=14000)  # 160 × about 4,000 tokens of 4,096, 5 % held out: 19 packed steps an epoch
    [warning] = make().warnings
    steps = one(make()).estimate.steps
    assert steps == 57
    assert warning.startswith(f"witness: warmup takes 50 of about {steps} steps. Values that suit this data: -e '")
    better = json.loads(re.search(r"-e '(.*)'$", warning).group(1))
    assert better == {"recipe": {"warmup_steps": 5}}
    assert make(**better).warnings == []


def test_warning_for_eval_steps_beyond_the_end(make, data):
    data()
    [warning] = make(recipe={"warmup_steps": 0}).warnings
    assert "no evaluation before the end falls within about 3 steps (eval_steps 50)" in warning
    assert '{"recipe": {"eval_steps": 1}}' in warning


def test_eval_sample_packing_is_switched_off_for_a_small_evaluation_set(make, data):
    data(count=40)
    assert one(make()).recipe["eval_sample_packing"] is False
    data(use="val", count=40, size=14000)
    assert one(make()).recipe["eval_sample_packing"] is True


# --- what suits, closer


def suited(changes: dict[str, Any], *sets: tuple[str, int, int]) -> tuple[dict[str, Any], list[str]]:
    """Adapt a recipe of 100-token rows, eight to a step, to data; return it and what is told."""
    warnings: list[str] = []
    keys = {"sequence_len": 100, "micro_batch_size": 8, "sample_packing": True, "num_epochs": 1, **changes}
    steps.adapt_to_dataset("crew", keys, rows(*sets), warnings)
    return keys, warnings


FORTY = ("train", 320, 32_000)  # steps


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"val_set_size": 0.95}, "crew: nothing is left to train on"),
        ({"num_epochs": 0.001}, "crew: num_epochs 0.001 of this data is no step at all; raise it"),
    ],
)
def test_what_takes_no_step_is_refused(keys, words):
    with pytest.raises(UserError, match=re.escape(words)):
        suited(keys, ("train", 10, 1000))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warmup_steps": 19}, None),
        ({"warmup_steps": 20}, {"warmup_steps": 4}),
        ({"warmup_steps": 1, "max_steps": 1}, None),
        ({"warmup_steps": 2, "max_steps": 3}, {"warmup_steps": 1}),
        ({"eval_steps": 40}, None),
        ({"eval_steps": 41}, {"eval_steps": 10}),
        ({"eval_steps": 4, "max_steps": 3}, {"eval_steps": 1}),
        ({"eval_steps": 0.5}, None),
        ({"eval_steps": 1, "max_steps": 1}, None),
        ({"warmup_steps": 30, "eval_steps": 90}, {"warmup_steps": 4, "eval_steps": 10}),
        ({}, None),
    ],
)
def test_a_schedule_that_does_not_suit_is_told_with_one_that_does(changes, told):
    _, warnings = suited(changes, FORTY, ("val", 9, 5000))
    if told is None:
        assert warnings == []
        return
    steps = changes.get("max_steps", 40)
    notes = []
    if "warmup_steps" in told:
        notes.append(f"warmup takes {changes['warmup_steps']} of about {steps} steps")
    if "eval_steps" in told:
        evaluation = changes["eval_steps"]
        notes.append(f"no evaluation before the end falls within about {steps} steps (eval_steps {evaluation})")
    better = json.dumps({"recipe": told})
    assert warnings == [f"crew: {'; '.join(notes)}. Values that suit this data: -e '{better}'"]


@pytest.mark.parametrize(
    ("changes", "sets", "size", "packing"),
    [
        ({"val_set_size": 0.05}, [FORTY], 0.05, True),  # 1,600 of 32,000 tokens are held out: two steps' rows
        ({"val_set_size": 0.0499}, [FORTY], 0.0499, False),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 1600)], 0, True),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 1599)], 0, False),
        ({"val_set_size": 0.05}, [FORTY, ("val", 9, 800), ("val", 9, 800)], 0, True),
        ({"val_set_size": 0}, [FORTY], 0, False),
        ({}, [FORTY], None, False),
        ({"val_set_size": 0.05, "eval_sample_packing": True, "sample_packing": False}, [("train", 9, 90)], 0.05, False),
        ({"val_set_size": 0.05, "eval_sample_packing": False}, [FORTY], 0.05, False),
        ({"val_set_size": 0.05, "sample_packing": False}, [("train", 9, 90)], 0.05, None),
    ],
)
def test_evaluations_are_packed_where_there_is_enough_to_pack(changes, sets, size, packing):
    keys, warnings = suited(changes, *sets)
    assert keys.get("val_set_size") == size
    assert keys.get("eval_sample_packing", True if keys["sample_packing"] else None) == packing
    assert warnings == []


@pytest.mark.parametrize(
    ("changes", "sets", "rows", "steps"),
    [
        ({"num_epochs": 3}, [("train", 91, 637)], 7, 35),  # ceil(3 × 91 / 8)
        ({"num_epochs": 3, "val_set_size": 0.05}, [("train", 30, 600)], 6, 11),  # 28 conversations
        ({}, [("train", 7, 700)], 7, 1),
        ({"val_set_size": 0.05}, [("train", 1, 10)], 1, 1),
        ({"sample_packing": True, "eval_sample_packing": True}, [("train", 8, 799), ("val", 8, 1600)], 8, None),
        ({"sample_packing_bin_size": 1}, [("train", 8, 10)], 8, None),
        ({"sample_packing": False}, [("train", 7, 700)], 7, None),
    ],
)
def test_data_that_fills_no_step_is_not_packed(changes, sets, rows, steps):
    keys, warnings = suited(changes, *sets)
    single = "crew: a single conversation cannot be split, so there is no evaluation"
    assert (single in warnings) == (sets[0][1] == 1)
    packing = [line for line in warnings if line != single]
    if steps is None:
        assert packing == []
        assert keys["sample_packing"] == changes.get("sample_packing", True)
        return
    assert (keys["sample_packing"], keys["eval_sample_packing"]) == (False, False)
    assert packing == [
        f"crew: packed into rows of 100 tokens this data makes about {rows}, and a step takes 8, so that little of it "
        f"would be learnt, or nothing. It is trained without packing, in about {steps} steps. More conversations are "
        "packed again"
    ]
