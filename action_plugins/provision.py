"""Bring what a trainer needs of this checkout, make its environment, and say so."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.module_utils.parsing.convert_bool import boolean

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.provisioning import (  # noqa: E402
    Provision,
    environment_news,
    environment_python,
    lock_path,
)

load_actions("transfer")


class ActionModule(ForgeAction):
    """``provision``: library/actions/provision.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Bring files, and make the environment."""
        given = args["trainer"]
        wanted = Provision(
            checkout=ROOT,
            runs=tuple(PlannedRun.from_dict(run) for run in given["runs"]),
            python_download=boolean(given["python_download"]),
            **{name: given[name] for name in ("root", "lock", "uv", "python", "torch_backend")},
        )
        python = environment_python(wanted.root, lock_path(ROOT, wanted.lock))
        answer = {"changed": False, "python": python, "models": wanted.models, "gpu": wanted.gpu}
        if boolean(args.get("bring", True)):
            tell(f"  {self.host}: bringing the locks", host=self.host, passing=True)
            files = {"files": wanted.files, "to": wanted.root, **given["transfer"]}
            brought = self.run_action("transfer", files)
            if brought.get("failed"):
                return brought
            answer["changed"] = brought["changed"]
        if boolean(args.get("make", True)):
            tell(
                f"  {self.host}: checking the environment; making it takes a minute or two",
                host=self.host,
                passing=True,
            )
            made = self.run_module("trainer_environment", wanted.environment)
            if made.get("failed"):
                return made
            if made["changed"] and not self._task.check_mode:
                show(**environment_news(self.host, wanted.lock, made), host=self.host)
            answer["changed"] = answer["changed"] or made["changed"]
        return answer
