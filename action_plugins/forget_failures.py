"""Forget what went wrong with runs on this host: another attempt tells for itself."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402


class ActionModule(ActionBase):
    """``forget_failures``: C(runs), the planned runs, and C(output), the controller's folder."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        output, host = pathlib.Path(self._task.args["output"]), (task_vars or {})["inventory_hostname"]
        for run in map(PlannedRun.from_dict, self._task.args["runs"]):
            note(output, run, lambda record, now: record.without_failures(host), self._task.check_mode)
        return result | {"changed": False}
