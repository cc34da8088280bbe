#!/usr/bin/python
"""Deliver a finished run's adapter."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lora_adapter
short_description: Bring a verified adapter into output/adapters and let latest point to it
description:
  - Runs on the controller. Compares every file with the trainer's SHA-256, verifies the adapter again, writes
    manifest.json and renames the whole into place. Nothing half-made is ever seen there.
  - C(latest) moves only to a verified run whose eval loss is not worse than the promoted one's by more than
    O(max_regression), where the two can be compared. A rehearsal holds it only while there is no real adapter.
  - Every decision is a line in history.jsonl beside C(latest). A run is decided on once.
  - One at a time delivers a run. Whoever comes second waits, and finds it delivered.
options:
  source:
    description: The run directory, or a copy of it, on the controller.
    type: path
    required: true
  checkout:
    description: The checkout that trained it; its version and its commit stand in the manifest.
    type: path
    required: true
  observed:
    description: What training_run_info said of it.
    type: dict
    required: true
  delivered:
    description: What lora_adapter_info said of it on the trainer. Empty where it is delivered already.
    type: dict
    default: {}
  base_model:
    description: What the trainer loaded as base model.
    type: str
    required: true
  host:
    description: The trainer, for the manifest.
    type: dict
    default: {}
  lock_sha256:
    description: SHA-256 of the trainer's lock file, for the manifest.
    type: str
    default: ''
  promote:
    description: Whether latest may move at all; a sweep's runs leave it alone.
    type: bool
    default: true
  discard:
    description: Folders that are removed once it is delivered, such as what was fetched on the way.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    description: Predicts the delivery.
extends_documentation_fragment:
  - lora_forge
  - lora_forge.run
  - lora_forge.adapters
  - lora_forge.budget
  - lora_forge.gate
  - lora_forge.judge
"""

EXAMPLES = r"""
- name: Deliver an adapter
  lora_adapter:
    source: "{{ trainer_root }}/runs/{{ run_plan.run_id }}"
    adapters: output/adapters
    checkout: .
    run: "{{ run_plan }}"
    observed: "{{ run_seen }}"
    delivered: "{{ adapter_made }}"
    base_model: /workspace/lora-forge/models/tiny-random-qwen3-0c1d
"""

RETURN = r"""
path:
  description: The delivered folder.
  returned: success
  type: str
  sample: output/adapters/witness/witness-c6746a504464
promoted:
  description: Whether latest points to it.
  returned: success
  type: bool
  sample: true
message:
  description: Why latest does not point to it, or what could not be compared; empty where nothing is to be said.
  returned: success
  type: str
  sample: not comparable with witness-c6746a504464 (another evaluation set)
waits:
  description: What somebody has to know who decides on it, scores and the command; empty where nobody has to.
  returned: success
  type: str
  sample: ''
manifest:
  description: The manifest.
  returned: success
  type: dict
  sample: {verdict: verified}
"""

import pathlib
import shutil
import time
from functools import partial
from typing import Any, Callable

import numpy  # noqa: F401 - what verifying needs, loaded once for all adapters
import safetensors  # noqa: F401
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lora_forge import rundir
from ansible.module_utils.lora_forge.adapters import promotion, store
from ansible.module_utils.lora_forge.adapters.manifest import Host
from ansible.module_utils.lora_forge.errors import UserError, error_message, report_errors
from ansible.module_utils.lora_forge.planned_run import PlannedRun
from ansible.module_utils.lora_forge.planning import questions
from ansible.module_utils.lora_forge.planning.turns import run_files
from ansible.module_utils.lora_forge.pods import claims, costs
from ansible.module_utils.lora_forge.pods.claims import Claims
from ansible.module_utils.lora_forge.results import summary
from ansible.module_utils.lora_forge.trainer.run_state import gpu_hours
from ansible.module_utils.lora_forge.version import git_facts

ARGUMENTS = {
    "source": {"type": "path", "required": True},
    "adapters": {"type": "path", "required": True},
    "checkout": {"type": "path", "required": True},
    "run": {"type": "dict", "required": True},
    "observed": {"type": "dict", "required": True},
    "delivered": {"type": "dict", "default": {}},
    "base_model": {"type": "str", "required": True},
    "host": {"type": "dict", "default": {}},
    "budget": {"type": "dict", "default": {}},
    "lock_sha256": {"type": "str", "default": ""},
    "promote_by": {"type": "str", "default": "score", "choices": list(promotion.BY)},
    "max_regression": {"type": "float", "default": 0.02},
    "promote_unknown": {"type": "str", "default": "keep", "choices": list(promotion.UNKNOWN)},
    "judge_url": {"type": "str", "default": ""},
    "judge_model": {"type": "str", "default": ""},
    "promote": {"type": "bool", "default": True},
    "discard": {"type": "list", "elements": "path", "default": []},
}
TELLS = True  # answer() takes what tells people what they wait for


