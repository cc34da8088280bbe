"""Stop a run with a checkpoint, note it, and bring that checkpoint here where checkpoints are fetched."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.checkpoints import fetch_checkpoint  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.trainer import runs  # noqa: E402

action_loader.get("transfer", class_only=True)  # once: what a task's process loads is lost with it


class ActionModule(ActionBase):
    """``stop_run``: C(run), the planned run; C(run_dir); C(output), the controller's folder; C(stop_timeout); C(pull),
    whether its checkpoint is fetched; C(transfer), how files come over.

    Returns C(changed); C(checkpoint), the newest whole one there; and C(kept), whether nothing of it would be lost with
    the trainer.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        return result | self.stop(self._task.args, task_vars)

    def stop(self, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        """Take the steps; return the answer of the first one that fails, or of the last."""
        run, output, check = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"]), self._task.check_mode
        asked = {"run_dir": args["run_dir"], "state": "stopped", "stop_timeout": args["stop_timeout"]}
        stopped = self._execute_module("training_run", asked, task_vars=task_vars)
        if stopped.get("failed"):
            return stopped
        if stopped["changed"]:
            leader = run.hosts[0]
            note(output, run, lambda record, now: record.ended("stopped", leader, now), check)
        observed = self._execute_module("training_run_info", {"run_dir": args["run_dir"]}, task_vars=task_vars)
        if observed.get("failed"):
            return observed
        checkpoint, kept = observed["checkpoint"], output / "runs" / run.run_id
        if args["pull"] and checkpoint["step"] > 0 and not check:
            fetch_checkpoint(self, run.agent, checkpoint, args["run_dir"], kept, args["transfer"], task_vars)
        show(lines=[f"  {run.run_id} {'stopped; train.yml resumes it' if stopped['changed'] else 'does not run'}"])
        is_kept = not args["pull"] or runs.newest_checkpoint(kept)["step"] >= checkpoint["step"]
        return {"changed": stopped["changed"], "checkpoint": checkpoint, "kept": is_kept}
