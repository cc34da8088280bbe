"""Note on the controller what went wrong with runs, and tell a webhook. Nothing is asked of the trainer."""

from __future__ import annotations

import pathlib
from functools import partial
from typing import Any

import ansible.module_utils

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller.actions import ForgeAction  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.controller.notify import notify  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record  # noqa: E402


class ActionModule(ForgeAction):
    """``note_failure``: library/actions/note_failure.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Note it of each run."""
        failure, host = args["failure"], args.get("host") or self.host
        each = {one["run_id"]: one for one in failure.get("failures") or ()}
        stop: list[dict[str, str]] = []
        for run in map(PlannedRun.from_dict, args["runs"]):
            if each and run.run_id not in each:
                continue  # it did well
            own = args | {"failure": each.get(run.run_id, failure)}
            record = self.note(run, host, str(own["failure"].get("msg") or "it failed"), own)
            stop += [{"host": other, "run_id": run.run_id} for other in self.waiting(run, record, host, own)]
        message = str(failure.get("msg") or "it failed")
        ends = failure.get("state") == "unreachable" or bool(failure.get("breach"))
        return {"changed": False, "ends": ends, "stop": stop, "msg": message}

    def note(self, run: PlannedRun, host: str, message: str, args: dict[str, Any]) -> RunRecord:
        """Note the failure of one run, and notify; return the record."""
        output, since, check = pathlib.Path(args["notify"]["output"]), run.planned_at, self._task.check_mode
        record = read_record(output, run.run_id)
        if record.is_delivered(since):
            return record
        if not record.failure([host], since):
            refused = bool(args["failure"].get("refused"))
            change = partial(RunRecord.failed_on, host=host, message=message, refused=refused)
            _, record = note(output, run, lambda before, now: change(before, now=now), check)
        # A refused run failed on another host of its gang, and that host notifies.
        if not args["quiet"] and not args["failure"].get("refused") and not check:
            notify("failed", run, record.failure([host], since), args["notify"], since=since)
        return record

    def waiting(self, run: PlannedRun, record: RunRecord, host: str, args: dict[str, Any]) -> list[str]:
        """List the other hosts of a gang on which the run waits for this host in vain."""
        others, since = [other for other in run.hosts if other != host], run.planned_at
        if args["failure"].get("state") == "failed" and not args.get("whole_trainer"):
            return others  # the training itself failed
        if args.get("whole_trainer") and record.hosts_of([host], since, started=True):
            return []  # what was started here goes on: only this command lost the trainer
        return record.hosts_of(others, since, started=True)
