"""Tell which environments of a trainer no lock of this checkout names, and remove them where that is wanted."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.planning.provisioning import environment_names  # noqa: E402


class ActionModule(ActionBase):
    """``environment_prune``: calls the module of the same name; C(named) comes from this checkout's locks."""

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        asked = {
            "host": (task_vars or {})["inventory_hostname"],
            "named": environment_names(ROOT),
            **self._task.args,
        }
        return result | self._execute_module("environment_prune", asked, task_vars=task_vars)
