"""What a webhook is told of a run. Pure functions."""

from __future__ import annotations

import time
import urllib.parse
from typing import Any

from ansible.module_utils.lora_forge.adapters.manifest import Manifest
from ansible.module_utils.lora_forge.planned_run import PlannedRun

EVENTS = {  # how Slack's line begins after the agent's name
    "finished": "is ready",
    "decision": "waits for your decision",
    "failed": "failed",
    "stalled": "is stalled",
    "over_budget": "would cost too much",
}


def notice(
    event: str, run: PlannedRun, detail: str, progress: dict[str, Any], usd: float, now: float, message: str
) -> dict[str, Any]:
    """Return what is sent as JSON. Figures that are not finite were logged as text, and stay so.

    Args:
        event: One of EVENTS.
        run: The planned run.
        detail: What happened, in a sentence.
        progress: How far the run is known to be; may be empty.
        usd: What it has cost so far.
        now: Epoch seconds.
        message: Its id: another message has another one, and what is sent twice the same.
    """
    adapter_loss = progress.get("eval_adapter")
    return {
        "id": message,
        "event": event,
        "agent": run.agent,
        "run_id": run.run_id,
        "trainer": run.trainer,
        "detail": detail,
        "step": progress.get("step"),
        "planned": progress.get("planned"),
        "loss": progress.get("loss"),
        "eval_loss": progress.get("eval_loss") if adapter_loss is None else adapter_loss,
        "url": (progress.get("wandb") or {}).get("url"),
        "cost_usd": usd,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
    }


def progress_of(manifest: Manifest) -> dict[str, Any]:
    """Return how far a delivered run came, as :func:`notice` takes it, where its trainer is not asked any more.

    Args:
        manifest: Its adapter's.
    """
    loss, steps = manifest.loss, manifest.steps
    return {
        "step": steps.reached,
        "planned": steps.planned,
        "loss": loss.last,
        "eval_loss": loss.eval_last,
        "eval_adapter": loss.eval_adapter,
        "wandb": {"url": manifest.wandb.get("url")},
    }


def slack_text(notice: dict[str, Any]) -> str:
    """Return the same for Slack: a line of facts, the detail, and W&B's page; its markup is escaped.

    Args:
        notice: From :func:`notice`.
    """
    facts = [f"{notice['agent']} {EVENTS[notice['event']]}: {notice['run_id']} on {notice['trainer']}"]
    if notice["step"] is not None:
        facts.append(f"step {notice['step']}/{notice['planned']}")
    for name, value in (("loss", notice["loss"]), ("eval", notice["eval_loss"])):
        if value is not None:
            facts.append(f"{name} {value:.4g}" if isinstance(value, (int, float)) else f"{name} {value}")
    if notice["cost_usd"]:
        facts.append(f"{notice['cost_usd']:.2f} USD")
    lines = [", ".join(facts), str(notice["detail"]).replace("\n", " "), notice["url"]]
    text = "\n".join(str(line) for line in lines if line)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def body(notice: dict[str, Any], form: str, url: str) -> dict[str, Any]:
    """Return what is posted.

    Args:
        notice: From :func:`notice`.
        form: ``json``, ``slack``, or ``auto`` for what the address asks for.
        url: The address.
    """
    slack = form == "slack" or (form == "auto" and _host(url) == "hooks.slack.com")
    return {"text": slack_text(notice)} if slack else notice


def _host(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:  # no address at all: sending it fails, and that is told
        return ""
