"""All runs at a glance: what every trainer, the controller's own files and W&B say, one verdict for each run."""

from __future__ import annotations

import collections
import os
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import store
from ansible.module_utils.lora_forge.adapters.promotion import points_to
from ansible.module_utils.lora_forge.agents import AGENTS
from ansible.module_utils.lora_forge.results import verdict, wandb
from ansible.module_utils.lora_forge.text import duration, short
from ansible.module_utils.lora_forge.trainer import run_state

COLUMNS = ["agent", "run", "trainer", "verdict", "step", "loss", "eval", "tok/s", "gpu", "eta", "cost"]
NOTHING = "–"
WANDB_TIMEOUT = 10  # seconds; it alone decides nothing, so nobody waits for it for long


def ask_wandb(output: pathlib.Path, looks: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What W&B says of the runs that are logged there and not delivered yet; one question for each of its projects.

    Of a trainer that does not answer it is known from the last look which of its runs are logged. The key is for the
    server of WANDB_BASE_URL, or W&B's own: what is logged on another one is not asked for, there or here.

    Args:
        output: Where adapters are kept.
        looks: As of :func:`collect_status`.

    Returns:
        Its answers by run_id, and a sentence for each question that it did not answer.
    """
    delivered = {folder.name for folder in store.delivered_folders(output / "adapters")}
    projects: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    ours, elsewhere = wandb.server_of(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"), set()
    known = [(run["run_id"], run["progress"].get("wandb")) for look in looks.values() for run in look.get("runs", [])]
    before = rundir.read_json(output / "status.json").get("runs", [])
    known += [(run["run_id"], run.get("logged")) for run in before if "silent" in looks.get(run.get("trainer"), {})]
    for run_id, logged in known:
        place = str((logged or {}).get("run")).split("/")
        if logged and logged.get("mode") == "online" and len(place) == 3 and run_id not in delivered:
            theirs = wandb.server_of(str(logged.get("url") or "")) or ours
            if theirs == ours:
                projects[place[0], place[1]].append(place[2])
            else:
                elsewhere.add((run_id, theirs))
    found: dict[str, dict[str, Any]] = {}
    notes = [
        f"W&B: {run_id} is logged on {theirs}, and not asked for: WANDB_BASE_URL means {ours}, and so does the key"
        for run_id, theirs in sorted(elsewhere)
    ]
    for (entity, project), names in projects.items():
        answer = wandb.ask_server(sorted(set(names)), entity, project, timeout=WANDB_TIMEOUT)
        if answer["error"]:
            notes.append(answer["error"]["msg"])
        found |= {run["asked"]: run | {"error": run["error"] or answer["error"]} for run in answer["runs"]}
    return found, notes


def collect_status(
    output: pathlib.Path,
    looks: dict[str, dict[str, Any]],
    wandb: dict[str, dict[str, Any]],
    costs: Optional[dict[str, float]] = None,
) -> list[dict[str, Any]]:
    """Everything that is known of every run, with its verdict.

    Args:
        output: Where adapters and placements are kept.
        looks: trainer_info's answer of each trainer that was asked, by its name.
        wandb: From :func:`ask_wandb`.
        costs: USD by run, of those on pods that are not delivered: ``claims.cost_by_run``.

    Returns:
        For each run {run_id, agent, trainer, verdict, state, ended (an end of it was noted), detail, contradictions,
        next, rehearsal, promoted, step, planned, loss, eval_loss, tokens_per_second, gpu, eta_seconds, cost, wandb,
        seen_at}; see RETURN of library/training_status.py. By agent, newest last.
    """
    silent = {trainer: look["silent"] for trainer, look in looks.items() if "silent" in look}
    seen: dict[str, list[dict[str, Any]]] = {}
    for trainer, look in looks.items():
        for run in look.get("runs", []):
            if trainer in (run["facts"].get("hosts") or [])[1:]:
                continue  # of a gang the first host speaks for the others
            seen.setdefault(run["run_id"], []).append({**run, "trainer": trainer})
    placed = {path.stem: rundir.read_json(path) for path in (output / "runs").glob("*.json")}
    delivered = {folder.name: folder for folder in store.delivered_folders(output / "adapters")}
    rows = []
    for run_id in sorted({*seen, *placed, *delivered}):
        folder = delivered.get(run_id)
        manifest = store.read_manifest(folder) if folder else {}
        found = verdict.Evidence(
            run_id,
            looks=tuple(seen.get(run_id, [])),
            asked=tuple(trainer for trainer in looks if trainer not in silent),
            silent=silent,
            placement=placed.get(run_id, {}),
            manifest=manifest,
            flaw=store.integrity_error(folder) if folder else None,
            wandb=_wandb(wandb.get(run_id)),
        )
        agent = _agent(run_id, found)
        promoted = folder is not None and points_to(folder.parent / "latest") == run_id
        rows.append(_row(agent, found, promoted, (costs or {}).get(run_id)))
    order = {agent: place for place, agent in enumerate(AGENTS)}
    return sorted(rows, key=lambda row: (order.get(row["agent"], len(order)), row["began_at"] or 0, row["run_id"]))


def _agent(run_id: str, found: verdict.Evidence) -> str:
    names = [look.get("agent") for look in found.looks] + [found.manifest.get("agent")]
    return next((str(name) for name in names if name), run_id.partition("-")[0])


def _wandb(answer: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """What the verdict needs of W&B's answer."""
    if answer is None:
        return None
    noted = (answer.get("config") or {}).get("lora_forge") or {}
    return {key: answer.get(key) for key in ("state", "step", "heartbeat_age", "error", "url")} | {
        "fingerprint": noted.get("fingerprint") if isinstance(noted, dict) else None
    }


def _row(agent: str, found: verdict.Evidence, promoted: bool, usd: Optional[float]) -> dict[str, Any]:
    what = verdict.judge(found)
    look, manifest = what.look, found.manifest
    done = look.get("progress") or {}
    steps, loss = manifest.get("steps") or {}, manifest.get("loss") or {}
    cost = manifest.get("cost") or ({} if usd is None else {"usd": usd})
    lives = what.state in run_state.LIVING
    return {
        "run_id": found.run_id,
        "agent": agent,
        "trainer": what.trainer,
        "verdict": what.verdict,
        "state": what.state,
        "ended": bool(found.placement.get("final")),
        "detail": what.detail,
        "contradictions": list(what.contradictions),
        "next": verdict.next_step(agent, what),
        "rehearsal": manifest.get("rehearsal", (look.get("facts") or {}).get("rehearsal")),
        "promoted": promoted,
        "step": done.get("step") if done else steps.get("reached"),
        "planned": done.get("planned") if done else steps.get("planned"),
        "loss": done.get("loss") if done else loss.get("last"),
        "eval_loss": store.adapter_loss({"loss": {**done, "eval_last": done.get("eval_loss")}} if done else manifest),
        "tokens_per_second": done.get("tokens_per_second") if lives else None,
        "gpu": look.get("gpu") if lives else None,
        "eta_seconds": look.get("eta_seconds"),
        "cost": cost or None,
        "wandb": found.wandb,
        "logged": done.get("wandb"),
        "began_at": (look.get("status") or {}).get("first_started_at") or manifest.get("started_at"),
        "seen_at": done.get("last_event_at"),
    }


def table_rows(rows: list[dict[str, Any]], silent: dict[str, str]) -> list[list[str]]:
    """The rows of the table, for :data:`COLUMNS`. Verified runs that something newer replaced are left out.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer; one without a run gets a row of its own.
    """
    cells = []
    for row in current_rows(rows):
        gpu = row["gpu"] or {}
        use = [] if gpu.get("use") is None else [f"{gpu['use']}%"]
        use += [] if gpu.get("used_mib") is None else [f"{gpu['used_mib'] / 1024:.0f} GB"]
        usd = (row["cost"] or {}).get("usd")
        cells.append([
            row["agent"],
            row["run_id"] + (" *" if row["promoted"] else ""),
            row["trainer"] or NOTHING,
            row["verdict"] + (" (rehearsal)" if row["rehearsal"] else ""),
            NOTHING if row["step"] is None else f"{row['step']}/{row['planned']}",
            _figure(row["loss"]),
            _figure(row["eval_loss"]),
            NOTHING if not row["tokens_per_second"] else short(row["tokens_per_second"]),
            " ".join(use) or NOTHING,
            NOTHING if row["eta_seconds"] is None else duration(row["eta_seconds"]),
            f"${usd:.2f}" if usd and isinstance(usd, (int, float)) else NOTHING,
        ])  # fmt: skip
    known = {row["trainer"] for row in rows}
    for trainer in silent:
        if trainer not in known:
            cells.append([NOTHING, NOTHING, trainer, "unknown", *[NOTHING] * 7])
    return cells


def current_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that say something of now: all but proven ones that are neither promoted nor the agent's newest."""
    newest = {row["agent"]: row["run_id"] for row in rows}  # rows are in order, so the last one stays
    return [
        row
        for row in rows
        if row["verdict"] != "verified" or row["promoted"] or row["contradictions"] or row["run_id"] in newest.values()
    ]


def busy(rows: list[dict[str, Any]], silent: dict[str, str], before: list[str]) -> list[str]:
    """The trainers on which something lives, as far as anybody knows.

    What ran on a trainer that does not answer now is taken to go on; so is what was launched on one, and has no end
    that was noted.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer.
        before: What this returned at the last look.
    """
    lives = {row["trainer"] for row in rows if row["state"] in run_state.LIVING}
    unheard = {row["trainer"] for row in rows if row["state"] == "unknown" and not row["ended"]}
    return sorted(lives | (({*before} | unheard) & silent.keys()))


def status_lines(rows: list[dict[str, Any]], silent: dict[str, str], notes: list[str]) -> list[str]:
    """What stands under the table: details, contradictions, what to do; then what was left out.

    Args:
        rows: From :func:`collect_status`.
        silent: Trainers that did not answer, and why.
        notes: What else is to be said, such as that W&B could not be asked.
    """
    lines = []
    for row in current_rows(rows):
        told = [row["detail"]] if row["detail"] and row["state"] not in ("queued", "verified") else []
        warning = run_state.loss_warning(run_state.Progress.from_dict(row))
        told += [warning] if warning and row["state"] in run_state.LIVING else []
        told += row["contradictions"]
        lines += [f"    {row['run_id']}: {sentence}" for sentence in told]
        if row["next"]:
            lines.append(f"      → {row['next']}" if told else f"    {row['run_id']}: {row['next']}")
    known = {row["trainer"] for row in rows if row["state"] == "unknown"}
    lines += [f"    {trainer} does not answer: {why}" for trainer, why in silent.items() if trainer not in known]
    earlier = len(rows) - len(current_rows(rows))
    if earlier:
        lines.append(f"    and {earlier} earlier verified run{'s' if earlier > 1 else ''}")
    if any(row["promoted"] for row in rows):
        lines.append("    * promoted: output/adapters/<agent>/latest")
    return lines + [f"    {note}" for note in notes]


def _figure(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, (int, float)) else str(value)
