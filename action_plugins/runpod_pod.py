"""Have a pod, and show how far it is. Losing this process harms nothing: the claim on disk knows what was ordered."""

from __future__ import annotations

import multiprocessing
import pathlib
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402


class ActionModule(ActionBase):
    """``runpod_pod``: calls the module of the same name until the pod is ready, with a line for each change.

    A pod that is there, or would be, is told with what it costs.
    """

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args, told, changed = self._task.args, "", False
        claim, command = "", multiprocessing.parent_process()  # whose worker this is, and may outlive it
        controller = rundir.identity(command.pid) if command and command.pid else {}
        while True:
            known = {"claim": claim, "controller": controller}
            asked = {**args, "since": told, **{name: value for name, value in known.items() if value}}
            answer = self._execute_module("runpod_pod", asked, task_vars=task_vars)
            claim = (answer.get("claim") or {}).get("name") or claim
            changed = changed or answer.get("changed", False)
            for note in answer.get("notes", []):
                tell(f"  {args['host']}: {note}", host=args["host"])
            if answer.get("failed") and self._task.check_mode:  # a failed plan ends the command for every host
                answer["msg"] = f"{answer.get('msg')}\nNothing was ordered, and nothing was started on any other host"
            if answer.get("failed") or answer.get("phase") not in ("waiting", "ordering", "booting"):
                if answer.get("message") and args.get("state", "present") == "present":
                    tell(f"  {answer['message']}", host=args["host"])
                return result | answer | {"changed": changed}
            if answer["message"] != told:
                told = answer["message"]
                tell(f"  {args['host']}: {answer['phase']}: {told}", host=args["host"])
