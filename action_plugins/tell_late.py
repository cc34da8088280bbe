"""Tell a webhook of a delivered run what nobody told it: the command that delivered the run died before it could."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.controller.notify import notify  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402


class ActionModule(ForgeAction):
    """``tell_late``: library/actions/tell_late.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Tell each event, unless another command did meanwhile."""
        run = PlannedRun.from_dict(args["run"])
        for event, detail in {} if self._task.check_mode else args["events"].items():
            notify(event, run, detail, args["notify"], args["progress"], since=0.0)
        return {"changed": False}
