"""What a webhook is told of a run, as JSON and as Slack's text."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.results import notice

RUN = PlannedRun(
    run_id="witness-0", agent="witness", name="witness", fingerprint="f", trainer="pod-1", state="to train",
    rehearsal=False, recipe={}, recipe_sha256="r", axolotl="0.21.0", datasets=(), hosts=("pod-1",),
)  # fmt: skip
DONE = {"step": 3, "planned": 12, "loss": "nan", "eval_loss": 1.25, "eval_adapter": None, "wandb": None}


def told(event: str = "failed", detail: str = "no more", usd: float = 0.0, **progress: Any) -> dict[str, Any]:
    return notice.notice(event, RUN, detail, DONE | progress, usd, 1_764_000_000.7, "0a1b")


def test_all_that_is_known() -> None:
    assert told(usd=2.5, wandb={"url": "https://wandb.example/r"}) == {
        "id": "0a1b", "event": "failed", "agent": "witness", "run_id": "witness-0", "trainer": "pod-1",
        "detail": "no more", "step": 3, "planned": 12, "loss": "nan", "eval_loss": 1.25,
        "url": "https://wandb.example/r", "cost_usd": 2.5, "at": "2025-11-24T16:00:00Z",
    }  # fmt: skip


def test_where_nothing_is_known_nothing_is_said() -> None:
    empty = notice.notice("failed", RUN, "no connection", {}, 0.0, 0, "0a1b")
    assert {key for key, value in empty.items() if value is None} == {"step", "planned", "loss", "eval_loss", "url"}
    assert notice.slack_text(empty) == "witness failed: witness-0 on pod-1\nno connection"


def test_the_eval_loss_is_that_of_the_adapter_that_is_delivered() -> None:
    assert told(eval_adapter=0.5)["eval_loss"] == 0.5
    assert told(eval_adapter=0.0)["eval_loss"] == 0.0


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("finished", "is ready"),
        ("decision", "waits for your decision"),
        ("failed", "failed"),
        ("stalled", "is stalled"),
        ("over_budget", "would cost too much"),
    ],
)
def test_slack_begins_with_who_and_what(event: str, words: str) -> None:
    text = notice.slack_text(told(event, "a <b> & c\nd", 1.239))
    assert text == (
        f"witness {words}: witness-0 on pod-1, step 3/12, loss nan, eval 1.25, 1.24 USD\na &lt;b&gt; &amp; c d"
    )


@pytest.mark.parametrize(
    ("form", "url", "slack"),
    [
        ("auto", "https://hooks.slack.com/services/x", True), ("auto", "https://example.org/hooks.slack.com", False),
        ("slack", "https://example.org", True), ("json", "https://hooks.slack.com/x", False),
        ("auto", "http://[broken", False), ("auto", "no address", False),
    ],
)  # fmt: skip
def test_the_form_follows_the_address(form: str, url: str, slack: bool) -> None:
    assert (notice.body(told(), form, url).keys() == {"text"}) is slack
