"""Sweeps: several variants of one recipe, and their leader board by eval loss. Pure functions, and one file each."""

from __future__ import annotations

import hashlib
import itertools
import math
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from ansible.module_utils.lora_forge import adapter, promotion, recipe, rundir, summary
from ansible.module_utils.lora_forge.errors import ForgeError

FOLDER = "sweeps"  # of output/
COLUMNS = ["place", "variant", "run", "eval loss", "loss", "steps", "time", "cost"]
SHOWN = 5  # places that are told of below the table of all runs
FORMS = (
    'a grid: -e \'{"sweep": {"lora_r": [16, 64], "learning_rate": [1.0e-4, 2.0e-4]}}\', '
    'or a list: -e \'{"sweep": [{"lora_r": 16}, {"lora_r": 64, "num_epochs": 4}]}\''
)


def expand(given: Any) -> list[dict[str, Any]]:
    """The variants of a sweep: recipe overrides, one mapping for each.

    Args:
        given: A grid (key -> list of values; every combination is a variant, the last key varies fastest), or the list
            of variants itself.

    Raises:
        ForgeError: It is neither, or empty.
    """
    if isinstance(given, dict) and given:
        lacking = [key for key, values in given.items() if not isinstance(values, list) or not values]
        if lacking:
            raise ForgeError(f"sweep: «{lacking[0]}» needs a list of values, such as {lacking[0]}: [1, 2]")
        return [dict(zip(given, values)) for values in itertools.product(*given.values())]
    if isinstance(given, list) and given and all(isinstance(one, dict) and one for one in given):
        return given
    raise ForgeError(f"sweep must be {FORMS}")


def label(variant: dict[str, Any]) -> str:
    """A variant in words: «lora_r 16, learning_rate 0.0001»."""
    return ", ".join(f"{key} {recipe.canonical(value).strip(chr(34))}" for key, value in variant.items())


def note(output: pathlib.Path, runs: list[dict[str, Any]]) -> None:
    """Write down which runs are variants of each other, one file an agent: ``sweeps/<agent>-<8 hex>.json``.

    Args:
        output: Where adapters are kept.
        runs: The planned runs, each with its ``variant``.
    """
    for agent in dict.fromkeys(run["agent"] for run in runs):
        mine = [
            {"run_id": run["run_id"], "variant": run["variant"], "label": label(run["variant"])}  # in the user's order
            for run in runs
            if run["agent"] == agent
        ]
        mark = hashlib.sha256(recipe.canonical(sorted(one["run_id"] for one in mine)).encode()).hexdigest()[:8]
        path = output / FOLDER / f"{agent}-{mark}.json"
        known = rundir.read_json(path)
        if known.get("runs") != mine:
            path.parent.mkdir(parents=True, exist_ok=True)
            rundir.write_json(path, {"name": path.stem, "agent": agent, "runs": mine, "made_at": round(time.time(), 3)})


def noted(output: pathlib.Path, agents: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The sweeps that were noted, newest first; a damaged file is passed over.

    Args:
        output: Where adapters are kept.
        agents: Only theirs; empty for all.
    """
    found = [rundir.read_json(path) | {"name": path.stem} for path in (output / FOLDER).glob("*.json")]
    whole = [one for one in found if one.get("agent") in (agents or recipe.AGENTS) and _is_whole(one.get("runs"))]
    return sorted(whole, key=lambda one: (one.get("made_at") or 0, one["name"]), reverse=True)


def _is_whole(runs: Any) -> bool:
    return (
        isinstance(runs, list)
        and bool(runs)
        and all(
            isinstance(run, dict) and isinstance(run.get("run_id"), str) and isinstance(run.get("variant"), dict)
            for run in runs
        )
    )


def words(output: pathlib.Path, agents: Iterable[str] = ()) -> list[str]:
    """The leader boards, for what stands under the table of all runs.

    Args:
        output: Where adapters are kept.
        agents: Only theirs; empty for the newest one of each.
    """
    lines = []
    sweeps = noted(output, agents)
    if not agents:
        sweeps = list({one["agent"]: one for one in reversed(sweeps)}.values())[::-1]
    for one in sweeps:
        rows = board(output, one)
        there = sum(not row["why"] or row["eval_loss"] is not None for row in rows)
        lines.append(f"    sweep {one['name']}: {there} of {len(rows)} verified")
        lines += [f"      {row['place']}. eval {row['eval_loss']:.4g}  {row['label']}  {row['run_id']}"
                  for row in rows[:SHOWN] if row["place"]]  # fmt: skip
    return lines


def boards(output: pathlib.Path, runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The leader board of each agent whose planned runs are variants, see :func:`board`."""
    varied = [run for run in runs if run.get("variant")]
    return {
        agent: board(output, {"agent": agent, "runs": [run for run in varied if run["agent"] == agent]})
        for agent in dict.fromkeys(run["agent"] for run in varied)
    }


def cells(row: dict[str, Any]) -> list[Any]:
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
        summary.duration(row["seconds"]) if row["seconds"] is not None else "–",
        f"${row['usd']:.2f}" if row["usd"] else "–",
    ]


def board(output: pathlib.Path, sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The leader board of a sweep: best eval loss first, then what cannot be compared with it, then what is not there.

    Args:
        output: Where adapters are kept.
        sweep: From :func:`noted`.

    Returns:
        {place (from 1; None where it cannot be compared or is not verified), label, run_id, eval_loss, loss, steps,
        seconds, usd, promoted, why (there is no place)} for each run.
    """
    home = output / "adapters" / sweep["agent"]
    promoted = summary.points_to(home / promotion.LATEST)
    rows = []
    for one in sweep["runs"]:
        manifest = adapter.read_manifest(home / one["run_id"])
        found = promotion.evaluation_of(manifest) if manifest else {}
        rows.append({
            "place": None,
            "label": one.get("label") or label(one["variant"]),
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
