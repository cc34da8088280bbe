"""Have a pod, and show how far it is. Losing this process harms nothing: the claim on disk knows what was ordered."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


class ActionModule(ActionBase):
    """``runpod_pod``: calls the module of the same name until the pod is ready, with a line for each change.

    A pod that is there, or would be, is told with what it costs.
    """

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args, told, changed = self._task.args, "", False
        while True:
            answer = self._execute_module("runpod_pod", {**args, "since": told}, task_vars=task_vars)
            changed = changed or answer.get("changed", False)
            for note in answer.get("notes", []):
                display.display(f"  {args['host']}: {note}")
            if answer.get("failed") and self._task.check_mode:  # a failed plan ends the command for every host
                answer["msg"] = f"{answer.get('msg')}\nNothing was ordered, and nothing was started on any other host"
            if answer.get("failed") or answer.get("phase") not in ("waiting", "ordering", "booting"):
                if answer.get("message") and args.get("state", "present") == "present":
                    display.display(f"  {answer['message']}")
                return result | answer | {"changed": changed}
            if answer["message"] != told:
                told = answer["message"]
                display.display(f"  {args['host']}: {answer['phase']}: {told}")
