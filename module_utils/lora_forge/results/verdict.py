"""What is true of a run, concluded from everything that was observed of it. Pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from ansible.module_utils.lora_forge.text import duration
from ansible.module_utils.lora_forge.trainer.run_state import LIVING

WANDB_LAG = 360.0  # seconds after an end in which W&B may not have heard of it; it misses a heartbeat after 300


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that is known of a run, from every source.

    Attributes:
        run_id: Its name.
        looks: What each trainer that has it said: training_run_info's answer, with the trainer's name as ``trainer``.
        asked: The trainers that answered.
        silent: The trainers that did not, and why.
        placement: output/runs/<run_id>.json; empty without one.
        manifest: Of the delivered adapter; empty without one.
        flaw: What is wrong with the delivered files; None when nothing is.
        wandb: What W&B says: state, and fingerprint (as it was logged; None without); or ``error`` (kind and msg); None
            where W&B was not asked.
    """

    run_id: str
    looks: tuple[dict[str, Any], ...] = ()
    asked: tuple[str, ...] = ()
    silent: dict[str, str] = dataclasses.field(default_factory=dict)
    placement: dict[str, Any] = dataclasses.field(default_factory=dict)
    manifest: dict[str, Any] = dataclasses.field(default_factory=dict)
    flaw: Optional[str] = None
    wandb: Optional[dict[str, Any]] = None


@dataclasses.dataclass(frozen=True)
class _Verdict:
    """What is true of a run.

    Attributes:
        verdict: One of absent, queued, running, stalled, stopped, failed, finished, verified, unknown, disputed.
        state: The same without ``disputed``: what the run's own sources say.
        detail: Why, in a sentence; empty where there is nothing to say.
        contradictions: Where sources contradict each other, a sentence each.
        trainer: Where it is, or was; None where nobody knows.
        look: The observation that counted; empty without one.
    """

    verdict: str
    state: str
    detail: str = ""
    contradictions: tuple[str, ...] = ()
    trainer: Optional[str] = None
    look: dict[str, Any] = dataclasses.field(default_factory=dict)


def judge(found: Evidence) -> _Verdict:
    """Conclude what is true of a run from everything that is known of it.

    What the trainer's processes and files say comes before what somebody wrote down, and a proof before any word. W&B
    never decides: it lags, and it says «running» of what died and «crashed» of what lives. A trainer that does not
    answer is no failure: what runs there goes on.

    Args:
        found: The evidence.
    """
    # Where several trainers have it (it was moved): the one it lives on, else where it was placed, else the last one.
    looks = sorted(
        found.looks,
        key=lambda look: (
            look["state"] in LIVING,
            look["trainer"] == found.placement.get("trainer"),
            look["progress"]["last_event_at"] or 0,
        ),
    )
    look, placed = looks[-1] if looks else {}, found.placement.get("trainer")
    if look and look["state"] not in LIVING and placed in found.silent and not found.placement.get("final"):
        look = {}  # it was moved there, and nobody knows what becomes of it
    trainer = look.get("trainer") or placed or (found.manifest.get("host") or {}).get("name")
    state, detail = _own_state(found, look, trainer)
    against = _own_contradictions(found, looks)
    doubts = [] if found.wandb is None else _wandb_contradictions(found, state, look)
    if state == "unknown" and found.wandb and not found.wandb.get("error"):
        detail += f"; W&B says {found.wandb['state']}, which alone decides nothing"
    # A proven adapter stays proven, whatever W&B missed.
    disputed = against or (doubts and state != "verified")
    return _Verdict("disputed" if disputed else state, state, detail, (*against, *doubts), trainer, look)


def _own_state(found: Evidence, look: dict[str, Any], trainer: Optional[str]) -> tuple[str, str]:
    """State and detail from the run's own sources."""
    if found.manifest:
        return ("verified", "") if found.flaw is None else ("finished", "")
    placed = found.placement.get("state")
    if look:
        state, detail = look["state"], look["detail"]
        if state == "finished" and placed == "failed":
            return "failed", str(found.placement.get("detail") or "its adapter was not verified")
        if state == "stalled" and look.get("gpu_busy") is not None:
            detail += f", while its GPU is {look['gpu_busy']:.0f} % busy"
        return state, detail
    if trainer in found.silent:
        launched = f"; the last that is known: {placed}" if placed else ""
        return "unknown", f"{trainer} does not answer: {found.silent[trainer]}{launched}"
    if placed == "finished" and trainer in found.asked:
        return "absent", f"it ran to its end on {trainer}, which has no such run any more"
    if found.placement.get("final") and placed:
        return str(placed), str(found.placement.get("detail") or "")
    if trainer in found.asked:
        return "absent", f"it was launched on {trainer}, which has no such run any more"
    if trainer:
        return "unknown", f"it was launched on {trainer}, which was not asked"
    return "absent", "no trainer has it"


