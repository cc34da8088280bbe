"""What is said of W&B without asking it."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.results import wandb_client, wandb_query


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_without_a_key_nothing_is_asked(key, monkeypatch):
    def fill(*_):
        raise AssertionError("W&B was asked")

    monkeypatch.setattr(wandb_query, "_fill", fill)
    monkeypatch.setenv("WANDB_API_KEY", key)
    found = wandb_query.ask_server(["x"], base_url="http://wandb")
    assert found["error"] == {
        "kind": "no_key",
        "msg": "W&B: no key for http://wandb: WANDB_API_KEY is not set. Make one in W&B's user settings, and: "
        "export WANDB_API_KEY=…",
    }
    assert found["runs"][0]["error"] == found["error"]


@pytest.mark.parametrize(
    ("text", "epoch"),
    [
        ("2026-01-15T10:20:30Z", 1768472430.0), ("2026-01-15T10:20:30", 1768472430.0),
        ("2026-01-15T11:20:30+01:00", 1768472430.0), ("2026-01-15T10:20:30.123456789Z", 1768472430.123456),
        ("", None), (None, None),
    ],
)  # fmt: skip
def test_times_are_read_in_every_form_that_was_seen(text, epoch):
    assert wandb_client.parse_time(text) == epoch
