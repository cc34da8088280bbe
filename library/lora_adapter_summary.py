#!/usr/bin/python
"""Sum up which adapters are ready."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter_summary
short_description: Sum up for people which of the planned adapters are ready
description:
  - Reads manifests, and the records of runs, on the controller and words what there is, what it took, and what to do
    next.
  - A run that is ready, and on which the gate has not decided, as the command that delivered it died, is decided on.
    What else that command has left is removed, and what it has not told a webhook is returned.
  - With O(promote_best) the gate looks at the best run of a sweep, as M(lora_adapter_promotion) has it.
options:
  detached:
    description: Whether the trainings were meant to go on unwatched, so that nothing that was launched is missing yet.
    type: bool
    default: false
  promote_best:
    description: Whether latest moves to the best run of a sweep, where the gate lets it.
    type: bool
    default: false
attributes:
  check_mode:
    description: Predicts whether latest would move. In check mode nothing counts as wanted and not verified.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.output
  - lora_forge.runs
  - lora_forge.checkout
  - lora_forge.gate
  - lora_forge.judge
"""

EXAMPLES = r"""
- name: Sum up
  lora_adapter_summary:
    output: output
    runs: "{{ run_plan_made.runs }}"
"""

RETURN = r"""
show:
  description: What its action prints, a sweep's leader board and lines on each adapter, as columns, rows and lines.
  returned: success
  type: dict
  sample: {columns: [], rows: [], lines: ["witness is ready   output/adapters/witness/latest → witness-c6746a504464"]}
best:
  description:
    - Of each agent whose recipe was varied the run with the lowest eval loss that can be compared.
    - As long as one of the variants is not there, it is not known.
  returned: success
  type: list
  elements: dict
  sample: [{agent: witness, run_id: witness-c6746a504464}]
not_verified:
  description: Run ids that were wanted and are not verified.
  returned: success
  type: list
  elements: str
  sample: []
lost:
  description: Those of them of which nobody has noted why, as planned; their trainers were lost on the way.
  returned: success
  type: list
  elements: dict
  sample: []
untold:
  description:
    - What no webhook was told of runs that are ready, since they were launched - that they finished, or that somebody
      has to decide on them. The command that delivered them died before, or nobody had to decide then.
    - For M(tell_late). Empty in check mode.
  returned: success
  type: list
  elements: dict
  sample: []
"""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.errors import UserError, error_message, report_errors
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import questions
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, leftovers, read_record
from ansible.module_utils.lora_forge.planning.turns import run_files
from ansible.module_utils.lora_forge.results import leaderboard, notice, summary

ARGUMENTS = {
    "output": {"type": "path", "required": True},
    "checkout": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "required": True},
    "detached": {"type": "bool", "default": False},
    "promote_best": {"type": "bool", "default": False},
    "promote_by": {"type": "str", "default": "score", "choices": list(promotion.BY)},
    "max_regression": {"type": "float", "default": 0.02},
    "promote_unknown": {"type": "str", "default": "keep", "choices": list(promotion.UNKNOWN)},
    "judge_url": {"type": "str", "default": ""},
    "judge_model": {"type": "str", "default": ""},
}
TELLS = True  # answer() takes what tells people what they wait for


