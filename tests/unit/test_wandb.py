"""What is said of W&B without asking it."""

from __future__ import annotations

import pytest
from ansible.module_utils.lora_forge.results import wandb_client, wandb_query, wandb_records


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


@pytest.mark.parametrize("time", ["soon", [], {}, float("inf"), float("nan")])
def test_a_record_with_a_time_that_is_none_keeps_no_other_one_from_being_uploaded(time):
    record = {"id": "x", "synced": False, "summary": {"_timestamp": time}}
    there = {"x": {"state": "finished", "summary": {"_timestamp": 5.0}}}
    assert wandb_records._is_uploaded(there, record)


def test_a_record_that_no_client_writes_is_an_error_of_its_own(tmp_path, monkeypatch):
    told = iter(['{"run_id": "x", "summary": []}', '{"type": "history"}'])
    monkeypatch.setattr(wandb_client, "run_command", lambda *_: (0, next(told), ""))
    (tmp_path / "run-x").mkdir()
    (tmp_path / "run-x/run-x.wandb").touch()
    (run,) = wandb_records.read_records(tmp_path)["runs"]
    assert run["error"]["kind"] == "answer"
