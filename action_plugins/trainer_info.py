"""Ask a trainer for its runs. One that does not answer, or not as it should, is an answer too."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure, AnsibleError

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller import ssh_words  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.text import shown  # noqa: E402

load_actions()

LONGEST = 300  # letters of why it is silent
_ANSWERED = "its answer to trainer_info "  # how answers.py begins, too


class ActionModule(ForgeAction):
    """``trainer_info``: calls the module of the same name; C(silent) says why it could not."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Ask it."""
        try:
            answer = self.run_module("trainer_info", args)
            if not answer.get("failed"):
                return answer
            why = answer["msg"].removeprefix(f"{self.host}: ")
            why = why if why.startswith((_ANSWERED, f"{self.host} ")) else f"{_ANSWERED}is an error: {why}"
        except AnsibleError as error:  # no connection, no sudo
            words = str(error)
            explained = words.startswith(f"{self.host} ") or not isinstance(error, AnsibleConnectionFailure)
            why = words if explained else ssh_words.reason(words)
        # No Python, no rights: what is there is not known either. What a program printed has its reason at the end.
        lines = why.strip().removeprefix(f"{self.host}: ").splitlines() or ["nobody knows why"]
        if len(lines) > 1 and lines[0].startswith(f"{self.host} "):  # what it is, and what to do
            return {"changed": False, "silent": shown(f"{lines[0].rstrip('.:')}. {lines[-1]}", LONGEST)}
        return {"changed": False, "silent": shown(": ".join(dict.fromkeys([lines[0], lines[-1]])), LONGEST)}
