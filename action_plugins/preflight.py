"""Hold the recipes of a trainer's runs against their base models, before the weights are there."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller import preflight  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.provisioning import (  # noqa: E402
    PREFLIGHT,
    environment_python,
    lock_path,
)

load_actions()


class ActionModule(ForgeAction):
    """``preflight``: library/actions/preflight.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Ask the trainer; fail where none of its runs can begin."""
        runs = list(map(PlannedRun.from_dict, args["runs"]))
        # What is evaluated has been trained, and was held against its base model then.
        asked = [run for run in runs if not run.rehearsal and not run.evaluates]
        if not asked or self._task.check_mode:
            return {"changed": False, "refusals": {}}
        root = args["root"]
        options = {
            "python": environment_python(root, lock_path(ROOT, args["lock"])),
            "program": f"{root}/{PREFLIGHT}/preflight.py",
            "home": f"{root}/models/hub",
            "runs": preflight.questions(asked, root, [name for name in args.get("gpus") or [] if name]),
        }
        tell(preflight.waiting(self.host, asked), host=self.host, passing=True)
        answer = retry_until_connected(
            lambda: self.run_module("recipe_check", options),
            AnsibleConnectionFailure,
            float(args["unreachable_timeout"]),
            lambda message: tell(f"  {self.host}: {message}", host=self.host),
        )
        if answer.get("failed"):
            return answer
        found = preflight.conclude(self.host, runs, answer)
        if found["all"]:
            # Another machine would refuse them as well: a pod is released, and no other one is ordered.
            message = "\n".join(dict.fromkeys(found["refusals"].values()))
            return {"failed": True, "configuration": True, "msg": message, "refusals": found["refusals"]}
        show(lines=found["lines"], warnings=found["warnings"], host=self.host)
        return {"changed": answer["changed"], "refusals": found["refusals"]}
