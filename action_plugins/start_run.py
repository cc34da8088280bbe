"""Start a run on its trainer, or attach to it: ask what is there, stage what is missing, start the supervisor."""

from __future__ import annotations

import pathlib
import shlex
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from ansible.template import trust_as_template
from ansible.utils.display import Display

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge.controller import transfer  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import call_action  # noqa: E402
from ansible.module_utils.lora_forge.planned_run import PlannedRun  # noqa: E402
from ansible.module_utils.lora_forge.planning import launch  # noqa: E402
from ansible.module_utils.lora_forge.planning.run_record import RunRecord, read_record, update_record  # noqa: E402
from ansible.module_utils.lora_forge.trainer import run_state, runs  # noqa: E402

display = Display()
# What is called is loaded here, once: what a task's process loads is lost with it.
action_loader.get("transfer", class_only=True)  # here once: what a task's process loads is lost with it


class ActionModule(ActionBase):
    """``start_run``: C(plan), the run's plan; C(run_dir), C(root), C(output), C(checkout); C(kept), the folder of what
    was fetched of it from an earlier trainer; C(transfer), how files go over.

    As ``launch`` takes them: C(lanes), C(gpus), C(python), C(module), C(address), C(leader), C(port), C(timeout),
    C(wandb), C(wandb_server). As training_run takes them: C(secrets), C(lane_dir), C(backend), C(stop_timeout).

    Whatever is alive or finished is left alone. A run of a gang is not started where another host has failed in this
    command, and stopped again where one fails meanwhile. Returns C(changed), and C(state), what was there before.
    """

    TRANSFERS_FILES = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.host = (task_vars or {})["inventory_hostname"]
        try:
            return result | self.start(self._task.args, task_vars)
        except AnsibleConnectionFailure as error:  # «unreachable» would pass by whoever notes failures
            return result | {"failed": True, "msg": transfer.connection_error(self.host, str(error))}

    def start(self, args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
        """The steps; the first one that fails is the answer."""
        run, root, dry = args["plan"], args["root"], self._task.check_mode
        planned, output = PlannedRun.from_dict(run), pathlib.Path(args["output"])
        others = [host for host in planned.hosts if host != self.host]
        record = read_record(output, planned.run_id)
        if record.is_delivered(planned.planned_at):  # by an earlier attempt on a pod
            return {"changed": False, "state": "finished"}
        found = self._execute_module("training_run_info", {"run_dir": args["run_dir"]}, task_vars=task_vars)
        if found.get("failed"):
            return found
        before = {"changed": False, "state": found["state"]}
        if found["state"] in run_state.LIVING:
            display.display(f"  {self.host}: {run['run_id']} is {found['state']} already; attached to it")
        if found["state"] in (*run_state.LIVING, "finished"):
            self.note(planned, output, started=False)
            return before
        refused = record.failure(others, planned.planned_at)
        if refused:
            return {"failed": True, "refused": True, "msg": f"{run['run_id']} is not started: {refused}"}
        kept, checkout = pathlib.Path(args["kept"]), pathlib.Path(args["checkout"])
        fetched = runs.newest_checkpoint(kept)
        goes = [*fetched["files"], "metrics.jsonl"] if fetched["step"] > found["checkpoint"]["step"] else []
        staged = {
            "files": launch.input_files(run, checkout, self.axolotl(args, checkout), kept, goes),
            "to": root,
            **args["transfer"],
        }
        sent = call_action(self, "transfer", staged, task_vars)
        if sent.get("failed"):
            return sent
        if run["rehearsal"] and not dry:
            flaw = self.make_tiny_model(args)
            if flaw:
                return {"failed": True, "msg": f"the rehearsal's model could not be made on {self.host}: {flaw}"}
        hosts = run.get("hosts") or [self.host]
        leader, number = hosts[0], run.get("lane", 0)
        update_record(output, planned.run_id, lambda record, now: record.launched(leader, number, now), dry)
        named = args["lanes"].split(",") if isinstance(args["lanes"], str) else args["lanes"]
        lane = launch.lane_name(run, [one for one in named if one], args["gpus"])
        meet = {"address": args["address"], "leader": args["leader"], "port": int(args["port"])}
        wait = int(args["timeout"])
        command = launch.training_command(run, self.host, args["python"], args["module"], timeout=wait, **meet)
        asked = {
            "run_dir": args["run_dir"],
            "command": command,
            "lane": lane,
            "backend": args["backend"],
            "environment": launch.training_environment(lane, root, args["wandb"], args["wandb_server"]),
            "secrets": args["secrets"],
            "processes": len(hosts) * run.get("gpus", 1),
            "prepared": launch.prepared_path(run, root),
            "stop_timeout": args["stop_timeout"],
            "facts": launch.run_facts(run, self.host) | {"hosts": hosts},
            **({"lane_dir": args["lane_dir"]} if args["lane_dir"] else {}),
        }
        started = self._execute_module("training_run", asked, task_vars=task_vars)
        if started.get("failed"):
            return started
        if started["changed"] and not dry:
            how = f"({started['backend']}; look: {started['look']}); {started['word']}"
            display.display(f"  {self.host}: {run['run_id']} started {how}")
        if dry:
            return before | {"changed": started["changed"]}
        # All hosts of a gang train, or none. Who fails from now on finds this noted, and stops it here.
        record = self.note(planned, output, started=started["changed"])
        refused = record.failure(others, planned.planned_at) if started["changed"] else ""
        if refused:
            stop = {"run_dir": args["run_dir"], "state": "stopped", "stop_timeout": args["stop_timeout"]}
            self._execute_module("training_run", stop, task_vars=task_vars)
            why = f"{planned.run_id} is stopped again, as {', '.join(others)} cannot take part: {refused}"
            return {"failed": True, "refused": True, "msg": why}
        return before | {"changed": started["changed"]}

    def note(self, run: PlannedRun, output: pathlib.Path, started: bool) -> RunRecord:
        """Note that it was launched on this host, or attached to; returns the record."""
        change = partial(RunRecord.on_host, host=self.host, started=started)
        check = self._task.check_mode
        return update_record(output, run.run_id, lambda record, now: change(record, now=now), check)[1]

    def axolotl(self, args: dict[str, Any], checkout: pathlib.Path) -> str:
        """The text of axolotl.yml."""
        template = (checkout / "templates/axolotl.yml.j2").read_text(encoding="utf-8")
        # Its own variables alone: for each expression Ansible walks over all that there are.
        variables = launch.template_variables(args["plan"], args["root"], args["wandb"])
        return self._templar.copy_with_new_env(available_variables=variables).template(trust_as_template(template))

    def make_tiny_model(self, args: dict[str, Any]) -> str:
        """Make the rehearsal's model unless it is there; returns what went wrong, or nothing."""
        run, root = args["plan"], args["root"]
        model = launch.base_model_path(run, root)
        words = [args["python"], f"{root}/{launch.TINY_MODEL}", model]
        words += [launch.dataset_path(root, one) for one in run["datasets"]]
        made = self._low_level_execute_command(
            f"test -e {shlex.quote(model)}/config.json || {shlex.join(map(str, words))}"
        )
        if made["rc"] == 0:
            return ""
        return (made["stdout"] or made["stderr"]).strip()[-2000:]  # over ssh errors are output, too
