"""Which checkpoints of a run stay, and which go. Python 3.9 or newer."""

from __future__ import annotations

import os
import pathlib
from typing import Any, Optional

from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.trainer import run_state, runs


def prune_plan(run_dir: pathlib.Path, keep: int) -> tuple[list[dict[str, Any]], Optional[str]]:
    """Decide which checkpoints of a run stay and which go.

    The best by eval loss stay (a checkpoint's is that of the last evaluation at or before its step), always the one
    whose adapter would be delivered as the best, and the newest whole one. What was set aside as not whole goes.

    Args:
        run_dir: The run directory.
        keep: How many of the best stay.

    Returns:
        A list of {path, step, eval_loss, bytes, keep, why}, and a reason not to touch the run at all.
    """
    status = rundir.read_status(run_dir)[0]
    if rundir.read_run(run_dir)[0].get("backend") == "slurm":  # its processes are another machine's
        seen = runs.observe(run_dir)
        if seen.state == "unknown":
            return [], f"nobody knows whether it is alive: {seen.detail}"
        living = seen.alive
    else:
        living = rundir.is_alive(status.get("supervisor")) or bool(rundir.run_processes(run_dir))
    if living:
        return [], "it is alive"
    events, _ = rundir.read_events(run_dir / "metrics.jsonl")
    losses = [
        (event["step"], event["eval_loss"])
        for event in rundir.surviving_events(events)
        if event["event"] == "eval" and "step" in event and run_state.finite(event.get("eval_loss"))
    ]
    output = run_dir / "output"
    rows: list[dict[str, Any]] = []
    for step, path in rundir.checkpoints(output):
        why = rundir.defect(path)
        loss = next((loss for at, loss in reversed(losses) if at <= step), None)
        rows.append({"path": path, "step": step, "eval_loss": loss, "keep": False, "why": why or ""})
    whole = [row for row in rows if not row["why"]]
    ranked = sorted(
        (row for row in whole if row["eval_loss"] is not None), key=lambda row: (row["eval_loss"], -row["step"])
    )
    for place, row in enumerate(ranked):
        row["keep"] = place < keep
        row["why"] = f"number {place + 1} by eval loss"
    if whole:
        best = rundir.read_json(whole[-1]["path"] / "trainer_state.json").get("best_global_step")
        for row in whole:
            if row["step"] == best:
                row["keep"], row["why"] = True, "the best evaluated one"
        whole[-1]["keep"] = True
        whole[-1]["why"] = "the newest whole one"
    if output.is_dir():
        for path in sorted(output.glob("incomplete-checkpoint-*")):
            rows.append({"path": path, "step": None, "eval_loss": None, "keep": False, "why": "set aside: not whole"})
    for row in rows:
        row["bytes"] = sum(file.stat().st_size for file in row["path"].rglob("*") if file.is_file())
        row["path"] = str(row["path"])
    return rows, None


def prune_table(run_id: str, rows: list[dict[str, Any]], left_alone: Optional[str], check: bool) -> dict[str, Any]:
    """Lay out for people which checkpoints of a run stay and which go, as ``show`` takes it.

    Args:
        run_id: The run.
        rows: From :func:`prune_plan`.
        left_alone: From there, too.
        check: Whether it was only predicted.
    """
    freed = sum(row["bytes"] for row in rows if not row["keep"])
    outcome = f"{round(freed / 1e6, 1)} MB {'would be freed' if check else 'freed'}"
    return {
        "columns": ["checkpoint", "step", "eval loss", "MB", "", "why"],
        "rows": [
            [
                os.path.basename(row["path"]),
                "–" if row["step"] is None else row["step"],
                "–" if row["eval_loss"] is None else f"{row['eval_loss']:.4f}",
                round(row["bytes"] / 1e6, 1),
                "stays" if row["keep"] else "goes",
                row["why"],
            ]
            for row in rows
        ],
        "lines": [f"  {run_id}: {f'left alone: {left_alone}' if left_alone else outcome}"],
    }
