"""Rows, optimizer steps and tokens that a training makes of its data, estimated as Axolotl counts them.

A recipe is adapted to them, where Axolotl would die of so little data, or learn nothing by it.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.lora_forge.data import dataset
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import recipe

_BIN_SIZE = 200  # conversations that Axolotl packs into a row at most, where a recipe does not say
_EXACT = 1000  # conversations that are packed one by one to count the rows


def adapt_to_dataset(agent: str, keys: dict[str, Any], files: list[dataset.DatasetFile], warnings: list[str]) -> None:
    """Switch off what Axolotl would die of with this data, or learn nothing by; warn where a schedule is too long.

    Args:
        agent: Whose recipe.
        keys: The recipe, which is changed.
        files: Its data.
        warnings: Gets what is said of it, in sentences.

    Raises:
        UserError: The data makes no step.
    """
    val = [file for file in files if file.use == "val"]
    share = 0.0 if val else float(keys.get("val_set_size", 0))
    train_tokens = sum(file.tokens for file in files if file.use == "train")
    held_out = sum(file.tokens for file in val) if val else share * train_tokens
    if val:
        keys["val_set_size"] = 0
    elif share and sum(file.examples for file in files) < 2:
        keys["val_set_size"] = 0
        warnings.append(f"{agent}: a single conversation cannot be split, so there is no evaluation")
    batch, rows = recipe.effective_batch(keys), estimate_rows(keys, files)
    if not rows:
        raise UserError(
            f"{agent}: nothing is left to train on: of the conversations that fit into sequence_len, val_set_size "
            f"{keys.get('val_set_size', 0)} holds out all. Make it smaller"
        )
    if keys.get("sample_packing") and rows < batch:
        keys["sample_packing"] = keys["eval_sample_packing"] = False
        warnings.append(
            f"{agent}: packed into rows of {keys['sequence_len']} tokens this data makes about {rows}, and a step "
            f"takes {batch}, so that little of it would be learnt, or nothing. It is trained without packing, in "
            f"about {estimate_steps(keys, files)} steps. More conversations are packed again"
        )
    count = estimate_steps(keys, files)
    if not count:
        raise UserError(f"{agent}: num_epochs {keys.get('num_epochs', 1)} of this data is no step at all; raise it")
    warnings += schedule_warnings(agent, keys, count, evaluated=bool(val or keys.get("val_set_size")))
    if keys.get("eval_sample_packing", keys.get("sample_packing")):
        needed = 2 * recipe.effective_batch(keys) * int(keys["sequence_len"])  # twice, as tokens are estimated
        if held_out < needed:
            keys["eval_sample_packing"] = False


def schedule_warnings(agent: str, keys: dict[str, Any], steps: int, evaluated: bool) -> list[str]:
    """Warn where warmup or evaluations do not suit the number of steps, with values that do.

    Args:
        agent: Whose recipe.
        keys: The recipe.
        steps: How many optimizer steps it makes of its data.
        evaluated: Whether there is anything to evaluate on.
    """
    warmup, evaluation = int(keys.get("warmup_steps", 0)), keys.get("eval_steps")
    better: dict[str, int] = {}
    notes = []
    if warmup * 2 >= steps and warmup > 1:
        better["warmup_steps"] = max(1, steps // 10)
        notes.append(f"warmup takes {warmup} of about {steps} steps")
    if evaluated and isinstance(evaluation, int) and evaluation > 1 and evaluation > steps:
        better["eval_steps"] = max(1, steps // 4)
        notes.append(f"no evaluation before the end falls within about {steps} steps (eval_steps {evaluation})")
    if not better:
        return []
    return [f"{agent}: {'; '.join(notes)}. Values that suit this data: -e '{json.dumps({'recipe': better})}'"]


def _trained_lengths(keys: dict[str, Any], files: list[dataset.DatasetFile]) -> array[int]:
    """List the tokens of each conversation that is trained on, or held out of the training set, but not dropped."""
    strategy = keys.get("excess_length_strategy", "drop")
    lengths = array("I")
    for file in files:
        if file.use == "train":
            lengths += file.trained(strategy)
    return lengths


def estimate_rows(keys: dict[str, Any], files: list[dataset.DatasetFile]) -> int:
    """Estimate the rows of an epoch: packs of conversations, or conversations where they are not packed.

    Axolotl holds out ceil(share × n) of n conversations, as Hugging Face's train_test_split does.
    """
    lengths = _trained_lengths(keys, files)
    if not any(file.use == "val" for file in files):
        lengths = lengths[: len(lengths) - math.ceil(float(keys.get("val_set_size", 0)) * len(lengths))]
    if not keys.get("sample_packing"):
        return len(lengths)
    return _count_packs(lengths, int(keys["sequence_len"]), int(keys.get("sample_packing_bin_size") or _BIN_SIZE))


def _count_packs(lengths: Sequence[int], room: int, most: int) -> int:
    """Count the rows that conversations are packed into: each goes into the first one that has room for it.

    As pack_group in axolotl/utils/samplers/multipack.py (0.21) does it, in another order of conversations. Of many
    conversations every second one is packed, every third, and so on, and the others are taken to be like these.

    Args:
        lengths: Tokens of each conversation.
        room: Tokens of a row.
        most: Conversations of a row.
    """
    every = math.ceil(len(lengths) / _EXACT)
    if every > 1:
        sample = lengths[::every]
        return round(_count_packs(sample, room, most) * len(lengths) / len(sample))
    rows: list[list[int]] = []  # tokens and conversations that each can still take
    for length in lengths:
        fits = next((row for row in rows if row[0] >= length and row[1]), None)
        if fits is None:
            rows.append(fits := [room, most])
        fits[0] -= length
        fits[1] -= 1
    return len(rows)


def estimate_steps(keys: dict[str, Any], files: list[dataset.DatasetFile]) -> int:
    """Estimate the optimizer steps of a run, as Axolotl counts them.

    ``max_steps``, whatever the epochs are; else, packed, epochs × (micro batches of an epoch // accumulation), where
    the last micro batch is dropped unless it is full, and otherwise ceil(epochs × conversations / effective batch).
    From calculate_total_num_steps in axolotl/utils/trainer.py (0.21).
    """
    if keys.get("max_steps"):
        return int(keys["max_steps"])
    rows, epochs = estimate_rows(keys, files), float(keys.get("num_epochs", 1))
    micro, accumulation = (int(keys.get(key, 1)) for key in recipe.BATCH)
    if keys.get("sample_packing"):
        return math.floor(max(rows // micro // accumulation, 1) * epochs)
    return math.ceil(epochs * rows / (micro * accumulation))


def estimate_work(keys: dict[str, Any], files: list[dataset.DatasetFile]) -> int:
    """Estimate the tokens that a run puts through the model, evaluations left out: steps × effective batch × row.

    A packed row is ``sequence_len`` long; otherwise it is an example.
    """
    lengths, length = _trained_lengths(keys, files), int(keys["sequence_len"])
    row = length if keys.get("sample_packing") else sum(lengths) / len(lengths)
    return round(estimate_steps(keys, files) * recipe.effective_batch(keys) * min(row, length))
