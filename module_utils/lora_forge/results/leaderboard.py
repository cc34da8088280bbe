"""Sweeps: several variants of one recipe, and their leader board by eval loss. Pure functions, and one file each."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.text import duration

COLUMNS = ["place", "variant", "run", "eval loss", "loss", "steps", "time", "cost"]
_SHOWN = 5  # places that are told of below the table of all runs


def summary_lines(output: pathlib.Path, agents: Iterable[str] = ()) -> list[str]:
    """The leader boards, for what stands under the table of all runs.

    Args:
        output: Where adapters are kept.
        agents: Only theirs; empty for the newest one of each.
    """
    lines = []
    sweeps = variants.read_sweeps(output, agents)
    if not agents:
        sweeps = list({one["agent"]: one for one in reversed(sweeps)}.values())[::-1]
    for one in sweeps:
        rows = leaderboard(output, one)
        there = sum(not row["why"] or row["eval_loss"] is not None for row in rows)
        lines.append(f"    sweep {one['name']}: {there} of {len(rows)} verified")
        lines += [f"      {row['place']}. eval {row['eval_loss']:.4g}  {row['label']}  {row['run_id']}"
                  for row in rows[:_SHOWN] if row["place"]]  # fmt: skip
    return lines


def leaderboards(output: pathlib.Path, runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The leader board of each agent whose planned runs are variants, see :func:`leaderboard`."""
    varied = [run for run in runs if run.get("variant")]
    return {
        agent: leaderboard(output, {"agent": agent, "runs": [run for run in varied if run["agent"] == agent]})
        for agent in dict.fromkeys(run["agent"] for run in varied)
    }


def table_row(row: dict[str, Any]) -> list[Any]:
    """A row of the table with :data:`COLUMNS`."""

    def figure(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, (int, float)) else "–"

    return [
        row["place"] or "–",
        row["label"],
        row["run_id"] + (" *" if row["promoted"] else ""),
        figure(row["eval_loss"]) if row["place"] else row["why"],
        figure(row["loss"]),
        row["steps"] or "–",
        duration(row["seconds"]) if row["seconds"] is not None else "–",
        f"${row['usd']:.2f}" if row["usd"] else "–",
    ]


def leaderboard(output: pathlib.Path, sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The leader board of a sweep: best eval loss first, then what cannot be compared with it, then what is not there.

    Args:
        output: Where adapters are kept.
        sweep: From :func:`noted`.

    Returns:
        {place (from 1; None where it cannot be compared or is not verified), label, run_id, eval_loss, loss, steps,
        seconds, usd, promoted, why (there is no place)} for each run.
    """
    home = output / "adapters" / sweep["agent"]
    promoted = promotion.points_to(home / promotion.LATEST)
    rows = []
    for one in sweep["runs"]:
        manifest = store.read_manifest(home / one["run_id"])
        found = promotion.evaluation_of(manifest) if manifest else {}
        rows.append({
            "place": None,
            "label": one.get("label") or variants.variant_label(one["variant"]),
            "run_id": one["run_id"],
            "evaluation": found,
            "eval_loss": found.get("eval_loss"),
            "loss": (manifest.get("loss") or {}).get("last"),
            "steps": (manifest.get("steps") or {}).get("reached"),
            "seconds": manifest.get("duration_s"),
            "usd": (manifest.get("cost") or {}).get("usd"),
            "promoted": promoted == one["run_id"],
            "why": "" if manifest else "not verified",
        })  # fmt: skip
    rows.sort(key=lambda row: (row["why"], math.inf if row["eval_loss"] is None else row["eval_loss"]))
    finite = [row for row in rows if row["eval_loss"] is not None]

    def alike(row: dict[str, Any]) -> int:
        return sum(not promotion.difference(row["evaluation"], other["evaluation"]) for other in finite)

    best = max(finite, key=alike, default=None)  # the best of those that can be compared with the most others
    place = 0
    for row in rows:
        if row["why"]:
            continue
        differs = promotion.difference(row["evaluation"], best["evaluation"]) if best else "no finite eval loss"
        if differs:
            row["why"] = f"not comparable: {differs}"
        else:
            place += 1
            row["place"] = place
    rows.sort(key=lambda row: math.inf if row["place"] is None else row["place"])
    return [{key: value for key, value in row.items() if key != "evaluation"} for row in rows]
