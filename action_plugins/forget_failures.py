"""Forget what went wrong with runs on this host: another attempt tells for itself."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402


class ActionModule(ForgeAction):
    """``forget_failures``: library/actions/forget_failures.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Change their records."""
        output, check = pathlib.Path(args["output"]), self._task.check_mode
        for run in map(PlannedRun.from_dict, args["runs"]):
            note(output, run, lambda record, now: record.without_failures(self.host), check)
        return {"changed": False}
