"""What is true of a run, concluded from everything that was observed of it. Pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters.manifest import Manifest
from ansible.module_utils.lora_forge.text import duration
from ansible.module_utils.lora_forge.trainer.run_state import LIVING

WANDB_LAG = 360.0  # seconds after an end in which W&B may not have heard of it; it misses a heartbeat after 300


def silence(trainer: str, why: str) -> str:
    """Say that nothing is known from a trainer; one that answered, and not as it should, is not called silent.

    Args:
        trainer: Its name.
        why: The reason.
    """
    if why.startswith(f"{trainer} "):  # it says so itself
        return why
    return f"{trainer}: {why}" if why.startswith("its answer ") else f"{trainer} does not answer: {why}"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Everything that is known of a run, from every source.

    Attributes:
        run_id: Its name.
        snapshots: What each trainer that has it said: training_run_info's answer, with its name as ``trainer``.
        asked: The trainers that answered.
        silent: The trainers that did not, and why.
        placement: output/runs/<run_id>.json; empty without one.
        manifest: Of the delivered adapter; None without one.
        defect: What is wrong with the delivered files; None when nothing is.
        wandb: What W&B says: state, and fingerprint (as it was logged; None without); or ``error`` (kind and msg); None
            where W&B was not asked.
    """

    run_id: str
    snapshots: tuple[dict[str, Any], ...] = ()
    asked: tuple[str, ...] = ()
    silent: dict[str, str] = dataclasses.field(default_factory=dict)
    placement: dict[str, Any] = dataclasses.field(default_factory=dict)
    manifest: Optional[Manifest] = None
    defect: Optional[str] = None
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
        snapshot: The one that counted; empty without one.
    """

    verdict: str
    state: str
    detail: str = ""
    contradictions: tuple[str, ...] = ()
    trainer: Optional[str] = None
    snapshot: dict[str, Any] = dataclasses.field(default_factory=dict)


def judge(evidence: Evidence) -> _Verdict:
    """Conclude what is true of a run from everything that is known of it.

    What the trainer's processes and files say comes before what somebody wrote down, and a proof before any claim. W&B
    never decides: it lags, and it says «running» of what died and «crashed» of what lives. A trainer that does not
    answer is no failure: what runs there goes on.

    Args:
        evidence: All of it.
    """
    # Where several trainers have it (it was moved): the one it lives on, else where it was placed, else the last one.
    snapshots = sorted(
        evidence.snapshots,
        key=lambda snapshot: (
            snapshot["state"] in LIVING,
            snapshot["trainer"] == evidence.placement.get("trainer"),
            snapshot["progress"]["last_event_at"] or 0,
        ),
    )
    snapshot, placed = snapshots[-1] if snapshots else {}, evidence.placement.get("trainer")
    if (
        snapshot
        and snapshot["state"] not in LIVING
        and placed in evidence.silent
        and not evidence.placement.get("final")
    ):
        snapshot = {}  # it was moved there, and nobody knows what becomes of it
    trainer = snapshot.get("trainer") or placed or (evidence.manifest.host.name if evidence.manifest else None)
    state, detail = _own_state(evidence, snapshot, trainer)
    own = _own_contradictions(evidence, snapshots)
    others = [] if evidence.wandb is None else _wandb_contradictions(evidence, state, snapshot)
    if state == "unknown" and evidence.wandb and not evidence.wandb.get("error"):
        detail += f"; W&B says {evidence.wandb['state']}, which alone decides nothing"
    # A proven adapter stays proven, whatever W&B missed.
    disputed = own or (others and state != "verified")
    return _Verdict("disputed" if disputed else state, state, detail, (*own, *others), trainer, snapshot)


def _own_state(evidence: Evidence, snapshot: dict[str, Any], trainer: Optional[str]) -> tuple[str, str]:
    """Conclude state and detail from the run's own sources."""
    if evidence.manifest:
        return ("verified", "") if evidence.defect is None else ("finished", "")
    placed = evidence.placement.get("state")
    if snapshot:
        state, detail = snapshot["state"], snapshot["detail"]
        if state == "finished" and placed == "failed":
            return "failed", str(evidence.placement.get("detail") or "its adapter was not verified")
        if state == "stalled" and snapshot.get("gpu_busy") is not None:
            detail += f", while its GPU is {snapshot['gpu_busy']:.0f} % busy"
        return state, detail
    if trainer in evidence.silent:
        launched = f"; the last that is known: {placed}" if placed else ""
        return "unknown", f"{silence(trainer, evidence.silent[trainer])}{launched}"
    if placed == "finished" and trainer in evidence.asked:
        return "absent", f"it ran to its end on {trainer}, which has no such run any more"
    if evidence.placement.get("final") and placed:
        return str(placed), str(evidence.placement.get("detail") or "")
    if trainer in evidence.asked:
        return "absent", f"it was launched on {trainer}, which has no such run any more"
    if trainer:
        return "unknown", f"it was launched on {trainer}, which was not asked"
    return "absent", "no trainer has it"


