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
            # Of a module that could not say what it died of, its standard error tells most; of one that could, it is an
            # object from ansible-core 2.19 on.
            died = getattr(getattr(found.get("exception"), "event", None), "msg", None)
            words = (found.get("module_stderr"), died, found.get("msg"), found.get("exception"))
            told = [str(one or "").strip().splitlines() for one in words]
            return result | {"changed": False, "silent": next((lines[-1] for lines in told if lines), "no answer")}
        return result | found
