"""Print a table or a few lines for people; ``debug`` would be hidden with the ok lines."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402


class ActionModule(ForgeAction):
    """``show``: library/actions/show.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Print it."""
        given = {name: value for name, value in args.items() if value}
        show(**given, host=self.host)
        return {"changed": False, "show": given}
