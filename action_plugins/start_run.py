"""Start a run on its trainer, or attach to it: ask what is there, stage what is missing, start the supervisor."""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import shlex
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.template import trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import ForgeAction, load_actions  # noqa: E402
from ansible.module_utils.lora_forge.controller.checkpoints import carried_files  # noqa: E402
from ansible.module_utils.lora_forge.controller.display import tell  # noqa: E402
from ansible.module_utils.lora_forge.controller.notes import note  # noqa: E402
from ansible.module_utils.lora_forge.errors import UserError  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch, provisioning, questions, staging  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record, update_record  # noqa: E402
from ansible.module_utils.lora_forge.planning.turns import run_files  # noqa: E402
from ansible.module_utils.lora_forge.trainer import run_state  # noqa: E402
from ansible.module_utils.lora_forge.trainer.run_state import Observation  # noqa: E402

load_actions("transfer")


class Taken(UserError):
    """Another command has the run, and is no failure of it."""


class ActionModule(ForgeAction):
    """``start_run``: library/actions/start_run.py says what it takes and returns."""

    def act(self, args: dict[str, Any]) -> dict[str, Any]:
        """Start it, or say why not."""
        run = PlannedRun.from_dict(args["run"])
        try:
            return self.start(run, args) | {"run_id": run.run_id, "agent": run.agent}
        except AnsibleConnectionFailure as error:  # «unreachable» would not be noted as a failure
            return {"failed": True, "msg": transfer.connection_error(self.host, str(error))}
        except Taken as error:
            return {"failed": True, "refused": True, "msg": str(error), "run_id": run.run_id, "agent": run.agent}
        except UserError as error:
            return {"failed": True, "msg": str(error)}

    def start(self, run: PlannedRun, args: dict[str, Any]) -> dict[str, Any]:
        """Take the steps; return the answer of the first one that fails, or of the last."""
        python = provisioning.environment_python(args["root"], provisioning.lock_path(ROOT, args["lock"]))
        options, run_dir = launch.TrainerOptions.from_dict(args | {"python": python}), launch.run_dir(run, args["root"])
        output, others = pathlib.Path(args["output"]), [host for host in run.hosts if host != self.host]
        record = read_record(output, run.run_id)
        if record.is_delivered(run.planned_at):  # by an earlier attempt on a pod
            return {"changed": False, "state": "finished"}
        answer = self.run_module("training_run_info", {"run_dir": run_dir})
        if answer.get("failed"):
            return answer
        seen = Observation.from_dict(answer)
        before = {"changed": False, "state": seen.state}
        if seen.state == "unknown":
            return {"failed": True, "msg": f"{run.run_id} is not started; nobody knows whether it runs: {seen.detail}"}
        if seen.state in run_state.LIVING:
            tell(f"  {self.host}: {run.run_id} is {seen.state} already; attached to it", host=self.host)
        if seen.state in (*run_state.LIVING, "finished"):
            self.note(run, output, started=False)
            return before
        unfit = (args.get("refusals") or {}).get(run.run_id)
        if unfit:
            return {"failed": True, "msg": unfit}
        refused = record.failure(others, run.planned_at)
        if refused:
            return {"failed": True, "refused": True, "msg": f"{run.run_id} is not started: {refused}"}
        self.check_place(run, record)
        launch.check_rendezvous(run, options)
        staged = self.stage(run, seen, args, options)
        if staged.get("failed"):
            return staged
        check = self._task.check_mode
        meets = bool(others) or run.nodes > 1
        word = secrets.token_hex(16) if meets else ""

        def place(record: RunRecord, now: float) -> RunRecord:
            self.check_place(run, record)
            return record.launched(run.hosts[0], run.lane, now, rendezvous=word)

        _, record = update_record(output, run.run_id, place, check)
        asked = launch.plan_launch(run, self.host, options).as_dict()
        meeting = {launch.RENDEZVOUS: record.rendezvous} if meets else {}
        theirs = {} if run.evaluates else args["secrets"]  # an evaluation logs nothing at W&B
        asked |= {"run_dir": run_dir, "backend": args["backend"], "secrets": {**theirs, **meeting}}
        started = self.run_module("training_run", asked)
        if started.get("failed"):
            return started
        if check:
            return before | {"changed": started["changed"]}
        if started["changed"]:
            how = f"({started['backend']}; attach: {started['attach_command']})\n    {started['message']}"
            tell(f"  {self.host}: {run.run_id} started {how}", host=self.host, ends=True)
        # All hosts of a gang train, or none. A host that fails from now on finds this noted, and stops the run here.
        record = self.note(run, output, started=started["changed"])
        refused = record.failure(others, run.planned_at) if started["changed"] else ""
        if refused:
            stop = {"run_dir": run_dir, "state": "stopped", "stop_timeout": options.stop_timeout}
            self.run_module("training_run", stop)
            why = f"{run.run_id} is stopped again, as {', '.join(others)} cannot take part: {refused}"
            return {"failed": True, "refused": True, "msg": why}
        return before | {"changed": started["changed"]}

    def check_place(self, run: PlannedRun, record: RunRecord) -> None:
        """Refuse to start a second training: another command may have placed the run elsewhere since this one planned.

        Raises:
            Taken: It has.
        """
        there = record.taken_by(run.hosts[0], run.planned_at)
        if there:
            raise Taken(
                f"{run.run_id} is not started: another command has placed it on {there} meanwhile. Run this one again, "
                "and it attaches to it there"
            )

    def note(self, run: PlannedRun, output: pathlib.Path, started: bool) -> RunRecord:
        """Note that it was launched on this host, or attached to; returns the record."""
        change = partial(RunRecord.on_host, host=self.host, started=started)
        check = self._task.check_mode
        return note(output, run, lambda record, now: change(record, now=now), check)[1]

    def stage(
        self, run: PlannedRun, seen: Observation, args: dict[str, Any], options: launch.TrainerOptions
    ) -> dict[str, Any]:
        """Bring what the run needs, and make a rehearsal's model; return the answer of ``transfer``, or a failure."""
        if run.evaluates and run.rehearsal and (missing := self.missing_model(run, options)):
            return {"failed": True, "msg": missing}
        kept = pathlib.Path(args["output"]) / "runs" / run.run_id  # what was fetched of it from an earlier trainer
        output, check = pathlib.Path(args["output"]), self._task.check_mode
        with contextlib.ExitStack() as held:
            if kept.is_dir() and not check:  # or another command puts a newer checkpoint in its place meanwhile
                held.enter_context(run_files(output, run.run_id, partial(tell, host=self.host)))
            step, carried = carried_files(kept, check)
            goes = carried if step > seen.checkpoint["step"] else []
            if not goes:
                held.close()
            datasets = held.enter_context(self.datasets(run, output))
            files = launch.input_files(run, ROOT, self.axolotl_yml(run, options), kept, goes, datasets)
            base_model = launch.base_model_path(run, options.root)
            if self.host == run.hosts[0]:  # who leads a gang answers
                files += questions.question_files(run, launch.run_dir(run, ".")[2:], ROOT, output, base_model)
            if run.evaluates:
                files += questions.adapter_files(run, launch.run_dir(run, ".")[2:], output)
            sent = self.run_action("transfer", {"files": files, "to": options.root, **args["transfer"]})
        if sent.get("failed") or not run.rehearsal or run.evaluates or check:
            return sent
        model = launch.base_model_path(run, options.root)
        make = shlex.join(launch.tiny_model_command(run, options))
        made = self.run_command(
            f"umask 077; test -e {shlex.quote(model)}/config.json || {make}"  # its tokenizer learnt from the data
        )
        if made["rc"] == 0:
            return sent
        reason = (made["stdout"] or made["stderr"]).strip()[-2000:]  # over ssh errors are output, too
        return {"failed": True, "msg": f"the rehearsal's model could not be made on {self.host}: {reason}"}

    def missing_model(self, run: PlannedRun, options: launch.TrainerOptions) -> str:
        """Say that a rehearsal's model, which is made of its data where it trains, is not here; empty where it is."""
        model = launch.base_model_path(run, options.root)
        if self.run_command(f"test -e {shlex.quote(model)}/config.json")["rc"] == 0:
            return ""
        return (
            f"{run.evaluates} is a rehearsal, and the tiny model that it was rehearsed with is not on {self.host} "
            f"({model}). Evaluate it where it was trained, or rehearse here: -e role={run.agent} -e fresh=true"
        )

    @contextlib.contextmanager
    def datasets(self, run: PlannedRun, output: pathlib.Path) -> Iterator[dict[str, pathlib.Path]]:
        """Have the run's data at hand as it is trained on; check mode leaves nothing of it behind."""
        with contextlib.ExitStack() as kept:
            if self._task.check_mode:
                output = pathlib.Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="lora-forge-")))
            yield kept.enter_context(staging.staged(run.datasets, ROOT, output))

    def axolotl_yml(self, run: PlannedRun, options: launch.TrainerOptions) -> str:
        """Render axolotl.yml."""
        template = (ROOT / "templates/axolotl.yml.j2").read_text(encoding="utf-8")
        # Its own variables alone: for each expression Ansible walks over all that there are.
        variables = launch.template_variables(run, options.root, options.wandb)
        return self._templar.copy_with_new_env(available_variables=variables).template(trust_as_template(template))
