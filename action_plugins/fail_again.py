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
        output = pathlib.Path(args["output"])
        runs = map(PlannedRun.from_dict, args["runs"])
        problems = [read_record(output, run.run_id).failure([self.host], run.planned_at) for run in runs]
        message = "\n".join(filter(None, problems))
        return {"changed": False, **({"failed": True, "msg": message} if message else {})}
