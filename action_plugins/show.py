"""Print a table or a few lines for people; ``debug`` would be hidden with the ok lines."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402


class ActionModule(ActionBase):
    """``show``: C(columns) and C(rows) make a table, C(lines) follow it, C(warnings) come last, marked.

    C(screen) clears a terminal first; elsewhere it does nothing.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = {name: value for name, value in self._task.args.items() if value}
        show(**args | {"screen": boolean(args.get("screen") or False)})
        return result | {"changed": False}
