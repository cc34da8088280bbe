"""Fail because something failed before: with all that the failed task returned, or with what is noted of runs."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402


class ActionModule(ForgeAction):
    """``fail_again``: library/actions/fail_again.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Fail, or not."""
        if "failure" in args:
            return {"changed": False, "msg": "it failed", **args["failure"], "failed": True}
        if "failures" in args:
            words = "\n".join(dict.fromkeys(str(one["msg"]) for one in args["failures"]))
            failed = {"failed": True, "failures": args["failures"], "msg": words} if words else {}
            return {"changed": False, **failed}
        output, refusals = pathlib.Path(args["output"]), args.get("refusals") or {}
        runs = list(map(PlannedRun.from_dict, args["runs"]))
        records = [(run, read_record(output, run.run_id)) for run in runs]
        problems = {run.run_id: record.failure([self.host], run.planned_at) for run, record in records}
        message = "\n".join(filter(None, problems.values()))
        if not message:
            return {"changed": False}
        # No machine would do better, and this one holds nothing: what was not refused is delivered, and trains no more.
        done = all(run.run_id in refusals or record.is_delivered(run.planned_at) for run, record in records)
        return {"changed": False, "failed": True, "msg": message, **({"configuration": True} if done else {})}