def answer(given: dict[str, Any], check_mode: bool, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.
        say: Tells people what they wait for.

    Raises:
        UserError: The best run of a sweep cannot be promoted.
    """
    output = pathlib.Path(given["output"])
    adapters = output / "adapters"
    runs = [PlannedRun.from_dict(run) for run in given["runs"]]
    judge = questions.judge_of(given, output, say)  # one for all: where it does not answer it is asked no more
    lines: list[str] = []
    warnings: list[str] = []
    changed = False
    not_verified: list[str] = []
    lost: list[dict[str, Any]] = []
    verified: dict[str, tuple[PlannedRun, RunRecord]] = {}
    under_way = 0
    for run in runs:
        home = adapters / run.agent
        record = read_record(output, run.run_id)
        ready = run.state == "ready" or record.is_delivered(run.planned_at)  # a manifest alone may be a damaged one's
        manifest = store.read_manifest(home / run.run_id) if ready else None
        if manifest:
            verified[run.run_id] = (run, record)
            moved, evaluated = False, True
            try:
                if not check_mode:
                    warnings += questions.evaluate_delivered(run, pathlib.Path(given["checkout"]), output, judge, say)
                    before, manifest = manifest.merit, store.read_manifest(home / run.run_id) or manifest
                    changed = changed or manifest.merit != before
            except (UserError, OSError) as error:  # the gate decides once, and waits for it
                evaluated = False
                warnings.append(summary.not_evaluated_text(run, error_message(error)))
            try:
                moved = evaluated and _end(output, run, promotion.Gate.of(given), check_mode)
            except (UserError, OSError) as error:
                warnings.append(error_message(error))
            if not run.variant:  # of the others the leader board tells
                promoted = promotion.points_to(home / promotion.LATEST) == run.run_id
                lines += summary.ready_lines(run, manifest, home, promoted, promotion.message(home, run.run_id))
                lines += [f"  {promotion.outcome(home, run.run_id, moved, check_mode)}"] if moved else []
            changed = changed or moved
        elif check_mode:
            lines.append(f"{run.name} would be trained: {run.run_id} on {run.trainer}")
        elif given["detached"] and summary.is_under_way(run, record):
            under_way += 1
            lines.append(summary.under_way_line(run))
        else:
            lines += summary.not_ready_lines(run, record)
            not_verified.append(run.run_id)
            lost += [] if summary.failure_reason(run, record) else [run.as_dict()]
    lines += summary.tally_lines(runs, not_verified, under_way)
    boards = leaderboard.planned_leaderboards(output, runs)
    best = {
        agent: board.rows[0].run_id
        for agent, board in boards.items()
        if board.rows[0].place and verified.keys() >= {row.run_id for row in board.rows}
    }
    ranking = [f"  {agent}: {said}" for agent, board in boards.items() for said in board.ranking]
    moves = _promote_best(adapters, best, promotion.Gate.of(given), check_mode) if given["promote_best"] else {}
    if given["promote_best"] and not best:
        lines.append("  latest was left alone: not every variant is verified, so the best one is not known")
    return {
        "changed": changed or any(moved for moved, _ in moves.values()),
        "not_verified": not_verified,
        "lost": lost,
        "untold": [] if check_mode else [told for one in verified.values() if (told := _untold(adapters, *one))],
        "best": [{"agent": agent, "run_id": run_id} for agent, run_id in best.items()],
        "show": {
            "columns": leaderboard.COLUMNS if boards else [],
            "rows": [row for board in boards.values() for row in leaderboard.table_rows(board)],
            "lines": ranking + [f"  {message}" for _, message in moves.values()] + lines,
            "warnings": warnings,
        },
    }


def _end(output: pathlib.Path, run: PlannedRun, gate: promotion.Gate, check: bool) -> bool:
    """Do what the command that delivered a run would have done next, had it not died; return whether latest moves."""
    home = output / "adapters" / run.agent
    if store.integrity_error(home / run.run_id):
        return False
    left = [] if check else [folder for folder in leftovers(output, run.agent, run.run_id) if folder.is_dir()]
    if left:
        with contextlib.suppress(UserError), run_files(output, run.run_id, patience=0):  # another command is at it
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)
    moved = [line["run_id"] for line in promotion.history(home) if line["moved"]]
    if promotion.points_to(home / promotion.LATEST) == run.run_id and moved[-1:] == [run.run_id]:
        return False  # as for most of hundreds of agents: no lock, and nothing more to read
    # Of a sweep's runs only the best one, in the end, if that is wanted.
    return not run.variant and promotion.promote(home, run.run_id, gate, check=check)


def _untold(adapters: pathlib.Path, run: PlannedRun, record: RunRecord) -> dict[str, Any]:
    """Return what nobody told a webhook of a run that is ready; empty for most, of which nothing more is read then."""
    home, run_id = adapters / run.agent, run.run_id
    finished, waits = record.owes("finished"), record.owes("decision") and promotion.waits(home, run_id)
    manifest = store.read_manifest(home / run_id) if finished or waits else None
    if manifest is None or store.integrity_error(home / run_id):
        return {}
    said, promoted = promotion.message(home, run_id), promotion.points_to(home / promotion.LATEST) == run_id
    events = {"finished": summary.delivered_text(promoted, said)} if finished else {}
    events |= {"decision": summary.decision_text(manifest, said)} if waits else {}
    trained = dataclasses.replace(run, trainer=record.trainer or run.trainer)
    return {"run": trained.as_dict(), "events": events, "progress": notice.progress_of(manifest)}


def _promote_best(
    adapters: pathlib.Path, best: dict[str, str], gate: promotion.Gate, check: bool
) -> dict[str, tuple[bool, str]]:
    """Let the gate look at the best runs of sweeps; return for each agent whether latest moves, and a message."""
    moves = {}
    for agent, run_id in best.items():
        home = adapters / agent
        moved = promotion.promote(home, run_id, gate, asked=True, check=check)
        moves[agent] = (moved, promotion.outcome(home, run_id, moved, check))
    return moves


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