def _own_contradictions(evidence: Evidence, snapshots: list[dict[str, Any]]) -> list[str]:
    """List where the run's own sources contradict each other."""
    manifest = evidence.manifest or Manifest()
    sentences = []
    if evidence.manifest and evidence.defect:
        sentences.append(f"the adapter was verified, but {evidence.defect}")
    alive = [snapshot["trainer"] for snapshot in snapshots if snapshot["state"] in LIVING]
    if len(alive) > 1:
        sentences.append(f"it runs on {' and on '.join(sorted(alive))} at the same time")
    elif alive and evidence.manifest:
        sentences.append(f"its adapter is delivered, but it still runs on {alive[0]}")
    names = {f"{snapshot['trainer']}: run.json": snapshot.get("facts", {}).get("run_id") for snapshot in snapshots}
    names["manifest.json"] = manifest.run_id
    sentences += [
        f"{source} is that of {name}" for source, name in names.items() if name not in (None, evidence.run_id)
    ]
    fingerprints = {f"{snapshot['trainer']}": snapshot.get("facts", {}).get("fingerprint") for snapshot in snapshots}
    fingerprints["the manifest"] = manifest.fingerprint
    known = {source: fingerprint[:12] for source, fingerprint in fingerprints.items() if fingerprint}
    if len(set(known.values())) > 1:
        recipes = ", ".join(f"{source} {fingerprint}" for source, fingerprint in known.items())
        sentences.append(f"the sources name different recipes: {recipes}")
    return sentences


def _wandb_contradictions(evidence: Evidence, state: str, snapshot: dict[str, Any]) -> list[str]:
    """List where W&B contradicts the run itself, once it had time to hear of it."""
    wandb, manifest = evidence.wandb or {}, evidence.manifest or Manifest()
    says, theirs = wandb.get("state"), wandb.get("fingerprint")
    ours = (snapshot.get("facts") or {}).get("fingerprint") or manifest.fingerprint
    if says is None:
        return []
    if theirs and ours and theirs != ours:
        return [f"W&B's run of this name has another recipe: {theirs[:12]} instead of {ours[:12]}"]
    lives = says in ("running", "pending", "preempting")
    ended = snapshot.get("silent_for") if snapshot and snapshot["state"] not in LIVING else None
    if state in ("running", "stalled") and not lives:
        # Until a resumed start has begun to train W&B may still have the last one's end.
        begun = (snapshot["progress"].get("began_at") or 0) >= (snapshot["status"].get("started_at") or 0)
        crash = state == "stalled" and says == "crashed"
        if snapshot["progress"]["measured"] and begun and not crash:
            return [f"W&B says {says}, but the process is alive, at step {snapshot['progress']['step']}"]
    elif state in ("stopped", "failed", "finished", "verified") and lives:
        if (ended is None or ended > WANDB_LAG) and not snapshot.get("alive"):
            since = f" {duration(ended)} ago" if ended is not None else ""
            code = snapshot["status"].get("exit_code") if snapshot else None
            return [f"W&B says {says}, but the process ended{since}" + (f" with exit code {code}" if code else "")]
    elif state == "failed" and says == "finished" and snapshot and snapshot["status"].get("exit_code") != 0:
        # (With exit code 0 it is right about the process, and of the adapter it knows nothing.)
        return ["W&B says finished, but it failed"]
    elif state in ("finished", "verified") and says in ("failed", "crashed", "killed"):
        return [f"W&B says {says}, but the training ran to its end"]
    return []


def next_step(agent: str, verdict: _Verdict, evaluates: bool = False) -> str:
    """Tell what a user does about a run, in a line; empty where there is nothing to do.

    Args:
        agent: Whose run.
        verdict: What is true of it.
        evaluates: Whether it is an evaluation of a delivered adapter.
    """
    if evaluates:
        again = f"playbooks/evaluate.yml -e role={agent} "
        steps = {"finished": f"{again}collects it", "stopped": f"{again}goes on", "failed": f"{again}asks again",
                 "stalled": f"playbooks/stop.yml -e role={agent}, then {again}goes on"}  # fmt: skip
        return steps.get(verdict.state, "")
    step = (verdict.snapshot.get("checkpoint") or {}).get("step") or 0
    again = f"train.yml again: resumes at step {step}" if step else "train.yml again"
    logs = f"playbooks/logs.yml -e role={agent}"
    help_file = f"; {logs} -e bundle=true makes a file for whoever helps"
    if verdict.state == "finished":  # where its recipe is another one by now, train.yml would train that
        collects = f"playbooks/collect.yml -e role={agent} collects it"
        return f"train.yml -e role={agent} -e verify=true" if verdict.contradictions else collects
    if verdict.state == "stalled":
        return f"{logs}; playbooks/stop.yml -e role={agent}, then {again}"
    if (
        verdict.state == "unknown" and verdict.snapshot.get("state") == "unknown"
    ):  # its trainer answers, and knows no more
        return f"the same command when Slurm answers on {verdict.trainer} again; what runs goes on"
    if verdict.state == "failed" and verdict.snapshot.get("state") == "finished":  # its adapter is no good
        return f"{logs}, then train.yml -e role={agent} -e fresh=true trains again{help_file}"
    return {"failed": f"{logs}, then {again}{help_file}", "stopped": again}.get(verdict.state, "")