def answer(given: dict[str, Any], check_mode: bool, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Return what the module returns.

    Args:
        given: Its options.
        check_mode: Whether nothing may be written.
        say: Tells people what they wait for.

    Raises:
        UserError: The adapter is not verified.
    """
    run = PlannedRun.from_dict(given["run"])
    if check_mode:
        return _answer(given, run, check_mode, say)
    with run_files(pathlib.Path(given["adapters"]).parent, run.run_id, say):
        return _answer(given, run, check_mode, say)


def _answer(given: dict[str, Any], run: PlannedRun, check_mode: bool, say: Callable[[str], None]) -> dict[str, Any]:
    observation, verification = given["observed"], given["delivered"]
    run_id, home = run.run_id, pathlib.Path(given["adapters"]) / run.agent
    whole = store.integrity_error(home / run_id, hashes=True) is None
    problems = [] if whole else store.run_problems(observation) + verification.get("problems", ["nobody looked at it"])
    if problems:
        raise UserError(
            f"{run_id} is not verified: {'; '.join(problems)}. Nothing was promoted; -e fresh=true trains again"
        )
    if check_mode:
        return {
            "changed": not whole,
            "path": str(home / run_id),
            "promoted": False,
            "message": "",
            "waits": "",
            "manifest": {},
        }
    if not whole:
        budget = costs.Budget.from_dict(given["budget"]) if given["budget"] else None
        ordered = Claims(pathlib.Path(budget.claim).parents[1]).list_all() if budget else []
        left = claims.undelivered_costs(ordered, home.parent, time.time())
        usd = sum(usd for runs, usd in left if run_id in runs)
        manifest = store.make_manifest(
            run,
            observation,
            verification,
            base_model=given["base_model"],
            host=Host.from_dict(given["host"]),
            lock_sha256=given["lock_sha256"],
            evaluation=promotion.evaluation(run.recipe, run.datasets, observation["progress"]["eval_adapter"]),
            cost=costs.usd_spent(
                budget, usd, gpu_hours(observation.get("facts") or {}, observation.get("status") or {})
            ),
            git=git_facts(pathlib.Path(given["checkout"])),
        )
        source, replacing = pathlib.Path(given["source"]), partial(promotion.replacing, home, run_id)
        store.deliver(source, home, verification["files"], manifest, replacing)
    for folder in given["discard"]:
        shutil.rmtree(folder, ignore_errors=True)  # a copy; what stays of it is in nobody's way
    refused, evaluated = _evaluate(given, run, home, say)
    moved = evaluated and given["promote"] and promotion.promote(home, run_id, promotion.Gate.of(given))
    made, said = store.read_manifest(home / run_id), promotion.message(home, run_id)
    return {
        "changed": moved or not whole,
        "path": str(home / run_id),
        "promoted": promotion.points_to(home / promotion.LATEST) == run_id,
        "waits": summary.decision_text(made, said) if made and promotion.waits(home, run_id) else "",
        "message": ". ".join(filter(None, [said, *refused])),
        "manifest": rundir.read_json(home / run_id / store.MANIFEST),
    }


def _evaluate(
    given: dict[str, Any], run: PlannedRun, home: pathlib.Path, say: Callable[[str], None]
) -> tuple[list[str], bool]:
    """Evaluate what is delivered; return sentences for people, and whether the gate can decide now.

    What is wrong with the cases costs no adapter: they may have been changed since the run was planned. The gate
    decides once, so that it has to wait until they can be read: the next command has it decide.
    """
    judge, said = questions.judge_of(given, home.parents[1], say), list[str]()
    try:
        for _ in range(3):  # a judge takes minutes, in which another run may be promoted
            held = promotion.points_to(home / promotion.LATEST)
            said += questions.evaluate_delivered(run, pathlib.Path(given["checkout"]), home.parents[1], judge)
            if promotion.points_to(home / promotion.LATEST) == held:
                break
    except (UserError, OSError) as error:
        return [summary.not_evaluated_text(run, error_message(error))], False
    return said, True


def main() -> None:
    module = AnsibleModule(ARGUMENTS, supports_check_mode=True)
    with report_errors(module):
        module.exit_json(**answer(module.params, module.check_mode))


if __name__ == "__main__":
    main()
