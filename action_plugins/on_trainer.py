"""Run a module on a host: the links to this file beside it name the modules that no action of their own runs."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402

load_actions()

NAME = __name__.rpartition(".")[2]


class ActionModule(ForgeAction):
    """Any module with a link to this file: its options and its answer are those of the module."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Run the module."""
        return self.run_module(NAME, args)
