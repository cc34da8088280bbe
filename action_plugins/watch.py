"""Show a run's progress until it is final. Losing this process, or the connection, harms nothing."""

from __future__ import annotations

import pathlib
import time
from functools import partial
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from ansible.utils.display import Display

# The path in ansible.cfg serves modules only; a plugin has to name it.
ansible.module_utils.__path__.append(str(pathlib.Path(__file__).resolve().parents[1] / "module_utils"))
from ansible.module_utils.lora_forge import rundir  # noqa: E402
from ansible.module_utils.lora_forge.controller.actions import call_action  # noqa: E402
from ansible.module_utils.lora_forge.controller.retry import retry_until_connected  # noqa: E402
from ansible.module_utils.lora_forge.pods import costs  # noqa: E402
from ansible.module_utils.lora_forge.text import duration, short  # noqa: E402
from ansible.module_utils.lora_forge.trainer import run_state, runs  # noqa: E402

display = Display()
action_loader.get("run_placement", class_only=True)  # here once: what a task's process loads is lost with it

WAIT = 30  # seconds the trainer blocks for news; one round trip in that time
FINAL = ("finished", "failed", "stopped", "absent")
MEASURED = 3  # steps after which a pace counts as measured: the first ones warm up


def line(agent: str, event: dict[str, Any], eta: float | None) -> str:
    """One line of progress.

    Args:
        agent: Whose.
        event: A log or eval event; an eval's loss stands in its own column.
        eta: Seconds to go, for the newest event.
    """
    step, planned = event["step"], event["planned"]
    width = len(str(planned))
    parts = [f"  {agent}  step {step:>{width}}/{planned} {step / max(planned, 1):4.0%}"]
    for key, name in (("loss", "loss"), ("eval_loss", "eval")):
        if event.get(key) is not None:
            figure = event[key]
            parts.append(f"{name} {figure:.4g}" if isinstance(figure, (int, float)) else f"{name} {figure}")
    if event.get("tokens_per_second"):
        parts.append(f"{short(event['tokens_per_second'])} tok/s")
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    return "  ".join(parts)


