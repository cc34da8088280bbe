"""Stop a run with a checkpoint, note it, and bring that checkpoint here where checkpoints are fetched."""

from __future__ import annotations

import pathlib
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.checkpoints import fetch_checkpoint  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.launch import run_dir  # noqa: E402
from ansible.module_utils.lora_forge.trainer import saved  # noqa: E402

load_actions("transfer")


class ActionModule(ForgeAction):
    """``stop_run``: library/actions/stop_run.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Take the steps; return the answer of the first one that fails, or of the last."""
        run, output, check = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"]), self._task.check_mode
        folder = run_dir(run, args["root"])
        asked = {"run_dir": folder, "state": "stopped", "stop_timeout": args["stop_timeout"]}
        stopped = self.run_module("training_run", asked)
        if stopped.get("failed"):
            return stopped
        if stopped["changed"]:
            leader = run.hosts[0]
            note(output, run, lambda record, now: record.ended("stopped", leader, now), check)
        observed = self.run_module("training_run_info", {"run_dir": folder})
        if observed.get("failed"):
            return observed
        if observed["state"] == "stopped" and not stopped["changed"]:  # by a command that died before it noted that
            note(output, run, lambda record, now: record.ended("stopped", run.hosts[0], now), check)
        checkpoint, kept = observed["checkpoint"], output / "runs" / run.run_id
        if args["pull"] and checkpoint["step"] > 0 and not check:
            fetch_checkpoint(self, run, checkpoint, folder, kept, args["transfer"])
        late = observed["state"] == "finished"  # it had come to its end before it could be stopped
        word, how = ("finished", "playbooks/collect.yml collects") if late else ("stopped", "train.yml resumes")
        goes_on = "playbooks/evaluate.yml goes on" if run.evaluates else f"{how} it"
        if run.by_notes and not (late or run.evaluates):
            goes_on += ", with the recipe and data that it was launched with"
        told = f"{word}; {goes_on}" if stopped["changed"] else "does not run"
        show(lines=[f"  {run.run_id} {told}"], host=self.host)
        is_kept = not args["pull"] or saved.newest_checkpoint(kept)["step"] >= checkpoint["step"]
        return {"changed": stopped["changed"], "checkpoint": checkpoint, "kept": is_kept}
