#!/usr/bin/python
"""Evaluate delivered adapters by the answers that are known."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter_evaluation
short_description: Check what delivered adapters answered to their agents' cases
description:
  - Runs on the controller, and asks nobody. Checks the answers that are kept, writes evaluation.jsonl beside each
    adapter and its merit into manifest.json, and tells what they say.
  - A run that is delivered, and on which the gate has not decided, is decided on. For one that it has decided on it is
    told what it would say now; C(latest) stays. An adapter that is held against another one than the promoted one is
    compared, and nothing is written.
options:
  detached:
    description: Whether evaluations were meant to go on unwatched, so that nothing that was launched is missing yet.
    type: bool
    default: false
  promote:
    description: Whether the gate decides again on what it has decided on before.
    type: bool
    default: false
attributes:
  check_mode:
    description: Checks the answers, writes nothing, and leaves the gate out.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.output
  - lora_forge.runs
  - lora_forge.checkout
  - lora_forge.gate
  - lora_forge.judge
"""

EXAMPLES = r"""
- name: Evaluate
  lora_adapter_evaluation:
    output: output
    checkout: .
    runs: "{{ run_plan_made.runs }}"
"""

RETURN = r"""
adapters:
  description: Of each adapter that was evaluated its merit, as its manifest has it.
  returned: success
  type: list
  elements: dict
  sample: [{merit: {cases: 40, unanswered: 0}, run_id: witness-c6746a504464}]
not_evaluated:
  description: The runs of which the adapters could not be evaluated.
  returned: success
  type: list
  elements: str
  sample: []
show:
  description: What its action prints, as lines.
  returned: success
  type: dict
  sample: {lines: ["witness-c6746a504464 (latest)", "  cases  31 of 40 (62 to 88 %)"]}
"""

import contextlib
import dataclasses
import pathlib
from typing import Any, Callable, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge.adapters import merit, promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Merit
from ansible.module_utils.lora_forge.errors import UserError, error_message, report_errors
from ansible.module_utils.lora_forge.evaluation.judge import Judge
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import questions
from ansible.module_utils.lora_forge.planning.run_record import read_record
from ansible.module_utils.lora_forge.planning.turns import run_files
from ansible.module_utils.lora_forge.results import summary

ARGUMENTS = {
    "output": {"type": "path", "required": True},
    "checkout": {"type": "path", "required": True},
    "runs": {"type": "list", "elements": "dict", "required": True},
    "detached": {"type": "bool", "default": False},
    "promote": {"type": "bool", "default": False},
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
    """
    output = pathlib.Path(given["output"])
    judge = questions.judge_of(given, output, say)  # one for all: where it does not answer it is asked no more
    lines: list[str] = []
    warnings: list[str] = []
    not_evaluated: list[str] = []
    adapters: list[dict[str, Any]] = []
    changed = False
    for run in map(PlannedRun.from_dict, given["runs"]):
        record = read_record(output, run.run_id)
        if run.state != "ready" and not record.is_delivered(run.planned_at):
            if check_mode:
                lines.append(f"{run.evaluates} would be asked for {run.estimate.steps} answers on {run.trainer}")
            elif given["detached"] and summary.is_under_way(run, record):
                lines.append(f"{run.evaluates} answers on {run.trainer}; the same command without detach watches it")
            else:
                lines += summary.not_ready_lines(run, record, "evaluated")
                not_evaluated.append(run.evaluates)
            continue
        try:
            found, wrote, said = _evaluate(run, given, check_mode, judge)
            lines += said
        except (UserError, OSError) as error:
            found, wrote = None, False
            warnings.append(error_message(error))
        if found is None:
            not_evaluated.append(run.evaluates)
        else:
            adapters.append({"run_id": run.evaluates, "merit": dataclasses.asdict(found)})
        changed = changed or wrote
    return {
        "changed": changed,
        "adapters": adapters,
        "not_evaluated": not_evaluated,
        "show": {"lines": lines, "warnings": warnings},
    }


def _evaluate(
    run: PlannedRun, given: dict[str, Any], check: bool, judge: Judge
) -> tuple[Optional[Merit], bool, list[str]]:
    """Evaluate one adapter; return its merit, whether anything changed, and lines for people."""
    output, checkout = pathlib.Path(given["output"]), pathlib.Path(given["checkout"])
    home = output / "adapters" / run.agent
    with contextlib.nullcontext() if check else run_files(output, run.evaluates):
        manifest = questions.whole_manifest(home / run.evaluates, hashes=False)  # of hundreds that would take minutes
        before = merit.read(home / run.evaluates)
        if not run.against and not check:
            questions.evaluate_delivered(run, checkout, output, judge)
            manifest = store.read_manifest(home / run.evaluates) or manifest
        found = manifest.merit
        if run.against or check:  # nobody is asked in check mode
            found = questions.evaluate(run, manifest, checkout, output, None if check else judge)[1]
        changed = merit.read(home / run.evaluates) != before
    promoted = promotion.points_to(home / promotion.LATEST) == run.evaluates
    lines = [f"{run.evaluates} ({promotion.LATEST})" if promoted else run.evaluates, *summary.merit_lines(found)]
    if found is None:
        return None, changed, lines
    if run.against and not (found.than.cases or found.unloadable):  # of another base model: this run could not ask it
        lines.append(f"  {run.against} has not answered these cases: -e run_id={run.against} asks it")
    if run.against or run.variant or promoted or check:  # the gate goes by what is written
        return found, changed, lines
    moved, said = _decide(home, run, promotion.Gate.of(given), given["promote"])
    return found, changed or moved, [*lines, f"  {said}"]


def _decide(home: pathlib.Path, run: PlannedRun, gate: promotion.Gate, again: bool) -> tuple[bool, str]:
    """Let the gate look at an adapter; return whether latest moves, and a sentence.

    What it has decided on before stays as it is unless that is asked for: by each change of the cases ``latest`` would
    go to and fro by itself.
    """
    known = promotion.is_decided(home, run.evaluates)
    if known and not again:
        if promotion.promote(home, run.evaluates, gate, asked=True, check=True):
            return False, (
                f"the gate would let it pass now, and has decided on it before, so that latest stays: -e promote=true "
                f"has it decide again, or by hand: {promotion.BY_HAND.format(agent=run.agent, run_id=run.evaluates)}"
            )
        return False, promotion.message(home, run.evaluates)
    moved = promotion.promote(home, run.evaluates, gate, asked=again)
    return moved, promotion.outcome(home, run.evaluates, moved, check=False)


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