class ActionModule(ActionBase):
    """``watch``: C(agent), C(run_dir), C(stall_timeout), C(unreachable_timeout), and C(placement), the arguments of
    run_placement with which the end is noted; returns training_run_info's answer, and in C(noted) whether that was new.

    On a pod also C(since), the C(token) of an earlier answer to go on from; C(kept), the folder of what was fetched of
    the run, and C(passed), the step of a checkpoint that would not come: with a later one it returns that in C(pull),
    and C(again) where the run goes on; and C(budget): it returns when the pod would come to cost too much, with
    C(breach), and renews the pod's leash within the caps. A connection that stays lost is the state C(unreachable), and
    a failure.
    """

    TRANSFERS_FILES = False
    doubted = False  # whether it was told that the losses will not do

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        args = self._task.args
        if self._task.check_mode:
            return result | {"changed": False, "skipped": True, "msg": "there is nothing to watch in check mode"}
        kept = runs.newest_checkpoint(pathlib.Path(args["kept"]))["step"] if args.get("kept") else None
        seen = self.follow(args, kept, task_vars)
        newest = seen.get("checkpoint", {"step": 0})
        if kept is not None and newest["step"] > kept and seen["state"] != "finished":
            seen["pull"] = newest
        if seen.get("state") in rundir.FINAL_STATES:
            noted = call_action(self, "run_placement", {**args["placement"], "state": seen["state"]}, task_vars)
            # What cannot be noted is told all the same.
            seen["noted"] = noted.get("changed", False) or noted.get("failed", False)
        return result | seen

    def follow(self, args: dict[str, Any], kept: int | None, task_vars: Any) -> dict[str, Any]:
        """Watch until there is something to do; what is known then.

        Args:
            args: The task's.
            kept: The step of the checkpoint that is on the controller; None where none is fetched.
            task_vars: The task's.
        """
        agent, since, said = args["agent"], args.get("since") or "", ""
        budget = dict(args.get("budget") or {})
        while True:
            asked = {
                "run_dir": args["run_dir"],
                "since": since,
                "wait": WAIT if since else 0,
                "stall_timeout": args["stall_timeout"],
            }
            try:
                seen = retry_until_connected(
                    partial(self._execute_module, "training_run_info", asked, task_vars=task_vars),
                    AnsibleConnectionFailure,
                    float(args["unreachable_timeout"]),
                    lambda words: display.display(f"  {agent}  {words}"),
                )
            except AnsibleConnectionFailure as error:
                words = f"no connection for {duration(float(args['unreachable_timeout']))}: {error}"
                advice = "What runs there goes on; the same command attaches to it."
                return {"failed": True, "state": "unreachable", "msg": f"{words}\n{advice}"}
            if seen.get("failed"):
                return seen
            said = self.tell(agent, seen, since, said)
            since = seen["token"]
            del seen["events"]
            if seen["state"] == "finished":
                return seen | {"changed": False}
            if seen["state"] in FINAL or seen["state"] == "stalled":
                return seen | {"failed": True, "msg": self.trouble(args, seen), "changed": False}
            eta = seen["eta_seconds"] if seen["progress"]["measured"] >= MEASURED else None
            breach = costs.budget_breach(budget, time.time(), eta) if budget else ""
            if breach:
                return seen | {"failed": True, "breach": breach, "msg": breach}
            self.renew(agent, budget, eta, task_vars)
            if kept is not None and seen["checkpoint"]["step"] > max(kept, int(args.get("passed") or 0)):
                return seen | {"changed": False, "again": True}

    def renew(self, agent: str, budget: dict[str, Any], eta: float | None, task_vars: Any) -> None:
        """Lengthen the pod's leash where the measured pace asks for it and the caps allow it."""
        deadline = costs.renewed_deadline(budget, time.time(), eta) if budget else None
        if deadline is None:
            return
        asked = {"root": budget["root"], "pod": budget["pod"], "deadline": deadline}
        try:
            answer = self._execute_module("pod_leash", asked, task_vars=task_vars)
        except AnsibleConnectionFailure:
            return  # the next round tries again
        if not answer.get("failed"):
            budget["deadline"] = deadline
            claim = pathlib.Path(budget["claim"])
            rundir.write_json(claim, {**rundir.read_json(claim), "deadline": deadline})
            until = time.strftime("%H:%M", time.localtime(deadline))
            display.display(f"  {agent}  the pod's leash is renewed to {until}")

    def tell(self, agent: str, seen: dict[str, Any], since: str, said: str) -> str:
        """Print what is new; returns the last state that was told."""
        if seen["detail"] != said and seen["state"] in ("queued", "stalled", "running"):
            if seen["detail"]:
                display.display(f"  {agent}  {seen['state']}: {seen['detail']}")
            said = seen["detail"]
        if seen["state"] == "running" and not since and not seen["events"]:
            display.display(f"  {agent}  started; Axolotl takes about half a minute until its first step")
        doubt = run_state.loss_warning(run_state.Progress.from_dict(seen["progress"]))
        if doubt and not self.doubted:
            display.display(f"  {agent}  {doubt}")
        self.doubted = bool(doubt)
        shown = [event for event in seen["events"] if event["event"] in ("log", "eval")]
        if not since:
            shown = shown[-3:]  # attached to a run that has a history
        for number, event in enumerate(shown, 1):
            display.display(line(agent, event, seen["eta_seconds"] if number == len(shown) else None))
        for event in seen["events"]:
            if event["event"] == "begin" and event.get("step"):
                display.display(f"  {agent}  resumed from step {event['step']}")
            elif event["event"] == "wandb" and event.get("wanted", event.get("mode")) != event.get("mode"):
                what = "the run is recorded offline" if event["mode"] == "offline" else "nothing is recorded"
                display.display(f"  {agent}  W&B could not be had at the start: {what}; train.log says why")
        return said

    def trouble(self, args: Any, seen: dict[str, Any]) -> str:
        run_id = str(args["run_dir"]).rpartition("/")[2]
        state, detail = seen["state"], seen["detail"]
        log = f"{args['run_dir']}/train.log"
        advice = {
            "stalled": f"Look at {log}; stop it with playbooks/stop.yml, then the same command resumes it.",
            "stopped": "The same command resumes it.",
            "failed": f"Look at {log} on the trainer. When the cause is gone, the same command resumes it.",
            "absent": "The same command starts it again.",
        }
        if "configuration" in detail:
            advice["failed"] = "Correct the recipe; starting it again unchanged would end the same way."
        return f"{run_id} is {state}: {detail}\n{advice.get(state, '')}"
