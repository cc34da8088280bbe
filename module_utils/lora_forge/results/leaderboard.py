"""The leader board of a sweep: the variants of one recipe, by eval loss."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, Optional

from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Evaluation, Figure, Manifest
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import variants
from ansible.module_utils.lora_forge.planning.agents import FOLDER
from ansible.module_utils.lora_forge.text import duration

COLUMNS = ["place", "variant", "run", "eval loss", "loss", "steps", "time", "cost"]
NOTHING = "–"
_SHOWN = 5  # places that are told of below the table of all runs


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a run of a sweep stands.

    Attributes:
        place: From 1; None where it cannot be compared, or is not verified.
        label: What is varied in it, in words.
        run_id: Its name.
        eval_loss: The adapter's; None where it is not finite, or there is none.
        loss: The training's last one.
        steps: That it reached.
        seconds: That it took.
        usd: That it cost.
        promoted: Whether ``latest`` points to it.
        why: There is no place; empty where there is one.
    """

    place: Optional[int]
    label: str
    run_id: str
    eval_loss: Optional[float]
    loss: Figure
    steps: Optional[int]
    seconds: Optional[float]
    usd: Optional[float]
    promoted: bool
    why: str


def summary_lines(output: pathlib.Path, known: Collection[str], agents: Collection[str] = ()) -> list[str]:
    """Sum up the leader boards, for what stands under the table of all runs.

    Args:
        output: Where adapters are kept.
        known: The agents of the checkout.
        agents: Only theirs; empty for the newest one of each.
    """
    lines = []
    sweeps = variants.read_sweeps(output, agents)
    if not agents:
        sweeps = list({sweep["agent"]: sweep for sweep in reversed(sweeps)}.values())[::-1]
    for sweep in sweeps:
        board = noted_leaderboard(output, sweep)
        verified = sum(not row.why or row.eval_loss is not None for row in board)
        gone = "" if sweep["agent"] in known else f"; there is no {FOLDER}/{sweep['agent']}.yml any more"
        lines.append(f"    sweep {sweep['name']}: {verified} of {len(board)} verified{gone}")
        lines += [f"      {row.place}. eval {row.eval_loss:.4g}  {row.label}  {row.run_id}"
                  for row in board[:_SHOWN] if row.place]  # fmt: skip
    return lines


def noted_leaderboard(output: pathlib.Path, sweep: dict[str, Any]) -> list[Standing]:
    """Make the :func:`leaderboard` of a sweep that was noted: of ``variants.read_sweeps``."""
    labels = [(run["run_id"], run.get("label") or variants.variant_label(run["variant"])) for run in sweep["runs"]]
    return leaderboard(output, sweep["agent"], labels)


def planned_leaderboards(output: pathlib.Path, runs: Sequence[PlannedRun]) -> dict[str, list[Standing]]:
    """Make the :func:`leaderboard` of each agent whose planned runs are variants."""
    labels: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        if run.variant:
            labels.setdefault(run.agent, []).append((run.run_id, variants.variant_label(run.variant)))
    return {agent: leaderboard(output, agent, mine) for agent, mine in labels.items()}


def table_row(row: Standing) -> list[Any]:
    """Lay out a row of the table with :data:`COLUMNS`."""

    def figure(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, (int, float)) else NOTHING

    return [
        row.place or NOTHING,
        row.label,
        row.run_id + (" *" if row.promoted else ""),
        figure(row.eval_loss) if row.place else row.why,
        figure(row.loss),
        row.steps or NOTHING,
        duration(row.seconds) if row.seconds is not None else NOTHING,
        f"${row.usd:.2f}" if row.usd else NOTHING,
    ]


def leaderboard(output: pathlib.Path, agent: str, labels: Sequence[tuple[str, str]]) -> list[Standing]:
    """Rank runs: best eval loss first, then what cannot be compared with it, then what is not there.

    Args:
        output: Where adapters are kept.
        agent: Whose runs.
        labels: Each run's id, and what is varied in it, in words.
    """
    home = output / "adapters" / agent
    promoted = promotion.points_to(home / promotion.LATEST)
    rows: list[tuple[Standing, Evaluation]] = []
    for run_id, label in labels:
        manifest = store.read_manifest(home / run_id)
        known = manifest or Manifest()
        evaluation = promotion.evaluation_of(manifest) if manifest else Evaluation()
        row = Standing(
            place=None,
            label=label,
            run_id=run_id,
            eval_loss=evaluation.eval_loss,
            loss=known.loss.last,
            steps=known.steps.reached,
            seconds=known.duration_s,
            usd=known.cost.usd,
            promoted=promoted == run_id,
            why="" if manifest else "not verified",
        )
        rows.append((row, evaluation))
    rows.sort(key=lambda pair: (pair[0].why, math.inf if pair[0].eval_loss is None else pair[0].eval_loss))
    finite = [evaluation for row, evaluation in rows if row.eval_loss is not None]

    def comparable(evaluation: Evaluation) -> int:
        return sum(not promotion.difference(evaluation, other) for other in finite)

    best = max(finite, key=comparable, default=None)  # the best of those that can be compared with the most others
    placed: list[Standing] = []
    others: list[Standing] = []
    for row, evaluation in rows:
        differs = promotion.difference(evaluation, best) if best else "no finite eval loss"
        if row.why:
            others.append(row)
        elif differs:
            others.append(dataclasses.replace(row, why=f"not comparable: {differs}"))
        else:
            placed.append(dataclasses.replace(row, place=len(placed) + 1))
    return placed + others
