"""The state of a run on its trainer, from its files and processes. Pure functions."""

from __future__ import annotations

import math
from typing import Any, Optional

NEEDED: dict[Any, tuple[str, ...]] = {"data": ("examples", "tokens"), "log": ("loss",), "eval": ("eval_loss",)}
LIVING = ("queued", "running", "stalled")  # some process of it is there
EARLY = "early stopping"  # how the plugin words it
RESTART_WITHIN = 90.0  # seconds after which systemd is not waited for any longer; it waits 5 s itself


def progress(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up the events of a run.

    Args:
        events: From ``rundir.surviving_events``, oldest first.

    Returns:
        step, planned (steps), measured (steps since the newest start), epoch, loss_first, loss, eval_first, eval_loss,
        tokens_per_second, seconds_per_step (of the newest start), began_at (the newest start) and last_event_at (epoch
        seconds), ended, end_reason, wandb (of the newest start: mode, run as entity/project/id, url), and data:
        examples, tokens, longer, dropped, untrainable, summed over the training and evaluation sets; of what is
        delivered in the end adapter_step (the step that it is of) and eval_adapter (its eval loss). None where nothing
        is known. What is no event of ours is passed over.
    """
    found: dict[str, Any] = dict.fromkeys(
        ("step", "planned", "epoch", "loss_first", "loss", "eval_first", "eval_loss", "tokens_per_second",
         "adapter_step", "eval_adapter", "seconds_per_step", "began_at", "last_event_at", "end_reason", "wandb", "data")
    )  # fmt: skip
    events = [event for event in events if _whole(event)]
    found["ended"] = False
    began: Optional[dict[str, Any]] = None
    # Once for each set: a start that tokenises again counts the same again.
    data = list({(event["examples"], event["tokens"]): event for event in events if event["event"] == "data"}.values())
    found["measured"] = 0
    evaluated: dict[Any, Any] = {}
    if data:
        keys = ("examples", "tokens", "longer", "dropped", "untrainable")
        found["data"] = {key: sum(int(event.get(key, 0)) for event in data) for key in keys}
    for event in events:
        kind = event["event"]
        found["last_event_at"] = event["time"]
        if kind == "wandb":
            found["wandb"] = {key: event.get(key) for key in ("mode", "run", "url")}
        if kind in ("data", "wandb"):
            continue
        found["step"], found["planned"] = event.get("step"), event.get("planned")
        if kind == "begin":
            began, found["ended"], found["end_reason"], found["measured"] = event, False, None, 0
            found["began_at"] = event["time"]
        elif kind == "log":
            found["loss_first"] = event["loss"] if found["loss_first"] is None else found["loss_first"]
            for key in ("loss", "tokens_per_second", "epoch"):
                found[key] = event.get(key)
        elif kind == "eval":
            found["eval_first"] = event["eval_loss"] if found["eval_first"] is None else found["eval_first"]
            found["eval_loss"] = evaluated[event["step"]] = event["eval_loss"]
        elif kind == "end":
            found["ended"], found["end_reason"] = True, event.get("reason")
            at = event.get("adapter")
            found["adapter_step"] = at if isinstance(at, int) else event["step"]
            found["eval_adapter"] = evaluated.get(found["adapter_step"])
        if began is not None and kind in ("log", "end") and event["step"] > began["step"]:
            found["measured"] = event["step"] - began["step"]
            found["seconds_per_step"] = (event["time"] - began["time"]) / (event["step"] - began["step"])
    return found


def _whole(event: dict[str, Any]) -> bool:
    """Whether an event has what :func:`progress` reads of its kind."""
    kind = event.get("event")
    numbers = ("time",) if kind in ("data", "wandb") else ("step", "planned", "time")
    known = all(isinstance(event.get(key), (int, float)) for key in numbers)
    return known and kind is not None and all(key in event for key in NEEDED.get(kind, ()))


def eta_seconds(done: dict[str, Any]) -> Optional[float]:
    """Seconds until the last step at the pace so far; None before the first step."""
    if not done["seconds_per_step"] or done["planned"] is None:
        return None
    return max(0.0, (done["planned"] - done["step"]) * done["seconds_per_step"])


def finite(value: Any) -> bool:
    """Whether a logged figure is a finite number (NaN and infinity are logged as text)."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def loss_warning(done: dict[str, Any]) -> str:
    """What of the losses so far will not do, in words; empty where nothing is wrong.

    Args:
        done: From :func:`progress`.
    """
    if done["loss"] is not None and not finite(done["loss"]):
        return f"its loss is {done['loss']} at step {done['step']}; it goes on, and would end as failed"
    if done["eval_loss"] is not None and not finite(done["eval_loss"]):
        return f"its eval loss is {done['eval_loss']}; it goes on, and latest moves to no adapter of such a loss"
    return ""


def unproven_reasons(status: dict[str, Any], done: dict[str, Any], flaw: Optional[str] = None) -> list[str]:
    """What speaks against a run that says it finished: an exit code of 0 alone proves nothing.

    Args:
        status: status.json.
        done: From :func:`progress`.
        flaw: What is wrong with the adapter's files, as far as was looked; None when nothing is.
    """
    found = []
    if status.get("exit_code") != 0:
        found.append(f"the trainer's exit code is {status.get('exit_code')}")
    if done["step"] is None or (done["step"] < (done["planned"] or 1) and done["end_reason"] != EARLY):
        found.append(f"{done['step']} of {done['planned']} steps were reached")
    if not finite(done["loss"]):
        found.append(f"the last loss is {done['loss']}")
    return found + ([flaw] if flaw else [])


def conclude(
    status: dict[str, Any],
    done: dict[str, Any],
    supervisor_alive: bool,
    trainer_alive: bool,
    heartbeat_age: Optional[float],
    step_age: Optional[float],
    heartbeat_timeout: float,
    stall_timeout: float,
    comes_back: bool = False,
    flaw: Optional[str] = None,
) -> tuple[str, str]:
    """The state of a run on its trainer, and a sentence on it.

    Args:
        status: status.json, or an empty object.
        done: From :func:`progress`.
        supervisor_alive: The very process noted in status.json is there.
        trainer_alive: Some process of the run is there.
        heartbeat_age: Seconds since the supervisor's last word, by the trainer's own clock.
        step_age: Seconds since the last event of the training, or since its start.
        heartbeat_timeout: Seconds of silence after which the supervisor counts as stalled.
        stall_timeout: Seconds without an event after which the training counts as stalled.
        comes_back: Something on the host (systemd) starts a supervisor that died again.
        flaw: What is wrong with the adapter's files of a run that says it finished.

    Returns:
        The state (absent, queued, running, stalled, stopped, failed or finished) and why.
    """
    said = status.get("state")
    reason = status.get("reason") or {}
    if said is None:
        return "absent", "there is no such run on this trainer"
    if said == "finished":
        against = unproven_reasons(status, done, flaw)
        return ("failed", f"not proven: it says finished, but {' and '.join(against)}") if against else (said, "")
    if said in ("failed", "stopped"):
        return said, f"{reason['kind']}: {reason['detail']}" if reason else ""
    if not supervisor_alive:
        if comes_back and heartbeat_age is not None and heartbeat_age < RESTART_WITHIN:
            return "running", "its supervisor is gone (killed, or the host restarted); systemd starts it again"
        left = "; its trainer still runs, and the next start takes it over" if trainer_alive else ""
        return "stopped", f"the supervisor is gone (killed, or the host restarted){left}; the same command resumes"
    if heartbeat_age is not None and heartbeat_age > heartbeat_timeout:
        return "stalled", f"the supervisor has been silent for {heartbeat_age:.0f} s"
    if said == "running" and step_age is not None and step_age > stall_timeout:
        return "stalled", f"no step for {step_age:.0f} s"
    return ("queued", f"waits for lane {status.get('lane')}") if said == "queued" else ("running", "")
