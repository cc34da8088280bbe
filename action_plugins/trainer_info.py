"""Ask a trainer for its runs. One that does not answer is an answer too."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """``trainer_info``: calls the module of the same name; C(silent) says why it could not."""

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        try:
            answer = self._execute_module("trainer_info", self._task.args, task_vars=task_vars)
        except AnsibleError as error:  # no connection, no sudo
            answer = {"failed": True, "msg": str(error)}
        if answer.get("failed"):  # no Python, no rights: what is there is not known either
            # A module that broke before it could answer leaves its reason on standard error. One that could answer
            # hands over an exception, which ansible-core 2.19 made an object with a message.
            message = getattr(getattr(answer.get("exception"), "event", None), "msg", None)
            reasons = [str(text or "").strip() for text in (answer.get("module_stderr"), message, answer.get("msg"))]
            reason = next(filter(None, reasons), "no answer")
            return result | {"changed": False, "silent": reason.splitlines()[-1]}
        return result | answer