def _own_contradictions(found: Evidence, looks: list[dict[str, Any]]) -> list[str]:
    """Where the run's own sources contradict each other."""
    told = []
    if found.manifest and found.flaw:
        told.append(f"the adapter was verified, but {found.flaw}")
    alive = [look["trainer"] for look in looks if look["state"] in LIVING]
    if len(alive) > 1:
        told.append(f"it runs on {' and on '.join(sorted(alive))} at the same time")
    elif alive and found.manifest:
        told.append(f"its adapter is delivered, but it still runs on {alive[0]}")
    names = {f"{look['trainer']}: run.json": look.get("facts", {}).get("run_id") for look in looks}
    names["manifest.json"] = found.manifest.get("run_id")
    told += [f"{source} is that of {name}" for source, name in names.items() if name not in (None, found.run_id)]
    marks = {f"{look['trainer']}": look.get("facts", {}).get("fingerprint") for look in looks}
    marks["the manifest"] = found.manifest.get("fingerprint")
    known = {source: mark[:12] for source, mark in marks.items() if mark}
    if len(set(known.values())) > 1:
        told.append("the sources name different recipes: " + ", ".join(f"{who} {mark}" for who, mark in known.items()))
    return told


def _wandb_contradictions(found: Evidence, state: str, look: dict[str, Any]) -> list[str]:
    """Where W&B contradicts the run itself, once it had time to hear of it."""
    wandb = found.wandb or {}
    says, told = wandb.get("state"), wandb.get("fingerprint")
    ours = (look.get("facts") or {}).get("fingerprint") or found.manifest.get("fingerprint")
    if says is None:
        return []
    if told and ours and told != ours:
        return [f"W&B's run of this name has another recipe: {told[:12]} instead of {ours[:12]}"]
    lives = says in ("running", "pending", "preempting")
    ended = look.get("silent_for") if look and look["state"] not in LIVING else None
    if state in ("running", "stalled") and not lives:
        # Until a resumed start has begun to train W&B may still have the last one's end.
        begun = (look["progress"].get("began_at") or 0) >= (look["status"].get("started_at") or 0)
        crash = state == "stalled" and says == "crashed"
        if look["progress"]["measured"] and begun and not crash:
            return [f"W&B says {says}, but the process is alive, at step {look['progress']['step']}"]
    elif state in ("stopped", "failed", "finished", "verified") and lives:
        if (ended is None or ended > WANDB_LAG) and not look.get("alive"):
            since = f" {duration(ended)} ago" if ended is not None else ""
            code = look["status"].get("exit_code") if look else None
            return [f"W&B says {says}, but the process ended{since}" + (f" with exit code {code}" if code else "")]
    elif state == "failed" and says == "finished" and look and look["status"].get("exit_code") != 0:
        # (With exit code 0 it is right about the process, and of the adapter it knows nothing.)
        return ["W&B says finished, but it failed"]
    elif state in ("finished", "verified") and says in ("failed", "crashed", "killed"):
        return [f"W&B says {says}, but the training ran to its end"]
    return []


def next_step(agent: str, verdict: _Verdict) -> str:
    """What a user does about a run, in a line; empty where there is nothing to do.

    Args:
        agent: Whose run.
        verdict: What is true of it.
    """
    step = (verdict.look.get("checkpoint") or {}).get("step") or 0
    again = f"train.yml again: resumes at step {step}" if step else "train.yml again"
    logs = f"playbooks/logs.yml -e role={agent}"
    if verdict.state == "finished":
        return f"train.yml -e role={agent} -e verify=true" if verdict.contradictions else "train.yml again collects it"
    if verdict.state == "stalled":
        return f"{logs}; playbooks/stop.yml -e role={agent}, then {again}"
    if verdict.state == "failed" and verdict.look.get("state") == "finished":  # its adapter is no good
        return f"{logs}, then train.yml -e role={agent} -e fresh=true trains again"
    return {"failed": f"{logs}, then {again}", "stopped": again}.get(verdict.state, "")
