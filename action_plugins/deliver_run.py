"""Deliver the next run of a trainer: the one that has ended first, or else one that trains, followed to its end."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import call_action  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402

for also in ("watch", "collect_adapter", "stop_run", "transfer", "lora_adapter"):
    action_loader.get(also, class_only=True)  # once: what a task's process loads is lost with it

RANKS = {"running": 1, "queued": 2, None: 2}  # of runs to wait for: after all that have ended


class ActionModule(ActionBase):
    """``deliver_run``: C(runs), the planned runs, and the options of C(watch) and C(collect_adapter) but for the run.

    Returns collect_adapter's answer, or what the watching ended with; C(run_id), which run that is.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args, host = dict(self._task.args), (task_vars or {})["inventory_hostname"]
        if self._task.check_mode:
            return result | {"changed": False, "skipped": True, "msg": "there is nothing to deliver in check mode"}
        plan = self.choose(args.pop("runs"), host, args, task_vars)
        if plan is None:
            return result | {"changed": False, "skipped": True, "msg": "every run of this trainer is dealt with"}
        about = {"run_id": plan["run_id"]}
        try:
            asked = args | {"run": plan, "run_dir": f"{args['root']}/runs/{plan['run_id']}"}
            return result | self.deliver(asked, task_vars) | about
        except Exception as error:  # whatever it is, it is this run's, and not one of all that the trainer has
            raise AnsibleActionFail(str(error), result=about) from error

    def deliver(self, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        """Watch a run to its end, and collect its adapter; the first one that fails is the answer."""
        seen = call_action(self, "watch", args, task_vars)
        if seen.get("failed"):
            return seen
        return call_action(self, "collect_adapter", args | {"observed": seen}, task_vars)

    def choose(self, plans: list[dict[str, Any]], host: str, args: dict[str, Any], task_vars: Any) -> Any:
        """Choose the next run that this host leads; None where none is left."""
        left = []
        for plan in plans:
            run = PlannedRun.from_dict(plan)
            record = read_record(pathlib.Path(args["output"]), run.run_id)
            over = record.is_delivered(run.planned_at) or record.failure([host], run.planned_at)
            if run.hosts[0] == host and not over:
                left.append(plan)
        if len(left) < 2:
            return left[0] if left else None
        try:
            asked = {"root": args["root"], "stall_timeout": args["stall_timeout"]}
            snapshot = self._execute_module("trainer_info", asked, task_vars=task_vars)
        except AnsibleError:
            snapshot = {}
        states = {run["run_id"]: run["state"] for run in snapshot.get("runs", [])}
        return min(left, key=lambda plan: RANKS.get(states.get(plan["run_id"]), 0))
