"""Bring the answers of a finished evaluation here, keep them, and clear up where they were given."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import time
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge import paths, rundir  # noqa: E402
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import show, tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError, error_message  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch, questions  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import INCOMING, read_record  # noqa: E402
from ansible.module_utils.lora_forge.planning.turns import run_files  # noqa: E402
from ansible.module_utils.lora_forge.pods import claims, costs  # noqa: E402
from ansible.module_utils.lora_forge.pods.costs import Budget  # noqa: E402

load_actions("transfer")


class ActionModule(ForgeAction):
    """``collect_answers``: library/actions/collect_answers.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Collect them, and note what came of that. Of two commands one collects, and the other one waits for it."""
        run, output = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"])
        try:
            # The adapter's turn: whoever delivers or evaluates it writes into its folder.
            with run_files(output, run.evaluates, partial(tell, host=self.host)):
                return self.collect(run, output, args)
        except AnsibleConnectionFailure as error:  # «unreachable» would not be noted as a failure
            return {"failed": True, "msg": transfer.connection_error(self.host, str(error))}
        except (UserError, OSError) as error:
            return {"failed": True, "msg": error_message(error)}

    def collect(self, run: PlannedRun, output: pathlib.Path, args: dict[str, Any]) -> dict[str, Any]:
        """Fetch the answers, keep them, and delete what was staged for them; the first step that fails answers."""
        if read_record(output, run.run_id).is_delivered(run.planned_at):  # by another command
            return {"changed": False}
        folder, incoming = pathlib.Path(launch.run_dir(run, args["root"])), output / INCOMING / run.run_id
        if self._connection.transport != "local":
            most = paths.ADAPTER[rundir.ANSWERS]
            wanted = {"from": str(folder), "files": [{"path": rundir.ANSWERS, "bytes": most}], "to": str(incoming)}
            fetched = self.run_action("transfer", {**wanted, "max_bytes": most, **args["transfer"]})
            if fetched.get("failed"):
                return fetched
            folder = incoming
        said, missing = questions.take_answers(run, folder / rundir.ANSWERS, ROOT, output)
        show(warnings=[f"{self.host}: {sentence}" for sentence in said], host=self.host)
        shutil.rmtree(incoming, ignore_errors=True)
        why = f"{missing} answers are missing; the same command asks for them again" if missing else ""
        if missing:
            note(output, run, lambda record, now: record.ended("failed", self.host, now, why))
        else:
            if args.get("budget"):
                self.count(run, output, Budget.from_dict(args["budget"]))
            note(output, run, lambda record, now: dataclasses.replace(record, delivered_at=now))
        # Copies of adapters, and what is known here by now; where answers are missing, it begins anew.
        gone = self.run_module("training_run", {"run_dir": launch.run_dir(run, args["root"]), "state": "absent"})
        if gone.get("failed"):
            show(warnings=[f"{self.host}: what was staged for {run.run_id} is left there: {gone['msg']}"])
        return {"failed": True, "msg": f"{run.run_id} on {self.host}: {why}"} if missing else {"changed": True}

    def count(self, run: PlannedRun, output: pathlib.Path, budget: Budget) -> None:
        """Add what the pod has cost to what the adapter has cost."""
        folder = output / "adapters" / run.agent / run.evaluates
        ordered = claims.Claims(pathlib.Path(budget.claim).parents[1]).list_all()
        left = claims.undelivered_costs(ordered, output / "adapters", time.time())
        manifest = store.read_manifest(folder)
        if manifest is not None:
            usd = sum(usd for runs, usd in left if run.run_id in runs)
            manifest = dataclasses.replace(manifest, cost=costs.with_evaluation(manifest.cost, budget, usd))
            rundir.write_json(folder / store.MANIFEST, manifest.as_dict())
