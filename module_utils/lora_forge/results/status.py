"""All runs at a glance: what every trainer, the controller's own files and W&B say, one verdict for each run."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import time
from collections.abc import Collection
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.manifest import Cost, Manifest
from ansible.module_utils.lora_forge.adapters.merit import merit_of
from ansible.module_utils.lora_forge.adapters.promotion import points_to
from ansible.module_utils.lora_forge.agents import agent_of, evaluated_by
from ansible.module_utils.lora_forge.evaluation.scores import Score
from ansible.module_utils.lora_forge.json_record import JsonRecord
from ansible.module_utils.lora_forge.planning import agents
from ansible.module_utils.lora_forge.planning.run_record import read_placements
from ansible.module_utils.lora_forge.results import verdict, wandb_client, wandb_query
from ansible.module_utils.lora_forge.text import duration, short
from ansible.module_utils.lora_forge.trainer import run_state

COLUMNS = ["agent", "run", "trainer", "verdict", "step", "loss", "eval", "score", "tok/s", "gpu", "eta", "cost"]
NOTHING = "–"
WAITING_SHOWN = 10  # runs of a trainer that wait, or are not known of, and are shown one by one
GONE_SHOWN = 3  # agents without a file that are told of one by one
WANDB_TIMEOUT = 10  # seconds; it alone decides nothing, so nobody waits for it for long
WANDB_LIMIT = 30  # seconds for all of its projects, which trainers name


@dataclasses.dataclass(frozen=True)
class _LastRun(JsonRecord):
    run_id: str = ""
    trainer: str = ""
    logged: Optional[dict[str, Any]] = None


@dataclasses.dataclass(frozen=True)
class _LastStatus(JsonRecord):
    """Of output/status.json what the next look needs."""

    runs: tuple[_LastRun, ...] = ()


def ask_wandb(
    output: pathlib.Path, snapshots: dict[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Ask W&B about the runs that are logged there and not delivered yet; one question for each of its projects.

    Of a trainer that does not answer it is known from the last status which of its runs are logged. The key is for the
    server of WANDB_BASE_URL, or W&B's own: what is logged on another one is not asked for, there or here.

    Args:
        output: Where adapters are kept.
        snapshots: As of :func:`collect_status`.

    Returns:
        Its answers by run_id, and a sentence for each question that it did not answer.
    """
    delivered = {folder.name for folder in store.delivered_folders(output / "adapters")}
    projects: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    ours, elsewhere = wandb_client.server_of(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"), set()
    known = [
        (run["run_id"], run["progress"].get("wandb"))
        for snapshot in snapshots.values()
        for run in snapshot.get("runs", [])
    ]
    before = _LastStatus.from_dict(rundir.read_json(output / "status.json")).runs
    known += [(run.run_id, run.logged) for run in before if "silent" in snapshots.get(run.trainer, {})]
    for run_id, logged in known:
        place = str((logged or {}).get("run")).split("/")
        if logged and logged.get("mode") == "online" and len(place) == 3 and run_id not in delivered:
            theirs = wandb_client.server_of(str(logged.get("url") or "")) or ours
            if theirs == ours:
                projects[place[0], place[1]].append(place[2])
            else:
                elsewhere.add((run_id, theirs))
    answers: dict[str, dict[str, Any]] = {}
    notes = [
        f"W&B: {run_id} is logged on {theirs}, which is not asked: WANDB_BASE_URL and the key are for {ours}"
        for run_id, theirs in sorted(elsewhere)
    ]
    until = time.monotonic() + WANDB_LIMIT
    for number, ((entity, project), names) in enumerate(projects.items()):
        if time.monotonic() > until:
            notes.append(
                f"W&B: {len(projects) - number} of {len(projects)} projects are not asked, as it takes too long"
            )
            break
        answer = wandb_query.ask_server(sorted(set(names)), entity, project, timeout=WANDB_TIMEOUT)
        if answer["error"]:
            notes.append(answer["error"]["msg"])
        answers |= {run["asked"]: run | {"error": run["error"] or answer["error"]} for run in answer["runs"]}
    return answers, notes


def collect_status(
    output: pathlib.Path,
    snapshots: dict[str, dict[str, Any]],
    wandb: dict[str, dict[str, Any]],
    costs: Optional[dict[str, float]] = None,
) -> list[dict[str, Any]]:
    """Gather everything that is known of every run, with its verdict.

    Args:
        output: Where adapters and placements are kept.
        snapshots: trainer_info's answer of each trainer that was asked, by its name.
        wandb: From :func:`ask_wandb`.
        costs: USD by run, of those on pods that are not delivered: ``claims.cost_by_run``.

    Returns:
        For each run {run_id, agent, trainer, verdict, state, ended (an end of it was noted), unheard (its trainer
        answers, and what keeps the run there does not), detail, contradictions, next, rehearsal, promoted, step,
        planned, loss, eval_loss, score, answered, asked, tokens_per_second, gpu, nodes, eta_seconds, cost, wandb,
        seen_at}; see RETURN of library/training_status.py. By agent, newest last.
    """
    silent = {trainer: snapshot["silent"] for trainer, snapshot in snapshots.items() if "silent" in snapshot}
    seen: dict[str, list[dict[str, Any]]] = {}
    for trainer, snapshot in snapshots.items():
        for run in snapshot.get("runs", []):
            if trainer in (run["facts"].get("hosts") or [])[1:]:
                continue  # of a gang the first host speaks for the others
            seen.setdefault(run["run_id"], []).append({**run, "trainer": trainer})
    placed = read_placements(output)
    delivered = {folder.name: folder for folder in store.delivered_folders(output / "adapters")}
    rows = []
    for run_id in sorted({*seen, *placed, *delivered}):
        folder, noted = delivered.get(run_id), placed.get(run_id, {})
        lives = any(run["state"] in run_state.LIVING for run in seen.get(run_id, []))
        if evaluated_by(run_id) and noted.get("delivered_at") and not lives:
            continue  # its answers are here; what they say is the adapter's
        evidence = verdict.Evidence(
            run_id,
            snapshots=tuple(seen.get(run_id, [])),
            asked=tuple(trainer for trainer in snapshots if trainer not in silent),
            silent=silent,
            placement=noted,
            manifest=store.read_manifest(folder) if folder else None,
            defect=store.integrity_error(folder) if folder else None,
            wandb=_wandb_evidence(wandb.get(run_id)),
        )
        promoted = folder is not None and points_to(folder.parent / "latest") == run_id
        rows.append(_row(evidence, promoted, (costs or {}).get(run_id)))
    return sorted(rows, key=lambda row: (row["agent"], row["began_at"] or 0, row["run_id"]))


def _agent(evidence: verdict.Evidence) -> str:
    names = [snapshot.get("agent") for snapshot in evidence.snapshots]
    names += [evidence.manifest.agent if evidence.manifest else None]
    return next((str(name) for name in names if name), agent_of(evidence.run_id))


def _wandb_evidence(answer: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Pick what the verdict needs of W&B's answer."""
    if answer is None:
        return None
    noted = (answer.get("config") or {}).get("lora_forge") or {}
    return {key: answer.get(key) for key in ("state", "step", "heartbeat_age", "error", "url")} | {
        "fingerprint": noted.get("fingerprint") if isinstance(noted, dict) else None
    }


def _row(evidence: verdict.Evidence, promoted: bool, usd: Optional[float]) -> dict[str, Any]:
    agent, judged, manifest = _agent(evidence), verdict.judge(evidence), evidence.manifest or Manifest()
    snapshot = judged.snapshot
    progress = snapshot.get("progress") or {}
    if progress:
        step, planned, loss = progress.get("step"), progress.get("planned"), progress.get("loss")
        adapter_loss = progress.get("eval_adapter")
        eval_loss = progress.get("eval_loss") if adapter_loss is None else adapter_loss
    else:
        step, planned = manifest.steps.reached, manifest.steps.planned
        loss, eval_loss = manifest.loss.last, manifest.adapter_loss
    alive = judged.state in run_state.LIVING
    answering = run_state.answering(run_state.Progress.from_dict(progress)) if alive else ""
    merit = merit_of(evidence.manifest)
    hours = run_state.gpu_hours(snapshot.get("facts") or {}, snapshot.get("status") or {})
    rehearsal = (snapshot.get("facts") or {}).get("rehearsal") if manifest.rehearsal is None else manifest.rehearsal
    return {
        "run_id": evidence.run_id,
        "agent": agent,
        "trainer": judged.trainer,
        "verdict": judged.verdict,
        "state": judged.state,
        "ended": bool(evidence.placement.get("final")),
        "unheard": snapshot.get("state") == "unknown",
        "detail": "; ".join(filter(None, [judged.detail, answering])),
        "contradictions": list(judged.contradictions),
        "next": verdict.next_step(agent, judged, evaluates=bool(evaluated_by(evidence.run_id))),
        "rehearsal": rehearsal,
        "promoted": promoted,
        "step": step,
        "planned": planned,
        "loss": loss,
        "eval_loss": eval_loss,
        "score": None if merit is None else merit.score.as_dict() | {"unanswered": merit.unanswered},
        "answered": progress.get("answered") if answering else None,
        "asked": progress.get("asked") if answering else None,
        "tokens_per_second": progress.get("tokens_per_second") if alive else None,
        "gpu": snapshot.get("gpu") if alive else None,
        "nodes": snapshot.get("nodes", "") if alive else "",
        "eta_seconds": None if answering else snapshot.get("eta_seconds"),
        "cost": manifest.cost.as_dict() or Cost(usd=usd, gpu_hours=hours).as_dict() or None,
        "wandb": evidence.wandb,
        "logged": progress.get("wandb"),
        "began_at": (snapshot.get("status") or {}).get("first_started_at") or manifest.started_at,
        "seen_at": progress.get("last_event_at"),
    }


def table_rows(rows: list[dict[str, Any]], silent: dict[str, str]) -> list[list[str]]:
    """Lay out the table for :data:`COLUMNS`, without verified runs that something newer replaced.

    Of the runs that wait for a trainer the first :data:`WAITING_SHOWN` are shown, and how many more do.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer; one without a run gets a row of its own.
    """
    cells = []
    shown, more = _first_waiting(current_rows(rows))
    for row in shown:
        gpu = row["gpu"] or {}
        usage = [] if gpu.get("use") is None else [f"{gpu['use']}%"]
        usage += [] if gpu.get("used_mib") is None else [f"{gpu['used_mib'] / 1024:.0f} GB"]
        cells.append([
            row["agent"],
            row["run_id"] + (" *" if row["promoted"] else ""),
            row["trainer"] or NOTHING,
            row["verdict"] + (" (rehearsal)" if row["rehearsal"] else ""),
            NOTHING if row["step"] is None else f"{row['step']}/{row['planned']}",
            _figure(row["loss"]),
            _figure(row["eval_loss"]),
            _right(Score.from_dict(row["score"])),
            NOTHING if not row["tokens_per_second"] else short(row["tokens_per_second"]),
            " ".join(usage) or NOTHING,
            NOTHING if row["eta_seconds"] is None else duration(row["eta_seconds"]),
            Cost.from_dict(row["cost"] or {}).words or NOTHING,
        ])  # fmt: skip
    cells += [[NOTHING, f"and {count} more", *kind, *[NOTHING] * 7] for kind, count in more.items()]
    known = {row["trainer"] for row in rows}
    for trainer in silent:
        if trainer not in known:
            cells.append([NOTHING, NOTHING, trainer, "unknown", *[NOTHING] * (len(COLUMNS) - 4)])
    return cells


def current_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick the runs that say something of now: all but proven ones that are neither promoted nor the agent's newest."""
    trained = [row for row in rows if not evaluated_by(row["run_id"])]
    newest = {row["agent"]: row["run_id"] for row in trained}  # rows are in order, so the last one stays
    return [
        row
        for row in rows
        if row["verdict"] != "verified" or row["promoted"] or row["contradictions"] or row["run_id"] in newest.values()
    ]


def _first_waiting(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[tuple[str, str], int]]:
    """Leave out runs that wait, or are not known of, where a trainer has many of them: a sweep would hide what runs.

    Returns:
        The rows that are shown, and by trainer and state how many are not.
    """
    shown, waiting = [], collections.Counter[tuple[str, str]]()
    for row in rows:
        if (row["state"] == "queued" or row["unheard"]) and not row["contradictions"]:
            kind = (row["trainer"], row["state"])
            waiting[kind] += 1
            if waiting[kind] > WAITING_SHOWN:
                continue
        shown.append(row)
    return shown, {kind: count - WAITING_SHOWN for kind, count in waiting.items() if count > WAITING_SHOWN}


def busy(rows: list[dict[str, Any]], silent: dict[str, str], before: list[str]) -> list[str]:
    """List the trainers on which something lives, as far as anybody knows.

    What ran on a trainer that does not answer now is taken to go on, and so does what a cluster has whose Slurm does
    not; so is what was launched on one, and has no end that was noted.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer.
        before: What this returned the last time.
    """
    alive = {row["trainer"] for row in rows if row["state"] in run_state.LIVING or row["unheard"]}
    unheard = {row["trainer"] for row in rows if row["state"] == "unknown" and not row["ended"]}
    return sorted(alive | (({*before} | unheard) & silent.keys()))


def gone_lines(rows: list[dict[str, Any]], known: Collection[str]) -> list[str]:
    """Say which agents of the table have no file any more; what was trained of them is there all the same.

    Args:
        rows: From :func:`collect_status`.
        known: The agents of the checkout.
    """
    gone = [agent for agent in dict.fromkeys(row["agent"] for row in rows) if agent not in known]
    few = [f"    {agents.gone_sentence(agent)}" for agent in gone[:GONE_SHOWN]]
    more = len(gone) - GONE_SHOWN
    return few + ([f"    and {more} more agents have no file in {agents.FOLDER}"] if more > 0 else [])


def status_lines(rows: list[dict[str, Any]], silent: dict[str, str], notes: list[str]) -> list[str]:
    """Write what stands under the table: details, contradictions, what to do; then what was left out.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer, and why.
        notes: What else is to be said, such as that W&B could not be asked.
    """
    lines = []
    heard = set[tuple[str, str]]()  # what was said of a trainer that knows no more itself, for all of its runs
    for row in _first_waiting(current_rows(rows))[0]:
        if row["unheard"] and row["state"] == "unknown" and not row["contradictions"]:
            told = row["trainer"], run_state.gist(row["detail"])
            lines += [] if told in heard else [f"    {told[0]}: {told[1]}", f"      → {row['next']}"]
            heard.add(told)
            continue
        warning = run_state.loss_warning(run_state.Progress.from_dict(row)) if row["state"] in run_state.LIVING else ""
        where = run_state.where(row["state"], row["nodes"])
        said = ": ".join(filter(None, [where * (where != row["state"]), row["detail"]]))
        sentences = [said] if said and row["state"] != "verified" else []
        sentences += ([warning] if warning else []) + row["contradictions"]
        lines += [f"    {row['run_id']}: {sentence}" for sentence in sentences]
        if row["next"]:
            lines.append(f"      → {row['next']}" if sentences else f"    {row['run_id']}: {row['next']}")
    known = {row["trainer"] for row in rows if row["state"] == "unknown"}
    lines += [f"    {verdict.silence(trainer, why)}" for trainer, why in silent.items() if trainer not in known]
    earlier = len(rows) - len(current_rows(rows))
    if earlier:
        lines.append(f"    and {earlier} earlier verified run{'s' if earlier > 1 else ''}")
    if any(row["promoted"] for row in rows):
        lines.append("    * promoted: output/adapters/<agent>/latest")
    return lines + [f"    {note}" for note in notes]


def _right(score: Score) -> str:
    """Write a score in as few letters as there are: the table is as wide as most terminals."""
    return f"{score.right}/{score.cases}" if score.cases else NOTHING


def _figure(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, (int, float)) else str(value)
