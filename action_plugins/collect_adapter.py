"""Verify a finished run's adapter where it was trained, bring it here, verify it again, deliver and promote it."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import call_action  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch  # noqa: E402

display = Display()
# What is called is loaded here, once: what a task's process loads is lost with it.
for also in ("transfer", "lora_adapter"):
    action_loader.get(also, class_only=True)


class ActionModule(ActionBase):
    """``collect_adapter``: C(plan), the run's plan; C(observed), how it ended; C(run_dir), C(root), C(output), C(lock);
    C(gpu) and C(driver) of the trainer; C(budget), C(max_regression) and C(promote), as lora_adapter takes them; and
    C(transfer), how files come over.

    Returns lora_adapter's answer with C(problems), what is wrong with the adapter where it was trained, and C(step),
    how far it came: verify, fetch or deliver.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.host = (task_vars or {})["inventory_hostname"]
        try:
            return result | self.collect(self._task.args, task_vars)
        except AnsibleConnectionFailure as error:  # «unreachable» would pass by whoever notes failures
            flaw = transfer.connection_error(self.host, str(error))
            return result | {"failed": True, "msg": flaw, "step": "fetch", "problems": []}

    def collect(self, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        """The steps; the first one that fails is the answer."""
        run, observed, output = args["plan"], args["observed"], pathlib.Path(args["output"])
        base_model = launch.base_model_path(PlannedRun.from_dict(run), args["root"])
        asked = {"run_dir": args["run_dir"], "recipe": {**run["recipe"], "base_model": base_model}}
        facts = self._execute_module("lora_adapter_info", asked, task_vars=task_vars)
        if facts.get("failed"):
            return facts | {"step": "verify", "problems": []}
        local = self._connection.transport == "local"
        incoming = output / "incoming" / run["run_id"]
        if facts["files"] and not local:
            names = [one["path"] for one in facts["files"]]
            fetch = {"from": args["run_dir"], "files": names, "to": str(incoming), **args["transfer"]}
            fetched = call_action(self, "transfer", fetch, task_vars)
            if fetched.get("failed"):
                return fetched | {"step": "fetch", "problems": []}
        deliver = {
            "source": args["run_dir"] if local else str(incoming),
            "discard": [*([] if local else [str(incoming)]), str(output / "runs" / run["run_id"])],
            "adapters": str(output / "adapters"),
            "checkout": str(ROOT),
            "run": run,
            "observed": observed,
            "delivered": facts,
            "base_model": base_model,
            "host": {"name": self.host, "gpu": args["gpu"] or None, "driver": args["driver"] or None},
            "lock_sha256": hashlib.sha256(pathlib.Path(args["lock"]).read_bytes()).hexdigest(),
            **{name: args[name] for name in ("budget", "max_regression", "promote")},
        }
        made = call_action(self, "lora_adapter", deliver, task_vars)
        if not made.get("failed"):
            steps = observed["progress"]
            proven = f"{facts['pairs']} LoRA pairs, r {facts['rank']}, all finite, none empty"
            display.display(f"  {run['name']}  verified: {proven}; {steps['step']} of {steps['planned']} steps")
        return made | {"step": "deliver", "problems": facts["problems"]}
