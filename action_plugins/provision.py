"""Bring what a trainer needs of this checkout, make its environment, and say so."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import call_action  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.provisioning import Provision, environment_news  # noqa: E402

action_loader.get("transfer", class_only=True)  # once: what a task's process loads is lost with it


class ActionModule(ActionBase):
    """``provision``: C(trainer), what it is to get, as ``provisioning.Provision`` takes it: C(root), C(lock), C(runs),
    C(uv), C(python), C(python_download), C(torch_backend); and in it C(transfer), how files go over.

    With C(make=false) no environment is made, with C(bring=false) nothing is brought: other steps can come between.
    Returns C(python), the environment's, and C(models), the base models that the runs need.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args, host = self._task.args, (task_vars or {})["inventory_hostname"]
        given = args["trainer"]
        wanted = Provision(
            checkout=ROOT,
            runs=tuple(PlannedRun.from_dict(run) for run in given["runs"]),
            python_download=boolean(given["python_download"]),
            **{name: given[name] for name in ("root", "lock", "uv", "python", "torch_backend")},
        )
        answer = {"changed": False, "python": wanted.environment_python, "models": wanted.models}
        if boolean(args.get("bring", True)):
            files = {"files": wanted.files, "to": wanted.root, **given["transfer"]}
            brought = call_action(self, "transfer", files, task_vars)
            if brought.get("failed"):
                return result | brought
            answer["changed"] = brought["changed"]
        if boolean(args.get("make", True)):
            made = self._execute_module("trainer_environment", wanted.environment, task_vars=task_vars)
            if made.get("failed"):
                return result | made
            if made["changed"] and not self._task.check_mode:
                show(**environment_news(host, wanted.lock, made))
            answer["changed"] = answer["changed"] or made["changed"]
        return result | answer
