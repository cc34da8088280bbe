"""Tell which environments of a trainer no lock of this checkout names, and remove them where that is wanted."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.planning.provisioning import environment_names  # noqa: E402

load_actions()


class ActionModule(ForgeAction):
    """``environment_prune``: calls the module of the same name, C(named) by this checkout's locks."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Run the module."""
        return self.run_module("environment_prune", {"host": self.host, "named": environment_names(ROOT), **args})
