"""Have a pod, and show how far it is. Losing this process harms nothing: the claim on disk knows what was ordered."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()


class ActionModule(ActionBase):
    """``runpod_pod``: calls the module of the same name until the pod is ready, with a line for each change."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args, said, changed = self._task.args, "", False
        while True:
            found = self._execute_module("runpod_pod", {**args, "since": said}, task_vars=task_vars)
            changed = changed or found.get("changed", False)
            for words in found.get("done", []):
                display.display(f"  {args['host']}: {words}")
            if found.get("failed") and self._task.check_mode:  # what ends the plan ends it for every host
                found["msg"] = f"{found.get('msg')}\nNothing was ordered, and nothing was started on any other host"
            if found.get("failed") or found.get("phase") not in ("waiting", "ordering", "booting"):
                return result | found | {"changed": changed}
            if found["word"] != said:
                said = found["word"]
                display.display(f"  {args['host']}: {found['phase']}: {said}")
