"""Sweeps: the variants of a recipe."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.errors import UserError
from ansible.module_utils.lora_forge.planning import variants


def test_a_grid_is_every_combination():
    assert variants.expand_sweep({"lora_r": [16, 64], "num_epochs": [3, 4]}) == [
        {"lora_r": 16, "num_epochs": 3}, {"lora_r": 16, "num_epochs": 4},
        {"lora_r": 64, "num_epochs": 3}, {"lora_r": 64, "num_epochs": 4},
    ]  # fmt: skip
    given = [{"lora_r": 16}, {"lora_r": 64, "num_epochs": 4}]
    assert variants.expand_sweep(given) == given


@pytest.mark.parametrize("given", [{}, [], "lora_r=16", [16, 64], [{}], None])
def test_what_is_no_sweep(given):
    with pytest.raises(UserError, match=r"sweep must be a grid: .* or a list: "):
        variants.expand_sweep(given)


@pytest.mark.parametrize("values", [16, [], "16,64"])
def test_a_grid_needs_lists(values):
    with pytest.raises(UserError, match=r"sweep: «lora_r» needs a list of values, such as lora_r: \[1, 2\]"):
        variants.expand_sweep({"lora_r": values})


def test_a_variant_in_words():
    said = variants.variant_label({"lora_r": 16, "learning_rate": 1.0e-4, "optimizer": "adamw_8bit"})
    assert said == "lora_r 16, learning_rate 0.0001, optimizer adamw_8bit"
