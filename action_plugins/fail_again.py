"""Fail because something failed before: with all that the failed task returned, or with what is noted of runs."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import read_record  # noqa: E402


class ActionModule(ActionBase):
    """``fail_again``: C(failure), what a failed task returned, of which ``fail`` would keep the sentence alone; or
    C(runs), planned runs, and C(output), the controller's folder: it fails if any of these runs failed on this host.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars) | {"changed": False}
        args, host = self._task.args, (task_vars or {})["inventory_hostname"]
        if "failure" in args:
            return result | {"msg": "it failed", **args["failure"], "failed": True}
        output = pathlib.Path(args["output"])
        runs = map(PlannedRun.from_dict, args["runs"])
        problems = [read_record(output, run.run_id).failure([host], run.planned_at) for run in runs]
        message = "\n".join(filter(None, problems))
        return result | ({"failed": True, "msg": message} if message else {})
