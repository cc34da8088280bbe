"""Verify a finished run's adapter where it was trained, bring it here, verify it again, deliver and promote it."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.adapters import store  # noqa: E402
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.controller.notify import notify  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError, error_message  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch, provisioning  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import INCOMING, leftovers  # noqa: E402
from ansible.module_utils.lora_forge.planning.turns import run_files  # noqa: E402
from ansible.module_utils.lora_forge.results import summary  # noqa: E402

load_actions("transfer", "lora_adapter")


class ActionModule(ForgeAction):
    """``collect_adapter``: library/actions/collect_adapter.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Collect it, and note what came of that. Of two commands one collects, and the other one waits for it."""
        run, output = PlannedRun.from_dict(args["run"]), pathlib.Path(args["output"])
        tell(f"  {self.host}: verifying the adapter of {run.name}", host=self.host, stage="Collect", passing=True)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(run_files(output, run.run_id, partial(tell, host=self.host)))
            except UserError as error:  # that this command gave up waiting is no failure of the run: nobody is told
                return {"failed": True, "refused": True, "msg": str(error)}
            except OSError as error:
                return {"failed": True, "msg": error_message(error)}
            try:
                answer = self.collect(run, args)
            except AnsibleConnectionFailure as error:  # «unreachable» would not be noted as a failure
                message = transfer.connection_error(self.host, str(error))
                answer = {"failed": True, "msg": message, "step": "fetch", "problems": []}
            self.conclude(run, args, answer)
        return answer

    def collect(self, run: PlannedRun, args: dict[str, Any]) -> dict[str, Any]:
        """Prove, fetch and deliver it, unless another command has delivered it; the first step that fails answers."""
        output = pathlib.Path(args["output"])
        there = store.integrity_error(output / "adapters" / run.agent / run.run_id, hashes=True) is None
        facts = {} if there else self.fetch(run, args)
        if facts.get("failed"):
            return facts
        made = self.deliver(run, args, facts)
        if made.get("failed"):
            return made | {"step": "deliver", "problems": facts.get("problems", [])}
        if there:
            tell(f"  {run.name}  was delivered by another command", host=self.host, run=run.name, ends=True)
        else:
            steps = args["observed"]["progress"]
            empty = f"{facts['untrained']} reached by no gradient" if facts["untrained"] else "none empty"
            proven = f"{facts['modules']} LoRA modules, r {facts['rank']}, all finite, {empty}"
            outcome = f"  {run.name}  verified: {proven}; {steps['step']} of {steps['planned']} steps"
            tell(outcome, host=self.host, run=run.name, ends=True)
        return made | {"step": "deliver", "problems": []}

    def fetch(self, run: PlannedRun, args: dict[str, Any]) -> dict[str, Any]:
        """Prove it where it was trained, and bring it here; return what the proof says, or a failure."""
        output = pathlib.Path(args["output"])
        run_dir, base_model = launch.run_dir(run, args["root"]), launch.base_model_path(run, args["root"])
        asked = {"run_dir": run_dir, "recipe": {**run.recipe, "base_model": base_model}}
        now = provisioning.environment_python(args["root"], self.lock(args))  # it has numpy
        python = run.launched.python or now
        facts = self.run_module("lora_adapter_info", asked, python=python)
        if facts.get("failed") and python != now:  # the environment of then may have been pruned since
            again = self.run_module("lora_adapter_info", asked, python=now)
            facts = facts if again.get("failed") else again
        if facts.get("failed"):
            return facts | {"step": "verify", "problems": []}
        try:
            files = store.checked_files(facts["files"]) if facts["files"] else []
        except UserError as error:
            return {"failed": True, "msg": str(error), "step": "verify", "problems": []}
        facts |= {"files": files}
        if files and not self.is_local:
            names = [{"path": one["path"], "bytes": one["bytes"]} for one in files]
            incoming = output / INCOMING / run.run_id
            fetch = {"from": run_dir, "files": names, "to": str(incoming), **args["transfer"]}
            tell(f"  {self.host}: fetching the adapter of {run.name}", host=self.host, passing=True)
            for path in store.drop_damaged(incoming, files):
                tell(f"  {run.name}  {path} was damaged on its way here, and is fetched anew", host=self.host)
            fetched = self.run_action("transfer", fetch)
            if fetched.get("failed"):
                return fetched | {"step": "fetch", "problems": []}
        return facts

    def lock(self, args: dict[str, Any]) -> pathlib.Path:
        """Return the lock of the trainer's environment, as the inventory and this checkout have it now."""
        return provisioning.lock_path(ROOT, args["lock"])

    @property
    def is_local(self) -> bool:
        """Whether the run directory is on the controller itself."""
        return bool(self._connection.transport == "local")

    def deliver(self, run: PlannedRun, args: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Deliver and promote what was fetched."""
        output, gpus = pathlib.Path(args["output"]), args["gpu"].get("gpus") or [{}]
        fetched = launch.run_dir(run, args["root"]) if self.is_local else str(output / INCOMING / run.run_id)
        deliver: dict[str, Any] = {
            "source": fetched,
            "discard": [str(folder) for folder in leftovers(output, run.agent, run.run_id)],
            "adapters": str(output / "adapters"),
            "checkout": str(ROOT),
            "run": args["run"],
            "observed": args["observed"],
            "delivered": facts,
            "base_model": launch.base_model_path(run, args["root"]),
            "host": {"name": self.host, "gpu": gpus[0].get("name"), "driver": args["gpu"].get("driver")},
            "lock_sha256": run.launched.lock_sha256 or store.sha256_file(self.lock(args)),
            "promote": not run.variant,  # of a sweep only the best one, in the end, if that is wanted
            **{
                name: args[name]
                for name in ("budget", "promote_by", "max_regression", "promote_unknown", "judge_url", "judge_model")
                if name in args
            },
        }
        return self.run_action("lora_adapter", deliver)

    def conclude(self, run: PlannedRun, args: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note the outcome, and notify."""
        output, progress = pathlib.Path(args["output"]), args["observed"]["progress"]
        if not answer.get("failed"):
            note(output, run, lambda record, now: dataclasses.replace(record, delivered_at=now))
            told = summary.delivered_text(answer["promoted"], answer["message"])
            notify("finished", run, told, args["notify"], progress, since=run.planned_at)
            if answer["waits"]:  # once, whatever command delivers it again
                notify("decision", run, answer["waits"], args["notify"], progress, since=0.0)
        elif answer["problems"]:  # the trainer only knows that the run came to its end
            leader, why = run.hosts[0], answer["msg"]
            before, after = note(output, run, lambda record, now: record.ended("failed", leader, now, why))
            notify("failed", run, why, args["notify"], progress, silent=before == after)
        elif answer["step"] == "deliver":
            notify("failed", run, answer["msg"], args["notify"], progress, since=run.planned_at)
