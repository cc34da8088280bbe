"""Look at a trainer. One that does not answer is an answer too."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """``trainer_info``: calls the module of the same name; C(silent) says why it could not."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        try:
            found = self._execute_module("trainer_info", self._task.args, task_vars=task_vars)
        except AnsibleError as error:  # no connection, no sudo
            found = {"failed": True, "msg": str(error)}
        if found.get("failed"):  # no Python, no rights: what is there is not known either
            told = [str(found.get(key) or "").strip().splitlines() for key in ("msg", "module_stderr", "exception")]
            return result | {"changed": False, "silent": next((lines[-1] for lines in told if lines), "no answer")}
        return result | found
