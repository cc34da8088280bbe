"""Deliver the next run of a trainer: the one that has ended first, or else one that trains, followed to its end."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleError

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402

load_actions("watch", "collect_adapter", "collect_answers", "stop_run", "transfer", "lora_adapter")

RANKS = {"running": 1, "queued": 2, "unknown": 2, None: 2}  # of runs to wait for: after all that have ended


class ActionModule(ForgeAction):
    """``deliver_run``: library/actions/deliver_run.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Choose a run, watch it to its end, and collect its adapter."""
        if self._task.check_mode:
            return {"changed": False, "skipped": True, "msg": "there is nothing to deliver in check mode"}
        plans, wanted = args.pop("runs"), None
        while True:
            left = self.left(plans, args)
            plan = next((one for one in left if one["run_id"] == wanted), None) or self.choose(left, args)
            if plan is None:
                return {"changed": False, "skipped": True, "msg": "every run of this trainer is dealt with"}
            others = [one for one in left if one is not plan]
            # A pod's costs are watched all the time.
            awaited = [] if args.get("budget") else [one["run_id"] for one in others]
            about = {"run_id": plan["run_id"]}
            try:
                asked = args | {"run": plan, "others": others, "awaited": awaited}
                answer = self.deliver(asked, bool(plan.get("evaluates")))
            except Exception as error:  # whatever it is, it is this run's, and not one of all that the trainer has
                return {"failed": True, "msg": str(error) or type(error).__name__} | about
            if "first" not in answer:
                return answer | about
            wanted = answer["first"]

    def deliver(self, args: dict[str, Any], asks: bool) -> dict[str, Any]:
        """Watch a run to its end, and collect its adapter, or its answers; the first one that fails is the answer.

        So is that of a watch that ended as another run has ended first.
        """
        seen = self.run_action("watch", args)
        if seen.get("failed") or "first" in seen:
            return seen
        if asks:
            return self.run_action("collect_answers", args)
        return self.run_action("collect_adapter", args | {"observed": seen})

    def left(self, plans: list[dict[str, Any]], args: dict[str, Any]) -> list[dict[str, Any]]:
        """List the runs that this host leads and that are not dealt with."""
        left = []
        for plan in plans:
            run = PlannedRun.from_dict(plan)
            record = read_record(pathlib.Path(args["output"]), run.run_id)
            over = record.is_delivered(run.planned_at) or record.failure([self.host], run.planned_at)
            if run.hosts[0] == self.host and not over:
                left.append(plan)
        return left

    def choose(self, left: list[dict[str, Any]], args: dict[str, Any]) -> Any:
        """Choose one of these runs; None where none is left."""
        if len(left) < 2:
            return left[0] if left else None
        try:
            snapshot = self.run_module("trainer_info", {name: args[name] for name in ("root", "stall_timeout")})
        except AnsibleError:
            snapshot = {}
        states = {run["run_id"]: run["state"] for run in snapshot.get("runs", [])}
        return min(left, key=lambda plan: RANKS.get(states.get(plan["run_id"]), 0))
